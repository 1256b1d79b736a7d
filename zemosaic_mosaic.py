"""Stack frames in, a mosaic out: cells are stacked in the pool, written into the products, and completed.

What is stacked on a cell is the caller's business; how cells are cut, announced, stacked on processors or GPUs,
tried again and given up, and how the full-canvas products come about is the same for every pipeline.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from parallel_utils import TaskPool, check_cancelled, peak_memory_bytes
from zemosaic_align_stack import StackedRect, StackOptions, stack_frames
from zemosaic_assembly import Assembly, CorePlaces, WrittenCore, write_core
from zemosaic_events import PlannedTile, TileDone, TilesPlanned, TileStarted, tagged_logger
from zemosaic_fits_products import (
    ImageStream,
    ensure_writable_folder,
    in_file_order,
    remove_product,
    write_hdus,
)
from zemosaic_frame_source import StackFrame, paths_of
from zemosaic_match import extent_px
from zemosaic_outputs import (
    RunSummary,
    finish_products,
    open_products,
    tile_hdus,
    write_ledger,
    write_report,
    write_residual,
    write_viewer,
)
from zemosaic_pipeline import Settled
from zemosaic_reproject import Canvas
from zemosaic_runbook import RunBook
from zemosaic_settings import RunSettings
from zemosaic_stack_pool import DeviceAccess, DeviceReport, StackPool, device_of_process
from zemosaic_temp_files import remove_leftovers
from zemosaic_tiling import cell_length_px, cut_cells, frames_of_cells
from zemosaic_types import LeftOut, OutputError, Rect, RunResult

logger = tagged_logger("ZeMosaicWorker.mosaic")


# ---- cells in the pool -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellTask:
    """All that a worker needs to make one cell.

    Attributes
    ----------
    number : int
        Of the tile that the cell is, or is a part of.
    core : Rect
        Pixels of the canvas that go into `places`.
    rect : Rect
        Pixels that are stacked, those of `core` among them.
    frames : tuple of StackFrame
    canvas : Canvas
    options : StackOptions
    places : CorePlaces
    path : Path or None
        File for the tile itself, if it is kept.
    on_device : bool
        Whether it is in the process of a GPU.
    """

    number: int
    core: Rect
    rect: Rect
    frames: tuple[StackFrame, ...]
    canvas: Canvas
    options: StackOptions
    places: CorePlaces
    path: Path | None = None
    on_device: bool = False


@dataclass(frozen=True)
class CellReport:
    """What a worker says of a cell it has made; `tally` is (frame id, kept, too low, too high)."""

    pid: int
    core: WrittenCore
    tally: tuple[tuple[str, int, int, int], ...]
    problems: tuple[tuple[str, str], ...]
    peak_memory_bytes: int
    device: DeviceReport | None


def stack_cell(task: CellTask) -> CellReport:
    """Stack a cell and write it to its place; the tile's file too, if there is to be one."""
    return finish_cell(task, lambda stacked: stacked)


def finish_cell(task: CellTask, change: Callable[[StackedRect], StackedRect]) -> CellReport:
    """Stack a cell, let `change` have a look at the result, and write it to its place."""
    device, report = device_of_process() if task.on_device else (None, lambda: None)
    what = list(task.frames), task.canvas, task.rect, task.options
    stacked = change(stack_frames(*what, between_slabs=check_cancelled, device=device))
    planes = {name: in_file_order(getattr(stacked.result, name)) for name in ("image", "weight", "coverage")}
    result = replace(stacked.result, **planes)
    if task.path is not None:
        write_hdus(task.path, tile_hdus(result, task.canvas, task.rect, task.core, task.number))
    core = write_core(task.places, task.core, result, task.rect)
    tally = _tally(task.frames, stacked)
    return CellReport(os.getpid(), core, tally, stacked.problems, peak_memory_bytes(), report())


def _tally(frames: tuple[StackFrame, ...], stacked: StackedRect) -> tuple[tuple[str, int, int, int], ...]:
    counts = stacked.result.tally.tolist()
    return tuple((frame.record.frame_id, *row) for frame, row in zip(frames, counts, strict=True))


def _with_half_the_memory(task: CellTask) -> CellTask:
    """Return the task for another try after the process that worked on it died."""
    limit = task.options.mem_limit_bytes // 2
    return replace(task, options=replace(task.options, mem_limit_bytes=limit))


