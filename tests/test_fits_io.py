"""Frames of every kind are read right, every bad file gives a reason, and products appear whole or not at all."""

import contextlib
import errno
import gzip
import logging
import multiprocessing
import os
import tracemalloc
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, DistortionLookupTable
from PIL import Image

import zemosaic_fits_products as writing
from zemosaic_fits_io import frame_wcs, pixel_scale_arcsec, read_alpha, read_frame_header, read_section
from zemosaic_fits_products import (
    ImageStream,
    atomic_path,
    encode_grey,
    encode_picture,
    ensure_writable_folder,
    free_bytes,
    write_bytes,
    write_hdus,
    write_text,
)
from zemosaic_types import FrameError, FrameHeader, OutputError, Rect

SHAPE = (50, 70)
posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


# ---- material --------------------------------------------------------------------------------------------


def rng():
    return np.random.default_rng(20240607)


def uint16(shape=SHAPE):
    return rng().integers(0, 65536, shape, dtype=np.uint16)


def save(path, data, cards=(), *extensions):
    """Write a frame with astropy and return its path."""
    primary = fits.PrimaryHDU(data)
    primary.header.update(dict(cards))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        fits.HDUList([primary, *extensions]).writeto(path)
    return path


def save_tiles(path, data, cards=(), **options):
    """Write a frame with compressed tiles and return its path."""
    image = fits.CompImageHDU(data, **options)
    image.header.update(dict(cards))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)
    return path


def whole(header):
    return Rect(0, header.shape[0], 0, header.shape[1])


def read_all(path):
    header = read_frame_header(path)
    return read_section(path, header, whole(header))


def tan(**changes):
    """Cards of a TAN WCS in CD form, 2.4 arcsec a pixel; None leaves a card out."""
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 190.0, "CRVAL2": 41.0}
    cards |= {
        "CRPIX1": 35.5,
        "CRPIX2": 25.5,
        "CD1_1": -2.4 / 3600,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": 2.4 / 3600,
    }
    return {key: value for key, value in (cards | changes).items() if value is not None}


NO_CD = dict.fromkeys(("CD1_1", "CD1_2", "CD2_1", "CD2_2"))
CORNERS = np.array([[0.0, 0.0], [69.0, 0.0], [69.0, 49.0], [0.0, 49.0], [30.0, 20.0]])


def sky(wcs):
    return wcs.all_pix2world(CORNERS, 0)


def wcs_of(path):
    return frame_wcs(read_frame_header(path))


# ---- layouts and numbers ---------------------------------------------------------------------------------


def test_uint16_frames_come_back_as_stored_plain_gzipped_and_in_compressed_tiles(tmp_path):
    data = uint16()
    paths = [save(tmp_path / "a.fits", data), save(tmp_path / "a.fits.gz", data)]
    paths += [
        save_tiles(tmp_path / f"{kind}.fits.fz", data, compression_type=kind) for kind in ("RICE_1", "GZIP_1")
    ]
    for path in paths:
        section = read_all(path)
        assert section.dtype == np.uint16
        assert section.flags.c_contiguous
        assert section.dtype.isnative
        np.testing.assert_array_equal(section, data[None])


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_other_numbers_come_back_as_float32(tmp_path, dtype, suffix):
    data = rng().normal(90.0, 20.0, SHAPE).clip(0, 200).astype(dtype)
    section = read_all(save(tmp_path / f"a{suffix}", data))
    assert section.dtype == np.float32
    assert section.dtype.isnative
    assert section.flags.c_contiguous
    np.testing.assert_array_equal(section[0], data.astype(np.float32))


def test_lossless_float_tiles_keep_values_and_nan(tmp_path):
    data = rng().normal(size=SHAPE).astype(np.float32)
    data[3, 4] = np.nan
    path = save_tiles(tmp_path / "a.fz", data, compression_type="GZIP_2", quantize_level=0.0)
    np.testing.assert_array_equal(read_all(path)[0], data)


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_scaled_integers_and_scaled_floats_have_their_scale_applied(tmp_path, suffix):
    for name, stored in (("i", np.arange(-100, 100, dtype=">i2")), ("f", np.arange(200, dtype=">f4"))):
        path = save(tmp_path / f"{name}.fits", stored.reshape(10, 20))
        with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
            hdus[0].header["BSCALE"], hdus[0].header["BZERO"] = 0.25, 1000.0
        if suffix.endswith("gz"):
            path = pack(path)
        expected = stored.astype(np.float64).reshape(10, 20) * 0.25 + 1000.0
        np.testing.assert_array_equal(read_all(path)[0], expected.astype(np.float32))


def pack(path):
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def test_infinite_pixels_and_those_beyond_the_range_of_float32_are_no_data(tmp_path):
    data = np.array([[1e300, -1e300], [np.inf, 1.0]])
    np.testing.assert_array_equal(read_all(save(tmp_path / "a.fits", data))[0], [[np.nan, np.nan], [np.nan, 1.0]])


@pytest.mark.parametrize("zero", [0, 32768])
@pytest.mark.parametrize("form", ["plain", "tiles"])
def test_blank_pixels_become_nan(tmp_path, zero, form):
    stored = np.arange(-50, 50, dtype=np.int16).reshape(10, 10)
    path = tmp_path / "a.fits"
    if form == "plain":
        save(path, stored)
    else:
        save_tiles(path, stored, compression_type="RICE_1")
    with fits.open(path, mode="update", do_not_scale_image_data=True, disable_image_compression=True) as hdus:
        hdus[-1].header["BLANK"], hdus[-1].header["BZERO"] = -7, zero
    section = read_all(path)[0]
    assert section.dtype == np.float32
    assert np.isnan(section[stored == -7]).all()
    np.testing.assert_array_equal(section[stored != -7], stored[stored != -7] + np.float32(zero))


def test_blank_of_a_float_image_means_nothing(tmp_path):
    data = np.ones(SHAPE, dtype=np.float32)
    assert (read_all(save(tmp_path / "a.fits", data, {"BLANK": 1})) == 1.0).all()


CUBES = [
    ((3, 20, 30), "chw", (20, 30), lambda d: d),
    ((4, 20, 30), "chw", (20, 30), lambda d: d[:3]),
    ((1, 20, 30), "mono", (20, 30), lambda d: d),
    ((20, 30, 3), "hwc", (20, 30), lambda d: np.moveaxis(d, -1, 0)),
    ((20, 30, 4), "hwc", (20, 30), lambda d: np.moveaxis(d, -1, 0)[:3]),
    ((20, 30, 1), "mono", (20, 30), lambda d: np.moveaxis(d, -1, 0)),
    ((1, 1, 20, 30), "mono", (20, 30), lambda d: d[0]),
    ((1, 3, 20, 30), "chw", (20, 30), lambda d: d[0]),
    ((1, 20, 30, 3), "hwc", (20, 30), lambda d: np.moveaxis(d[0], -1, 0)),
]


@pytest.mark.parametrize(("stored", "layout", "shape", "planes"), CUBES)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("form", ["plain", "tiles"])
def test_a_section_of_any_layout_is_the_slice_of_the_whole(tmp_path, stored, layout, shape, planes, dtype, form):
    data = uint16(stored).astype(dtype)
    options = {"compression_type": "GZIP_1", "quantize_level": 0.0}
    path = save(tmp_path / "a.fits", data) if form == "plain" else save_tiles(tmp_path / "a.fz", data, **options)
    header = read_frame_header(path)
    assert (header.layout, header.shape) == (layout, shape)
    random = rng()
    rects = [whole(header), Rect(0, 1, 0, 1), Rect(shape[0] - 1, shape[0], 0, shape[1])]
    for _ in range(8):
        y = np.sort(random.choice(shape[0] + 1, 2, replace=False)).tolist()
        x = np.sort(random.choice(shape[1] + 1, 2, replace=False)).tolist()
        rects.append(Rect(*y, *x))
    for rect in rects:
        section = read_section(path, header, rect)
        assert section.dtype == dtype
        assert section.flags.c_contiguous
        np.testing.assert_array_equal(section, planes(data)[:, *rect.slices])


