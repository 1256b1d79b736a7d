"""Master tiles in, mosaic out: they are read as frames are, matched, resampled with their weights and averaged.

Two ways give the same mosaic. ``reproject_coadd`` stacks a cell from all master tiles that cover it, with the
stacker that made them; ``incremental`` adds one master tile after the other to sums that wait on the disk, a file
a cell. Nothing is rejected here: that was done frame by frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from parallel_utils import TaskPool, check_cancelled, peak_memory_bytes
from zemosaic_align_stack import StackedRect, StackOptions
from zemosaic_assembly import write_core
from zemosaic_coadd_match import Agreement, agreement, untouched
from zemosaic_events import tagged_logger
from zemosaic_fits_io import frame_wcs, read_frame_header, read_planes
from zemosaic_frame_source import FrameSource, StackFrame
from zemosaic_master_tiles import COVERAGE_HDU, WEIGHT_HDU, MasterTile
from zemosaic_measure import MeasuredFrame, measure_frame
from zemosaic_mosaic import CellReport, CellTask, Mosaic, finish_cell
from zemosaic_photometry import Geometry
from zemosaic_pipeline import Settled
from zemosaic_reproject import Canvas, Placement, nearest, place
from zemosaic_runbook import RunBook
from zemosaic_settings import MEGABYTE, RunSettings
from zemosaic_stack_core import StackResult
from zemosaic_stack_pool import StackPool
from zemosaic_temp_files import temp_path
from zemosaic_types import FrameError, FrameRecord, FrameSolution, OutputError, Rect, StackParams

logger = tagged_logger("ZeMosaicWorker.coadd")

METHODS = ("reproject_coadd", "incremental")

_BAND_ROWS = 512


# ---- master tiles as frames ------------------------------------------------------------------------------


def tile_frames(
    tiles: list[MasterTile], settled: Settled, method: str, pool: TaskPool, book: RunBook
) -> list[StackFrame]:
    """Return master tiles as frames of the mosaic's canvas, brought together where that is worth it.

    Parameters
    ----------
    tiles : list of MasterTile
        Whose files are finished.
    settled : Settled
    method : str
        What may be brought together, as for `zemosaic_photometry.solve_match`.
    pool : TaskPool
        Looks at the tiles.
    book : RunBook
        Told what was found.

    Raises
    ------
    OutputError
        If a tile cannot be read.
    """
    records = [_record(tile.path) for tile in tiles]
    placements = [place(frame_wcs(r.header), r.header.shape, settled.canvas) for r in records]
    geometry = Geometry.of(placements, settled.matched.measured[0].cell_px)
    found = untouched(geometry, settled.n_channels)
    wanted = len(tiles) > 1 and method != "none"
    looks = _look_at_all(pool, records, settled, geometry.cell_px, book, measured=wanted)
    if wanted:
        found = _brought_together(looks, geometry, found, method, book)
    return [
        _stack_frame(record, placement, found, geometry, k, looks[k].share)
        for k, (record, placement) in enumerate(zip(records, placements, strict=True))
    ]


def _record(path: Path) -> FrameRecord:
    try:
        header = replace(read_frame_header(path), weight_hdu=WEIGHT_HDU)
    except FrameError as error:
        raise OutputError(f"{path} cannot be read again: {error}") from error
    return FrameRecord(path.stem, str(path), header, 0.0)


@dataclass(frozen=True)
class _Look:
    """What a worker has seen of a master tile: its measure or why there is none, what each colour weighs."""

    number: int
    measured: MeasuredFrame | None
    reason: str
    share: tuple[float, ...]
    peak_memory_bytes: int


_LookTask = tuple[int, FrameRecord, Canvas, int, int, bool]


def _look_at_all(
    pool: TaskPool, records: list[FrameRecord], settled: Settled, cell_px: int, book: RunBook, *, measured: bool
) -> list[_Look]:
    tasks: list[_LookTask] = [
        (k, record, settled.canvas, cell_px, settled.n_channels, measured) for k, record in enumerate(records)
    ]
    looks: list[_Look] = []
    for outcome in pool.run(_look, tasks, retry=lambda task: task):
        if outcome.error is not None:
            raise OutputError(f"{outcome.task[1].path} cannot be read again: {outcome.error}") from outcome.error
        looks.append(outcome.value)
        book.note_memory("worker", outcome.value.peak_memory_bytes)
    return sorted(looks, key=lambda look: look.number)


def _look(task: _LookTask) -> _Look:
    check_cancelled()
    number, record, canvas, cell_px, n_channels, wanted = task
    measured, reason = None, ""
    if wanted:
        try:
            measured = measure_frame(record, canvas, cell_px, n_channels)
        except FrameError as error:
            reason = str(error)
    return _Look(number, measured, reason, _shares(record, n_channels), peak_memory_bytes())


def _shares(record: FrameRecord, n_channels: int) -> tuple[float, ...]:
    """Return what each colour weighs in a tile, over the mean of the colours."""
    if n_channels == 1:
        return (1.0,)
    ny, nx = record.header.shape
    total = np.zeros(n_channels)
    for y in range(0, ny, _BAND_ROWS):
        band = Rect(y, min(y + _BAND_ROWS, ny), 0, nx)
        total += read_planes(Path(record.path), record.header, WEIGHT_HDU, band).sum(axis=(1, 2), dtype=np.float64)
    least = np.finfo(np.float32).tiny  # a colour without any sample has no pixel to weigh
    return tuple(np.maximum(total / max(total.mean(), least), least).tolist())


def _brought_together(
    looks: list[_Look], geometry: Geometry, as_they_are: Agreement, method: str, book: RunBook
) -> Agreement:
    for look in looks:
        if look.reason:
            book.say(f"the master tiles are taken as they are, since one says nothing: {look.reason}", "WARNING")
            return as_they_are
    found = agreement([look.measured.measure for look in looks], geometry, method=method)
    what = [word for word, done in (("gains", found.by_stars), ("levels", found.by_sky)) if done]
    if what:
        book.say(f"master tiles: {' and '.join(what)} are brought together")
    else:
        book.say("master tiles: they agree; they are taken as they are")
    return found


def _stack_frame(
    record: FrameRecord,
    placement: Placement,
    found: Agreement,
    geometry: Geometry,
    k: int,
    share: tuple[float, ...],
) -> StackFrame:
    gain, nothing = found.gain[k], (0.0,) * len(share)
    solution = FrameSolution(
        gain=tuple(gain.tolist()),
        offset=tuple(found.offset[k].tolist()),
        noise=(1.0,) * len(share),  # nothing is judged by it
        weight=tuple((np.array(share) / np.square(gain)).tolist()),
        photon=nothing,
        level=nothing,
        blur=nothing,
        gradient=tuple(map(tuple, found.gradient[k].tolist())) if found.gradient[k].any() else (),
        centre=tuple(geometry.centre[k].tolist()),
    )
    return StackFrame(record, placement, solution, nothing, nothing)


# ---- all tiles of a cell at once -------------------------------------------------------------------------


def coadd(
    mosaic: Mosaic,
    frames: list[StackFrame],
    stackers: StackPool,
    settings: RunSettings,
    method: str,
    *,
    first: int,
) -> None:
    """Fill the mosaic from master tiles.

    Parameters
    ----------
    mosaic : Mosaic
    frames : list of StackFrame
        Of `tile_frames`.
    stackers : StackPool
    settings : RunSettings
    method : str
        One of `METHODS`.
    first : int
        Number of the first cell, for events.

    Raises
    ------
    OutputError
        If no cell could be made, or the disk refuses.
    ValueError
        If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"unknown assembly {method!r}; known: {', '.join(METHODS)}")
    memory = settings.chunk_ram_mb * MEGABYTE
    options = StackOptions(mosaic.n_channels, StackParams(reject="none"), settings.kernel, mem_limit_bytes=memory)
    tasks = mosaic.tasks(frames, options, n_workers=stackers.workers.n_workers, first=first)
    if method == "reproject_coadd":
        mosaic.stack(stackers, tasks, phase="coadd", work=coadd_cell, note=_nothing)
        return
    with sums_on_disk(mosaic.book.paths.mosaic) as folder_of:
        failures = _add_all(stackers.workers, tasks, frames, folder_of, mosaic.book)
        finish = partial(settle_cell, folder_of, failures)
        # A GPU has nothing to do with sums that are there.
        mosaic.stack(stackers.workers, tasks, phase="coadd", work=finish, note=_nothing)


