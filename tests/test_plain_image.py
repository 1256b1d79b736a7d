"""Sections of images where they lie in their files, and what is kept of compressed ones, against astropy."""

import os

import numpy as np
import pytest
from astropy.io import fits

import zemosaic_fits_io as fits_io
from zemosaic_fits_io import read_frame_header, read_section
from zemosaic_plain_image import ImageCache, PlainImage
from zemosaic_types import FrameError, Rect

SHAPES = {"mono": (40, 30), "one plane": (1, 40, 30), "chw": (3, 40, 30), "chw and alpha": (4, 40, 30)}
SHAPES |= {"hwc": (40, 30, 3), "hwc, four": (40, 30, 4)}
KINDS = [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]
RECT = Rect(7, 31, 4, 23)


def written(path, shape, dtype, seed=0):
    values = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    fits.HDUList([fits.PrimaryHDU(values, fits.Header({"HISTORY": "x" * 60}))]).writeto(path, overwrite=True)
    return values


def cut(values, rect):
    if values.ndim == 3 and values.shape[2] in (3, 4):
        values = np.moveaxis(values[..., :3], -1, 0)
    values = values[None] if values.ndim == 2 else values[: 1 if values.shape[0] == 1 else 3]
    return values[(slice(None), *rect.slices)]


@pytest.mark.parametrize("ending", ["fits", "fits.gz", "large"])
@pytest.mark.parametrize("dtype", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sections_hold_the_numbers_that_astropy_reads(tmp_path, shape, dtype, ending, monkeypatch):
    if ending == "large":  # too large to be kept
        monkeypatch.setattr(fits_io, "_MOST_KEPT_BYTES", 1000)
        ending = "fits"
    path = tmp_path / f"frame.{ending}"
    values = written(path, shape, dtype)
    header = read_frame_header(path)
    for rect in (RECT, Rect(0, 40, 0, 30), Rect(39, 40, 29, 30)):
        section = read_section(path, header, rect)
        np.testing.assert_array_equal(section, cut(values, rect))
        assert section.dtype == (np.uint16 if dtype == np.uint16 else np.float32)


def test_a_file_is_opened_as_fits_once_for_many_sections(tmp_path, monkeypatch):
    for ending in ("fits", "fits.gz"):
        path = tmp_path / f"often.{ending}"
        written(path, (40, 30), np.uint16)
        header = read_frame_header(path)
        opened = []
        original = fits_io._open
        monkeypatch.setattr(fits_io, "_open", lambda *a, _o=original, _n=opened, **k: _n.append(a) or _o(*a, **k))
        for y in range(0, 40, 4):
            read_section(path, header, Rect(y, y + 4, 0, 30))
        assert 1 <= len(opened) <= 2  # once to see what it is, once more to unpack it
        monkeypatch.undo()


@pytest.mark.parametrize("ending", ["fits", "fits.gz"])
def test_a_file_that_was_written_anew_is_read_anew(tmp_path, ending):
    path = tmp_path / f"frame.{ending}"
    written(path, (40, 30), np.uint16)
    header = read_frame_header(path)
    read_section(path, header, RECT)
    values = written(path, (40, 30), np.uint16, seed=1)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(read_section(path, header, RECT)[0], values[RECT.slices])


def test_a_file_that_shrinks_under_way_is_an_error_of_its_frame(tmp_path):
    path = tmp_path / "frame.fits"
    written(path, (40, 30), np.uint16)
    header = read_frame_header(path)
    read_section(path, header, RECT)
    fits_io._kept_images._images.clear()
    about = path.stat()
    with path.open("r+b") as file:
        file.truncate(2900)
    os.utime(path, ns=(about.st_mtime_ns, about.st_mtime_ns))
    with pytest.raises(FrameError, match="truncated"):
        read_section(path, header, RECT)
    plain = PlainImage(2880, ">i2", "mono", (40, 30), 1)
    with pytest.raises(EOFError, match="ends before"):
        plain.read(path, RECT)


def test_the_cache_forgets_what_was_not_asked_for_longest():
    cache = ImageCache(most_bytes=250)
    images = {name: (np.zeros(100, dtype=np.uint8), None) for name in "abc"}
    cache.keep("a", images["a"])
    cache.keep("b", images["b"])
    assert cache.get("a") is images["a"]
    cache.keep("c", images["c"])
    assert cache.get("b") is None
    assert cache.get("a") is images["a"]
    assert cache.get("c") is images["c"]
    too_large = (np.zeros(300, dtype=np.uint8), None)
    assert cache.keep("d", too_large) is too_large
    assert cache.get("d") is None
