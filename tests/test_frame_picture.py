"""Small pictures of single frames."""

import numpy as np
import pytest
from astropy.io import fits

from surveys import survey_in
from zemosaic_frame_picture import frame_picture
from zemosaic_synthetic import small_spec
from zemosaic_types import FrameError


def written(path, data, **cards):
    hdu = fits.PrimaryHDU(data)
    hdu.header.update(cards)
    hdu.writeto(path)
    return path


def a_star_in_noise(shape=(240, 320), at=(200, 40)):
    """Row 200, so in the upper part of the sky, which FITS counts from below."""
    rng = np.random.default_rng(1)
    image = rng.normal(1000.0, 10.0, shape)
    y, x = np.indices(shape)
    return image + 20000.0 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 18.0)


@pytest.mark.parametrize("color", [False, True])
def test_a_frame_of_a_survey_has_a_picture_of_the_size_that_is_asked_for(tmp_path, color):
    survey_in(tmp_path / "frames", small_spec(seed=3, color=color))
    picture = frame_picture(min((tmp_path / "frames").glob("*.fit")), 60)
    assert picture.dtype == np.uint8
    assert max(picture.shape[:2]) <= 60
    assert min(picture.shape[:2]) >= 25
    assert picture.shape[2] == 4
    assert (picture[..., 3] == 255).all()
    grey = (picture[..., 0] == picture[..., 1]).all()
    assert grey != color


def test_the_picture_is_the_right_way_up_and_its_sky_is_dark(tmp_path):
    path = written(tmp_path / "a.fit", a_star_in_noise().astype(np.uint16))
    grey = frame_picture(path, 320)[..., 0].astype(int)
    middle = np.argwhere(grey == grey.max()).mean(axis=0)
    assert middle == pytest.approx((239 - 200, 40), abs=1)
    assert grey.max() > 200
    assert 15 < np.median(grey) < 80


def test_pixels_without_data_are_transparent(tmp_path):
    image = a_star_in_noise().astype(np.float32)
    image[:100] = np.nan
    opacity = frame_picture(written(tmp_path / "a.fit", image), 320)[..., 3]
    assert (opacity[-100:] == 0).all()
    assert (opacity[:-100] == 255).all()


def test_a_file_that_is_no_frame_gives_its_reason(tmp_path):
    (tmp_path / "a.fit").write_bytes(b"nothing")
    with pytest.raises(FrameError, match="FITS"):
        frame_picture(tmp_path / "a.fit", 100)