def _nothing(task: CellTask, report: CellReport) -> None:
    """Master tiles are in no ledger."""


def coadd_cell(task: CellTask) -> CellReport:
    """Average the master tiles on a cell; its coverage is that of their frames."""
    return finish_cell(task, partial(_counted_in_frames, task))


def _counted_in_frames(task: CellTask, stacked: StackedRect) -> StackedRect:
    if stacked.problems:
        name, reason = stacked.problems[0]
        raise OutputError(f"{name} cannot be read again: {reason}")
    counts = np.zeros(stacked.result.coverage.shape, dtype=np.int32)
    for frame in task.frames:
        source = FrameSource(frame, task.canvas, task.options.kernel)
        part = source.part_of(task.rect)
        counts[(slice(None), *part.shifted(-task.rect.y0, -task.rect.x0).slices)] += frames_of(source, part)
    result = replace(stacked.result, coverage=_consistent(counts, stacked.result.image))
    return replace(stacked, result=result)


def frames_of(source: FrameSource, part: Rect) -> np.ndarray:
    """Return how many frames a master tile has at the canvas pixels of `part`, the nearest of its own, int32.

    Raises
    ------
    FrameError
        If the tile cannot be read.
    """
    record, section = source.frame.record, source.section_of(part)
    if section.empty:
        return np.zeros((1, *part.shape), dtype=np.int32)
    counts = read_planes(Path(record.path), record.header, COVERAGE_HDU, section).astype(np.int32)
    return nearest(counts, section, record.header.shape, source.grid, part)


