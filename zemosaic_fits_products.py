"""Products on disk: every file appears whole or not at all, FITS files with checksums; and reading them back.

A product is written to ``.{name}.{pid}.part`` in its own folder, flushed to the disk and renamed over the old one
in one step, so a crash, a full disk or a cancelled run never leaves half a product under its final name.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import psutil
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from PIL import Image

from zemosaic_types import FrameError, OutputError

logger = logging.getLogger("ZeMosaicWorker.products")

_BLOCK = 2880
_WORD = 0xFFFFFFFF
_TEMP_NAME = re.compile(r"\..+\.(\d+)\.part")
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


# ---- whole files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Give the path of a temporary file that becomes the product when the block ends without an exception.

    Parameters
    ----------
    path : Path
        The product. An existing file of that name is replaced, and kept as it is if anything fails.
    needed_bytes : int, optional
        Size of the product, for the message about a full disk; 0 if it is not known.

    Yields
    ------
    Path
        The temporary file, in the folder of `path`; the caller creates it.

    Raises
    ------
    OutputError
        If the file cannot be written, with the product and the reason.
    """
    temp = _temp_path(path)
    try:
        yield temp
        _flush_to_disk(temp)
        _publish(temp, path)
    except OSError as err:
        needed = _size_text(needed_bytes) if needed_bytes else f"more than {_size_text(_size_of(temp))}"
        _discard(temp)
        raise _output_error(path, err, needed) from err
    finally:
        _discard(temp)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with atomic_path(path, needed_bytes=len(data)) as temp:
        temp.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 and with the line ends of `text`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_png(path: Path, rgba: np.ndarray) -> None:
    """Write a PNG picture atomically.

    Parameters
    ----------
    path : Path
        The product.
    rgba : ndarray of uint8, shape (ny, nx, 4) or (ny, nx)
        Red, green, blue and opacity, or grey; the first row is the top of the picture.

    Raises
    ------
    OutputError
        If the file cannot be written.
    ValueError
        If `rgba` has another shape or dtype.
    """
    coloured = rgba.ndim == 3 and rgba.shape[2] == 4
    if rgba.dtype != np.uint8 or not (coloured or rgba.ndim == 2) or rgba.size == 0:
        raise ValueError(f"a picture is uint8 (ny, nx, 4) or (ny, nx), not {rgba.dtype} {rgba.shape}")
    # Encoded in memory: Pillow does not say why when the disk is full.
    write_bytes(path, encode_picture(rgba, "PNG", compress_level=1))


