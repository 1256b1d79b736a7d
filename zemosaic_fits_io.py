"""Reading of frames: headers, celestial WCS, sections of pixels and alpha masks.

Frames are opened read-only, closed at once and never mapped into memory: a file that shrinks on a network drive
must give an error, not kill the process. A gzipped file is unpacked into memory, which proves its check sum.
Whatever is wrong with a file becomes a `FrameError` whose message is the reason for the ledger.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import io
import logging
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from astropy.io import fits

# What a damaged tile raises has no public name and is derived from Exception alone.
from astropy.io.fits.hdu.compressed._compression import CfitsioException
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, SingularMatrixError

from zemosaic_cards import Headers, angle, equinox, mount, number, pixel_scale, positive_or_inf, text_of, values
from zemosaic_plain_image import ImageCache, PlainImage, Scaling
from zemosaic_types import FrameError, FrameHeader, Rect

logger = logging.getLogger("ZeMosaicWorker.fits_io")

BAYER_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
SCALE_LIMITS_ARCSEC = (0.01, 600.0)

_ENDINGS = (".fits", ".fit", ".fts", ".fz", ".gz")
_SIDECAR_BYTES = 1 << 20
# What astropy, gzip and the decompressors raise when a file is not what its header says.
_DAMAGE = (OSError, EOFError, TypeError, ValueError, LookupError, OverflowError, AttributeError, RuntimeError)
_DAMAGE += (MemoryError, struct.error, zlib.error, fits.VerifyError, CfitsioException)
_NOT_WCS = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|[PG]COUNT|GROUPS|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|COMMENT|HISTORY"
)
_CARD = re.compile(r"\s*([A-Z][A-Z0-9_-]{0,7})\s*= ?(.*)", re.IGNORECASE)
_LINEAR_CARD = re.compile(r"(CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]")
_LONGITUDE, _LATITUDE = re.compile(r"RA--|.LON"), re.compile(r"DEC-|.LAT")
_LOOKUP_CARDS = ("CPDIS", "D2IMDIS", "AXISCORR")

Image = fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU


# ---- headers ---------------------------------------------------------------------------------------------


def read_frame_header(path: Path) -> FrameHeader:
    """Return what the header of a frame says, without reading its pixels.

    A frame without a usable WCS gets the one of a file beside it: ``STEM.wcs.hdr``, ``STEM.wcs``,
    ``NAME.wcs.hdr`` or ``NAME.wcs``. A WCS that is declared but broken is kept if there is no better one, so that
    `frame_wcs` says what is wrong with it.

    Parameters
    ----------
    path : Path
        A FITS file, plain, gzipped or with compressed tiles (fpack).

    Raises
    ------
    FrameError
        If the file is missing, unreadable, damaged or truncated, or holds no image of a known shape.
    """
    with _quiet_astropy():
        with _open(path) as (hdus, n_bytes):
            index = _image_index(hdus)
            if n_bytes < (end := _data_end(path, hdus, index)):
                raise FrameError(f"the file is truncated: it has {n_bytes} of {end} bytes")
            geometry = _geometry(hdus[index].shape)
            headers = (hdus[index].header, hdus[0].header)
            alpha = _alpha_index(path, hdus, geometry)
        scaling = _scaling(headers[0])
        bayer = _bayer_pattern(path, headers, geometry) if geometry.layout == "mono" else ""
        wcs_text, wcs_path = _find_wcs(headers[0], path, geometry.shape)
        return FrameHeader(
            hdu=index,
            layout="bayer" if bayer else geometry.layout,
            shape=geometry.shape,
            bayer=bayer,
            wcs_text=wcs_text,
            wcs_path=wcs_path,
            alpha_hdu=alpha,
            saturation=min(scaling.full_scale, positive_or_inf(number(headers, "SATURATE"))),
            electrons_per_adu=number(headers, "EGAIN"),
            exptime_s=number(headers, "EXPTIME", "EXPOSURE"),
            date_obs=text_of(headers, "DATE-OBS"),
            filter=text_of(headers, "FILTER"),
            telescope=text_of(headers, "TELESCOP"),
            instrument=text_of(headers, "INSTRUME"),
            object_name=text_of(headers, "OBJECT"),
            mount=mount(headers),
            ra_deg=angle(headers, ("RA", "OBJCTRA"), is_ra=True),
            dec_deg=angle(headers, ("DEC", "OBJCTDEC"), is_ra=False),
            equinox=equinox(headers),
            scale_arcsec=pixel_scale(headers),
        )


def _image_index(hdus: fits.HDUList) -> int:
    """Return the image HDU: the primary, else the first of a usual name, else the first that is no mask."""
    images = [index for index, hdu in enumerate(hdus) if _has_image(hdu)]
    if 0 in images:
        return 0
    named = [index for index in images if hdus[index].name.upper() in ("SCI", "IMAGE", "PRIMARY")]
    others = [index for index in images if hdus[index].name.upper() != "ALPHA"]
    if not others:
        raise FrameError("there is no image in the file")
    return (named or others)[0]


def _has_image(hdu: object) -> bool:
    is_image = isinstance(hdu, Image) and not isinstance(hdu, fits.GroupsHDU)
    return is_image and bool(hdu.shape) and 0 not in hdu.shape


def _alpha_index(path: Path, hdus: fits.HDUList, geometry: _Geometry) -> int | None:
    """Return the first ALPHA extension, or None if there is none of the frame's shape."""
    for index, hdu in enumerate(hdus):
        if index and hdu.name.upper() == "ALPHA" and _has_image(hdu):
            if hdu.shape[-2:] == geometry.shape and math.prod(hdu.shape) == math.prod(geometry.shape):
                return index
            _warn_alpha(path, hdu.shape, geometry.shape)
    return None