def open_stackers(pool: TaskPool, settings: RunSettings, book: RunBook, access: DeviceAccess) -> StackPool:
    """Return who stacks: the GPUs if they are asked for and answer, and the workers of the pool."""
    decided = f" ({settings.gpu_decided_by})" if settings.gpu_decided_by else ""
    logger.info("GPU requested = %s%s", settings.use_gpu, decided)
    return StackPool(pool, book, use_gpu=settings.use_gpu, access=access)


def stack_cells(
    stackers: StackPool,
    tasks: Iterable[CellTask],
    book: RunBook,
    *,
    work: Callable[[CellTask], CellReport] = stack_cell,
) -> Iterator[tuple[CellTask, CellReport | str]]:
    """Yield every task as it is done, with what its worker reports, or with the reason why it has failed.

    Parameters
    ----------
    stackers : StackPool
    tasks : iterable of CellTask
        Each is taken when somebody is free for it.
    book : RunBook
    work : callable
        Module-level; does a task.
    """
    for outcome in stackers.run(work, tasks, retry=_with_half_the_memory):
        if outcome.error is None:
            book.note_memory("worker", outcome.value.peak_memory_bytes)
            yield outcome.task, outcome.value
        else:
            logger.debug("tile %d", outcome.task.number, exc_info=outcome.error)
            yield outcome.task, str(outcome.error) or type(outcome.error).__name__


def note_problems(task: CellTask, report: CellReport, book: RunBook) -> None:
    """Note the frames that could not be read on a cell although they could be measured."""
    paths = paths_of(task.frames)
    for frame_id, reason in report.problems:
        book.leave_out(LeftOut(paths[frame_id], f"missing from tile {task.number}: {reason}"), used=True)


# ---- the mosaic ------------------------------------------------------------------------------------------


def _shared_out(options: StackOptions, n_workers: int, n_tasks: int) -> StackOptions:
    """Return the options of each of fewer tasks than workers, with its whole share of what these may take."""
    threads = n_workers // max(1, n_tasks)
    if threads < 2:
        return options
    logger.info("fewer tiles than workers: each is stacked by %d threads", threads)
    return replace(options, threads=threads, mem_limit_bytes=threads * options.mem_limit_bytes)