def test_a_section_reads_its_rows_only(tmp_path):
    data = np.zeros((3000, 2000), dtype=np.float32)
    data[1500] = 7.0
    path = save(tmp_path / "a.fits", data)
    header = read_frame_header(path)
    tracemalloc.start()
    section = read_section(path, header, Rect(1500, 1502, 0, 2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (section[0, 0] == 7.0).all()
    assert peak < data.nbytes / 20


@pytest.mark.parametrize("rect", [Rect(0, 51, 0, 70), Rect(-1, 5, 0, 5), Rect(5, 5, 0, 5), Rect(0, 5, 60, 71)])
def test_a_section_must_lie_in_the_frame(tmp_path, rect):
    path = save(tmp_path / "a.fits", uint16())
    with pytest.raises(ValueError, match="not a rectangle"):
        read_section(path, read_frame_header(path), rect)


def test_the_image_is_the_primary_else_a_named_else_the_first_extension(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    mask = fits.ImageHDU(np.ones(SHAPE, dtype=np.float32), name="ALPHA")
    other = fits.ImageHDU(np.zeros((5, 6), dtype=np.float32), name="OTHER")
    science = fits.ImageHDU(uint16(), name="SCI")
    path = tmp_path / "a.fits"
    for extensions, index, shape in (
        ([table, mask, other, science], 4, SHAPE),
        ([mask, other], 2, (5, 6)),
    ):
        path.unlink(missing_ok=True)
        header = read_frame_header(save(path, None, {}, *extensions))
        assert (header.hdu, header.shape) == (index, shape)
    path.unlink()
    assert read_frame_header(save(path, uint16(), {}, science)).hdu == 0


# ---- colour filter array ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "bayer"),
    [
        ({"BAYERPAT": "GRBG"}, "GRBG"),
        ({"BAYERPAT": " rg gb "}, "RGGB"),
        ({"CFAIMAGE": "BGGR"}, "BGGR"),
        ({"COLORTYP": "GBRG"}, "GBRG"),
        ({"BAYERPAT": "?", "COLORTYP": "GBRG"}, "GBRG"),
        ({"BAYERPAT": "RGGB", "XBAYROFF": 1}, "GRBG"),
        ({"BAYERPAT": "RGGB", "YBAYROFF": 1}, "GBRG"),
        ({"BAYERPAT": "RGGB", "XBAYROFF": 1, "YBAYROFF": 3.0}, "BGGR"),
        ({"BAYERPAT": "RGGB", "XBAYROFF": 2, "YBAYROFF": "x"}, "RGGB"),
        ({"BAYERPAT": "RGGB", "ROWORDER": "TOP-DOWN"}, "RGGB"),
        ({"BAYERPAT": "RGGB", "ROWORDER": "bottom-up"}, "GBRG"),
        ({"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP", "YBAYROFF": 1}, "RGGB"),
        ({}, ""),
        ({"CFAIMAGE": True}, ""),
        ({"BAYERPAT": 5}, ""),
    ],
)
def test_the_pattern_describes_the_stored_array(tmp_path, cards, bayer):
    header = read_frame_header(save(tmp_path / "a.fits", uint16((6, 8)), cards))
    assert header.bayer == bayer
    assert header.layout == ("bayer" if bayer else "mono")


def test_the_stored_pattern_of_a_bottom_up_file_is_that_of_the_flipped_picture(tmp_path):
    for ny in (6, 7):
        colours = np.tile(np.array([["R", "G"], ["G", "B"]]), (4, 4))[:ny, :8][::-1]
        header = read_frame_header(
            save(tmp_path / f"{ny}.fits", uint16((ny, 8)), {"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP"})
        )
        assert header.bayer == "".join(colours[:2, :2].ravel())


def test_frames_of_odd_size_keep_their_pattern(tmp_path):
    path = save(tmp_path / "a.fits", uint16((7, 9)), {"BAYERPAT": "GRBG"})
    header = read_frame_header(path)
    assert (header.layout, header.shape, header.bayer) == ("bayer", (7, 9), "GRBG")
    np.testing.assert_array_equal(read_all(path)[0], uint16((7, 9)))


def test_cubes_have_no_pattern_and_an_unknown_pattern_is_logged(tmp_path, caplog):
    assert read_frame_header(save(tmp_path / "c.fits", uint16((3, 6, 8)), {"BAYERPAT": "RGGB"})).layout == "chw"
    with caplog.at_level(logging.WARNING):
        assert read_frame_header(save(tmp_path / "x.fits", uint16(), {"BAYERPAT": "RGBW"})).layout == "mono"
    assert "RGBW" in caplog.text


# ---- what the header says --------------------------------------------------------------------------------


def test_the_cards_of_a_frame_are_read(tmp_path):
    cards = {"EXPTIME": 10, "DATE-OBS": "2025-03-27T01:20:32", "FILTER": "LP", "INSTRUME": "Seestar S50"}
    cards |= {"TELESCOP": "S50", "OBJECT": "M 94", "EQMODE": 1, "RA": 193.5, "DEC": -40.5}
    header = read_frame_header(save(tmp_path / "a.fits", uint16(), cards))
    assert header.exptime_s == 10.0
    assert (header.date_obs, header.filter, header.object_name) == ("2025-03-27T01:20:32", "LP", "M 94")
    assert (header.instrument, header.telescope, header.mount) == ("Seestar S50", "S50", "EQ")
    assert (header.ra_deg, header.dec_deg) == (193.5, -40.5)


def test_cards_of_the_primary_hold_for_an_image_in_an_extension(tmp_path):
    path = save(tmp_path / "a.fits", None, {"EXPTIME": 30.0}, fits.ImageHDU(uint16(), name="SCI"))
    assert read_frame_header(path).exptime_s == 30.0


@pytest.mark.parametrize(
    ("cards", "field", "value"),
    [
        ({"EXPTIME": "abc"}, "exptime_s", None),
        ({"EXPTIME": "abc", "EXPOSURE": 20.0}, "exptime_s", 20.0),
        ({"EXPTIME": True}, "exptime_s", None),
        ({}, "exptime_s", None),
        ({"RA": "12 52 10.5"}, "ra_deg", 193.04375),
        ({"RA": "12:52:10.5"}, "ra_deg", 193.04375),
        ({"RA": "12h52m10.5s"}, "ra_deg", 193.04375),
        ({"RA": "193d02m37.5s"}, "ra_deg", 193.04375),
        ({"OBJCTRA": "12 52 10.5"}, "ra_deg", 193.04375),
        ({"RA": "unknown"}, "ra_deg", None),
        ({"RA": "25 00 00"}, "ra_deg", None),
        ({"RA": 400.0}, "ra_deg", None),
        ({"DEC": "-00 30 00"}, "dec_deg", -0.5),
        ({"DEC": "+40d58m14.0s"}, "dec_deg", 40 + 58 / 60 + 14 / 3600),
        ({"DEC": "40 75 00"}, "dec_deg", None),
        ({"DEC": -91.0}, "dec_deg", None),
        ({"EQMODE": 0}, "mount", "ALTZ"),
        ({"EQMODE": False}, "mount", "ALTZ"),
        ({"EQMODE": "german"}, "mount", "german"),
        ({"MOUNT": "alt-az"}, "mount", "alt-az"),
        ({"FILTER": 3}, "filter", "3"),
        ({"OBJECT": ""}, "object_name", ""),
        ({"SATURATE": 60000}, "saturation", 60000.0),
        ({"SATURATE": "abc"}, "saturation", 65535.0),
        ({"SATURATE": 0}, "saturation", 65535.0),
        ({"SATURATE": 1e9}, "saturation", 65535.0),
    ],
)
def test_odd_cards_give_a_value_or_nothing(tmp_path, cards, field, value):
    header = read_frame_header(save(tmp_path / "a.fits", uint16(), cards))
    assert getattr(header, field) == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value)


@pytest.mark.parametrize("garbage", [b"EXPTIME =   10,0 'oops", b"EXPTIME = 10.0\x00", b"EXPTIME = 1\xe90"])
def test_cards_that_cannot_be_parsed_are_passed_over(tmp_path, garbage):
    path = tmp_path / "a.fits"
    raw = bytes_of(path, None, tan(EXPTIME=10.0, FILTER="LP"))
    path.write_bytes(swapped(raw, b"EXPTIME =                 10.0", garbage))
    header = read_frame_header(path)
    assert (header.exptime_s, header.filter, header.shape) == (None, "LP", SHAPE)
    assert pixel_scale_arcsec(frame_wcs(header)) == pytest.approx(2.4, rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "saturation"), [("u1", 255), ("i2", 32767), ("u2", 65535), ("i4", 2**31 - 1), ("f4", np.inf)]
)
def test_saturation_is_the_full_scale_of_the_stored_integers(tmp_path, dtype, saturation):
    assert read_frame_header(save(tmp_path / "a.fits", np.zeros(SHAPE, dtype))).saturation == saturation