def _warn_alpha(path: Path, shape: tuple[int, ...], frame_shape: tuple[int, int]) -> None:
    logger.warning(
        "%s: its ALPHA extension %s does not fit the frame %s; it is not used", path, shape, frame_shape
    )


def _bayer_pattern(path: Path, headers: Headers, geometry: _Geometry) -> str:
    """Return the 2 x 2 cell of the colour filters, row 0 of the array first, or an empty text."""
    named = [re.sub(r"\s", "", text_of(headers, key)).upper() for key in ("BAYERPAT", "CFAIMAGE", "COLORTYP")]
    cell = next((text for text in named if text in BAYER_PATTERNS), "")
    if not cell:
        if named[0]:
            logger.warning("%s: BAYERPAT %r is not known; the frame is taken as mono", path, named[0])
        return ""
    rows = [cell[:2], cell[2:]]
    if _is_odd(number(headers, "XBAYROFF")):
        rows = [row[::-1] for row in rows]
    # The pattern describes the picture from its top row, which is stored last here.
    bottom_up = text_of(headers, "ROWORDER").upper() == "BOTTOM-UP" and geometry.shape[0] % 2 == 0
    if _is_odd(number(headers, "YBAYROFF")) != bottom_up:
        rows.reverse()
    return "".join(rows)


def _is_odd(offset: float | None) -> bool:
    return offset is not None and round(offset) % 2 == 1


# ---- pixels ----------------------------------------------------------------------------------------------


def read_section(path: Path, header: FrameHeader, rect: Rect) -> np.ndarray:
    """Read a rectangle of a frame.

    The image is read or unpacked whole, and kept a while; of a large plain one only the rows are read.

    Parameters
    ----------
    path : Path
        The frame.
    header : FrameHeader
        What `read_frame_header` said about it.
    rect : Rect
        Rows and columns of the array as stored; not empty and inside the frame.

    Returns
    -------
    ndarray, shape (c, h, w)
        c is 3 for colour cubes (a fourth plane is left out), else 1. Values in the file's units, BZERO and BSCALE
        applied: uint16 if the file holds such, else float32 with NaN for BLANK and infinite values. Native byte
        order, C-contiguous. Pixels that an ALPHA extension makes wholly transparent are NaN, so that nothing
        of them enters their neighbours.

    Raises
    ------
    FrameError
        If the file cannot be read, is damaged, or is not what its header said any more.
    ValueError
        If `rect` is empty or not inside the frame.
    """
    raw, scaling = _read(path, header.hdu, header.shape, rect)
    if raw is None:
        raise FrameError("the shape of the image is not what it was when its header was read")
    values = scaling.apply(raw)
    if values.dtype == np.float32:
        values[np.isinf(values)] = np.nan
    alpha = read_alpha(path, header, rect)
    if alpha is None:
        return values
    values = values.astype(np.float32)
    values[:, alpha == 0] = np.nan
    return values


