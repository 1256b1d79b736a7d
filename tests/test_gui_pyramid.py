"""Parts of a large mosaic at any scale, and how they are stretched."""

import tracemalloc

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_events import CancelToken
from zemosaic_gui_pyramid import (
    MODES,
    Stretch,
    describe_image,
    picture_of,
    read_part,
    step_for,
    tones_of,
)
from zemosaic_preview import shrink_rows, stretch
from zemosaic_types import FrameError, Rect, RunCancelled

LARGE = 40_000
ANY = CancelToken()


def image_in(folder, c=3, shape=(130, 170), seed=0, **cards):
    """A mosaic with stars, a sky of its own a channel, and a corner without data."""
    rng = np.random.default_rng(seed)
    image = (
        rng.normal(100.0, 5.0, (c, *shape)).astype(np.float32)
        + 40.0 * np.arange(c, dtype=np.float32)[:, None, None]
    )
    y, x = rng.integers(2, shape[0] - 2, 30), rng.integers(2, shape[1] - 2, 30)
    image[:, y, x] += 2000.0
    image[:, :20, :30] = np.nan
    header = fits.Header({"BUNIT": "adu", **cards})
    path = folder / "mosaic.fits"
    fits.PrimaryHDU(image if c > 1 else image[0], header).writeto(path)
    return path, image