def test_saturation_of_a_float_frame_is_what_its_header_says(tmp_path):
    path = save(tmp_path / "a.fits", np.zeros(SHAPE, np.float32), {"SATURATE": 1.0})
    assert read_frame_header(path).saturation == 1.0


# ---- bad files -------------------------------------------------------------------------------------------


def bytes_of(path, data=None, cards=(), *extensions):
    save(path, uint16() if data is None else data, cards, *extensions)
    raw = path.read_bytes()
    path.unlink()
    return raw


def swapped(raw, old, new):
    assert raw.count(old) == 1
    return raw.replace(old, new.ljust(len(old)))


N_DATA = 2 * SHAPE[0] * SHAPE[1]
BAD_FILES = {
    "empty": (lambda raw: b"", "the file is empty"),
    "random": (lambda raw: rng().bytes(20000), "not a FITS file"),
    "text": (lambda raw: b"a letter to my aunt\n" * 500, "not a FITS file"),
    "short_header": (lambda raw: raw[:1000], "header is damaged or cut short"),
    "header_only": (lambda raw: raw[:2880], "truncated: it has 2880 of 9880 bytes"),
    "half": (lambda raw: raw[:6000], "truncated: it has 6000 of 9880 bytes"),
    "last_byte": (lambda raw: raw[: 2880 + N_DATA - 1], "truncated: it has 9879 of 9880 bytes"),
    "gzip_half": (lambda raw: gzip.compress(raw)[:3000], "truncated: its compressed data end too early"),
    "gzip_flipped": (lambda raw: flipped(gzip.compress(raw)), "the compressed data are damaged"),
    "gzip_of_half": (lambda raw: gzip.compress(raw[:6000]), "truncated: it has 6000 of 9880 bytes"),
    "gzip_of_text": (lambda raw: gzip.compress(b"hello " * 900), "not a FITS file"),
    "gzip_of_nothing": (lambda raw: gzip.compress(b""), "the file is empty"),
    "bitpix": (lambda raw: swapped(raw, b"BITPIX  =                   16", b"BITPIX  = 17"), "BITPIX is 17"),
    "no_axis": (lambda raw: swapped(raw, b"NAXIS2  =", b"NAXISX  ="), "damaged"),
    "text_axis": (lambda raw: swapped(raw, b"NAXIS2  =                   50", b"NAXIS2  = 'abc'"), "damaged"),
    "negative_axis": (lambda raw: swapped(raw, b"NAXIS2  =                   50", b"NAXIS2  = -50"), "damaged"),
    "huge_axis": (
        lambda raw: swapped(raw, b"NAXIS2  =                   50", b"NAXIS2  = 50000000000"),
        "truncated",
    ),
    "bzero": (
        lambda raw: swapped(raw, b"BZERO   =                32768", b"BZERO   = 'abc'"),
        "BZERO is not a number",
    ),
    "bscale": (lambda raw: swapped(raw, b"BSCALE  =                    1", b"BSCALE  = 0"), "BSCALE is zero"),
}