def read_alpha(path: Path, header: FrameHeader, rect: Rect) -> np.ndarray | None:
    """Read a rectangle of a frame's ALPHA extension.

    Parameters
    ----------
    path, header, rect
        As for `read_section`.

    Returns
    -------
    ndarray of float32, shape (h, w), or None
        Opacity from 0 (no data) to 1: integers are divided by their full scale (255 for uint8), floats clipped,
        NaN is 0. None if the frame has no such extension, or one of another shape, which is logged.

    Raises
    ------
    FrameError
        If the file cannot be read or is damaged.
    ValueError
        If `rect` is empty or not inside the frame.
    """
    if header.alpha_hdu is None:
        return None
    raw, scaling = _read(path, header.alpha_hdu, header.shape, rect)
    if raw is None or raw.shape[0] != 1:
        _warn_alpha(path, () if raw is None else raw.shape, header.shape)
        return None
    alpha = scaling.apply(raw)[0].astype(np.float32, copy=False)
    if scaling.bitpix > 0:
        alpha /= np.float32(scaling.full_scale)
    return np.clip(np.nan_to_num(alpha, copy=False, nan=0.0), 0.0, 1.0)


def read_planes(path: Path, header: FrameHeader, hdu: int, rect: Rect) -> np.ndarray:
    """Read a rectangle of a further image of a frame: (c, h, w) float32, of as many planes as it has.

    Parameters
    ----------
    path, header, rect
        As for `read_section`.
    hdu : int
        Index of the image, which has the shape of the frame.

    Raises
    ------
    FrameError
        If the file cannot be read, is damaged, or holds no such image.
    """
    raw, scaling = _read(path, hdu, header.shape, rect)
    if raw is None:
        raise FrameError(f"its image {hdu} has not the shape of the frame")
    return scaling.apply(raw).astype(np.float32, copy=False)


def _scaling(header: fits.Header) -> Scaling:
    bitpix = header["BITPIX"]
    if bitpix not in (8, 16, 32, 64, -32, -64):
        raise FrameError(f"the header is damaged: BITPIX is {bitpix!r}")
    factors = []
    for key, default in (("BSCALE", 1.0), ("BZERO", 0.0)):
        value = number((header,), key)
        if value is None and any(str(item).strip() for item in values((header,), (key,))):
            raise FrameError(f"{key} is not a number")
        factors.append(default if value is None else value)
    if factors[0] == 0.0:
        raise FrameError("BSCALE is zero")
    blank = number((header,), "BLANK") if bitpix > 0 else None  # floats mark it with NaN
    return Scaling(bitpix, *factors, None if blank is None else int(blank))


class _Geometry(NamedTuple):
    """Where the image plane lies in the stored array, after `n_lead` axes of length 1."""

    layout: str
    shape: tuple[int, int]
    n_lead: int


def _geometry(stored: tuple[int, ...]) -> _Geometry:
    if not all(isinstance(length, int) and length > 0 for length in stored):
        raise FrameError(f"the FITS header is damaged: the image has the shape {stored}")
    core = stored
    while 2 < len(core) <= 4 and core[0] == 1:
        core = core[1:]
    n_lead = len(stored) - len(core)
    if len(core) == 2:
        return _Geometry("mono", core, n_lead)
    if len(core) == 3 and core[0] in (3, 4):
        return _Geometry("chw", core[1:], n_lead)
    if len(core) == 3 and core[2] in (1, 3, 4):
        return _Geometry("mono" if core[2] == 1 else "hwc", core[:2], n_lead)
    raise FrameError(f"an image of shape {stored} is neither a picture nor a colour cube")