def large_image(path, c=3):
    """A file of the dimensions of a very large mosaic that takes no room: it is one hole but for a few rows."""
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 3 if c > 1 else 2})
    header["NAXIS1"], header["NAXIS2"] = LARGE, LARGE
    if c > 1:
        header["NAXIS3"] = c
    head = header.tostring(padding=True).encode()
    row = np.arange(LARGE, dtype=">f4").tobytes()
    with path.open("wb") as file:
        file.write(head)
        for plane in range(c):
            file.seek(len(head) + 4 * LARGE * (plane * LARGE + 25_600))
            file.write(row)
        file.truncate(len(head) + -(-4 * c * LARGE * LARGE // 2880) * 2880)
    return path


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_part_is_the_means_of_its_blocks(tmp_path, c, step):
    path, image = image_in(tmp_path, c)
    info = describe_image(path)
    part = read_part(info, Rect(37, 101, 50, 171), step, ANY)
    assert part.rect == Rect(37 // step * step, 101, 50 // step * step, 170)
    cut = image[:, part.rect.y0 : part.rect.y1, part.rect.x0 : part.rect.x1]
    np.testing.assert_allclose(part.pixels, shrink_rows(cut, step), rtol=1e-6)


@pytest.mark.parametrize("step", [5, 6, 8, 12, 26, 31, 40])
def test_of_large_blocks_some_rows_are_read_and_all_their_columns(tmp_path, step):
    y, x = np.mgrid[:130, :170].astype(np.float32)
    fits.PrimaryHDU(np.stack([x, x * x, y])).writeto(tmp_path / "ramps.fits")
    info = describe_image(tmp_path / "ramps.fits")
    part = read_part(info, info.rect, step, ANY)
    whole = shrink_rows(np.stack([x, x * x, y]), step)
    np.testing.assert_allclose(part.pixels[:2], whole[:2], rtol=1e-6)
    assert np.abs(part.pixels[2] - whole[2]).max() <= step / 2


def test_parts_do_not_depend_on_the_bands_they_are_read_in(tmp_path, monkeypatch):
    import zemosaic_gui_pyramid

    info = describe_image(image_in(tmp_path)[0])
    parts = {}
    for samples in (1, 3000, 10**7):
        monkeypatch.setattr(zemosaic_gui_pyramid, "_BAND_SAMPLES", samples)
        parts[samples] = [read_part(info, info.rect, step, ANY).pixels for step in (1, 3, 8, 17)]
    for one, other in zip(parts[1], parts[10**7], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(parts[3000], parts[10**7], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_value_is_found_under_its_pixel(tmp_path):
    path, image = image_in(tmp_path)
    part = read_part(describe_image(path), Rect(40, 90, 60, 120), 1, ANY)
    np.testing.assert_array_equal(part.at(75.2, 61.4), image[:, 61, 75])
    assert part.at(120.0, 61.0) is None
    coarse = read_part(describe_image(path), Rect(40, 90, 60, 120), 4, ANY)
    assert coarse.at(75.0, 61.0)[0] == pytest.approx(image[0, 60:64, 72:76].mean(), rel=1e-6)


def test_a_part_beside_the_image_is_empty(tmp_path):
    info = describe_image(image_in(tmp_path)[0])
    part = read_part(info, Rect(500, 600, 0, 10), 2, ANY)
    assert part.pixels.size == 0
    assert part.at(3.0, 510.0) is None


def test_a_very_large_mosaic_is_never_in_memory(tmp_path):
    info = describe_image(large_image(tmp_path / "large.fits"))
    assert info.shape == (3, LARGE, LARGE)
    tracemalloc.start()
    whole = read_part(info, info.rect, 200, ANY)
    near = read_part(info, Rect(25_590, 25_610, 30_000, 30_100), 1, ANY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole.pixels.shape == (3, 200, 200)
    assert whole.pixels[0, 128, 150] == pytest.approx(np.arange(30_000, 30_200).mean())
    assert near.at(30_050.0, 25_600.0) == pytest.approx([30_050.0] * 3)
    assert peak < 150e6


def test_a_reading_that_nobody_wants_any_more_ends(tmp_path):
    info = describe_image(large_image(tmp_path / "large.fits", c=1))
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(RunCancelled):
        read_part(info, info.rect, 100, cancel)


@pytest.mark.parametrize(
    ("rect", "size", "step"),
    [
        (Rect(0, 100, 0, 100), (500, 500), 1),
        (Rect(0, 1000, 0, 1000), (700, 700), 1),
        (Rect(0, 1000, 0, 3000), (1000, 1000), 3),
        (Rect(0, 40_000, 0, 10), (700, 700), 58),
    ],
)
def test_the_step_fits_the_screen(rect, size, step):
    assert step_for(rect, size) == step


def test_the_sky_of_a_pixel_is_that_of_the_header(tmp_path):
    cards = dict(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10.0, CRVAL2=20.0, CRPIX1=1.0, CRPIX2=1.0)
    path, _ = image_in(tmp_path, CDELT1=-0.001, CDELT2=0.001, CUNIT1="deg", CUNIT2="deg", **cards)
    info = describe_image(path)
    assert info.sky(0.0, 100.0) == pytest.approx((10.0, 20.1), abs=1e-6)
    assert info.unit == "adu"


def test_an_image_without_a_place_has_no_sky(tmp_path):
    assert describe_image(image_in(tmp_path)[0]).sky(0.0, 0.0) is None


@pytest.mark.parametrize("data", [None, np.zeros((2, 5, 5), dtype=np.float32), np.zeros(7, dtype=np.float32)])
def test_a_file_without_a_picture_is_refused(tmp_path, data):
    fits.PrimaryHDU(data).writeto(tmp_path / "odd.fits")
    with pytest.raises(FrameError, match=r"odd\.fits cannot be shown"):
        describe_image(tmp_path / "odd.fits")


def test_files_that_are_not_there_or_no_fits_are_refused(tmp_path):
    with pytest.raises(FrameError, match="there is no file"):
        describe_image(tmp_path / "absent.fits")
    (tmp_path / "text.fits").write_text("no FITS file", encoding="ascii")
    with pytest.raises(FrameError, match="cannot be read"):
        describe_image(tmp_path / "text.fits")


def test_the_usual_picture_is_that_of_the_preview(tmp_path):
    _, image = image_in(tmp_path)
    picture = picture_of(image, tones_of(image), Stretch(), None)
    np.testing.assert_array_equal(picture[::-1], stretch(image))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("c", [1, 3])
def test_the_controls_do_what_they_say(tmp_path, mode, c):
    _, image = image_in(tmp_path, c)
    tones = tones_of(image)

    def light(**more):
        picture = picture_of(image, tones, Stretch(mode, **more), None)
        return picture[picture[..., 3] > 0, :3].mean()

    assert light(black=2.0) < light() < light(black=-2.0)
    assert light(white=2.0) < light() < light(white=-2.0)
    assert light(strength=-1.0) < light() < light(strength=1.0)


def test_linked_channels_keep_their_differences_and_neutral_ones_do_not(tmp_path):
    _, image = image_in(tmp_path)
    tones = tones_of(image)

    def sky(mode):
        picture = picture_of(image, tones, Stretch(mode), None)
        return np.median(picture[picture[..., 3] > 0, :3], axis=0)

    assert np.ptp(sky("linked")) > 20
    assert np.ptp(sky("neutral")) <= 2
    assert np.ptp(sky("separate")) <= 4


def test_one_channel_is_grey_and_stretched_as_in_the_whole(tmp_path):
    _, image = image_in(tmp_path)
    tones = tones_of(image)
    whole, green = (picture_of(image, tones, Stretch(), channel) for channel in (None, 1))
    np.testing.assert_array_equal(green[..., 0], whole[..., 1])
    np.testing.assert_array_equal(green[..., 0], green[..., 2])


def test_an_image_without_any_data_can_be_looked_at():
    nothing = np.full((3, 8, 8), np.nan, dtype=np.float32)
    assert (picture_of(nothing, tones_of(nothing), Stretch(), None) == 0).all()