def flipped(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes(byte ^ 0x5A for byte in raw[middle : middle + 64]) + raw[middle + 64 :]


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gives_its_reason(tmp_path, kind):
    damage, reason = BAD_FILES[kind]
    path = tmp_path / "bad.fits"
    path.write_bytes(damage(bytes_of(path)))
    with pytest.raises(FrameError, match=reason):
        read_frame_header(path)


@pytest.mark.parametrize("shape", [(7,), (2, 20, 30), (5, 20, 30), (2, 3, 20, 30), (1, 1, 3, 20, 30)])
def test_an_image_of_another_shape_gives_its_reason(tmp_path, shape):
    with pytest.raises(FrameError, match="neither a picture nor a colour cube"):
        read_frame_header(save(tmp_path / "a.fits", np.zeros(shape, np.float32)))


def test_a_file_without_an_image_gives_its_reason(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    mask = fits.ImageHDU(np.ones(SHAPE, dtype=np.float32), name="ALPHA")
    for name, extensions in (("nothing", []), ("table", [table]), ("mask", [mask])):
        with pytest.raises(FrameError, match="no image"):
            read_frame_header(save(tmp_path / name, None, {}, *extensions))


def test_missing_files_and_folders_give_their_reason(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "no.fits", tmp_path / "no" / "no.fits", tmp_path / "file" / "no.fits"):
        with pytest.raises(FrameError, match="does not exist"):
            read_frame_header(path)


@posix_only
def test_a_folder_is_no_frame(tmp_path):
    with pytest.raises(FrameError, match="it is a folder"):
        read_frame_header(tmp_path)


@contextlib.contextmanager
def without_rights():
    """Be an ordinary user, whom file permissions bind, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@posix_only
def test_a_file_without_permission_gives_its_reason(tmp_path):
    path = save(tmp_path / "a.fits", uint16())
    path.chmod(0)
    with without_rights(), pytest.raises(FrameError, match="no permission"):
        read_frame_header(path)


def test_missing_padding_and_bytes_behind_the_data_do_not_matter(tmp_path):
    path = tmp_path / "a.fits"
    raw = bytes_of(path)
    for variant in (raw[: 2880 + N_DATA], raw + b"junk" * 100, raw + bytes(2880)):
        path.write_bytes(variant)
        np.testing.assert_array_equal(read_all(path)[0], uint16())


def test_truncated_tiles_are_noticed_and_their_missing_padding_is_not(tmp_path):
    path = save_tiles(tmp_path / "a.fits.fz", uint16(), compression_type="RICE_1")
    raw = path.read_bytes()
    with fits.open(path, disable_image_compression=True) as hdus:
        end = hdus[1].fileinfo()["datLoc"] + hdus[1].size
    path.write_bytes(raw[:end])
    np.testing.assert_array_equal(read_all(path)[0], uint16())
    path.write_bytes(raw[: end - 1])
    with pytest.raises(FrameError, match=f"truncated: it has {end - 1} of {end} bytes"):
        read_frame_header(path)


@pytest.mark.parametrize("kind", ["GZIP_1", "RICE_1"])
def test_tiles_that_do_not_unpack_give_a_reason(tmp_path, kind):
    data = np.arange(3500, dtype=np.uint16).reshape(SHAPE)
    path = save_tiles(tmp_path / "a.fits.fz", data, compression_type=kind)
    header = read_frame_header(path)
    with fits.open(path, disable_image_compression=True) as hdus:
        info, heap = hdus[1].fileinfo(), hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]
    raw = bytearray(path.read_bytes())
    raw[info["datLoc"] + heap : info["datLoc"] + heap + 300] = bytes(range(256)) + b"x" * 44
    path.write_bytes(raw)
    with pytest.raises(FrameError, match="damaged"):
        read_section(path, header, whole(header))


def test_tiles_with_a_damaged_shape_give_a_reason(tmp_path):
    path = save_tiles(tmp_path / "a.fits.fz", uint16(), compression_type="RICE_1")
    path.write_bytes(swapped(path.read_bytes(), b"ZNAXIS2 =                   50", b"ZNAXIS2 = 'abc'"))
    with pytest.raises(FrameError, match="damaged"):
        read_frame_header(path)


def test_a_file_that_changed_since_its_header_was_read_gives_a_reason(tmp_path):
    path = save(tmp_path / "a.fits", uint16())
    header = read_frame_header(path)
    raw = path.read_bytes()
    path.write_bytes(raw[:5000])
    with pytest.raises(FrameError, match="truncated"):
        read_section(path, header, whole(header))
    path.unlink()
    with pytest.raises(FrameError, match="does not exist"):
        read_section(path, header, whole(header))
    save(path, uint16((20, 30)))
    with pytest.raises(FrameError, match="not what it was"):
        read_section(path, header, whole(header))
    elsewhere = FrameHeader(hdu=3, layout="mono", shape=(20, 30))
    with pytest.raises(FrameError, match="damaged"):
        read_section(path, elsewhere, Rect(0, 5, 0, 5))


# ---- celestial WCS ---------------------------------------------------------------------------------------


def test_a_frame_has_its_own_wcs_and_a_sidecar_is_not_read(tmp_path):
    path = save(tmp_path / "a.fits", uint16(), tan())
    (tmp_path / "a.wcs").write_bytes(fits.Header(list(tan(CRVAL1=10.0).items())).tostring().encode())
    header = read_frame_header(path)
    assert header.wcs_path == str(path)
    wcs = frame_wcs(header)
    assert wcs.pixel_shape == (70, 50)
    np.testing.assert_allclose(sky(wcs), sky(WCS(fits.getheader(path))), rtol=0, atol=1e-12)
    assert frame_wcs(header) is wcs


@pytest.mark.parametrize(
    "cards",
    [
        tan(
            CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", A_ORDER=2, B_ORDER=2, A_2_0=1e-4, B_1_1=-2e-4, B_0_2=3e-5
        ),
        tan(A_ORDER=2, B_ORDER=2, A_2_0=1e-4),
        tan(CTYPE1="RA---TPV", CTYPE2="DEC--TPV", PV1_1=1.0, PV2_1=1.0, PV1_4=0.5, PV2_5=-0.5),
        tan(CTYPE1="RA---ZPN", CTYPE2="DEC--ZPN", PV2_1=1.0, PV2_3=30.0),
        tan(CTYPE1="GLON-CAR", CTYPE2="GLAT-CAR"),
        tan(RADESYS="FK5", EQUINOX=1950.0),
        tan(**NO_CD, CDELT1=-0.001, CDELT2=0.001, CROTA2=30.0),
        tan(CUNIT1="arcsec", CUNIT2="arcsec", CRVAL1=684000.0, CRVAL2=147600.0, CD1_1=-2.4, CD2_2=2.4),
    ],
    ids=["sip", "sip_without_suffix", "tpv", "zpn", "galactic", "fk5", "crota", "arcsec"],
)
def test_every_form_of_wcs_gives_the_positions_of_astropy(tmp_path, cards, capfd):
    wcs = wcs_of(save(tmp_path / "a.fits", uint16(), cards))
    assert capfd.readouterr() == ("", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = WCS(fits.Header(list(cards.items())))
    np.testing.assert_allclose(sky(wcs), sky(expected), rtol=0, atol=1e-11)
    assert wcs.has_distortion == expected.has_distortion


@pytest.mark.parametrize("shape", [(3, 50, 70), (50, 70, 3), (1, 50, 70)])
def test_the_wcs_of_a_cube_has_two_axes(tmp_path, shape):
    cards = tan(CTYPE3="RGB", CRVAL3=1.0, CRPIX3=1.0, CDELT3=1.0, WCSAXES=3, CD3_3=1.0)
    wcs = wcs_of(save(tmp_path / "a.fits", uint16(shape), cards))
    assert (wcs.naxis, wcs.pixel_shape) == (2, (70, 50))
    np.testing.assert_allclose(sky(wcs), sky(WCS(fits.Header(list(tan().items())))), rtol=0, atol=1e-12)


def test_the_wcs_of_compressed_tiles_is_that_of_the_image(tmp_path):
    path = save_tiles(tmp_path / "a.fits.fz", uint16(), tan(), compression_type="RICE_1")
    np.testing.assert_allclose(sky(wcs_of(path)), sky(WCS(fits.Header(list(tan().items())))), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "cards",
    [
        {"CD1_1": 1e-3, "CD1_2": 2e-4, "CD2_1": 3e-4, "CD2_2": -1.1e-3},
        {**NO_CD, "PC1_1": 0.8, "PC1_2": 0.6, "PC2_1": -0.6, "PC2_2": 0.8, "CDELT1": 1e-3, "CDELT2": -2e-3},
        {**NO_CD, "CDELT1": 1e-3, "CDELT2": -1e-3},
        {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_1_1": 3e-4, "LONPOLE": 170.0},
    ],
    ids=["cd", "pc", "cdelt", "sip"],
)
def test_a_wcs_with_declination_first_gives_longitude_first(tmp_path, cards):
    cards = tan(CTYPE1="DEC--TAN", CTYPE2="RA---TAN", CRVAL1=41.0, CRVAL2=190.0) | cards
    cards = {key: value for key, value in cards.items() if value is not None}
    wcs = wcs_of(save(tmp_path / "a.fits", uint16(), cards))
    assert wcs.wcs.lng == 0
    expected = sky(WCS(fits.Header(list(cards.items()))))[:, ::-1]
    np.testing.assert_allclose(sky(wcs), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", [("cpdis1", "cpdis2"), ("det2im1", "det2im2")])
def test_lookup_table_distortions_are_read_from_the_file(tmp_path, kind):
    plain = WCS(fits.Header(list(tan().items())))
    wcs = plain.deepcopy()
    for name in kind:
        table = rng().normal(0.0, 0.5, (6, 8)).astype(np.float32)
        setattr(wcs, name, DistortionLookupTable(table, (1.0, 1.0), (1.0, 1.0), (10.0, 10.0)))
    hdus = wcs.to_fits()
    hdus[0] = fits.PrimaryHDU(uint16(), hdus[0].header)
    hdus[0].header["EXTEND"] = True
    path = tmp_path / "a.fits"
    hdus.writeto(path)
    read = wcs_of(path)
    np.testing.assert_allclose(sky(read), sky(wcs), rtol=0, atol=1e-11)
    assert np.abs(sky(read) - sky(plain)).max() > 1e-5


def test_cd_and_pc_with_cdelt_give_the_same_pixel_scale(tmp_path):
    angle, scale = np.deg2rad(33.0), 2.4 / 3600
    cos, sin = np.cos(angle), np.sin(angle)
    cd = tan(CD1_1=-scale * cos, CD1_2=scale * sin, CD2_1=scale * sin, CD2_2=scale * cos)
    pc = {"PC1_1": cos, "PC1_2": -sin, "PC2_1": sin, "PC2_2": cos, "CDELT1": -scale, "CDELT2": scale}
    in_pc = {"PC1_1": -scale * cos, "PC1_2": scale * sin, "PC2_1": scale * sin, "PC2_2": scale * cos}
    forms = (cd, tan(**NO_CD) | pc, tan(**NO_CD) | in_pc, tan(**NO_CD) | in_pc | {"CDELT1": 1.0, "CDELT2": 1.0})
    for index, cards in enumerate(forms):
        wcs = wcs_of(save(tmp_path / f"{index}.fits", uint16(), cards))
        assert pixel_scale_arcsec(wcs) == pytest.approx(2.4, rel=1e-12)
        np.testing.assert_allclose(sky(wcs), sky(WCS(fits.Header(list(cd.items())))), rtol=0, atol=1e-10)


def test_the_pixel_scale_of_oblong_pixels_is_the_geometric_mean(tmp_path):
    path = save(tmp_path / "a.fits", uint16(), tan(CD1_1=-2.0 / 3600, CD2_2=8.0 / 3600))
    assert pixel_scale_arcsec(wcs_of(path)) == pytest.approx(4.0, rel=1e-12)


def test_a_mirrored_wcs_is_as_good_as_another(tmp_path):
    wcs = wcs_of(save(tmp_path / "a.fits", uint16(), tan(CD1_1=2.4 / 3600)))
    assert np.linalg.det(wcs.pixel_scale_matrix) > 0
    assert pixel_scale_arcsec(wcs) == pytest.approx(2.4, rel=1e-12)


BAD_WCS = {
    "zero_row": (tan(CD1_1=0.0), "singular CD matrix"),
    "zero": (tan(CD1_1=0.0, CD2_2=0.0), "singular CD matrix"),
    "parallel": (tan(CD1_1=1e-3, CD1_2=2e-3, CD2_1=2e-3, CD2_2=4e-3), "singular CD matrix"),
    "almost": (tan(CD1_1=1e-3, CD1_2=1e-3, CD2_1=1e-3, CD2_2=1.0000000001e-3), "singular matrix"),
    "pc": (tan(**NO_CD) | {"PC1_1": 0.0, "CDELT1": 1e-3, "CDELT2": 1e-3}, "singular PC matrix"),
    "cdelt": (tan(**NO_CD) | {"CDELT1": 0.0, "CDELT2": 1e-3}, "singular|cannot be used|outside"),
    "no_matrix": (tan(**NO_CD), "3.6e.03 arcsec per pixel is outside"),
    "wide": (tan(CD1_1=-0.2, CD2_2=0.2), "outside"),
    "narrow": (tan(CD1_1=-1e-7, CD2_2=1e-7), "outside"),
    "text": (tan(CD1_1="abc"), "CD1_1 is not a number"),
    "crval": (tan(CRVAL1="abc"), "CRVAL1 is not a number"),
    "no_crval": (tan(CRVAL2=None), "CRVAL2 is missing"),
    "declination": (tan(CRVAL2=100.0), "CRVAL2 is 100 degrees"),
    "ascension": (tan(CRVAL1=1e30), "CRVAL1 is 1e.30 degrees"),
    "half": (tan(CTYPE2=None), "the WCS cannot be used: Unmatched celestial axes"),
    "projection": (tan(CTYPE1="RA---XYZ", CTYPE2="DEC--XYZ"), "Unrecognized projection"),
    "unit": (tan(CUNIT1="parrot"), "the WCS cannot be used"),
    "sip": (tan(A_ORDER=2, A_2_0=1e-4), "B_ORDER"),
    "sip_text": (tan(A_ORDER="x", B_ORDER=2), "the WCS cannot be used"),
    "lookup": (tan(CPDIS1="LOOKUP", CPDIS2="LOOKUP"), "the WCS cannot be used"),
}


@pytest.mark.parametrize("kind", BAD_WCS)
def test_a_bad_wcs_gives_its_reason_and_a_sidecar_replaces_it(tmp_path, kind):
    cards, reason = BAD_WCS[kind]
    path = save(tmp_path / "a.fits", uint16(), cards)
    with pytest.raises(FrameError, match=reason):
        wcs_of(path)
    (tmp_path / "a.wcs").write_bytes(fits.Header(list(tan().items())).tostring().encode())
    header = read_frame_header(path)
    assert header.wcs_path == str(tmp_path / "a.wcs")
    assert pixel_scale_arcsec(frame_wcs(header)) == pytest.approx(2.4, rel=1e-12)


def test_a_crval_that_is_not_a_number_in_fits_gives_its_reason(tmp_path):
    path = tmp_path / "a.fits"
    path.write_bytes(
        swapped(bytes_of(path, None, tan()), b"CRVAL1  =                190.0", b"CRVAL1  =                  NaN")
    )
    with pytest.raises(FrameError, match="CRVAL1 is not a number"):
        wcs_of(path)


@pytest.mark.parametrize("cards", [{}, {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, {"RA": 190.0, "DEC": 41.0}])
def test_a_frame_without_a_celestial_wcs_says_so(tmp_path, cards):
    header = read_frame_header(save(tmp_path / "a.fits", uint16(), cards))
    assert (header.wcs_text, header.wcs_path) == ("", "")
    with pytest.raises(FrameError, match="no celestial WCS"):
        frame_wcs(header)


def sidecar_bytes(form):
    """A WCS in one of the forms that solvers write."""
    cards = fits.Header([("COMMENT", "a = b"), *tan(WCSAXES=2).items(), ("HISTORY", "CRVAL1 = 5")])
    match form:
        case "fits":
            return (fits.PrimaryHDU(header=cards).header.tostring()).encode()
        case "lines":
            return cards.tostring(sep="\n", endcard=True, padding=False).encode()
        case "crlf":
            return (cards.tostring(sep="\r\n", endcard=True, padding=False) + "\r\n").encode()
        case "loose":
            lines = [f"{key} = {value!r} / angle in °" for key, value in tan().items()]
            return ("\n".join([" " + lines[0], *lines[1:], "END", "CRVAL1  = 5.0"]) + "\n").encode("latin-1")
        case "binary_behind":
            return (fits.PrimaryHDU(header=cards).header.tostring()).encode() + b"\n\x00\xff" * 1000


@pytest.mark.parametrize("form", ["fits", "lines", "crlf", "loose", "binary_behind"])
@pytest.mark.parametrize(
    ("frame", "sidecar"),
    [
        ("a.fit", "a.wcs.hdr"),
        ("a.fits", "a.wcs"),
        ("a.FTS", "a.FTS.wcs.hdr"),
        ("a.fits.gz", "a.wcs"),
        ("a.b.fits", "a.b.fits.wcs"),
    ],
)
def test_a_sidecar_is_read_in_every_form_and_under_every_name(tmp_path, form, frame, sidecar):
    path = save(tmp_path / "plain", uint16())
    raw = path.read_bytes()
    path = tmp_path / frame
    path.write_bytes(gzip.compress(raw) if frame.endswith(".gz") else raw)
    (tmp_path / sidecar).write_bytes(sidecar_bytes(form))
    header = read_frame_header(path)
    assert header.wcs_path == str(tmp_path / sidecar)
    assert len(header.wcs_text) % 80 == 0
    wcs = frame_wcs(header)
    assert wcs.pixel_shape == (70, 50)
    np.testing.assert_allclose(sky(wcs), sky(WCS(fits.Header(list(tan().items())))), rtol=0, atol=1e-12)


def test_a_useless_sidecar_is_passed_over(tmp_path):
    path = save(tmp_path / "a.fits", uint16())
    (tmp_path / "a.wcs.hdr").write_bytes(rng().bytes(5000))
    assert read_frame_header(path).wcs_text == ""
    (tmp_path / "a.wcs").mkdir()
    (tmp_path / "a.fits.wcs").write_bytes(sidecar_bytes("lines"))
    assert read_frame_header(path).wcs_path == str(tmp_path / "a.fits.wcs")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read by anyone")
def test_a_sidecar_that_cannot_be_read_is_logged(tmp_path, caplog):
    path = save(tmp_path / "a.fits", uint16())
    (tmp_path / "a.wcs").symlink_to("/proc/self/mem")
    with caplog.at_level(logging.WARNING):
        assert read_frame_header(path).wcs_text == ""
    assert "a.wcs cannot be read" in caplog.text


# ---- alpha masks -----------------------------------------------------------------------------------------


def test_a_frame_without_alpha_has_none(tmp_path):
    path = save(tmp_path / "a.fits", uint16())
    header = read_frame_header(path)
    assert header.alpha_hdu is None
    assert read_alpha(path, header, whole(header)) is None


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_integer_alpha_is_a_fraction_of_its_full_scale(tmp_path, dtype):
    full = np.iinfo(dtype).max
    alpha = rng().integers(0, full, SHAPE, dtype=dtype, endpoint=True)
    alpha[0, :2] = 0, full
    path = save(tmp_path / "a.fits", uint16(), {}, fits.ImageHDU(alpha, name="ALPHA"))
    rect = Rect(0, 20, 0, 33)
    read = read_alpha(path, read_frame_header(path), rect)
    assert read.dtype == np.float32
    assert (read[0, 0], read[0, 1]) == (0.0, 1.0)
    np.testing.assert_allclose(read, alpha[rect.slices] / full, rtol=1e-6)


def test_float_alpha_is_clipped_and_nan_is_no_data(tmp_path):
    alpha = np.full(SHAPE, 0.25, dtype=np.float64)
    alpha[0, :5] = np.nan, np.inf, -np.inf, -0.5, 1.5
    path = save(tmp_path / "a.fits", uint16((3, *SHAPE)), {}, fits.ImageHDU(alpha[None], name="alpha"))
    header = read_frame_header(path)
    read = read_alpha(path, header, Rect(0, 2, 0, 6))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[0], np.float32([0.0, 1.0, 0.0, 0.0, 1.0, 0.25]))


def test_alpha_in_compressed_tiles_is_read(tmp_path):
    alpha = rng().integers(0, 256, SHAPE, dtype=np.uint8)
    path = save(
        tmp_path / "a.fits", uint16(), {}, fits.CompImageHDU(alpha, name="ALPHA", compression_type="RICE_1")
    )
    read = read_alpha(path, read_frame_header(path), Rect(5, 9, 5, 60))
    np.testing.assert_allclose(read, alpha[5:9, 5:60] / 255.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(50, 69), (3, 50, 70), (2, 50, 70), (70,)])
def test_alpha_of_another_shape_is_logged_and_not_used(tmp_path, shape, caplog):
    path = save(tmp_path / "a.fits", uint16(), {}, fits.ImageHDU(np.ones(shape, np.uint8), name="ALPHA"))
    with caplog.at_level(logging.WARNING):
        header = read_frame_header(path)
    assert "ALPHA" in caplog.text
    assert read_alpha(path, header, whole(header)) is None


def test_alpha_that_no_longer_fits_the_frame_is_logged_and_not_used(tmp_path, caplog):
    path = save(tmp_path / "a.fits", uint16(), {}, fits.ImageHDU(np.ones(SHAPE, np.uint8), name="ALPHA"))
    header = read_frame_header(path)
    path.unlink()
    save(path, uint16(), {}, fits.ImageHDU(np.ones((5, 6), np.uint8), name="ALPHA"))
    with caplog.at_level(logging.WARNING):
        assert read_alpha(path, header, whole(header)) is None
    assert "ALPHA" in caplog.text


# ---- real frames -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_real_frame_takes_the_wcs_of_its_sidecar(real_data):
    path = sorted((real_data / "m94").glob("*.fit"))[0]
    header = read_frame_header(path)
    assert (header.layout, header.shape, header.bayer) == ("bayer", (1920, 1080), "GRBG")
    assert (header.exptime_s, header.filter, header.saturation) == (10.0, "IRCUT", 65535.0)
    assert (header.instrument, header.object_name) == ("Seestar S50", "M 94")
    assert header.wcs_path.endswith(".wcs.hdr")
    wcs = frame_wcs(header)
    assert pixel_scale_arcsec(wcs) == pytest.approx(2.375, abs=0.002)
    assert np.linalg.det(wcs.pixel_scale_matrix) > 0
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(
            read_section(path, header, Rect(400, 600, 300, 700))[0], hdus[0].data[400:600, 300:700]
        )


@pytest.mark.real
def test_a_real_panel_has_its_own_wcs(real_data):
    path = real_data / "panels_m94" / "panelB_2.fit"
    header = read_frame_header(path)
    assert (header.layout, header.shape, header.wcs_path) == ("bayer", (1080, 612), str(path))
    assert pixel_scale_arcsec(frame_wcs(header)) == pytest.approx(2.375, abs=0.002)
    assert 500 < np.median(read_section(path, header, whole(header))) < 1200


# ---- writing whole files ---------------------------------------------------------------------------------


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_bytes_text_and_pictures_are_written_as_given(tmp_path):
    write_bytes(tmp_path / "a.bin", b"\x00\x01")
    write_text(tmp_path / "a.txt", "é\r\nb\n")
    picture = rng().integers(0, 256, (20, 30, 4), dtype=np.uint8)
    write_bytes(tmp_path / "a.png", encode_picture(picture))
    write_bytes(tmp_path / "grey.png", encode_picture(picture[::2, ::-1, 0]))
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "a.txt").read_bytes() == "é\r\nb\n".encode()
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "grey.png") as grey:
        np.testing.assert_array_equal(np.asarray(image), picture)
        np.testing.assert_array_equal(np.asarray(grey), picture[::2, ::-1, 0])
    assert names(tmp_path) == ["a.bin", "a.png", "a.txt", "grey.png"]


def test_a_grey_picture_keeps_its_shades_but_black_and_what_is_transparent(tmp_path):
    pixels = np.repeat(rng().integers(0, 256, (20, 300, 1), dtype=np.uint8), 4, axis=2)
    pixels[..., 3] = np.where(rng().random((20, 300)) < 0.2, 0, 255)
    write_bytes(tmp_path / "grey.png", encode_grey(pixels))
    with Image.open(tmp_path / "grey.png") as image:
        shown = np.asarray(image.convert("RGBA"))
    seen = pixels[..., 3] > 0
    np.testing.assert_array_equal(shown[..., 3], pixels[..., 3])
    np.testing.assert_array_equal(shown[seen], np.maximum(pixels[seen], 1))


@pytest.mark.parametrize(
    "picture", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 5), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_a_picture_of_another_kind_is_refused(tmp_path, picture):
    with pytest.raises(ValueError, match="a picture is uint8"):
        write_bytes(tmp_path / "a.png", encode_picture(picture))
    assert names(tmp_path) == []


def test_an_old_product_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail_midway():
        with atomic_path(path) as temp:
            temp.write_text("half of the n")
            assert path.read_text() == "old"
            assert temp.parent == tmp_path
            assert temp.name == f".a.txt.{os.getpid()}.part"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_midway()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("none/a.txt", "its folder does not exist"),
        ("folder", "cannot be written"),
        ("file/a", "cannot be written"),
    ],
)
def test_a_product_that_has_no_place_gives_a_reason(tmp_path, target, reason):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    before = names(tmp_path)
    path = tmp_path / target
    for attempt in (
        lambda: write_text(path, "x"),
        lambda: write_hdus(path, fits.HDUList([fits.PrimaryHDU()])),
        lambda: write_stream(path, np.zeros((5, 6), np.float32), [Rect(0, 5, 0, 6)]),
    ):
        with pytest.raises(OutputError, match=reason) as error:
            attempt()
        assert str(path) in str(error.value)
    assert names(tmp_path) == before


@posix_only
def test_a_folder_without_permission_gives_a_reason(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with without_rights(), pytest.raises(OutputError, match="no permission"):
        write_text(closed / "a.txt", "x")
    with without_rights(), pytest.raises(OutputError, match="no permission"):
        ensure_writable_folder(closed)
    closed.chmod(0o755)
    assert names(closed) == []


def checked(path):
    """Open a file with every warning an error, checksums verified; return its HDUs in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True, memmap=False) as hdus:
            for hdu in hdus:
                assert {"CHECKSUM", "DATASUM"} <= set(hdu.header)
                hdu.verify("exception")
            return [(hdu.header, None if hdu.data is None else np.array(hdu.data)) for hdu in hdus]


def test_every_hdu_that_is_written_has_a_checksum(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("name", "10A", array=["a", "b"])], name="INPUTS")
    image = rng().normal(size=SHAPE).astype(np.float32)
    header = fits.Header([("OBJECT", "M 94"), ("HISTORY", "x" * 200)])
    hdus = fits.HDUList([fits.PrimaryHDU(image, header), fits.ImageHDU(uint16(), name="COV"), table])
    path = tmp_path / "a.fits"
    path.write_text("old")
    write_hdus(path, hdus)
    read = checked(path)
    np.testing.assert_array_equal(read[0][1], image)
    np.testing.assert_array_equal(read[1][1], uint16())
    assert read[2][1]["name"].tolist() == [b"a", b"b"]
    assert path.stat().st_size % 2880 == 0
    assert names(tmp_path) == ["a.fits"]


