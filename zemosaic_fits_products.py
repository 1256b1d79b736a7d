"""Products on disk: every file appears whole or not at all, FITS files with checksums; and reading them back.

A product is written to ``.{name}.{pid}.part`` in its own folder, flushed to the disk and renamed over the old one
in one step, so a crash, a full disk or a cancelled run never leaves half a product under its final name.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Self

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from PIL import Image

from zemosaic_fits_checksums import BLOCK, CARD, folded, padded, quiet_cards, with_checksums
from zemosaic_temp_files import temp_path, why
from zemosaic_types import FrameError, OutputError

logger = logging.getLogger("ZeMosaicWorker.products")

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
    temp = temp_path(path)
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


def encode_picture(pixels: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    """Return a picture as the content of a file; in memory, since Pillow does not say why a disk is full.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (ny, nx), (ny, nx, 3) or (ny, nx, 4)
        Grey, or red, green, blue and opacity; the first row is the top of the picture.
    kind : str
        ``"PNG"``, or ``"JPEG"`` (without opacity).
    options : int
        Of Pillow's writer.

    Raises
    ------
    ValueError
        If `pixels` has another shape or dtype.
    """
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shaped or pixels.size == 0:
        raise ValueError(
            f"a picture is uint8 (ny, nx), (ny, nx, 3) or (ny, nx, 4), not {pixels.dtype} {pixels.shape}"
        )
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(encoded, format=kind, **options)
    return encoded.getvalue()


def encode_grey(pixels: np.ndarray) -> bytes:
    """Return a grey picture as a PNG with a palette, which is smaller than one of four channels, and made sooner.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (ny, nx, 4)
        Red, green and blue, which are equal, and opacity, 0 or 255. Where that is not 0 black becomes the darkest
        grey, since the palette's first colour is what is transparent.
    """
    shade = np.where(pixels[..., 3] > 0, np.maximum(pixels[..., 0], 1), 0).astype(np.uint8)
    picture = Image.fromarray(shade)
    picture.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG", transparency=0, compress_level=1, compress_type=zlib.Z_RLE)
    return encoded.getvalue()


def write_hdus(path: Path, hdulist: fits.HDUList) -> None:
    """Write a FITS file atomically, with CHECKSUM and DATASUM in every HDU.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    # Checksum cards and an END may each open one more header block.
    needed = sum(hdu.filebytes() + BLOCK for hdu in hdulist)
    with atomic_path(path, needed_bytes=needed) as temp, temp.open("wb") as file, quiet_cards():
        _reserve(file, needed, path.parent)
        hdulist.writeto(_Sink(file), checksum=True)
        file.truncate()


class _Sink:
    """A file that astropy takes for a stream: it minds no reserved length and hides no reason of failure."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.flush, self.tell = file.write, file.flush, file.tell


def in_file_order(array: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of FITS files, which spares those who write it twice half the work."""
    return array.astype(array.dtype.newbyteorder(">"), copy=False)


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
        raise OutputError(f"{path} of an earlier run cannot be removed: {why(err)}") from err


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


def read_rows(path: Path, y0: int, y1: int, *, columns: slice = slice(None), step: int = 1) -> np.ndarray:
    """Read every `step`-th of the rows ``y0:y1`` of the primary image of a product, or some of their columns.

    Returns an array (ny, nx) or (c, ny, nx), native byte order; no more of the file is read.

    Raises
    ------
    FrameError
        If the file cannot be read.
    """
    try:
        with fits.open(path, memmap=False) as hdus:  # only what is asked for is read; mapped it is slower
            rows = hdus[0].section[..., y0:y1:step, columns]
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


@dataclass(frozen=True, slots=True)
class Written:
    """What the checksum of an image needs of a part of it: number of its samples and sum of their words."""

    n_words: int
    word_sum: int