def _read(path: Path, index: int, shape: tuple[int, int], rect: Rect) -> tuple[np.ndarray | None, Scaling | None]:
    """Return the stored numbers (c, h, w) of a rectangle and their scaling; None twice for another shape."""
    if rect.empty or rect.intersect(Rect(0, shape[0], 0, shape[1])) != rect:
        raise ValueError(f"{rect} is not a rectangle of a frame of shape {shape}")
    try:
        about = path.stat()
        key = path, index, about.st_size, about.st_mtime_ns
        plain, scaling = _plain_image(*key)
        if plain is not None and plain.shape != shape:
            return None, None
        if plain is not None and plain.n_bytes > _MOST_KEPT_BYTES // 16:
            return plain.read(path, rect), scaling
        if (kept := _kept_images.get(key)) is None:
            whole = Rect(0, shape[0], 0, shape[1])
            image = _unpack(path, index, shape) if plain is None else (plain.read(path, whole), scaling)
            kept = _kept_images.keep(key, image)
    except (OSError, EOFError) as err:
        raise FrameError(_reason(err)) from err
    stored, scaling = kept
    return (None, None) if stored is None else (stored[(slice(None), *rect.slices)], scaling)


#: A stack asks for many sections of a frame, one after the other: what was read for one is kept a while.
_MOST_KEPT_BYTES = 128 * 1024**2
_kept_images = ImageCache(_MOST_KEPT_BYTES)


def _unpack(path: Path, index: int, shape: tuple[int, int]) -> tuple[np.ndarray | None, Scaling | None]:
    """Return the stored numbers (c, ny, nx) of a compressed image, and their scaling; None for another shape."""
    with _open(path) as (hdus, n_bytes):
        hdu = hdus[index]
        if not _has_image(hdu) or (geometry := _geometry(hdu.shape)).shape != shape:
            return None, None
        _check_length(path, hdus, index, n_bytes)
        return _planes(hdu, geometry, Rect(0, shape[0], 0, shape[1])), _scaling(hdu.header)


@functools.lru_cache(maxsize=4096)
def _plain_image(
    path: Path, index: int, n_bytes: int, changed_ns: int
) -> tuple[PlainImage | None, Scaling | None]:
    """Return where the image of an HDU lies in its file and its scaling; None for what must be unpacked.

    The file's length and time of change make a file that was written anew another one.
    """
    del changed_ns
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return None, None
    with _open(path) as (hdus, _):
        hdu = hdus[index]
        if not _has_image(hdu) or isinstance(hdu, fits.CompImageHDU):
            return None, None
        _check_length(path, hdus, index, n_bytes)
        shape, scaling = _geometry(hdu.shape), _scaling(hdu.header)
        offset = hdus[index].fileinfo()["datLoc"]
        kind = f">{'f' if scaling.bitpix < 0 else 'u' if scaling.bitpix == 8 else 'i'}{abs(scaling.bitpix) // 8}"
        n_planes = math.prod(hdu.shape) // math.prod(shape.shape)
        return PlainImage(offset, kind, shape.layout, shape.shape, n_planes), scaling


def _check_length(path: Path, hdus: fits.HDUList, index: int, n_bytes: int) -> None:
    if not isinstance(hdus[index], fits.CompImageHDU) and n_bytes < (end := _data_end(path, hdus, index)):
        raise FrameError(f"the file is truncated: it has {n_bytes} of {end} bytes")


def _planes(hdu: Image, geometry: _Geometry, rect: Rect) -> np.ndarray:
    rows, columns = rect.slices
    # Of compressed tiles only those needed are unpacked.
    unpacked = columns if isinstance(hdu, fits.CompImageHDU) else slice(None)
    after = slice(None) if unpacked is columns else columns
    lead = (0,) * geometry.n_lead
    if geometry.layout == "chw":
        planes = [hdu.section[(*lead, channel, rows, unpacked)] for channel in range(3)]
        return np.stack([plane[:, after] for plane in planes])
    block = hdu.section[(*lead, rows, unpacked)][:, after]
    if block.ndim == 2:
        return block[None]
    return np.moveaxis(block[..., : 3 if geometry.layout == "hwc" else 1], -1, 0)


