"""What a run will cost, roughly: time, memory and disk as ranges, from what headers say."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parallel_utils import WORKER_BASE_BYTES
from zemosaic_types import FrameRecord

Shape = tuple[int, int]

_MEGA = 1e6
_BYTES_A_PIXEL = 12  # of a plane: image, weight, coverage


@dataclass(frozen=True)
class _Costs:
    """Seconds of one core for a kind of frame.

    A megapixel of a frame, a frame in the process of the run, a megapixel of a master tile that is coadded.
    """

    pixels: float
    serial: float
    coadd: float


_MONO = _Costs(pixels=0.067, serial=0.005, coadd=0.125)
_COLOUR = _Costs(pixels=0.15, serial=0.012, coadd=0.32)
_HEADER_S = 0.005  # a frame
_CANVAS_S = 0.022  # a megapixel of a plane of the mosaic
_START_S = 1.1
_HELP = 0.5  # of a further core, at worst
_RANGE = (0.6, 2.0)  # from a fast machine to a slow or busy one
_COMPILING_S = 30.0  # all loops of a run


def estimate_seconds(
    records: Sequence[FrameRecord],
    shape: Shape,
    n_channels: int,
    workers: int,
    cores: int,
    *,
    master_tiles: Sequence[Shape] = (),
    compiles: bool = False,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges of processor time and wall time of a run, in seconds.

    The model is linear: a frame costs what its header costs, a share of the serial phases (refine, flat, match)
    and a price a pixel (measure, stack) that its kind decides; a plane of the canvas a price a pixel (assemble).
    Workers share what is counted by pixels of frames: at best each core that has one adds its whole speed, at
    worst half of it. The prices were measured once, roughly, on the surveys of 60 frames of 1920 x 1080 px in nine
    panels of the benchmarks (`swarp_spec`, mono and colour) with one worker on a core of a server: mono 10.5 s,
    colour 21.5 s of wall time; there Classic takes 3.1 s (mono) and 7.8 s (colour) more of a processor, for nine
    master tiles, one run each. The range says how far machines lie apart, no more.

    Parameters
    ----------
    records : sequence of FrameRecord
    shape : tuple of int
        ``(ny, nx)`` of the canvas.
    n_channels, workers, cores : int
    master_tiles : sequence of (int, int)
        Shapes of those of Classic.
    compiles : bool
        Whether the run has to compile its loops; the high ends count it.
    """
    costs = [_MONO if record.header.n_channels == 1 else _COLOUR for record in records]
    pixels = sum(
        cost.pixels * float(np.prod(r.header.shape)) / _MEGA for cost, r in zip(costs, records, strict=True)
    )
    coadd = (_COLOUR if n_channels > 1 else _MONO).coadd
    pixels += coadd * sum(float(np.prod(tile)) for tile in master_tiles) / _MEGA
    canvas = _CANVAS_S * n_channels * float(np.prod(shape)) / _MEGA
    serial = _START_S + canvas + sum(cost.serial + _HEADER_S for cost in costs)
    start = 0.5 * _START_S * workers  # of each worker
    cpu, at_once = pixels + serial + start, min(workers, cores)
    best, worst = pixels / at_once + serial, pixels / (1.0 + _HELP * (at_once - 1)) + serial
    low, high = _RANGE
    more = _COMPILING_S * compiles
    return (low * cpu, high * cpu + more), (low * best, high * worst + more)


def loops_are_compiled(module: Path) -> bool | None:
    """Whether numba keeps compiled loops of a module for this Python, or None if that cannot be told.

    Numba keeps them below ``NUMBA_CACHE_DIR``, else in ``__pycache__`` beside the module, with an index file
    ``MODULE.FUNCTION-LINE.pyXY.nbi`` a function; where that folder cannot be written, in one of the user's, which
    is not looked into. Whether an index is of this version of the module is for numba to know.
    """
    elsewhere = os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES") or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
    folder = _cache_of(module)
    if elsewhere or not module.is_file() or not _can_be_written(folder):
        return None
    python = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
    return any(folder.glob(f"{module.stem}.*.{python}.nbi"))


def _cache_of(module: Path) -> Path:
    """Return the folder where numba keeps the compiled loops of a module if it can."""
    beside = module.absolute().parent
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if not chosen:
        return beside / "__pycache__"
    digest = hashlib.sha1(str(beside).encode(), usedforsecurity=False).hexdigest()
    return Path(chosen, f"{beside.name}_{digest}")


def _can_be_written(folder: Path) -> bool:
    """Whether a folder can be written into, or made."""
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    return nearest is not None and os.access(nearest, os.W_OK)


def estimate_memory(
    n_frames: int, n_channels: int, workers: int, chunk_ram_mb: int, *, master_tiles: Sequence[Shape] = ()
) -> tuple[int, int]:
    """Return the range of the memory of all processes of a run together, in bytes.

    At the least each worker holds its libraries and the sections of a small tile, at the most all that it may use;
    a frame costs the process of the run some 20 kB (stars, coarse levels), at the most 100 kB. Master tiles are
    measured whole.
    """
    whole = max((ny * nx for ny, nx in master_tiles), default=0) * n_channels * _BYTES_A_PIXEL
    low = 350 * 10**6 + 20_000 * n_frames + workers * (250 * 10**6 + chunk_ram_mb * 1024**2 // 4)
    high = 500 * 10**6 + 100_000 * n_frames + workers * (WORKER_BASE_BYTES + max(chunk_ram_mb * 1024**2, whole))
    return low, high


def estimate_disk(
    shape: Shape, n_channels: int, *, save_uint16: bool, master_tiles: Sequence[Shape] = ()
) -> tuple[int, int]:
    """Return the range of the disk space of all products, in bytes: mosaic, weight, coverage, and their tiles."""
    plane = shape[0] * shape[1]
    tiles = sum(ny * nx for ny, nx in master_tiles) or plane
    low = n_channels * (plane * (_BYTES_A_PIXEL + 2 * save_uint16) + tiles * _BYTES_A_PIXEL)
    return low, low + low // 10 + 50 * 10**6