@dataclass(frozen=True)
class ImagePlace:
    """Where the pixels of an image lie that an `ImageStream` keeps open: all that another process needs to write.

    Attributes
    ----------
    product, temp : Path
        The product, and the file that will become it.
    data_start : int
        Offset of the image in the file.
    shape : tuple of int
        ``(c, ny, nx)``.
    dtype : str
        Of the file, big-endian.
    """

    product: Path
    temp: Path
    data_start: int
    shape: tuple[int, int, int]
    dtype: str

    @property
    def end(self) -> int:
        """Offset behind the padded image."""
        return self.data_start + padded(4 * math.prod(self.shape))

    def write(self, y0: int, x0: int, block: np.ndarray) -> Written:
        """Put a block into its place; who owns the stream must be told what is returned, once (`ImageStream.add`).

        Parameters
        ----------
        y0, x0 : int
            Row and column of the block's first pixel in the image.
        block : ndarray, shape (h, w) or (c, h, w)
            All planes of a rectangle; its numbers are converted to the stream's dtype. Not altered.

        Raises
        ------
        OutputError
            If the disk refuses; some of the block may be in place then.
        ValueError
            If the block does not lie in the image.
        TypeError
            If its numbers do not convert, such as floats into an integer image.
        """
        planes = block if block.ndim == 3 else block[None]
        n_planes, ny, nx = self.shape
        fits_in = planes.ndim == 3 and planes.shape[0] == n_planes and y0 >= 0 and x0 >= 0
        if not (fits_in and y0 + planes.shape[1] <= ny and x0 + planes.shape[2] <= nx):
            raise ValueError(f"no place for a block {block.shape} at ({y0}, {x0}) of the image {self.shape}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            words = planes.astype(self.dtype, order="C", casting="same_kind", copy=False)
        with self.reasons(), self.temp.open("r+b") as file:
            for plane, rows in enumerate(words):
                self._write_rows(file, plane, y0, x0, rows)
        return Written(words.size, int(words.view(">u4").sum(dtype=np.uint64)))

    @contextlib.contextmanager
    def reasons(self) -> Iterator[None]:
        """Turn what the disk says within the block into an `OutputError` about the product."""
        try:
            yield
        except OSError as err:
            if isinstance(err, FileNotFoundError) and self.product.parent.is_dir():
                raise OutputError(f"{self.product} cannot be written: {self.temp.name} was removed") from err
            raise _output_error(self.product, err, _size_text(self.end)) from err

    def _write_rows(self, file: BinaryIO, plane: int, y0: int, x0: int, rows: np.ndarray) -> None:
        _, ny, nx = self.shape
        # Rows of full width follow each other in the file.
        runs = rows.reshape(1, -1) if rows.shape[1] == nx else rows
        for y, run in enumerate(runs, start=y0):
            file.seek(self.data_start + 4 * ((plane * ny + y) * nx + x0))
            file.write(run.data)


class ImagePart:
    """An image of a file that is being written; see `ImageStream`.

    Attributes
    ----------
    place : ImagePlace
    """

    def __init__(self, place: ImagePlace) -> None:
        self.place = place
        self._sum = self._n_words = 0

    def write(self, y0: int, x0: int, block: np.ndarray) -> None:
        """Put a block into its place; see `ImagePlace.write`."""
        self.add(self.place.write(y0, x0, block))

    def add(self, written: Written) -> None:
        """Count a part that was written through `place`, by whatever process."""
        self._n_words += written.n_words
        self._sum += written.word_sum

    def _cards(self, described: fits.Header, length: int) -> bytes:
        """Return the header of the image, once all of its pixels are there."""
        expected = math.prod(self.place.shape)
        if self._n_words != expected:
            raise OutputError(f"{self.place.product} is incomplete: {self._n_words} of {expected} samples written")
        return with_checksums(described, folded(self._sum), length)


class ImageStream(ImagePart):
    """A big image that is written block by block into the primary HDU of a FITS file, by one or many processes.

    Every pixel must be written and told (`write`, or `ImagePlace.write` and `add`) exactly once, in any order: the
    file does not depend on the order. A part that was written and not told may be written again. As a context
    manager it removes the file at the end of the block unless it was closed.

    Parameters
    ----------
    path : Path
        The product; it appears when the stream is closed, and not before.
    shape : tuple of int
        ``(ny, nx)`` or ``(c, ny, nx)``.
    dtype : dtype
        float32 or int32. (Each sample is one word of the data sum, which so needs no order.)
    n_cards : int
        Room for so many cards of a header, those that describe the array included; what stays free is blank.
    extensions : mapping of dtype
        Images of the same shape that follow the first in the file, by their names.

    Attributes
    ----------
    extensions : dict of ImagePart

    Raises
    ------
    OutputError
        If the file cannot be made, or the disk has no room for the image.
    ValueError
        If `shape` or `dtype` is not one of the above.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype | type,
        *,
        n_cards: int = 71,
        extensions: Mapping[str, np.dtype | type] = MappingProxyType({}),
    ) -> None:
        kinds = [np.dtype(kind) for kind in (dtype, *extensions.values())]
        if any(k.name not in ("float32", "int32") for k in kinds) or len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"a streamed image is float32 or int32, 2-D or 3-D, not {kinds[0]} {shape}")
        self._shape, self._room = shape, padded(CARD * (n_cards + 1))
        planes = shape if len(shape) == 3 else (1, *shape)
        places: list[ImagePlace] = []
        for kind in kinds:
            start = self._room + (places[-1].end if places else 0)
            places.append(ImagePlace(path, temp_path(path), start, planes, kind.newbyteorder(">").str))
        super().__init__(places[0])
        self.extensions = dict(zip(extensions, map(ImagePart, places[1:]), strict=True))
        self._end = places[-1].end
        self._complete = self._flushed = False
        self._file: BinaryIO | None = None
        with self._guard():
            self._file = self.place.temp.open("w+b")
            _reserve(self._file, self._end, path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def write(self, y0: int, x0: int, block: np.ndarray) -> None:
        """Put a block into its place; see `ImagePlace.write`. If the disk refuses, the stream is given up."""
        self._check_open()
        with self._guard():
            super().write(y0, x0, block)

    def complete(
        self,
        header: fits.Header,
        tables: Sequence[fits.BinTableHDU] = (),
        *,
        headers: Mapping[str, fits.Header] = MappingProxyType({}),
    ) -> None:
        """Write what stands around the pixels: headers, checksums, tables.

        Parameters
        ----------
        header : astropy.io.fits.Header
            Cards of the product. Those that describe the array are replaced; the header itself is not altered.
        tables : sequence of BinTableHDU
            Extensions to put behind the images.
        headers : mapping of Header
            Cards of the further images, by their names.

        Raises
        ------
        OutputError
            If pixels are missing or were told twice, or the disk refuses; the temporary file is gone then.
        ValueError
            If the stream is closed already, or the header is longer than its room.
        """
        self._check_open()
        with self._guard():
            parts: dict[str, ImagePart] = {"": self, **self.extensions}
            for name, part in parts.items():
                cards = headers.get(name, fits.Header()) if name else header
                described = _stream_header(cards, self._shape, np.dtype(part.place.dtype), name)
                text = part._cards(described, self._room)
                self._file.seek(part.place.data_start - self._room)
                self._file.write(text)
            # The padding behind the images is zero: reserving made the file that long.
            self._file.seek(self._end)
            self._file.write(_extension_bytes(tables))
            self._file.flush()
            self._complete = True

    def flush(self) -> None:
        """Bring a complete file to the disk; takes its time, and may run in a thread of its own.

        Raises
        ------
        OutputError
            If the disk refuses; the temporary file is gone then.
        """
        self._check_open()
        with self._guard():
            _flush_to_disk(self.place.temp)
            self._flushed = True

    def close(self) -> None:
        """Give a complete file its name, when it is on the disk.

        Raises
        ------
        OutputError
            If the disk refuses; the temporary file is gone then.
        ValueError
            If the stream is not complete, or closed already.
        """
        self._check_open()
        if not self._complete:
            raise ValueError(f"the stream of {self.place.product} is not complete")
        if not self._flushed:
            self.flush()
        with self._guard():
            self._file.close()
            _publish(self.place.temp, self.place.product)
            self._file = None

    def abort(self) -> None:
        """Close and remove the temporary file; harmless when repeated or after `close`."""
        if self._file is not None:
            # What is thrown away need not reach the disk.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            _discard(self.place.temp)

    def _check_open(self) -> None:
        if self._file is None:
            raise ValueError(f"the stream of {self.place.product} is closed")

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with self.place.reasons():
                yield
        except OutputError:
            self.abort()
            raise


def _stream_header(header: fits.Header, shape: tuple[int, ...], dtype: np.dtype, name: str) -> fits.Header:
    """Return a copy of the header that describes the image and has a place for the checksums.

    An image with a `name` is an extension.
    """
    first = ("XTENSION", "IMAGE", "image extension") if name else ("SIMPLE", True, "conforms to the FITS standard")
    cards = [first, ("BITPIX", -32 if dtype.kind == "f" else 32), ("NAXIS", len(shape))]
    cards += [(f"NAXIS{axis}", length) for axis, length in enumerate(reversed(shape), start=1)]
    cards += [("PCOUNT", 0), ("GCOUNT", 1), ("EXTNAME", name)] if name else [("EXTEND", True)]
    described = header.copy(strip=True)  # without the cards that describe another array
    for key in ("CHECKSUM", "DATASUM", *(["BLANK"] if dtype.kind == "f" else [])):
        described.remove(key, ignore_missing=True, remove_all=True)
    with quiet_cards():
        new = fits.Header(cards)
        new.extend(described)
        new["DATASUM"] = ("0", "sum of the data words")
        new["CHECKSUM"] = ("0" * 16, "makes the sum of all words of the HDU -0")
    return new


def _extension_bytes(tables: Sequence[fits.BinTableHDU]) -> bytes:
    if not tables:
        return b""
    whole = io.BytesIO()
    with quiet_cards():
        hdulist = fits.HDUList([fits.PrimaryHDU(), *tables])
        hdulist.writeto(whole, checksum=True)
    return whole.getvalue()[hdulist[0].filebytes() :]


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
        raise OutputError(f"{path} cannot be written into: {why(err)}") from err
    finally:
        _discard(probe)


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
    return OutputError(f"{path} cannot be written: {why(err)}")


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _size_text(n_bytes: int) -> str:
    """Return a size as people read it, with decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} bytes"
