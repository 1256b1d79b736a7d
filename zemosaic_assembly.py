"""Tiles on disk in, full-canvas products out, streamed tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from zemosaic_fits_products import ImageStream, read_image
from zemosaic_types import FrameError, Rect, TileFailure


def assemble(
    cells: list[Rect],
    tile_paths: list[Path | None],
    streams: dict[str, ImageStream],
    n_channels: int,
    *,
    between_tiles: Callable[[int], None] = lambda _: None,
) -> list[TileFailure]:
    """Write the core of every tile to its place in the products.

    Parameters
    ----------
    cells : list of Rect
        Disjoint parts of the canvas that cover it exactly once.
    tile_paths : list of Path or None
        File of each cell's tile; None where there is none (no frame, or it failed).
    streams : dict
        Open products ``"image"``, ``"weight"``, ``"coverage"``.
    n_channels : int
    between_tiles : callable
        Called with the number of tiles done; what it raises ends the work.

    Returns
    -------
    list of TileFailure
        Tiles whose file cannot be read; their cells are left without data.
    """
    failures = []
    for number, (cell, path) in enumerate(zip(cells, tile_paths, strict=True), start=1):
        between_tiles(number - 1)
        core = None
        if path is not None:
            try:
                core = _read_core(path, cell)
            except FrameError as error:
                failures.append(TileFailure(number, f"cannot be read back: {error}"))
        if core is None:
            core = _nothing(n_channels, cell.shape)
        for name, stream in streams.items():
            stream.write(cell.y0, cell.x0, core[name])
    return failures


def _read_core(path: Path, cell: Rect) -> dict[str, np.ndarray]:
    header, image = read_image(path, 0)
    inner = cell.shifted(-header["Y0"], -header["X0"]).slices
    core = {"image": image}
    for name in ("weight", "coverage"):
        core[name] = read_image(path, name.upper())[1]
    return {name: plane[(..., *inner)] for name, plane in core.items()}


def _nothing(n_channels: int, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    full = (n_channels, *shape) if n_channels > 1 else shape
    return {
        "image": np.full(full, np.nan, dtype=np.float32),
        "weight": np.zeros(full, dtype=np.float32),
        "coverage": np.zeros(full, dtype=np.int32),
    }
