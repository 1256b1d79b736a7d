"""Groups of frames in, master tiles out: each group is stacked on a canvas of its own and kept as a FITS file.

The frames keep what the match of the whole run has settled for them; here it is only carried to another canvas.
Where the tile's canvas and the mosaic's lie differently on the sky, a pixel of one covers `MasterTile.area_ratio`
pixels of the other, and so the tile's values times that are the mosaic's.

A tile is cut into cells, so that one huge group keeps all workers busy; whoever stacks a cell writes it into the
tile's file, which is opened when the first of its cells is taken and completed after the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from astropy.io import fits

from parallel_utils import TaskPool, check_cancelled
from zemosaic_assembly import Assembly
from zemosaic_events import PlannedTile, TileDone, TilesPlanned, TileStarted, tagged_logger
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import ImageStream
from zemosaic_frame_source import StackFrame, paths_of
from zemosaic_groups import Group, GroupPlan, canvas_of_group
from zemosaic_match import extent_px, lowest_saturation
from zemosaic_mosaic import CellReport, CellTask, clear_folder, note_problems, stack_cells
from zemosaic_outputs import (
    PRODUCT_CARDS,
    RunSummary,
    canvas_header,
    inputs_table,
    product_header,
)
from zemosaic_pipeline import Settled
from zemosaic_reproject import Canvas, place
from zemosaic_runbook import RunBook
from zemosaic_settings import RunSettings
from zemosaic_stack_pool import StackPool
from zemosaic_temp_files import remove_leftovers
from zemosaic_tiling import cell_length_px, cut_cells, frames_of_cells
from zemosaic_types import FrameError, FrameSolution, LeftOut, OutputError, Rect

logger = tagged_logger("ZeMosaicWorker.tiles")

#: Where the planes of a master tile stand in its file, behind the image.
WEIGHT_HDU, COVERAGE_HDU = 1, 2

_NAME = re.compile(r"master_tile_\d{3,}\.fits")
_CELLS_A_WORKER = 4
_CARRIED_AT_ONCE = 20
_MIN_CELL_PX = 256
_LONGEST_TEXT = 60  # of a card


@dataclass(frozen=True)
class MasterTile:
    """A master tile to make.

    Attributes
    ----------
    number : int
        Of the group in the plan, from 1.
    group : Group
    frames : list of StackFrame
        Those of its frames that are in the mosaic, in frame order, on the tile's canvas.
    canvas : Canvas
    outline : Rect
        What it covers of the mosaic's canvas.
    area_ratio : float
        The tile's values times this are the mosaic's.
    path : Path
    """

    number: int
    group: Group
    frames: list[StackFrame]
    canvas: Canvas
    outline: Rect
    area_ratio: float
    path: Path


# ---- where tiles lie -------------------------------------------------------------------------------------


def plan_tiles(plan: GroupPlan, settled: Settled, pool: TaskPool, book: RunBook) -> list[MasterTile]:
    """Return the master tiles of the groups that have a frame in the mosaic.

    A frame that cannot be put onto its tile is left out, and so are all of a group that fits onto none.

    Parameters
    ----------
    plan : GroupPlan
    settled : Settled
    pool : TaskPool
        Puts the frames onto their tiles.
    book : RunBook

    Raises
    ------
    OutputError
        If no frame is left.
    """
    frames = {frame.record.frame_id: frame for frame in settled.matched.frames}
    tiles: dict[int, MasterTile] = {}
    for number, group in enumerate(plan.groups, start=1):
        members = [frames[name] for name in group.frame_ids if name in frames]
        try:
            if members:
                tiles[number] = _tile_around(number, group, members, settled.canvas, book)
        except FrameError as error:
            for record in (frame.record for frame in members):
                reason = f"{group.name} cannot be one master tile: {error}"
                book.leave_out(LeftOut(record.path, reason, record.line))
    on_tiles: dict[int, list[StackFrame]] = {number: [] for number in tiles}
    for outcome in pool.run(_carry, list(_carry_tasks(tiles.values())), retry=lambda task: task):
        if outcome.error is not None:
            raise OutputError(f"frames cannot be put onto their master tile: {outcome.error}") from outcome.error
        number, results = outcome.value
        for item in results:
            if isinstance(item, LeftOut):
                book.leave_out(item)
            else:
                on_tiles[number].append(item)
    if not any(on_tiles.values()):
        raise OutputError(f"no frame is left for a master tile: {book.first_reasons()}")
    in_order = {n: sorted(frames, key=lambda frame: frame.record.frame_id) for n, frames in on_tiles.items()}
    return [replace(tile, frames=in_order[n]) for n, tile in tiles.items() if in_order[n]]


def _tile_around(
    number: int, group: Group, members: list[StackFrame], mosaic: Canvas, book: RunBook
) -> MasterTile:
    sky = [(frame.record.header.shape, frame_wcs(frame.record.header)) for frame in members]
    canvas, on_mosaic = canvas_of_group(sky, group, mosaic)
    path = book.paths.master_tile(number)
    outline = on_mosaic.bounds.intersect(mosaic.rect)
    return MasterTile(number, group, members, canvas, outline, on_mosaic.area_ratio, path)


_CarryTask = tuple[int, list[StackFrame], Canvas, float]


def _carry_tasks(tiles: Iterable[MasterTile]) -> Iterator[_CarryTask]:
    for tile in tiles:
        for k in range(0, len(tile.frames), _CARRIED_AT_ONCE):
            yield tile.number, tile.frames[k : k + _CARRIED_AT_ONCE], tile.canvas, tile.area_ratio


def _carry(task: _CarryTask) -> tuple[int, list[StackFrame | LeftOut]]:
    check_cancelled()
    number, frames, canvas, area_ratio = task
    results: list[StackFrame | LeftOut] = []
    for frame in frames:
        try:
            results.append(carried(frame, canvas, area_ratio))
        except FrameError as error:
            results.append(LeftOut(frame.record.path, f"not on its master tile: {error}", frame.record.line))
    return number, results


def carried(frame: StackFrame, canvas: Canvas, area_ratio: float) -> StackFrame:
    """Return a frame of the mosaic's canvas on another one, with the same solution.

    Parameters
    ----------
    frame : StackFrame
    canvas : Canvas
    area_ratio : float
        What values on `canvas` are multiplied with to be those of the mosaic.

    Raises
    ------
    FrameError
        If it cannot be put there.
    """
    header = frame.record.header
    placement = place(frame_wcs(header), header.shape, canvas)
    there, here = np.array(frame.placement.polygon), np.array(placement.polygon)
    solution = _scaled(frame.solution, 1.0 / area_ratio)
    if solution.gradient:
        gradient, centre = _moved_plane(solution, here, there)
        solution = replace(solution, gradient=gradient, centre=centre)
    return replace(frame, placement=placement, solution=solution)


def _scaled(solution: FrameSolution, factor: float) -> FrameSolution:
    """Return the solution whose result is `factor` times as large."""
    names = ("gain", "offset", "noise", "photon", "level")
    values = {name: tuple(factor * value for value in getattr(solution, name)) for name in names}
    weight = tuple(value / factor**2 for value in solution.weight)
    gradient = tuple((factor * x, factor * y) for x, y in solution.gradient)
    return replace(solution, weight=weight, gradient=gradient, **values)


def _moved_plane(solution: FrameSolution, here: np.ndarray, there: np.ndarray) -> tuple[tuple, tuple]:
    """Return slopes and centre of a solution's plane in positions `here` of what lay `there`, (k, 2) each.

    Between two tangential projections a straight line stays one, and over a frame the map is linear to a fraction
    of a pixel, far less than a slope of the sky could show.
    """
    design = np.column_stack([here, np.ones(len(here))])
    linear = np.linalg.lstsq(design, there, rcond=None)[0]
    turn, shift = linear[:2].T, linear[2]
    gradient = np.array(solution.gradient) @ turn
    centre = np.linalg.solve(turn, np.array(solution.centre) - shift)
    return tuple(map(tuple, gradient.tolist())), tuple(centre.tolist())


# ---- making them -----------------------------------------------------------------------------------------


@dataclass
class _Open:
    """A master tile in the making: its open file, what is filled, what its workers reported."""

    stream: ImageStream
    assembly: Assembly
    cells: list[Rect]
    n_left: int
    n_tasks: int
    tally: dict[str, np.ndarray] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    pid: int = 0


class TileWork:
    """The work on all master tiles of a run.

    Parameters
    ----------
    tiles : list of MasterTile
    settled : Settled
    settings : RunSettings
    book : RunBook
        Gets what becomes of tiles and frames.
    n_workers : int
        Cells are cut so that all have work; they leave no trace.
    """

    def __init__(
        self, tiles: list[MasterTile], settled: Settled, settings: RunSettings, book: RunBook, *, n_workers: int
    ) -> None:
        self.tiles, self.settled, self.settings, self.book = tiles, settled, settings, book
        self.options = settings.stack_options(settled.n_channels, settled.matched.frames)
        usual = cell_length_px([extent_px(f) for f in settled.matched.frames], settings.size_factor)
        area = sum(tile.canvas.shape[0] * tile.canvas.shape[1] for tile in tiles)
        wanted = round((area / (_CELLS_A_WORKER * n_workers)) ** 0.5)
        self.cell_px = min(usual, max(_MIN_CELL_PX, wanted))
        self._tile = {tile.number: tile for tile in tiles}
        self._open: dict[int, _Open] = {}
        self._files = ExitStack()
        self._disk = ThreadPoolExecutor(1)
        self._closing: dict[int, Future] = {}
        self._n_done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files that were not finished; nobody must write into them any more."""
        self._disk.shutdown()
        self._files.close()

    def run(self, stackers: StackPool) -> list[MasterTile]:
        """Make the tiles; return those that were made.

        Raises
        ------
        OutputError
            If the disk refuses, or no tile could be made.
        RunCancelled
        """
        book = self.book
        clear_folder(book.paths.master_tiles, _NAME.fullmatch)
        progress = book.progress("stack", unit="tile")
        progress(0, len(self.tiles))
        made: list[MasterTile] = []
        for task, report in stack_cells(stackers, self._tasks(), book):
            if self._note(task, report):
                self._complete(self._tile[task.number])
                made += self._closed(wait=False)
                self._n_done += 1
                progress(self._n_done, len(self.tiles))
        made += self._closed(wait=True)
        remove_leftovers(book.paths.master_tiles)
        if not made:
            raise OutputError(f"no master tile could be made: {book.failed_tiles[0].reason}")
        return sorted(made, key=lambda tile: tile.number)

    def _tasks(self) -> Iterator[CellTask]:
        """Say what will be stacked, then yield the cells tile by tile; a tile's file is opened with its first."""
        planned = (
            PlannedTile(tile.number, tile.outline, tile.canvas.corners_deg(tile.canvas.rect), len(tile.frames))
            for tile in self.tiles
        )
        self.book.emit(TilesPlanned(self.settled.canvas.shape, tuple(planned), "master tile"))
        for tile in self.tiles:
            cells = cut_cells(tile.canvas.shape, self.cell_px)
            members = frames_of_cells([frame.placement for frame in tile.frames], cells)
            self.book.emit(TileStarted(tile.number))
            try:
                work = self._opened(tile, cells, sum(map(bool, members)))
            except OutputError as error:
                self.book.fail_tile(tile.number, str(error))
                self._n_done += 1
                continue
            for cell, indices in zip(cells, members, strict=True):
                if indices:
                    chosen = tuple(tile.frames[k] for k in indices)
                    given = cell, cell, chosen, tile.canvas, self.options, work.assembly.places
                    yield CellTask(tile.number, *given)

    def _opened(self, tile: MasterTile, cells: list[Rect], n_tasks: int) -> _Open:
        n_channels = self.settled.n_channels
        shape = (n_channels, *tile.canvas.shape) if n_channels > 1 else tile.canvas.shape
        more = {"WEIGHT": np.float32, "COVERAGE": np.int32}
        stream = ImageStream(tile.path, shape, np.float32, n_cards=PRODUCT_CARDS, extensions=more)
        self._files.enter_context(stream)
        parts = {"image": stream, "weight": stream.extensions["WEIGHT"], "coverage": stream.extensions["COVERAGE"]}
        assembly = Assembly(parts, tile.canvas.shape, n_channels, pictured=False)
        work = self._open[tile.number] = _Open(stream, assembly, cells, n_tasks, n_tasks)
        return work

    def _note(self, task: CellTask, report: CellReport | str) -> bool:
        """Take what became of a cell; return whether it was the last of its tile."""
        work = self._open[task.number]
        work.n_left -= 1
        if isinstance(report, str):
            work.failures.append(report)
            return work.n_left == 0
        work.assembly.take(task.core, report.core)
        work.pid = report.pid
        for frame_id, *counts in report.tally:
            work.tally[frame_id] = work.tally.get(frame_id, 0) + np.array(counts)
        note_problems(task, report, self.book)
        return work.n_left == 0

    def _complete(self, tile: MasterTile) -> None:
        """Write what stands around the pixels of a tile whose cells are done, and let its file be closed."""
        work, book = self._open[tile.number], self.book
        n_failed = len(work.failures)
        if n_failed:
            reason, n_tasks = work.failures[0], work.n_tasks
            book.fail_tile(
                tile.number, f"{n_failed} of its {n_tasks} cells: {reason}" if n_failed < n_tasks else reason
            )
        if n_failed == work.n_tasks:
            work.stream.abort()
            return
        paths = paths_of(tile.frames)
        for frame_id in sorted(work.tally):
            book.count_samples(paths[frame_id], *work.tally[frame_id].tolist())
        try:
            work.assembly.fill_gaps(work.cells, between_cells=book.cancel.check)
            header, table = tile_header(tile, self.settled, self.settings, book)
            wcs = canvas_header(tile.canvas)
            work.stream.complete(header, [table], headers={"WEIGHT": wcs, "COVERAGE": wcs})
        except OutputError as error:
            self._lose(tile, error)
        else:  # the disk takes its time, in which workers want their next cell
            self._closing[tile.number] = self._disk.submit(work.stream.close)

    def _closed(self, *, wait: bool) -> list[MasterTile]:
        """Return the tiles whose files have been closed since the last call, or all that are left."""
        made = []
        for number in [n for n, closing in self._closing.items() if wait or closing.done()]:
            tile, work = self._tile[number], self._open[number]
            try:
                self._closing.pop(number).result()
            except OutputError as error:
                self._lose(tile, error)
                continue
            logger.info("master tile %d of %d frame(s) is done", number, len(tile.frames))
            if not work.failures:
                self.book.emit(TileDone(number, len(tile.frames), work.pid))
            made.append(tile)
        return made

    def _lose(self, tile: MasterTile, error: OutputError) -> None:
        """Note that a tile could not be written; nobody sees its frames' samples."""
        for frame in tile.frames:
            self.book.forget_samples(frame.record.path)
        if not self._open[tile.number].failures:  # else it is missed already
            self.book.fail_tile(tile.number, str(error))


def tile_header(
    tile: MasterTile, settled: Settled, settings: RunSettings, book: RunBook
) -> tuple[fits.Header, fits.BinTableHDU]:
    """Return the header of a master tile and the table of its frames: WCS, times, counts, provenance."""
    rows = [book.rows[frame.record.path] for frame in tile.frames]
    summary = RunSummary(
        tile.canvas, settled.n_channels, settings.described(), rows, lowest_saturation(tile.frames)
    )
    header = product_header(summary, unit="adu", what="as the frames, scaled by the match")
    header["IMAGETYP"] = ("MASTER TILE", "a group of frames, stacked")
    header["TILE"] = (tile.number, "number of the master tile")
    header["GROUP"] = (_plain(tile.group.name), "its group")
    header["AREARATI"] = (tile.area_ratio, "times this the values are those of the mosaic")
    if tile.group.reason:
        header["GROUPWHY"] = (_plain(tile.group.reason), "")
    return header, inputs_table(summary)


def _plain(text: str) -> str:
    """Return what a header can hold of a text."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split()).encode("ascii", "replace").decode()[:_LONGEST_TEXT]