def encode_picture(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    """Return a picture as the bytes of a file.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (ny, nx), (ny, nx, 3) or (ny, nx, 4)
        First row on top.
    kind : str
        ``"PNG"``, or ``"JPEG"`` (without opacity).
    options : int
        Of Pillow's writer.
    """
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(encoded, format=kind, **options)
    return encoded.getvalue()


def write_hdus(path: Path, hdulist: fits.HDUList) -> None:
    """Write a FITS file atomically, with CHECKSUM and DATASUM in every HDU.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    # Checksum cards and an END may each open one more header block.
    needed = sum(hdu.filebytes() + _BLOCK for hdu in hdulist)
    with atomic_path(path, needed_bytes=needed) as temp, temp.open("wb") as file, _quiet_cards():
        _reserve(file, needed, path.parent)
        hdulist.writeto(_Sink(file), checksum=True)
        file.truncate()


class _Sink:
    """A file that astropy takes for a stream: it minds no reserved length and hides no reason of failure."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.flush, self.tell = file.write, file.flush, file.tell


def remove_product(path: Path) -> None:
    """Remove a product of an earlier run.

    Raises
    ------
    OutputError
        If it cannot be removed, or was not made by ZeMosaic.
    """
    try:
        if fits.getheader(path, 0).get("SOFTNAME") != "ZeMosaic":
            raise OutputError(f"{path} was not made by ZeMosaic; choose another output folder")
        path.unlink()
    except OSError as err:
        raise OutputError(f"{path} of an earlier run cannot be removed: {_why(err)}") from err


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that are gone: killed, or lost with the power.

    Raises
    ------
    OutputError
        If one cannot be removed.
    """
    for path in folder.glob(".*.part"):
        match = _TEMP_NAME.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match[1])):
            try:
                path.unlink(missing_ok=True)
            except OSError as err:
                raise OutputError(f"{path}, left by an earlier run, cannot be removed: {_why(err)}") from err


# ---- reading products back ------------------------------------------------------------------------------


def read_image(path: Path, hdu: int | str) -> tuple[fits.Header, np.ndarray]:
    """Read an image that ZeMosaic wrote, whole.

    Returns
    -------
    header : astropy.io.fits.Header
    data : ndarray
        Native byte order.

    Raises
    ------
    FrameError
        If the file cannot be read or lacks the HDU.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error", AstropyUserWarning)  # of a truncated file
            hdus = fits.open(file, memmap=False)
            data = hdus[hdu].data
            return hdus[hdu].header, data.astype(data.dtype.newbyteorder("="))
    except (OSError, KeyError, IndexError, ValueError, AttributeError, AstropyUserWarning) as err:
        raise FrameError(f"{path} cannot be read: {err}") from err


def read_table(path: Path, hdu: int) -> dict[str, np.ndarray]:
    """Read a table that a program has left, whole: a column an entry, native byte order.

    Raises
    ------
    FrameError
        If the file cannot be read or has no such table.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", AstropyUserWarning)  # of a truncated file
            rows = fits.getdata(path, hdu)
            names = rows.dtype.names or ()
            columns = {name: np.asarray(rows[name]) for name in names}
        return {name: column.astype(column.dtype.newbyteorder("=")) for name, column in columns.items()}
    except (OSError, LookupError, ValueError, TypeError, fits.VerifyError, AstropyUserWarning) as err:
        raise FrameError(f"{path} cannot be read: {err}") from err


def read_rows(path: Path, y0: int, y1: int) -> np.ndarray:
    """Read rows ``y0:y1`` of the primary image of a product, (ny, nx) or (c, ny, nx), native byte order.

    Raises
    ------
    FrameError
        If the file cannot be read.
    """
    try:
        with fits.open(path, memmap=True) as hdus:
            rows = hdus[0].section[..., y0:y1, :]
            return rows.astype(rows.dtype.newbyteorder("="))
    except (OSError, IndexError, ValueError) as err:
        raise FrameError(f"{path} cannot be read: {err}") from err


def read_product_wcs(path: Path) -> WCS:
    """Return the celestial WCS of a product.

    Raises
    ------
    FrameError
        If the file cannot be read.
    """
    return WCS(read_product_header(path), naxis=2)


def read_product_header(path: Path) -> fits.Header:
    """Return the header of a product's primary image.

    Raises
    ------
    FrameError
        If the file cannot be read.
    """
    try:
        return fits.getheader(path, 0)
    except OSError as err:
        raise FrameError(f"{path} cannot be read: {err}") from err


# ---- an image larger than memory -------------------------------------------------------------------------


class ImageStream:
    """A big image that is written block by block into the primary HDU of a FITS file.

    Every pixel must be written exactly once, in any order: the file does not depend on the order. As a context
    manager it closes the file at the end of the block, or removes it if the block raised.

    Parameters
    ----------
    path : Path
        The product; it appears when the stream is closed, and not before.
    header : astropy.io.fits.Header
        Cards of the product. Those that describe the array are replaced; the header itself is not altered.
    shape : tuple of int
        ``(ny, nx)`` or ``(c, ny, nx)``.
    dtype : dtype
        float32 or int32. (Each sample is one word of the data sum, which so needs no order.)

    Raises
    ------
    OutputError
        If the file cannot be made, or the disk has no room for the image.
    ValueError
        If `shape` or `dtype` is not one of the above.
    """

    def __init__(self, path: Path, header: fits.Header, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        self._path = path
        self._shape = shape if len(shape) == 3 else (1, *shape)
        self._dtype = np.dtype(dtype)
        self._header = _stream_header(header, shape, self._dtype)
        self._data_start = len(_header_bytes(self._header))
        self._size = self._data_start + _padded(4 * int(np.prod(shape)))
        self._sum = 0
        self._n_words = 0
        self._temp = _temp_path(path)
        self._file: BinaryIO | None = None
        with self._guard():
            self._file = self._temp.open("w+b")
            _reserve(self._file, self._size, path.parent)
            self._file.write(_header_bytes(self._header))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            self.abort()
        elif self._file is not None:
            self.close()

    def write(self, y0: int, x0: int, block: np.ndarray) -> None:
        """Put a block into its place.

        Parameters
        ----------
        y0, x0 : int
            Row and column of the block's first pixel in the image.
        block : ndarray, shape (h, w) or (c, h, w)
            All planes of a rectangle; its numbers are converted to the stream's dtype. Not altered.

        Raises
        ------
        OutputError
            If the disk refuses; the temporary file is gone then.
        ValueError
            If the block does not lie in the image, or the stream is closed.
        TypeError
            If its numbers do not convert, such as floats into an integer image.
        """
        planes = block if block.ndim == 3 else block[None]
        n_planes, ny, nx = self._shape
        if self._file is None:
            raise ValueError(f"the stream of {self._path} is closed")
        fits_in = planes.ndim == 3 and planes.shape[0] == n_planes and y0 >= 0 and x0 >= 0
        if not (fits_in and y0 + planes.shape[1] <= ny and x0 + planes.shape[2] <= nx):
            raise ValueError(f"no place for a block {block.shape} at ({y0}, {x0}) of the image {self._shape}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            words = planes.astype(self._dtype.newbyteorder(">"), order="C", casting="same_kind")
        with self._guard():
            for plane, rows in enumerate(words):
                self._write_rows(plane, y0, x0, rows)
        self._sum += int(words.view(">u4").sum(dtype=np.uint64))
        self._n_words += words.size

    def close(self, tables: Sequence[fits.BinTableHDU] = ()) -> None:
        """Finish the file: tables, checksums, flush to disk, rename.

        Parameters
        ----------
        tables : sequence of BinTableHDU
            Extensions to put behind the image.

        Raises
        ------
        OutputError
            If pixels are missing or were written twice, or the disk refuses; the temporary file is gone then.
        ValueError
            If the stream is closed already.
        """
        if self._file is None:
            raise ValueError(f"the stream of {self._path} is closed")
        try:
            expected = int(np.prod(self._shape))
            if self._n_words != expected:
                raise OutputError(f"{self._path} is incomplete: {self._n_words} of {expected} samples written")
            extensions = _extension_bytes(tables)
            with self._guard():
                self._finish(extensions)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close and remove the temporary file; harmless when repeated or after `close`."""
        if self._file is not None:
            # What is thrown away need not reach the disk.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            _discard(self._temp)

    def _write_rows(self, plane: int, y0: int, x0: int, rows: np.ndarray) -> None:
        _, ny, nx = self._shape
        # Rows of full width follow each other in the file.
        runs = rows.reshape(1, -1) if rows.shape[1] == nx else rows
        for y, run in enumerate(runs, start=y0):
            self._file.seek(self._data_start + 4 * ((plane * ny + y) * nx + x0))
            self._file.write(run.data)

    def _finish(self, extensions: bytes) -> None:
        # The padding behind the image is zero: reserving made the file that long.
        self._file.seek(self._size)
        self._size += len(extensions)
        self._file.write(extensions)
        self._file.seek(0)
        self._file.write(_header_bytes(_with_checksums(self._header, _folded(self._sum))))
        self._file.close()
        _flush_to_disk(self._temp)
        _publish(self._temp, self._path)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            self.abort()
            raise _output_error(self._path, err, _size_text(self._size)) from err


def _stream_header(header: fits.Header, shape: tuple[int, ...], dtype: np.dtype) -> fits.Header:
    """Return a copy of the header that describes the image and has a place for the checksums."""
    if dtype not in (np.dtype(np.float32), np.dtype(np.int32)) or len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"a streamed image is float32 or int32, 2-D or 3-D, not {dtype} {shape}")
    cards = [("SIMPLE", True, "conforms to the FITS standard"), ("BITPIX", -32 if dtype.kind == "f" else 32)]
    cards += [("NAXIS", len(shape))]
    cards += [(f"NAXIS{axis}", length) for axis, length in enumerate(reversed(shape), start=1)]
    cards += [("EXTEND", True)]
    described = header.copy(strip=True)  # without the cards that describe another array
    for key in ("CHECKSUM", "DATASUM", *(["BLANK"] if dtype.kind == "f" else [])):
        described.remove(key, ignore_missing=True, remove_all=True)
    with _quiet_cards():
        new = fits.Header(cards)
        new.extend(described)
        new["DATASUM"] = ("0", "sum of the data words")
        new["CHECKSUM"] = ("0" * 16, "makes the sum of all words of the HDU -0")
    return new


