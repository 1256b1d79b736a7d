"""Tiles into full-canvas products: whoever stacks a tile writes its core, one process completes the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from zemosaic_fits_products import ImagePart, ImagePlace, Written
from zemosaic_preview import shrink_factor, shrink_rows
from zemosaic_stack_core import StackResult
from zemosaic_types import Rect


@dataclass(frozen=True)
class CorePlaces:
    """Where cores go, for whoever stacks them: the products' places by name, and the shrinking of the picture.

    Nobody draws a picture where `shrink` is 0.
    """

    images: dict[str, ImagePlace]
    shrink: int


@dataclass(frozen=True)
class WrittenCore:
    """What `Assembly.take` must know of a core: what was written into each product, its part of the picture."""

    written: dict[str, Written]
    picture: np.ndarray


def write_core(places: CorePlaces, cell: Rect, result: StackResult, rect: Rect) -> WrittenCore:
    """Write the part of a stacked rectangle that lies in a cell to its place in the products, in any process.

    Parameters
    ----------
    places : CorePlaces
    cell : Rect
        Canvas pixels to fill; the cell starts on a block of the picture (`cut_cells` with the step `shrink`).
    result : StackResult
        Its image, weight and coverage go into the products of these names.
    rect : Rect
        Canvas pixels that `result` holds, those of the cell among them.

    Raises
    ------
    OutputError
        If the disk refuses. The cell must then be written again, by another try or by `Assembly.leave_empty`.
    """
    inner = (slice(None), *cell.shifted(-rect.y0, -rect.x0).slices)
    core = {name: getattr(result, name)[inner] for name in places.images}
    written = {name: place.write(cell.y0, cell.x0, core[name]) for name, place in places.images.items()}
    picture = shrink_rows(core["image"], places.shrink) if places.shrink else np.empty((0, 0, 0), np.float32)
    return WrittenCore(written, picture)


class Assembly:
    """The products of a run while their cells are being filled.

    Parameters
    ----------
    streams : mapping
        Open products ``"image"``, ``"weight"``, ``"coverage"``.
    shape : tuple of int
        ``(ny, nx)`` of the canvas.
    n_channels : int
    pictured : bool
        Whether there is to be a picture.

    Attributes
    ----------
    places : CorePlaces
        What `write_core` needs.
    picture : ndarray, shape (c, ceil(ny / shrink), ceil(nx / shrink)), float32
        Means of blocks of the image; NaN where there is no data or no core yet. (c, 0, 0) if there is to be none.
    """

    def __init__(
        self,
        streams: Mapping[str, ImagePart],
        shape: tuple[int, int],
        n_channels: int,
        *,
        pictured: bool = True,
    ) -> None:
        self._streams, self._n_channels = streams, n_channels
        step = shrink_factor(shape) if pictured else 0
        self.places = CorePlaces({name: stream.place for name, stream in streams.items()}, step)
        size = [-(-length // step) for length in shape] if pictured else [0, 0]
        self.picture = np.full((n_channels, *size), np.nan, dtype=np.float32)
        self._taken: set[Rect] = set()

    def take(self, cell: Rect, core: WrittenCore) -> None:
        """Count a cell as filled.

        Raises
        ------
        ValueError
            If it was filled before.
        """
        if cell in self._taken:
            raise ValueError(f"{cell} is filled already")
        for name, written in core.written.items():
            self._streams[name].add(written)
        if self.places.shrink:
            y, x = (start // self.places.shrink for start in (cell.y0, cell.x0))
            self.picture[:, y : y + core.picture.shape[1], x : x + core.picture.shape[2]] = core.picture
        self._taken.add(cell)

    def fill_gaps(self, cells: list[Rect], *, between_cells: Callable[[], None] = lambda: None) -> None:
        """Write 'no data' into every cell that has no core, whatever a failed try has left there.

        Parameters
        ----------
        cells : list of Rect
            Disjoint parts of the canvas that cover it exactly once.
        between_cells : callable
            Called before each cell; what it raises ends the work.

        Raises
        ------
        OutputError
            If the disk refuses.
        """
        for cell in cells:
            between_cells()
            if cell not in self._taken:
                for name, stream in self._streams.items():
                    empty = np.nan if name == "image" else 0
                    dtype = stream.place.dtype
                    stream.write(cell.y0, cell.x0, np.full((self._n_channels, *cell.shape), empty, dtype=dtype))