# ---- writing a big image ---------------------------------------------------------------------------------


def write_stream(path, image, blocks, tables=(), header=None):
    with ImageStream(path, image.shape, image.dtype) as stream:
        for rect in blocks:
            stream.write(rect.y0, rect.x0, image[..., *rect.slices])
        stream.complete(fits.Header() if header is None else header, tables)
        stream.close()


def cells(shape, height, width):
    """Cut an image into rectangles, those at the end smaller."""
    return [
        Rect(y, min(y + height, shape[-2]), x, min(x + width, shape[-1]))
        for y in range(0, shape[-2], height)
        for x in range(0, shape[-1], width)
    ]


def wide_header():
    header = fits.Header(list(tan(OBJECT="M 94", BSCALE=5.0, BLANK=-1, NAXIS=7, EXTEND=False).items()))
    for line in range(50):
        header.add_history(f"line {line}")
    return header


@pytest.mark.parametrize("shape", [(37, 53), (3, 37, 53), (1, 720), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_stream_in_any_order_is_the_file_that_astropy_would_write(tmp_path, shape, dtype):
    image = (rng().normal(size=shape) * 1e6).astype(dtype)
    image.ravel()[::7] = np.nan if dtype == np.float32 else -2
    header = wide_header()
    before = header.tostring()
    files = []
    for height, width in ((shape[-2], shape[-1]), (1, shape[-1]), (10, 10), (8, 53), (37, 6)):
        blocks = cells(shape, height, width)
        for order in (blocks, [blocks[i] for i in rng().permutation(len(blocks))]):
            path = tmp_path / "stream.fits"
            write_stream(path, image, order, header=header)
            files.append(path.read_bytes())
    assert set(files) == {files[0]}
    assert header.tostring() == before
    (read_header, read), *others = checked(tmp_path / "stream.fits")
    assert not others
    np.testing.assert_array_equal(read, image)
    expected = fits.PrimaryHDU(image)
    expected.add_checksum()
    assert read_header["DATASUM"] == expected.header["DATASUM"]
    assert (read_header["OBJECT"], len(read_header["HISTORY"])) == ("M 94", 50)
    assert "BSCALE" not in read_header
    assert ("BLANK" in read_header) == (dtype == np.int32)
    data = len(files[0]) - (-(-image.nbytes // 2880) * 2880)
    assert files[0][data : data + image.nbytes] == image.astype(image.dtype.newbyteorder(">")).tobytes()
    assert names(tmp_path) == ["stream.fits"]


def test_a_stream_carries_tables_with_checksums(tmp_path):
    image = rng().normal(size=(3, 20, 30)).astype(np.float32)
    columns = [fits.Column("name", "20A", array=[f"frame {i}" for i in range(300)]), fits.Column("w", "D")]
    tables = [fits.BinTableHDU.from_columns(columns, name=name) for name in ("INPUTS", "TILES")]
    path = tmp_path / "a.fits"
    write_stream(path, image, cells(image.shape, 7, 30), tables)
    read = checked(path)
    assert [header.get("EXTNAME") for header, _ in read] == [None, "INPUTS", "TILES"]
    np.testing.assert_array_equal(read[0][1], image)
    assert read[1][1]["name"][299] == b"frame 299"
    header = read_frame_header(path)
    np.testing.assert_array_equal(read_section(path, header, whole(header)), image)


def test_checksums_hold_for_many_headers(tmp_path):
    image = np.zeros((2, 3), dtype=np.int32)
    for number in range(60):
        path = tmp_path / "a.fits"
        write_stream(
            path, image + number * 71_234_567 % 2**31, [Rect(0, 2, 0, 3)], header=fits.Header([("N", number)])
        )
        assert checked(path)[0][0]["N"] == number


def test_a_stream_that_is_broken_off_leaves_nothing(tmp_path):
    image = np.ones((20, 30), dtype=np.float32)
    path = tmp_path / "a.fits"
    path.write_text("old")

    def break_off():
        with ImageStream(path, image.shape, image.dtype) as stream:
            stream.write(0, 0, image[:10])
            assert len(names(tmp_path)) == 2
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_off()
    assert (names(tmp_path), path.read_text()) == (["a.fits"], "old")
    stream = ImageStream(path, image.shape, image.dtype)
    stream.abort()
    stream.abort()
    assert (names(tmp_path), path.read_text()) == (["a.fits"], "old")
    with pytest.raises(ValueError, match="closed"):
        stream.write(0, 0, image)
    for late in (stream.close, lambda: stream.complete(fits.Header())):
        with pytest.raises(ValueError, match="closed"):
            late()


def test_a_stream_with_missing_or_repeated_pixels_is_refused(tmp_path):
    image = np.ones((20, 30), dtype=np.float32)
    for blocks, written in (([Rect(0, 10, 0, 30)], 300), ([Rect(0, 20, 0, 30), Rect(0, 1, 0, 1)], 601), ([], 0)):
        with pytest.raises(OutputError, match=f"incomplete: {written} of 600 samples"):
            write_stream(tmp_path / "a.fits", image, blocks)
    assert names(tmp_path) == []


def test_a_stream_that_is_not_closed_in_its_block_leaves_nothing(tmp_path):
    image = np.ones((4, 5), dtype=np.float32)
    for steps in range(3):
        with ImageStream(tmp_path / "a.fits", image.shape, image.dtype) as stream:
            stream.write(0, 0, image)
            if steps == 1:
                with pytest.raises(ValueError, match="not complete"):
                    stream.close()
            if steps == 2:
                stream.complete(fits.Header())
        assert names(tmp_path) == []


def test_a_header_stays_within_its_room_whose_rest_is_blank(tmp_path):
    image = np.arange(20, dtype=np.int32).reshape(4, 5)
    files = []
    for n_cards in (35, 36, 107):
        with ImageStream(tmp_path / "a.fits", image.shape, image.dtype, n_cards=n_cards) as stream:
            stream.write(0, 0, image)
            stream.complete(fits.Header([("OBJECT", "M 94")]))
            stream.close()
        ((header, read),) = checked(tmp_path / "a.fits")
        assert header["OBJECT"] == "M 94"
        np.testing.assert_array_equal(read, image)
        files.append((tmp_path / "a.fits").stat().st_size // 2880)
    assert files == [2, 3, 4]
    with ImageStream(tmp_path / "b.fits", image.shape, image.dtype, n_cards=35) as stream:
        stream.write(0, 0, image)
        with pytest.raises(ValueError, match="does not fit"):
            stream.complete(wide_header())
    assert names(tmp_path) == ["a.fits"]


def write_part(place, rect, image):
    """Run in a process of its own; a part that was not told may be written once more."""
    place.write(rect.y0, rect.x0, np.zeros_like(image[..., *rect.slices]))
    return place.write(rect.y0, rect.x0, image[..., *rect.slices])


def test_other_processes_write_the_same_file_and_each_part_counts_once(tmp_path):
    image = (rng().normal(size=(3, 37, 53)) * 1e6).astype(np.float32)
    write_stream(tmp_path / "alone.fits", image, cells(image.shape, 37, 53))
    blocks = cells(image.shape, 20, 30)
    with ImageStream(tmp_path / "together.fits", image.shape, image.dtype) as stream:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            for written in pool.map(write_part, [stream.place] * len(blocks), blocks, [image] * len(blocks)):
                stream.add(written)
        stream.complete(fits.Header())
        stream.close()
    assert (tmp_path / "together.fits").read_bytes() == (tmp_path / "alone.fits").read_bytes()


def test_a_part_that_finds_no_file_is_an_error_and_makes_none(tmp_path):
    with ImageStream(tmp_path / "a.fits", (4, 5), np.float32) as stream:
        place = stream.place
        place.temp.unlink()
        with pytest.raises(OutputError, match=r"a.fits cannot be written: \.a\.fits\.\d+\.part was removed"):
            place.write(0, 0, np.zeros((4, 5)))
        with pytest.raises(OutputError, match="was removed"):
            stream.write(0, 0, np.zeros((4, 5)))
    assert names(tmp_path) == []


def test_blocks_that_do_not_fit_and_other_dtypes_are_refused(tmp_path):
    with ImageStream(tmp_path / "a.fits", (3, 4, 5), np.int32) as stream:
        for y0, x0, block in (
            (0, 0, np.zeros((3, 5, 5), np.int32)),
            (3, 0, np.zeros((3, 2, 5), np.int32)),
            (-1, 0, np.zeros((3, 2, 5), np.int32)),
            (0, 1, np.zeros((3, 4, 5), np.int32)),
            (0, 0, np.zeros((4, 5), np.int32)),
            (0, 0, np.zeros(5, np.int32)),
        ):
            with pytest.raises(ValueError, match="no place for a block"):
                stream.write(y0, x0, block)
        with pytest.raises(TypeError):
            stream.write(0, 0, np.zeros((3, 4, 5), np.float32))
        stream.write(0, 0, np.full((3, 4, 5), 7, np.uint16))
        stream.complete(fits.Header())
        stream.close()
    assert (checked(tmp_path / "a.fits")[0][1] == 7).all()
    for shape, dtype in (((4, 5), np.float64), ((4, 5), np.uint16), ((5,), np.float32), ((0, 5), np.float32)):
        with pytest.raises(ValueError, match="a streamed image is"):
            ImageStream(tmp_path / "b.fits", shape, dtype)


# ---- the disk --------------------------------------------------------------------------------------------


def write_beyond_the_limit(folder, kind):
    """Run in a child process in which no file may grow beyond 100 kB; what fails must leave nothing behind."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    image = np.zeros((300, 300), dtype=np.float32)
    big = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.zeros(20_000))])
    small = np.zeros((20, 30), dtype=np.float32)
    attempts = {
        "bytes": lambda path: write_bytes(path, bytes(200_000)),
        "hdus": lambda path: write_hdus(path, fits.HDUList([fits.PrimaryHDU(image)])),
        "stream": lambda path: ImageStream(path, image.shape, image.dtype),
        "tables": lambda path: write_stream(path, small, [Rect(0, 20, 0, 30)], [big]),
        "png": lambda path: write_bytes(
            path, encode_picture(rng().integers(0, 256, (300, 300, 4), dtype=np.uint8))
        ),
    }
    path = folder / "product"
    path.write_text("old")
    with pytest.raises(OutputError, match="product cannot be written: File too large"):
        attempts[kind](path)
    assert (names(folder), path.read_text()) == (["product"], "old")


@posix_only
@pytest.mark.parametrize("kind", ["bytes", "hdus", "stream", "tables", "png"])
def test_a_product_that_finds_no_room_leaves_nothing_and_the_old_one_survives(tmp_path, kind):
    child = multiprocessing.get_context("spawn").Process(target=write_beyond_the_limit, args=(tmp_path, kind))
    child.start()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("code", sorted({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}))
def test_a_full_disk_is_named_with_what_is_needed_and_what_is_free(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writing, "_reserve", refuse)
    image = np.zeros((1000, 1000), dtype=np.float32)
    with pytest.raises(
        OutputError, match=r"a.fits cannot be written: the disk is full: 4.0 MB needed, [0-9.]+ .B free"
    ):
        ImageStream(tmp_path / "a.fits", image.shape, image.dtype)
    with pytest.raises(OutputError, match=r"the disk is full: 4.0 MB needed"):
        write_hdus(tmp_path / "a.fits", fits.HDUList([fits.PrimaryHDU(image)]))

    def write_unknown():
        with atomic_path(tmp_path / "a.fits") as temp:
            temp.write_bytes(bytes(5000))
            refuse()

    with pytest.raises(OutputError, match=r"the disk is full: more than 5.0 kB needed"):
        write_unknown()
    assert names(tmp_path) == []


def test_an_image_larger_than_the_disk_is_refused_at_the_start(tmp_path):
    side = int((free_bytes(tmp_path) // 4 + 10**9) ** 0.5)
    with pytest.raises(OutputError, match="the disk is full"):
        ImageStream(tmp_path / "a.fits", (side, side), np.float32)
    assert names(tmp_path) == []


def test_space_is_taken_by_growing_the_file_where_it_cannot_be_reserved(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    image = rng().normal(size=(20, 30)).astype(np.float32)
    write_stream(tmp_path / "a.fits", image, cells(image.shape, 7, 9))
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    write_stream(tmp_path / "b.fits", image, cells(image.shape, 7, 9))
    monkeypatch.delattr(os, "posix_fallocate")
    write_stream(tmp_path / "c.fits", image, cells(image.shape, 7, 9))
    assert len({(tmp_path / name).read_bytes() for name in names(tmp_path)}) == 1


def test_free_space_of_a_folder_to_come_is_that_of_its_parent(tmp_path):
    assert free_bytes(tmp_path / "not" / "yet") > 0


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    ensure_writable_folder(tmp_path / "a" / "b")
    ensure_writable_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_a_folder_that_is_or_lies_below_a_file_gives_a_reason(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "below" / "deep"):
        with pytest.raises(OutputError, match="it, or a part of its path, is a file"):
            ensure_writable_folder(path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files")
def test_a_file_system_that_takes_no_files_gives_a_reason():
    with pytest.raises(OutputError, match="cannot be written into"):
        ensure_writable_folder(Path("/proc/self"))
