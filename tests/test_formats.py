"""Frames of every kind: compressed, scaled, cubes, masks, other sizes and pixel scales, mixed in one mosaic."""

import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import binary_dilation

from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_preprocess import bayer_colours, demosaic
from zemosaic_synthetic import small_spec

ONE_WORKER = replace(TWO_WORKERS, workers=1)
MONO = small_spec(frames_per_panel=3, frame_shape=(240, 300), star_density=1500.0, seed=31, trail_fraction=0.0)
MONO = replace(MONO, star_flux=(5000.0, 300000.0))


@pytest.fixture(scope="module")
def mono(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mono")
    survey = survey_in(folder / "frames", MONO)
    return survey, folder / "frames", Run(folder / "frames", folder / "out", ONE_WORKER)


def rewritten(frames, folder, change):
    """Copy frames; `change(path, data, header, number)` may write another file in place of a copy."""
    folder.mkdir()
    for number, path in enumerate(sorted(frames.glob("*.fit"))):
        with fits.open(path) as hdus:
            data, header = hdus[0].data, hdus[0].header
        if not change(folder / path.name, data, header, number):
            shutil.copy(path, folder / path.name)
    return folder


def compressed(path, data, header, number):
    if number % 3 == 0:
        hdu = fits.CompImageHDU(data, header, compression_type="RICE_1")
        hdu.writeto(path.with_name(path.name + "s.fz"))
    elif number % 3 == 1:
        plain = path.with_suffix(".tmp")
        fits.PrimaryHDU(data, header).writeto(plain)
        with gzip.open(path.with_name(path.name + ".gz"), "wb") as packed:
            packed.write(plain.read_bytes())
        plain.unlink()
    return number % 3 < 2


def test_compressed_frames_give_the_same_mosaic_bit_for_bit(mono, tmp_path):
    _, frames, reference = mono
    run = Run(rewritten(frames, tmp_path / "frames", compressed), tmp_path / "out", ONE_WORKER)
    assert len({path.suffix for path in (tmp_path / "frames").iterdir()}) == 3
    np.testing.assert_array_equal(run.mosaic, reference.mosaic)
    np.testing.assert_array_equal(run.coverage, reference.coverage)


def scaled(path, data, header, number):
    if number % 2 == 0:
        fits.PrimaryHDU(data.astype(np.float32), header).writeto(path)
        return True
    hdu = fits.PrimaryHDU(data.astype(np.int32), header)
    hdu.scale("int16", bscale=2.0, bzero=32768.0)
    hdu.writeto(path)
    return True


def test_scaled_and_float_frames_give_the_same_mosaic_up_to_their_rounding(mono, tmp_path):
    _, frames, reference = mono
    run = Run(rewritten(frames, tmp_path / "frames", scaled), tmp_path / "out", ONE_WORKER)
    assert run.result.complete
    both = np.isfinite(run.mosaic) & np.isfinite(reference.mosaic)
    np.testing.assert_array_equal(np.isfinite(run.mosaic), np.isfinite(reference.mosaic))
    noise = float(np.median([float(row["noise"]) for row in reference.ledger]))
    difference = (run.mosaic - reference.mosaic)[both]
    assert np.abs(np.median(difference)) < 0.05 * noise
    assert np.percentile(np.abs(difference), 99) < 0.2 * noise


def cube(axis):
    def write(path, data, header, _number):
        planes = demosaic(data.astype(np.float32), bayer_colours("GRBG"))
        header = header.copy()
        header.remove("BAYERPAT")
        header["SATURATE"] = 60000.0
        fits.PrimaryHDU(np.moveaxis(planes, 0, axis), header).writeto(path)
        return True

    return write


def test_cubes_with_colours_first_and_last_give_the_same_mosaic(tmp_path):
    survey_in(tmp_path / "bayer", replace(MONO, color=True))
    first = Run(rewritten(tmp_path / "bayer", tmp_path / "chw", cube(0)), tmp_path / "out_chw", ONE_WORKER)
    last = Run(rewritten(tmp_path / "bayer", tmp_path / "hwc", cube(-1)), tmp_path / "out_hwc", ONE_WORKER)
    assert first.mosaic.shape[0] == 3
    np.testing.assert_array_equal(first.mosaic, last.mosaic)
    np.testing.assert_array_equal(first.coverage, last.coverage)


def masked(opacity):
    def write(path, data, header, number):
        if number != 0:
            return False
        alpha = np.full(data.shape, 255, dtype=np.uint8)
        alpha[:, :150] = opacity
        fits.HDUList([fits.PrimaryHDU(data, header), fits.ImageHDU(alpha, name="ALPHA")]).writeto(path)
        return True

    return write


def test_transparent_pixels_do_not_contribute_and_half_transparent_ones_half(mono, tmp_path):
    _, frames, reference = mono
    off = replace(ONE_WORKER, params=replace(ONE_WORKER.params, reject="none"), weight="none", normalise="none")
    opaque = Run(rewritten(frames, tmp_path / "f1", masked(255)), tmp_path / "o1", off)
    clear = Run(rewritten(frames, tmp_path / "f2", masked(0)), tmp_path / "o2", off)
    half = Run(rewritten(frames, tmp_path / "f3", masked(128)), tmp_path / "o3", off)
    np.testing.assert_array_equal(opaque.coverage > 0, reference.coverage > 0)
    lost = opaque.coverage - clear.coverage
    assert set(np.unique(lost)) == {0, 1}
    assert 0.4 < lost.sum() / (MONO.frame_shape[0] * MONO.frame_shape[1]) < 0.6
    weight_lost = opaque.weight - half.weight
    assert np.percentile(weight_lost[lost == 1], [10, 90]) == pytest.approx([1 - 128 / 255] * 2, abs=0.01)
    # Along the mask's edge the opacity is resampled, so the frame still counts there with less weight.
    # The kernel reaches 3 px, so values beside the mask differ; further away nothing does.
    touched = binary_dilation(clear.weight != opaque.weight, iterations=6)
    inside = np.isfinite(clear.mosaic) & ~touched
    assert inside.sum() > 0.8 * ((lost == 0) & (opaque.coverage > 0)).sum()
    np.testing.assert_array_equal(clear.mosaic[inside], opaque.mosaic[inside])


def zeros_under_the_mask(path, data, header, number):
    if number != 0:
        return False
    alpha = np.full(data.shape, 255, dtype=np.uint8)
    alpha[:, :180] = 0
    data = np.where(alpha > 0, data, 0).astype(np.uint16)
    fits.HDUList([fits.PrimaryHDU(data, header), fits.ImageHDU(alpha, name="ALPHA")]).writeto(path)
    return True


def test_what_lies_under_a_mask_enters_neither_measures_nor_neighbours(mono, tmp_path):
    _, frames, reference = mono
    run = Run(rewritten(frames, tmp_path / "frames", zeros_under_the_mask), tmp_path / "out", ONE_WORKER)
    assert run.result.complete
    before, after = reference.ledger[0], run.ledger[0]
    assert float(after["noise"]) == pytest.approx(float(before["noise"]), rel=0.05)
    assert float(after["sky"]) == pytest.approx(float(before["sky"]), rel=0.02)
    noise = float(before["noise"])
    assert np.nanmin(run.mosaic) > np.nanmin(reference.mosaic) - 2 * noise


def binned(path, data, header, number):
    """Every third frame as a camera of twice the pixel size would have taken it (means of 2 x 2 pixels)."""
    if number % 3:
        return False
    small = data.reshape(data.shape[0] // 2, 2, data.shape[1] // 2, 2).mean(axis=(1, 3))
    header = header.copy()
    for axis in (1, 2):
        header[f"CRPIX{axis}"] = (header[f"CRPIX{axis}"] + 0.5) / 2
        for other in (1, 2):
            header[f"CD{axis}_{other}"] *= 2
    fits.PrimaryHDU(np.rint(small).astype(np.uint16), header).writeto(path)
    return True


def test_frames_of_different_sizes_and_pixel_scales_mix(mono, tmp_path):
    survey, frames, reference = mono
    run = Run(rewritten(frames, tmp_path / "frames", binned), tmp_path / "out", ONE_WORKER)
    assert run.result.complete
    sky = {row["path"].rsplit("/", 1)[-1]: float(row["gain"]) for row in run.ledger}
    before = {row["path"].rsplit("/", 1)[-1]: float(row["gain"]) for row in reference.ledger}
    ratio = np.array([sky[name] / before[name] for name in sky])
    # Means of pixels keep surface brightness, so every frame keeps its gain up to a common factor.
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.03
    score = run.score(survey)
    assert score.position_rms_px < 0.05
    assert score.coverage_error < 1e-3


def test_a_mono_frame_among_colour_ones_counts_for_every_colour(tmp_path):
    survey = survey_in(tmp_path / "bayer", replace(MONO, color=True, panels=(1, 1)))

    def mono_one(path, data, header, number):
        if number != 1:
            return False
        grey = demosaic(data.astype(np.float32), bayer_colours("GRBG"))[1]
        header = header.copy()
        header.remove("BAYERPAT")
        fits.PrimaryHDU(np.clip(np.rint(grey), 0, 65535).astype(np.uint16), header).writeto(path)
        return True

    run = Run(rewritten(tmp_path / "bayer", tmp_path / "mixed", mono_one), tmp_path / "out", ONE_WORKER)
    without = Run(
        tmp_path / "mixed", tmp_path / "without", replace(ONE_WORKER, excluded=(run.ledger[1]["frame_id"],))
    )
    assert run.result.complete
    sky = [np.nanmedian(one.mosaic, axis=(1, 2)) for one in (run, without)]
    np.testing.assert_allclose(sky[0], sky[1], rtol=0.01)
    own = [np.mean([float(row[f"sky_{c}"]) for row in without.ledger if row["used"] == "yes"]) for c in "rgb"]
    np.testing.assert_allclose(sky[1], own, rtol=0.01)
    flux = [np.array(one.score(survey).flux_ratio) for one in (run, without)]
    np.testing.assert_allclose(
        flux[0] / flux[0].mean(), flux[1] / flux[1].mean(), rtol=0.05
    )  # a third of the light has no colour
    assert run.mosaic.shape[0] == 3
    assert np.median(run.coverage[run.coverage > 0]) == 3
    assert run.coverage.max() == 3


def test_odd_sized_bayer_frames_work(tmp_path):
    survey_in(tmp_path / "even", replace(MONO, color=True, panels=(1, 1)))

    def odd(path, data, header, _number):
        fits.PrimaryHDU(np.ascontiguousarray(data[:-1, :-1]), header).writeto(path)
        return True

    run = Run(rewritten(tmp_path / "even", tmp_path / "odd", odd), tmp_path / "out", ONE_WORKER)
    assert run.result.complete
    assert (run.coverage > 0).any()


def test_one_frame_alone_makes_a_mosaic(mono, tmp_path):
    _, frames, _ = mono
    (tmp_path / "one").mkdir()
    shutil.copy(sorted(frames.glob("*.fit"))[0], tmp_path / "one")
    run = Run(tmp_path / "one", tmp_path / "out", ONE_WORKER)
    assert run.result.complete
    assert run.coverage.max() == 1
    assert np.isfinite(run.mosaic).sum() == pytest.approx(240 * 300, rel=0.02)