def _consistent(counts: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the counts, above 0 where and only where there is data."""
    return np.where(np.isfinite(image), np.maximum(counts, 1), 0).astype(np.int32)


# ---- one tile after the other ----------------------------------------------------------------------------


@contextmanager
def sums_on_disk(product: Path) -> Iterator[Path]:
    """Give the path that the files of sums extend, a file a cell; they are removed at the end of the block."""
    stem = temp_path(product.with_suffix(".sums"))
    try:
        yield stem
    finally:
        for path in product.parent.glob(_of_cell(stem, "*").name):
            path.unlink(missing_ok=True)


def _of_cell(stem: Path, number: int | str) -> Path:
    """Return the file of a cell; its name ends as those of temporary files do."""
    name, pid, end = stem.name.rsplit(".", 2)
    return stem.with_name(f"{name}.{number}.{pid}.{end}")


@dataclass(frozen=True)
class _AddTask:
    """A master tile to add to the sums of a cell, of which it is the `turn`-th."""

    cell: CellTask
    frame: StackFrame
    turn: int
    stem: Path


def _add_all(
    pool: TaskPool, tasks: list[CellTask], frames: list[StackFrame], stem: Path, book: RunBook
) -> dict[int, str]:
    """Add master tiles to the sums, one after the other; return the first failure of cells that have one."""
    failures: dict[int, str] = {}
    turns = {task.number: 0 for task in tasks}
    progress = book.progress("add", unit="master tile")
    progress(0, len(frames))
    for done, frame in enumerate(frames, start=1):
        here = [task for task in tasks if any(other is frame for other in task.frames)]
        adds = []
        for task in here:
            turns[task.number] += 1
            adds.append(_AddTask(replace(task, frames=()), frame, turns[task.number], stem))
        for outcome in pool.run(_add, adds, retry=lambda task: task):
            if outcome.error is None:
                book.note_memory("worker", outcome.value)
            else:
                number, why = outcome.task.cell.number, outcome.error
                logger.warning("master tile %s is not added to cell %d: %s", frame.record.frame_id, number, why)
                failures.setdefault(number, str(why))
        progress(done, len(frames))
    return failures


def _add(task: _AddTask) -> int:
    """Add a master tile to the sums of a cell; a second try of what was done already does nothing."""
    check_cancelled()
    cell, path = task.cell, _of_cell(task.stem, task.cell.number)
    turn, total, weight, counts = _sums(path, (cell.options.n_channels, *cell.rect.shape))
    if turn >= task.turn:
        return peak_memory_bytes()
    if turn != task.turn - 1:
        raise OutputError("a master tile before it is missing")
    source = FrameSource(task.frame, cell.canvas, cell.options.kernel)
    part = source.part_of(cell.rect)
    at = (slice(None), *part.shifted(-cell.rect.y0, -cell.rect.x0).slices)
    samples = np.empty((cell.options.n_channels, *part.shape), dtype=np.float32)
    source.fill(part, samples)
    of_pixels = source.pixel_weights(part, None, 0.0)
    share = np.array(task.frame.solution.weight)[:, None, None] * (1.0 if of_pixels is None else of_pixels)
    seen = np.isfinite(samples) & (share > 0)
    total[at] += np.where(seen, share * np.where(seen, samples, 0.0), 0.0)
    weight[at] += np.where(seen, share, 0.0)
    counts[at] += frames_of(source, part)
    new = _of_cell(task.stem, f"{cell.number}-new")
    try:
        with new.open("wb") as file:
            np.savez(file, turn=task.turn, total=total, weight=weight, counts=counts)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OutputError(f"the sums of a cell cannot be written: {error.strerror}") from error
    return peak_memory_bytes()


def _sums(path: Path, shape: tuple[int, int, int]) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of tiles in the sums of a cell, and the sums: values times weights, weights, frames."""
    if not path.exists():
        return 0, np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int32)
    with np.load(path) as sums:
        return int(sums["turn"]), sums["total"], sums["weight"], sums["counts"]


def settle_cell(stem: Path, failures: dict[int, str], task: CellTask) -> CellReport:
    """Divide the sums of a cell by its weights and write it to its place.

    Raises
    ------
    OutputError
        If a master tile is missing from the sums.
    """
    turn, total, weight, counts = _sums(_of_cell(stem, task.number), (task.options.n_channels, *task.rect.shape))
    if turn != len(task.frames):
        why = failures.get(task.number, "their sums are gone")
        raise OutputError(f"only {turn} of its {len(task.frames)} master tiles could be added: {why}")
    image = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0).astype(np.float32)
    none = np.zeros_like(counts)
    tally = np.zeros((len(task.frames), 3), dtype=np.int64)
    counted = _consistent(counts, image)
    result = StackResult(image, weight.astype(np.float32), counted, none, none, tally)
    core = write_core(task.places, task.core, result, task.rect)
    return CellReport(os.getpid(), core, (), (), peak_memory_bytes(), None)