def _extension_bytes(tables: Sequence[fits.BinTableHDU]) -> bytes:
    if not tables:
        return b""
    whole = io.BytesIO()
    with _quiet_cards():
        hdulist = fits.HDUList([fits.PrimaryHDU(), *tables])
        hdulist.writeto(whole, checksum=True)
        n_primary = len(_header_bytes(hdulist[0].header))
    return whole.getvalue()[n_primary:]


# ---- checksums (FITS standard 4.0, appendix J) -----------------------------------------------------------


def _with_checksums(header: fits.Header, datasum: int) -> fits.Header:
    """Return a copy of a header with DATASUM and CHECKSUM filled in; `datasum` is the sum of the data words."""
    done = header.copy()
    done["DATASUM"] = str(datasum)
    done["CHECKSUM"] = "0" * 16
    words = np.frombuffer(_header_bytes(done), dtype=">u4")
    total = _folded(int(words.sum(dtype=np.uint64)) + datasum)
    done["CHECKSUM"] = _checksum_text(total ^ _WORD)
    return done


def _folded(total: int) -> int:
    """Return the ones'-complement sum of 32-bit words from their plain sum: carries are added at the low end."""
    while total > _WORD:
        total = (total & _WORD) + (total >> 32)
    return total


def _checksum_text(value: int) -> str:
    """Return 16 letters and digits that add `value` to a sum in which they replace 16 zeros.

    Each of the four bytes is spread over four characters that stand in the same byte of four words. Pairs of
    characters move apart, one up and one down, until none is a punctuation mark.
    """
    letters = [0] * 16
    for position, byte in enumerate(value.to_bytes(4, "big")):
        quarter, rest = divmod(byte, 4)
        four = [quarter + ord("0") + extra for extra in (rest, 0, 0, 0)]
        for first in (0, 2):
            while not all(chr(code).isalnum() for code in four[first : first + 2]):
                four[first] += 1
                four[first + 1] -= 1
        letters[position::4] = four
    # The value of a card starts in column 12, the last byte of a word: turn by one.
    return "".join(map(chr, [letters[-1], *letters[:-1]]))