# ---- celestial WCS ---------------------------------------------------------------------------------------


def frame_wcs(header: FrameHeader) -> WCS:
    """Return the celestial WCS of a frame.

    SIP, PV and lookup-table distortions are kept; the parity may be mirrored. The first world axis is the
    longitude. The object is shared within the process: do not alter it.

    Parameters
    ----------
    header : FrameHeader
        What `read_frame_header` said about the frame.

    Returns
    -------
    astropy.wcs.WCS
        With two axes, in the celestial frame of the header (ICRS, FK5, galactic, ...).

    Raises
    ------
    FrameError
        If there is no WCS, or one that is singular or nonsense.
    """
    if not header.wcs_text:
        raise FrameError("no celestial WCS")
    return _wcs(header.wcs_text, header.wcs_path)


def pixel_scale_arcsec(wcs: WCS) -> float:
    """Return the side of a square of a pixel's area at the reference point, in arcseconds.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        A celestial WCS with two axes, in degrees; CD and PC + CDELT forms give the same.
    """
    return 3600.0 * math.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))


def _wcs(text: str, source: str) -> WCS:
    # Only lookup tables are read from the file; without them equal texts share one object.
    has_tables = any(card.startswith(_LOOKUP_CARDS) for card in _cut(text))
    return _build_wcs(text, source if has_tables else "")


@functools.lru_cache(maxsize=8192)  # some 10 kB each
def _build_wcs(text: str, tables: str) -> WCS:
    with _quiet_astropy():
        cards = fits.Header.fromstring(text)
        _check_cards(cards)
        if tables:
            with _open(Path(tables)) as (hdus, _):
                wcs = _astropy_wcs(cards, hdus)
        else:
            wcs = _astropy_wcs(cards, None)
        if not wcs.has_celestial:
            raise FrameError("no celestial WCS")
        _check_scale(wcs)
        return wcs if wcs.wcs.lng == 0 else _longitude_first(wcs)


def _astropy_wcs(cards: fits.Header, hdus: fits.HDUList | None) -> WCS:
    try:
        return WCS(cards, fobj=hdus, naxis=2)
    except SingularMatrixError as err:
        raise FrameError("the WCS has a singular matrix") from err
    except (ValueError, TypeError, LookupError, AssertionError, MemoryError) as err:
        lines = [line for line in str(err).splitlines() if line.strip() and not line.startswith("ERROR")]
        raise FrameError(f"the WCS cannot be used: {lines[-1] if lines else type(err).__name__}") from err


def _check_cards(cards: fits.Header) -> None:
    """Raise for cards of the linear part that astropy would pass over or replace by a default."""
    for key in {key for key in cards if _LINEAR_CARD.fullmatch(key)} | {"CRVAL1", "CRVAL2"}:
        if number((cards,), key) is None:
            raise FrameError(f"the WCS is damaged: {key} is {'not a number' if key in cards else 'missing'}")
    for axis in "12":
        value, ctype = cards[f"CRVAL{axis}"], text_of((cards,), f"CTYPE{axis}").upper()
        limit = 90.0 if _LATITUDE.match(ctype) else 720.0
        if text_of((cards,), f"CUNIT{axis}").lower() in ("", "deg", "degree", "degrees") and abs(value) > limit:
            raise FrameError(f"the WCS is nonsense: CRVAL{axis} is {value:g} degrees")
    for form in ("CD", "PC"):
        _check_matrix(cards, form)


def _check_matrix(cards: fits.Header, form: str) -> None:
    default = {"CD": 0.0, "PC": 1.0}[form]  # of the diagonal
    given = {key: cards[key] for key in cards if re.fullmatch(form + "[12]_[12]", key)}
    m11, m22 = (given.get(f"{form}{i}_{i}", default) for i in (1, 2))
    m12, m21 = given.get(f"{form}1_2", 0.0), given.get(f"{form}2_1", 0.0)
    if given and m11 * m22 - m12 * m21 == 0.0:
        raise FrameError(f"the WCS has a singular {form} matrix")