class Mosaic:
    """The products of a run while they are made; see `open_mosaic`.

    Attributes
    ----------
    settled : Settled
    assembly : Assembly
        The open products, and what of them is filled.
    cells : list of Rect
        Disjoint parts of the canvas that cover it exactly once.
    """

    def __init__(
        self, settled: Settled, settings: RunSettings, book: RunBook, streams: dict[str, ImageStream]
    ) -> None:
        self.settled, self.settings, self.book = settled, settings, book
        self.canvas, self.n_channels, self._streams = settled.canvas, settled.n_channels, streams
        self.assembly = Assembly(streams, self.canvas.shape, self.n_channels)
        length = cell_length_px([extent_px(frame) for frame in settled.matched.frames], settings.size_factor)
        self.cells = cut_cells(self.canvas.shape, length, step=self.assembly.places.shrink)

    def tasks(
        self,
        frames: list[StackFrame],
        options: StackOptions,
        *,
        n_workers: int,
        first: int = 1,
        margin_px: int = 0,
        files: Callable[[int], Path] | None = None,
    ) -> list[CellTask]:
        """Return a task for each cell that a frame touches.

        Parameters
        ----------
        frames : list of StackFrame
            In frame order, on the mosaic's canvas.
        options : StackOptions
            For one worker; where there are fewer cells than workers, a cell gets what several may take.
        n_workers : int
        first : int
            Number of the first cell.
        margin_px : int
            What is stacked beyond each side of a cell, for its file only.
        files : callable, optional
            Returns the file of a tile by its number; without it tiles are not kept.
        """
        margins = [cell.grown(margin_px) for cell in self.cells]
        members = frames_of_cells([frame.placement for frame in frames], margins)
        options = _shared_out(options, n_workers, sum(map(bool, members)))
        tasks = []
        for number, (cell, wide, indices) in enumerate(
            zip(self.cells, margins, members, strict=True), start=first
        ):
            if indices:
                rect, chosen = wide.intersect(self.canvas.rect), tuple(frames[k] for k in indices)
                path = None if files is None else files(number)
                places = self.assembly.places
                tasks.append(CellTask(number, cell, rect, chosen, self.canvas, options, places, path))
        return tasks

    def announced(self, tasks: list[CellTask]) -> Iterator[CellTask]:
        """Say what will be stacked, then yield the tasks and say of each when it is taken."""
        planned = (
            PlannedTile(task.number, task.core, self.canvas.corners_deg(task.core), len(task.frames))
            for task in tasks
        )
        self.book.emit(TilesPlanned(self.canvas.shape, tuple(planned)))
        for task in tasks:
            self.book.emit(TileStarted(task.number))
            yield task

    def stack(
        self,
        stackers: StackPool,
        tasks: list[CellTask],
        *,
        phase: str,
        work: Callable[[CellTask], CellReport] = stack_cell,
        note: Callable[[CellTask, CellReport], None],
    ) -> None:
        """Make the cells; those that fail are named and stay empty.

        Parameters
        ----------
        stackers : StackPool
        tasks : list of CellTask
            Of `tasks`.
        phase : str
            Under which progress is told.
        work : callable
            As for `stack_cells`.
        note : callable
            Told of each cell that is made.

        Raises
        ------
        OutputError
            If no cell could be made.
        RunCancelled
        """
        book = self.book
        progress = book.progress(phase, unit="tile")
        progress(0, len(tasks))
        done = stack_cells(stackers, self.announced(tasks), book, work=work)
        failed = []
        for n_done, (task, report) in enumerate(done, start=1):
            if isinstance(report, str):
                failed.append(report)
                book.fail_tile(task.number, report)
            else:
                self.assembly.take(task.core, report.core)
                logger.info("tile %d processed by worker pid=%d", task.number, report.pid)
                note(task, report)
                note_problems(task, report, book)
                book.emit(TileDone(task.number, len(task.frames), report.pid))
            progress(n_done, len(tasks))
        if len(failed) == len(tasks):
            raise OutputError(f"no tile could be made: {failed[0] if failed else 'no frame touches the mosaic'}")

    def check_used(self) -> None:
        """Leave out the frames that gave no sample.

        Raises
        ------
        OutputError
            If none did.
        """
        self.book.drop_unseen()
        if not any(row.used for row in self.book.rows.values()):
            raise OutputError(f"no frame gave a pixel to the mosaic: {self.book.first_reasons()}")

    def finish(self, *, n_tiles: int, more: dict | None = None) -> RunResult:
        """Complete the products, whose pixels are there where a tile was made; write ledger and report.

        Parameters
        ----------
        n_tiles : int
            For the report.
        more : dict, optional
            Further entries of the report.
        """
        book, settled = self.book, self.settled
        summary = book.summary(self.canvas, self.n_channels, self.settings.described(), settled.saturation)
        with book.phase("assemble"):
            self._assemble(summary)
            write_residual(book.paths, *settled.matched.disagreement)
        book.note_memory("main", peak_memory_bytes())
        result = book.result()
        write_ledger(book.paths, summary)
        memory = book.peak_memory_bytes
        write_report(book.paths, summary, result, peak_memory_bytes=memory, n_tiles=n_tiles, more=more or {})
        logger.info("completed: %d of %d frames", result.n_used, result.n_planned)
        return result

    def _assemble(self, summary: RunSummary) -> None:
        """Fill what was not made, write headers, give the products their names."""
        progress = self.book.progress("assemble", unit="product")
        n_products = len(self._streams) + 1 + self.settings.save_uint16
        progress(0, n_products)
        self.assembly.fill_gaps(self.cells, between_cells=self.book.cancel.check)
        finish_products(self.book.paths, self._streams, summary, self.assembly.picture)
        if self.settings.save_uint16:
            write_viewer(self.book.paths, summary, legacy=self.settings.legacy_rgb_cube)
        progress(n_products, n_products)


@contextmanager
def open_mosaic(settled: Settled, settings: RunSettings, book: RunBook) -> Iterator[Mosaic]:
    """Open the products of a run; what is not finished at the end of the block is removed.

    No worker may write any more when the block ends.

    Raises
    ------
    OutputError
        If a file cannot be made, or the disk has no room.
    """
    with open_products(book.paths, settled.canvas.shape, settled.n_channels) as streams:
        yield Mosaic(settled, settings, book, streams)


def clear_folder(folder: Path, is_own: Callable[[str], object]) -> None:
    """Make a folder for files of this run, without those of earlier runs, which `is_own` tells by their names.

    Raises
    ------
    OutputError
        If the folder cannot be written into, or such a file was not made by ZeMosaic.
    """
    ensure_writable_folder(folder)
    remove_leftovers(folder)
    for old in folder.iterdir():
        if is_own(old.name) and old.is_file():
            remove_product(old)