def _header_bytes(header: fits.Header) -> bytes:
    with _quiet_cards():
        return header.tostring().encode("ascii")


@contextlib.contextmanager
def _quiet_cards() -> Iterator[None]:
    """Ignore what astropy says about cards whose comment it has to shorten."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)
        yield


# ---- folders and the disk --------------------------------------------------------------------------------


def free_bytes(folder: Path) -> int:
    """Return how much can be written below a folder, which need not exist yet.

    Raises
    ------
    OutputError
        If the file system does not say.
    """
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError as err:
        raise OutputError(f"the free space of {folder} is not known: {err.strerror or err}") from err


def ensure_writable_folder(path: Path) -> None:
    """Make a folder, with its parents, and prove that a file can be made in it.

    Raises
    ------
    OutputError
        If it is not a folder, or nothing can be written into it.
    """
    probe = path / f".zemosaic.{os.getpid()}.part"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\n")
    except (FileExistsError, NotADirectoryError) as err:
        raise OutputError(f"{path} cannot be a folder: it, or a part of its path, is a file") from err
    except OSError as err:
        raise OutputError(f"{path} cannot be written into: {_why(err)}") from err
    finally:
        _discard(probe)


def _temp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _reserve(file: BinaryIO, size: int, folder: Path) -> None:
    """Make a file `size` bytes of zeros, for which the disk has room."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as err:
            if err.errno not in _CANNOT_RESERVE:
                raise
            logger.debug("space cannot be reserved in %s: %s", folder, err)
    file.truncate(size)


def _flush_to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _publish(temp: Path, path: Path) -> None:
    temp.replace(path)
    if os.name == "nt":  # Windows opens no folder
        return
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as err:
        # The product is in place; some network file systems cannot do more.
        logger.debug("%s: its folder cannot be flushed: %s", path, err)


def _discard(temp: Path) -> None:
    try:
        temp.unlink(missing_ok=True)
    except NotADirectoryError:
        pass  # a part of the path is a file: there was nothing to remove
    except OSError as err:
        logger.warning("the temporary file %s may stay behind: %s", temp, err)


def _output_error(path: Path, err: OSError, needed: str) -> OutputError:
    if err.errno in _DISK_FULL:
        free = _size_text(free_bytes(path.parent))
        return OutputError(f"{path} cannot be written: the disk is full: {needed} needed, {free} free")
    return OutputError(f"{path} cannot be written: {_why(err)}")


def _why(err: OSError) -> str:
    if isinstance(err, PermissionError):
        return "no permission"
    if isinstance(err, FileNotFoundError):
        return "its folder does not exist"
    return err.strerror or str(err)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _size_text(n_bytes: int) -> str:
    """Return a size as people read it, with decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} bytes"


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK) * _BLOCK