def _check_scale(wcs: WCS) -> None:
    low, high = SCALE_LIMITS_ARCSEC
    matrix = wcs.pixel_scale_matrix
    if not (np.isfinite(matrix).all() and np.isfinite(wcs.wcs.crval).all()):
        raise FrameError("the WCS is nonsense: it has numbers that are not finite")
    largest, smallest = np.linalg.svd(matrix, compute_uv=False) * 3600.0
    if smallest < 1e-6 * largest:
        raise FrameError("the WCS has a singular matrix")
    if smallest < low or largest > high:
        raise FrameError(
            f"the WCS is nonsense: {smallest:.3g} to {largest:.3g} arcsec per pixel is outside {low} to {high}"
        )


def _longitude_first(wcs: WCS) -> WCS:
    """Return the same WCS with its world axes exchanged; the pixel axes stay."""
    new = WCS(naxis=2)
    new.wcs.ctype, new.wcs.cunit = list(wcs.wcs.ctype)[::-1], list(wcs.wcs.cunit)[::-1]
    new.wcs.crval, new.wcs.crpix = wcs.wcs.crval[::-1], wcs.wcs.crpix
    new.wcs.cd = wcs.pixel_scale_matrix[::-1]
    new.wcs.set_pv([(3 - axis, term, value) for axis, term, value in wcs.wcs.get_pv()])
    for name in ("lonpole", "latpole", "radesys", "equinox"):
        setattr(new.wcs, name, getattr(wcs.wcs, name))
    for name in ("sip", "cpdis1", "cpdis2", "det2im1", "det2im2", "pixel_shape"):
        setattr(new, name, getattr(wcs, name))
    new.wcs.set()
    corner = np.array([[0.0, 0.0], [1e3, 1e3]])
    if not np.allclose(new.all_pix2world(corner, 0)[:, ::-1], wcs.all_pix2world(corner, 0), rtol=0, atol=1e-9):
        raise FrameError("the WCS cannot be used: its first axis is the latitude, with distortions of that axis")
    return new


def _find_wcs(header: fits.Header, path: Path, shape: tuple[int, int]) -> tuple[str, str]:
    """Return the cards of the first usable WCS and the file they are from, else of the first that is declared."""
    declared = [("", "")]
    for text, source in _declared_wcs(header, path, shape):
        try:
            _wcs(text, source)
        except FrameError as err:
            logger.debug("%s: %s", source, err)
            declared.append((text, source))
        else:
            return text, source
    return declared[min(1, len(declared) - 1)]


def _declared_wcs(header: fits.Header, path: Path, shape: tuple[int, int]) -> Iterator[tuple[str, str]]:
    for source in (path, *_sidecars(path)):
        text = _wcs_text(_card_images(header) if source is path else _card_lines(source), shape)
        cards = fits.Header.fromstring(text)
        types = [text_of((cards,), f"CTYPE{axis}").upper() for axis in "12"]
        if any(_LONGITUDE.match(ctype) or _LATITUDE.match(ctype) for ctype in types):
            yield text, str(source)


def _card_images(header: fits.Header) -> Iterator[str]:
    for card in header.cards:
        try:
            yield card.image
        except (fits.VerifyError, ValueError):  # a card that cannot be parsed says nothing
            continue


def _wcs_text(lines: Iterable[str], shape: tuple[int, int]) -> str:
    """Return cards of 80 characters for an image of `shape`, without those that cannot belong to a WCS."""
    text = [f"{'NAXIS':<8}= {2:>20}", f"{'NAXIS1':<8}= {shape[1]:>20}", f"{'NAXIS2':<8}= {shape[0]:>20}"]
    for line in lines:
        if line[:8].strip() == "END":
            break
        card = _CARD.fullmatch(line)
        if card and not _NOT_WCS.fullmatch(card[1].upper()):
            value = "".join(char if " " <= char <= "~" else "?" for char in card[2].rstrip())
            text.append(f"{card[1].upper():<8}= {value}"[:80])
    return "".join(f"{card:<80}" for card in text)


