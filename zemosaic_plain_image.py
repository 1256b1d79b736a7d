"""Stored numbers of an image: how they become values, are read where they lie unpacked in a file, or are kept.

A stack reads a section of every frame for every slab; finding the image in its FITS file once is enough for all.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from zemosaic_types import Rect


class Scaling(NamedTuple):
    """How stored numbers become values: ``value = zero + scale * stored``."""

    bitpix: int
    scale: float
    zero: float
    blank: int | None

    @property
    def is_uint16(self) -> bool:
        """Whether the values are the integers 0..65535."""
        return (self.bitpix, self.scale, self.zero, self.blank) == (16, 1.0, 32768.0, None)

    @property
    def full_scale(self) -> float:
        """The largest value that integers can stand for; inf for floats."""
        if self.bitpix < 0:
            return math.inf
        low, high = (0, 255) if self.bitpix == 8 else (-(2 ** (self.bitpix - 1)), 2 ** (self.bitpix - 1) - 1)
        return self.zero + self.scale * (high if self.scale > 0 else low)

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Return values, uint16 or float32, C-contiguous; `raw` is not altered."""
        if self.is_uint16:
            # Adding 32768 is turning the highest bit over.
            return raw.astype(np.uint16, order="C") ^ np.uint16(0x8000)
        scaled = self.scale != 1.0 or self.zero != 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite
            values = raw * self.scale + self.zero if scaled else raw
            values = values.astype(np.float32, order="C")
        if self.blank is not None:
            values[raw == self.blank] = np.nan
        return values


@dataclass(frozen=True, slots=True)
class PlainImage:
    """Where the numbers of an image lie in its file.

    Attributes
    ----------
    offset : int
        Bytes before the first number.
    dtype : str
        Of the numbers as stored, numpy's name.
    layout : str
        ``"mono"`` (ny, nx), ``"chw"`` (planes, ny, nx) or ``"hwc"`` (ny, nx, planes).
    shape : tuple of int
        ``(ny, nx)``.
    n_planes : int
        As stored.
    """

    offset: int
    dtype: str
    layout: str
    shape: tuple[int, int]
    n_planes: int

    @property
    def n_bytes(self) -> int:
        """Length of the image in the file."""
        return math.prod(self.shape) * self.n_planes * np.dtype(self.dtype).itemsize

    def read(self, path: Path, rect: Rect) -> np.ndarray:
        """Return the numbers of a rectangle as they are stored, (c, h, w); of colours the first three.

        Raises
        ------
        OSError
            If the file cannot be read.
        EOFError
            If it ends too early.
        """
        ny, nx = self.shape
        rows, columns = rect.slices
        with path.open("rb", buffering=0) as file:
            if self.layout == "chw":
                return np.stack([self._rows(file, c * ny, rows, nx)[:, columns] for c in range(3)])
            block = self._rows(file, 0, rows, nx * self.n_planes)
        if self.n_planes == 1:
            return block[None, :, columns]
        return np.moveaxis(block.reshape(-1, nx, self.n_planes)[:, columns, :3], -1, 0)

    def _rows(self, file: BinaryIO, above: int, rows: slice, length: int) -> np.ndarray:
        block = np.empty((rows.stop - rows.start, length), dtype=self.dtype)
        file.seek(self.offset + (above + rows.start) * length * block.itemsize)
        view = memoryview(block).cast("B")
        while view:
            count = file.readinto(view)
            if not count:
                raise EOFError("the file ends before its image does")
            view = view[count:]
        return block


class ImageCache:
    """The unpacked images asked for last, together with their scaling, up to a number of bytes; for any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._images: OrderedDict[Hashable, tuple[np.ndarray | None, Scaling | None]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> tuple[np.ndarray | None, Scaling | None] | None:
        """Return what is kept under a key, None if nothing is."""
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def keep(
        self, key: Hashable, image: tuple[np.ndarray | None, Scaling | None]
    ) -> tuple[np.ndarray | None, Scaling | None]:
        """Keep an image and return it; those not asked for longest make room."""
        with self._lock:
            self._images[key] = image
            while (
                sum(stored.nbytes for stored, _ in self._images.values() if stored is not None) > self._most_bytes
            ):
                self._images.popitem(last=False)
        return image
