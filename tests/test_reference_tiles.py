"""Old against new: every tile of two seeded surveys against the reference files that are kept with the tests."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from reference_tiles.make_reference_tiles import HERE, SPECS, make_tiles

#: Pixels may differ by so many sigmas of the sky of a tile: the rounding of float32, and of what the match solves.
TOLERANCE_SIGMA = 1e-3


@pytest.fixture(scope="module", params=SPECS)
def tiles(request, tmp_path_factory):
    """The folders of the reference tiles and of those that today's code makes."""
    return HERE / request.param, make_tiles(request.param, tmp_path_factory.mktemp(request.param))


def planes_of(path):
    with fits.open(path) as hdus:
        wcs = WCS(hdus[0].header, naxis=2)
        return {"image": hdus[0].data, "weight": hdus["WEIGHT"].data, "coverage": hdus["COVERAGE"].data}, wcs


def differences(old, new):
    """Say in words how two tiles differ; an empty list if they do not."""
    (old, old_wcs), (new, new_wcs) = planes_of(old), planes_of(new)
    said = []
    for name in old:
        if old[name].shape != new[name].shape:
            return [f"{name}: the shape is {new[name].shape}, was {old[name].shape}"]
    flipped = int(np.sum(old["coverage"] != new["coverage"]))
    if flipped:
        most = int(np.abs(old["coverage"] - new["coverage"]).max())
        said.append(f"coverage: {flipped} of {old['coverage'].size} pixels, by up to {most} frames")
    if not np.array_equal(np.isnan(old["image"]), np.isnan(new["image"])):
        said.append("image: other pixels are without data")
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = np.nanmedian(1.0 / np.sqrt(old["weight"]))
        off = np.abs(new["image"] - old["image"]) / sigma
        heavier = np.abs(new["weight"] / old["weight"] - 1.0)
    if np.nanmax(off) > TOLERANCE_SIGMA:
        rms = float(np.sqrt(np.nanmean(off**2)))
        said.append(
            f"image: {np.nanmax(off):.3g} sigma at most, {rms:.3g} rms, {np.sum(off > TOLERANCE_SIGMA)} pixels"
        )
    if np.nanmax(heavier) > 1e-4:
        said.append(f"weight: by up to {np.nanmax(heavier):.3g} of itself")
    ny, nx = old["image"].shape[-2:]
    corners = [0, nx - 1, 0, nx - 1], [0, 0, ny - 1, ny - 1]
    moved = np.hypot(*(np.array(new_wcs.all_world2pix(*old_wcs.all_pix2world(*corners, 0), 0)) - corners))
    if moved.max() > 1e-6:
        said.append(f"WCS: its corners moved by {moved.max():.3g} px")
    return said


def test_every_tile_is_the_reference(tiles):
    old, new = tiles
    assert sorted(p.name for p in new.glob("*.fits")) == sorted(p.name for p in old.glob("*.fits"))
    found = {path.name: differences(path, new / path.name) for path in sorted(old.glob("*.fits"))}
    assert len(found) >= 4
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize("change", ["image", "weight", "coverage", "wcs", "hole"])
def test_a_change_of_any_kind_is_seen_and_named(change, tmp_path):
    """The comparison itself can fail: a small change of each kind is told with its size."""
    original = sorted((HERE / "mono").glob("*.fits"))[0]
    path = tmp_path / original.name
    with fits.open(original) as hdus:
        y, x = np.argwhere(hdus["COVERAGE"].data > 2)[0]
        if change == "image":
            hdus[0].data[y, x] += 1.0
        elif change == "hole":
            hdus[0].data[y, x] = np.nan
        elif change == "weight":
            hdus["WEIGHT"].data[y, x] *= 1.01
        elif change == "coverage":
            hdus["COVERAGE"].data[y, x] -= 1
        else:
            hdus[0].header["CRPIX1"] += 0.001
        hdus.writeto(path)
    assert differences(original, original) == []
    (said,) = differences(original, path)
    assert said.split(":")[0] == {"wcs": "WCS", "hole": "image"}.get(change, change)