def _sidecars(path: Path) -> list[Path]:
    stem = path.name
    while ending := next((e for e in _ENDINGS if stem.lower().endswith(e) and len(stem) > len(e)), ""):
        stem = stem[: -len(ending)]
    names = [base + suffix for base in (stem, path.name) for suffix in (".wcs.hdr", ".wcs")]
    return [path.with_name(name) for name in dict.fromkeys(names) if _is_file(path.with_name(name))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long with its new ending
        return False


def _card_lines(path: Path) -> list[str]:
    """Return the cards of a sidecar: lines of text, or FITS cards without line ends."""
    try:
        with path.open("rb") as file:
            text = file.read(_SIDECAR_BYTES).decode("latin-1")
    except OSError as err:
        logger.warning("%s cannot be read: %s", path, err.strerror or err)
        return []
    if "\n" in text[:2880] or "\r" in text[:2880]:
        return text.splitlines()
    return _cut(text)


def _cut(text: str) -> list[str]:
    return [text[start : start + 80] for start in range(0, len(text), 80)]


# ---- files -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: Path, *, as_table: bool = False) -> Iterator[tuple[fits.HDUList, int]]:
    """Open a frame for the block: its HDUs, numbers as stored, and its length when unpacked, in bytes."""
    how = {"memmap": False, "do_not_scale_image_data": True, "disable_image_compression": as_table}
    try:
        with _quiet_astropy(), path.open("rb") as file:
            stream, n_bytes = _unpacked(file)
            with fits.open(stream, **how) as hdus:
                yield hdus, n_bytes
    except _DAMAGE as err:
        raise FrameError(_reason(err)) from err


def _unpacked(file: BinaryIO) -> tuple[BinaryIO, int]:
    magic = file.read(6)
    n_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as packed:
            data = packed.read()
        magic, n_bytes, file = data[:6], len(data), io.BytesIO(data)
    if not n_bytes:
        raise FrameError("the file is empty")
    if magic != b"SIMPLE":
        raise FrameError("it is not a FITS file")
    return file, n_bytes


def _data_end(path: Path, hdus: fits.HDUList, index: int) -> int:
    """Return how long the file must be to hold the data of an HDU; the padding behind them is not needed."""
    if isinstance(hdus[index], fits.CompImageHDU):
        with _open(path, as_table=True) as (tables, _):
            return tables[index].fileinfo()["datLoc"] + tables[index].size
    return hdus[index].fileinfo()["datLoc"] + hdus[index].size


def _reason(err: Exception) -> str:
    if isinstance(err, FileNotFoundError | NotADirectoryError):
        return "the file does not exist"
    if isinstance(err, IsADirectoryError):
        return "it is a folder, not a file"
    if isinstance(err, PermissionError):
        return "no permission to read the file"
    if isinstance(err, EOFError):
        return "the file is truncated: its compressed data end too early"
    if isinstance(err, OSError) and err.errno not in (None, errno.EINVAL):
        return f"the file cannot be read: {err.strerror}"
    detail = (str(err).splitlines() or [""])[0]
    if isinstance(err, gzip.BadGzipFile | zlib.error):
        return f"the compressed data are damaged: {detail}"
    if "No SIMPLE card" in detail:
        return "it is not a FITS file"
    if "Empty or corrupt" in detail or "END card" in detail:
        return "the FITS header is damaged or cut short"
    return f"the file is damaged ({type(err).__name__}: {detail})"


#: The filters of warnings belong to the process, and frames are read by several threads.
_filters = threading.RLock()


@contextlib.contextmanager
def _quiet_astropy() -> Iterator[None]:
    """Silence astropy: what matters of its remarks on a header is checked here, the rest repeats by thousands."""
    log = logging.getLogger("astropy")
    level = log.level
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        log.setLevel(max(level, logging.WARNING))
        try:
            yield
        finally:
            log.setLevel(level)
