"""Grid mode: a plan of frames in, one mosaic out, tile by tile in parallel processes.

The run goes plan, headers, plate solving, canvas, measure, refine, flat, match, tiles, assembly. All that decides
the value of a pixel is settled for the whole run before the first tile is cut, so tiles, workers, memory and the
order of the plan leave no trace in the mosaic. A frame or tile that fails is named and left out; it never ends the
run.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from parallel_utils import (
    WORKER_BASE_BYTES,
    TaskPool,
    check_cancelled,
    machine,
    peak_memory_bytes,
    plan_workers,
    prepare_workers,
)
from zemosaic_align_stack import StackedRect, StackOptions, stack_frames
from zemosaic_assembly import Assembly, CorePlaces, WrittenCore, write_core
from zemosaic_astrometry import SolveOptions
from zemosaic_config import Config, resolve
from zemosaic_events import (
    CancelToken,
    Emitter,
    FinishReason,
    PlannedTile,
    RunFinished,
    TileDone,
    TilesPlanned,
    TileStarted,
    as_listener,
)
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import (
    ImageStream,
    ensure_writable_folder,
    in_file_order,
    remove_product,
    write_hdus,
)
from zemosaic_frame_source import RadialWeight, StackFrame
from zemosaic_match import MatchOptions, drop_misfits, extent_px, usual_feather_px
from zemosaic_measure import MeasuredFrame
from zemosaic_outputs import (
    ProductPaths,
    RunSummary,
    finish_products,
    open_products,
    tile_hdus,
    write_ledger,
    write_report,
    write_residual,
    write_viewer,
)
from zemosaic_passes import (
    flatten_all,
    match_all,
    measure_all,
    read_frames,
    refine_all,
    solve_all,
    unwanted_frames,
)
from zemosaic_reproject import Canvas, optimal_canvas
from zemosaic_runbook import RunBook
from zemosaic_stack_pool import DeviceAccess, DeviceReport, StackPool, device_of_process
from zemosaic_temp_files import remove_leftovers
from zemosaic_tiling import cell_length_px, cut_cells, frames_of_cells
from zemosaic_types import (
    FrameRecord,
    LeftOut,
    OutputError,
    PlanError,
    ProductExistsError,
    Rect,
    RunCancelled,
    RunResult,
    StackParams,
    ZeMosaicError,
)

logger = logging.getLogger("ZeMosaicWorker.grid")

MEGABYTE = 1024**2
_TILE_NAME = re.compile(r"tile_\d{4,}\.fits")


@dataclass(frozen=True)
class GridSettings:
    """Everything a user can choose about a Grid run; the names are those of the configuration."""

    normalise: str = "global"
    weight: str = "noise_variance"
    params: StackParams = field(default_factory=StackParams)
    radial: RadialWeight | None = None
    feather_px: int = -1
    kernel: str = "lanczos3"
    orientation: str = "north_up"
    refine_wcs: str = "auto"
    size_factor: float = 1.0
    overlap_px: int = 0
    chunk_ram_mb: int = 512
    workers: int | None = None
    use_gpu: bool = False
    gpu_decided_by: str | None = None
    rgb_equalize: bool = False
    flat_from_frames: str = "auto"
    save_uint16: bool = False
    legacy_rgb_cube: bool = False
    overwrite: bool = False
    drop_suggested: bool = False
    excluded: tuple[str, ...] = ()
    solve: SolveOptions | None = field(default_factory=SolveOptions)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        overwrite: bool = False,
        drop_suggested: bool = False,
        excluded: tuple[str, ...] = (),
    ) -> GridSettings:
        """Return the settings that a resolved configuration asks for."""
        radial = RadialWeight(
            config["radial_feather_fraction"], config["radial_shape_power"], config["min_radial_weight_floor"]
        )
        return cls(
            normalise=config["stacking_normalize_method"],
            weight=config["stacking_weighting_method"],
            params=StackParams(
                reject=config["stacking_rejection_algorithm"],
                kappa_low=config["stacking_kappa_low"],
                kappa_high=config["stacking_kappa_high"],
                winsor_limits=tuple(config["stacking_winsor_limits"]),
                spread=config["reject_spread"],
                combine=config["stacking_final_combine_method"],
            ),
            radial=radial if config["apply_radial_weight"] else None,
            feather_px=config["frame_feather_px"],
            kernel=config["resampling_kernel"],
            orientation=config["canvas_orientation"],
            refine_wcs=config["refine_wcs"],
            size_factor=config["grid_size_factor"],
            overlap_px=config["grid_overlap_px"],
            chunk_ram_mb=config["grid_chunk_ram_mb"],
            workers=config["grid_workers"],
            use_gpu=config["use_gpu_grid"],
            gpu_decided_by=config.gpu_decided_by,
            rgb_equalize=config["grid_rgb_equalize"],
            flat_from_frames=config["flat_from_frames"],
            save_uint16=config["save_final_as_uint16"],
            legacy_rgb_cube=config["legacy_rgb_cube"],
            overwrite=overwrite,
            drop_suggested=drop_suggested,
            excluded=tuple(excluded),
            solve=SolveOptions.from_config(config),
        )

    def match_options(self, n_channels: int) -> MatchOptions:
        """Return what the match needs of the settings."""
        return MatchOptions(self.normalise, self.weight, self.kernel, self.rgb_equalize and n_channels == 3)

    def stack_options(self, n_channels: int, frames: list[StackFrame]) -> StackOptions:
        """Return what the stack needs of the settings, the feather settled for all its frames."""
        feather_px = self.feather_px if self.feather_px >= 0 else usual_feather_px(frames)
        return StackOptions(
            n_channels, self.params, self.kernel, self.radial, float(feather_px), self.chunk_ram_mb * MEGABYTE
        )

    def described(self) -> dict:
        """Return the settings as plain values for the report and the headers."""
        flat = asdict(self)
        return flat | flat.pop("params")


def run_grid_mode(
    input_folder: str | Path,
    output_folder: str | Path,
    progress_callback: Callable | None = None,
    *,
    stack_norm_method: str = "global",
    stack_weight_method: str = "noise_variance",
    stack_reject_algo: str = "kappa_sigma",
    stack_kappa_low: float = 3.0,
    stack_kappa_high: float = 3.0,
    winsor_limits: tuple[float, float] = (0.05, 0.05),
    stack_final_combine: str = "mean",
    apply_radial_weight: bool = False,
    radial_feather_fraction: float = 0.8,
    radial_shape_power: float = 2.0,
    save_final_as_uint16: bool = False,
    legacy_rgb_cube: bool = False,
    grid_rgb_equalize: bool | None = None,
    grid_workers: int | None = None,
    grid_use_gpu: bool | None = None,
) -> RunResult:
    """Make a mosaic of a folder of frames in Grid mode.

    Parameters
    ----------
    input_folder : path
        Folder of FITS exposures, with or without a ``stack_plan.csv``. Nothing in it is changed.
    output_folder : path
        Folder for the products; made if needed.
    progress_callback : callable, optional
        Receives the events of `zemosaic_events`, or ``(message, progress, level)``.
    stack_norm_method : {"none", "sky_mean", "linear_fit", "global"}
    stack_weight_method : {"none", "noise_variance", "noise_fwhm"}
    stack_reject_algo : {"none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip"}
    stack_kappa_low, stack_kappa_high : float
    winsor_limits : tuple of float
    stack_final_combine : {"mean", "median"}
    apply_radial_weight : bool
    radial_feather_fraction, radial_shape_power : float
    save_final_as_uint16, legacy_rgb_cube : bool
    grid_rgb_equalize : bool, optional
        None takes the default of the configuration table.
    grid_workers : int, optional
        Positive: used as given; 0 or less: automatic; None: one worker.
    grid_use_gpu : bool, optional
        Stack on the GPUs that are there; what fails on one is stacked on the CPU. None means no GPU.

    Returns
    -------
    RunResult

    Notes
    -----
    Workers are fresh processes that import the calling script, so a script must make this call under
    ``if __name__ == "__main__":``.

    Raises
    ------
    ConfigError, PlanError, OutputError
        If the run cannot start or end; each says why.
    RunCancelled
    """
    values = {
        "stacking_normalize_method": stack_norm_method,
        "stacking_weighting_method": stack_weight_method,
        "stacking_rejection_algorithm": stack_reject_algo,
        "stacking_kappa_low": stack_kappa_low,
        "stacking_kappa_high": stack_kappa_high,
        "stacking_winsor_limits": tuple(winsor_limits),
        "stacking_final_combine_method": stack_final_combine,
        "apply_radial_weight": apply_radial_weight,
        "radial_feather_fraction": radial_feather_fraction,
        "radial_shape_power": radial_shape_power,
        "save_final_as_uint16": save_final_as_uint16,
        "legacy_rgb_cube": legacy_rgb_cube,
    }
    optional = {"grid_rgb_equalize": grid_rgb_equalize, "use_gpu_grid": grid_use_gpu}
    values |= {key: value for key, value in optional.items() if value is not None}
    settings = GridSettings.from_config(resolve({}, {}, values), overwrite=True)
    settings = replace(settings, workers=grid_workers)
    return run_grid(Path(input_folder), Path(output_folder), settings, listener=as_listener(progress_callback))


def run_grid(
    input_folder: Path,
    output_folder: Path,
    settings: GridSettings,
    *,
    listener: Callable | None = None,
    cancel: CancelToken | None = None,
    access: DeviceAccess = DeviceAccess(),  # noqa: B008 - frozen
) -> RunResult:
    """Run Grid mode with given settings; see `run_grid_mode` for folders and errors.

    Emits exactly one `RunFinished`, whatever happens.
    """
    emit = Emitter(listener)
    try:
        paths = ProductPaths(Path(output_folder))
        result = _run(Path(input_folder), paths, settings, emit, cancel or CancelToken(), access)
    except RunCancelled as cancelled:
        emit(RunFinished(FinishReason.CANCELLED, str(cancelled)))
        raise
    except BaseException as error:
        emit(RunFinished(FinishReason.ERROR, str(error)))
        raise
    reason = FinishReason.COMPLETE if result.complete else FinishReason.WITH_FAILURES
    emit(RunFinished(reason, f"{result.n_used} of {result.n_planned} frames in {result.mosaic_path}"))
    return result


def _run(
    input_folder: Path,
    paths: ProductPaths,
    settings: GridSettings,
    emit: Emitter,
    cancel: CancelToken,
    access: DeviceAccess,
) -> RunResult:
    if paths.folder.resolve() == input_folder.resolve():
        raise PlanError(f"{input_folder} cannot be input and output at once; nothing is written among raw frames")
    drop = unwanted_frames(paths.ledger, drop_suggested=settings.drop_suggested, excluded=settings.excluded)
    ensure_writable_folder(paths.folder)
    remove_leftovers(paths.folder)
    if paths.mosaic.exists() and not settings.overwrite:
        raise ProductExistsError(
            f"{paths.mosaic} exists already; choose another output folder or ask for --overwrite"
        )
    book = RunBook(paths, emit, cancel)
    with book.log_file():
        try:
            return _GridRun(input_folder, settings, book, access).execute(drop)
        except BaseException as error:
            logger.error("[GRID] aborted: %s", error, exc_info=not isinstance(error, ZeMosaicError))
            raise


@dataclass(frozen=True)
class _TileTask:
    """All that a worker needs to make one tile."""

    number: int
    core: Rect
    rect: Rect
    frames: tuple[StackFrame, ...]
    canvas: Canvas
    options: StackOptions
    path: Path
    places: CorePlaces
    on_device: bool = False


@dataclass(frozen=True)
class _TileReport:
    """What a worker says of a tile it has made; `tally` is (frame id, kept, too low, too high)."""

    pid: int
    core: WrittenCore
    tally: tuple[tuple[str, int, int, int], ...]
    problems: tuple[tuple[str, str], ...]
    peak_memory_bytes: int
    device: DeviceReport | None


def _tile_task(task: _TileTask) -> _TileReport:
    device, report = device_of_process() if task.on_device else (None, lambda: None)
    what = list(task.frames), task.canvas, task.rect, task.options
    stacked = stack_frames(*what, between_slabs=check_cancelled, device=device)
    planes = {name: in_file_order(getattr(stacked.result, name)) for name in ("image", "weight", "coverage")}
    result = replace(stacked.result, **planes)
    write_hdus(task.path, tile_hdus(result, task.canvas, task.rect, task.core, task.number))
    core = write_core(task.places, task.core, result, task.rect)
    tally = _tally(task.frames, stacked)
    return _TileReport(os.getpid(), core, tally, stacked.problems, peak_memory_bytes(), report())


def _with_half_the_memory(task: _TileTask) -> _TileTask:
    """Return the task for another try after the process that worked on it died."""
    limit = task.options.mem_limit_bytes // 2
    return replace(task, options=replace(task.options, mem_limit_bytes=limit))


def _tally(frames: tuple[StackFrame, ...], stacked: StackedRect) -> tuple[tuple[str, int, int, int], ...]:
    counts = stacked.result.tally.tolist()
    return tuple((frame.record.frame_id, *row) for frame, row in zip(frames, counts, strict=True))


class _GridRun:
    """One run, phase by phase; each phase hands its result to the next."""

    def __init__(self, input_folder: Path, settings: GridSettings, book: RunBook, access: DeviceAccess) -> None:
        self.input_folder = input_folder
        self.access = access
        self.settings = settings
        self.book = book
        self.paths = book.paths

    def execute(self, drop: Mapping[str, str]) -> RunResult:
        book, settings = self.book, self.settings
        prepare_workers(["zemosaic_worker_start"])
        with book.phase("plan"):
            if settings.drop_suggested and not drop.keys() - set(settings.excluded):
                book.say("the ledger of the earlier run suggests no frame to leave out")
            records = read_frames(self.input_folder, book, drop, keep_unplaced=settings.solve is not None)
        if settings.solve is not None and settings.solve.concerns(records):
            with book.phase("solve"):
                records = solve_all(records, settings.solve, book)
        with book.phase("canvas"):
            records, canvas, n_channels = self._lay_out(records)
        with ExitStack() as products:  # what is not finished is removed, once nobody writes into it any more
            with TaskPool(self._count_workers(len(records)), book.cancel) as pool:
                measured, canvas, n_channels = self._measure(pool, records, canvas, n_channels)
                with book.phase("flat"):
                    measured = flatten_all(measured, settings.flat_from_frames, book)
                with book.phase("match"):
                    matched = match_all(measured, canvas, settings.match_options(n_channels), book)
                    canvas = matched.canvas
                with book.phase("stack"):
                    streams = products.enter_context(open_products(self.paths, canvas.shape, n_channels))
                    assembly = Assembly(streams, canvas.shape, n_channels)
                    cells = self._stack(pool, matched.frames, canvas, assembly, n_channels)
            saturation = min(m.record.header.saturation for m in matched.measured)
            summary = book.summary(canvas, n_channels, settings.described(), saturation)
            with book.phase("assemble"):
                self._assemble(summary, cells, assembly, streams)
                write_residual(self.paths, *matched.disagreement)
        book.note_memory("main", peak_memory_bytes())
        result = book.result()
        write_ledger(self.paths, summary)
        write_report(self.paths, summary, result, peak_memory_bytes=book.peak_memory_bytes, n_tiles=len(cells))
        logger.info("[GRID] completed: %d of %d frames", result.n_used, result.n_planned)
        return result

    def _lay_out(self, records: list[FrameRecord]) -> tuple[list[FrameRecord], Canvas, int]:
        """Return the frames of the mosaic, its canvas and its number of channels."""
        records, misfits = drop_misfits(records)
        for item in misfits:
            self.book.leave_out(item)
        if not records:
            raise PlanError(f"no frame is left for a mosaic: {self.book.first_reasons()}")
        frames = [(record.header.shape, frame_wcs(record.header)) for record in records]
        canvas = optimal_canvas(frames, orientation=self.settings.orientation)
        n_channels = max(record.header.n_channels for record in records)
        ny, nx = canvas.shape
        scale = canvas.scale_deg * 3600
        logger.info("[GRID] canvas %d x %d px, %.3f arcsec/px, %d channel(s)", nx, ny, scale, n_channels)
        return records, canvas, n_channels

    def _measure(
        self, pool: TaskPool, records: list[FrameRecord], canvas: Canvas, n_channels: int
    ) -> tuple[list[MeasuredFrame], Canvas, int]:
        """Measure the frames and place them by their stars; return them, their canvas and its number of channels.

        A frame that turns out unusable must leave no trace, in the projection either: all begins anew without it.
        """
        while True:
            with self.book.phase("measure"):
                measured = measure_all(pool, records, canvas, n_channels, self.book)
            if len(measured) == len(records):
                with self.book.phase("refine"):
                    measured = refine_all(measured, canvas, self.settings.refine_wcs, self.book)
                if len(measured) == len(records):
                    return measured, canvas, n_channels
            kept = {m.record.path for m in measured}
            records, canvas, n_channels = self._lay_out([record for record in records if record.path in kept])

    def _count_workers(self, n_frames: int) -> int:
        settings = self.settings
        cores, free = machine()
        worker_bytes = WORKER_BASE_BYTES + settings.chunk_ram_mb * MEGABYTE
        workers = plan_workers(
            settings.workers, cores=cores, free_bytes=free, worker_bytes=worker_bytes, n_tasks=n_frames
        )
        logger.info("[GRID] workers=%d", workers)
        logger.info("[GRID] using %d workers for tile processing", workers)
        return workers

    def _stack(
        self, pool: TaskPool, frames: list[StackFrame], canvas: Canvas, assembly: Assembly, n_channels: int
    ) -> list[Rect]:
        """Make all tiles, whose cores go into the products; return the cells."""
        length = cell_length_px([extent_px(frame) for frame in frames], self.settings.size_factor)
        cells = cut_cells(canvas.shape, length, step=assembly.places.shrink)
        tasks = self._tile_tasks(frames, cells, canvas, assembly.places, n_channels)
        logger.info("[GRID] Global grid ready: tiles=%d of which %d see a frame", len(cells), len(tasks))
        self._clear_old_tiles()
        progress = self.book.progress("stack", unit="tile")
        progress(0, len(tasks))
        decided = f" ({self.settings.gpu_decided_by})" if self.settings.gpu_decided_by else ""
        logger.info("[GRID] GPU requested = %s%s", self.settings.use_gpu, decided)
        stackers = StackPool(pool, self.book, use_gpu=self.settings.use_gpu, access=self.access)
        for done, outcome in enumerate(
            stackers.run(_tile_task, self._announce(tasks, canvas), retry=_with_half_the_memory), start=1
        ):
            task = outcome.task
            if outcome.error is None:
                assembly.take(task.core, outcome.value.core)
                self._note_tile(task, outcome.value)
            else:
                logger.debug("[GRID] tile %d", task.number, exc_info=outcome.error)
                self.book.fail_tile(task.number, str(outcome.error) or type(outcome.error).__name__)
            progress(done, len(tasks))
        remove_leftovers(self.paths.tiles)
        if len(self.book.failed_tiles) == len(tasks):
            raise OutputError(f"no tile could be made: {self.book.failed_tiles[0].reason}")
        self.book.drop_unseen()
        if not any(row.used for row in self.book.rows.values()):
            raise OutputError(f"no frame gave a pixel to the mosaic: {self.book.first_reasons()}")
        return cells

    def _announce(self, tasks: list[_TileTask], canvas: Canvas) -> Iterator[_TileTask]:
        """Say what will be stacked, then yield the tasks and say of each when it is taken."""
        planned = (
            PlannedTile(task.number, task.core, canvas.corners_deg(task.core), len(task.frames)) for task in tasks
        )
        self.book.emit(TilesPlanned(canvas.shape, tuple(planned)))
        for task in tasks:
            self.book.emit(TileStarted(task.number))
            yield task

    def _tile_tasks(
        self, frames: list[StackFrame], cells: list[Rect], canvas: Canvas, places: CorePlaces, n_channels: int
    ) -> list[_TileTask]:
        options = self.settings.stack_options(n_channels, frames)
        margins = [cell.grown(self.settings.overlap_px) for cell in cells]
        members = frames_of_cells([frame.placement for frame in frames], margins)
        tasks = []
        for number, (cell, indices) in enumerate(zip(cells, members, strict=True), start=1):
            if indices:
                rect = cell.grown(self.settings.overlap_px).intersect(canvas.rect)
                chosen = tuple(frames[k] for k in indices)
                path = self.paths.tile(number)
                tasks.append(_TileTask(number, cell, rect, chosen, canvas, options, path, places))
        return tasks

    def _clear_old_tiles(self) -> None:
        ensure_writable_folder(self.paths.tiles)
        remove_leftovers(self.paths.tiles)
        for old in self.paths.tiles.iterdir():
            if _TILE_NAME.fullmatch(old.name) and old.is_file():
                remove_product(old)

    def _note_tile(self, task: _TileTask, report: _TileReport) -> None:
        book = self.book
        logger.info("[GRID] tile %d processed by worker pid=%d", task.number, report.pid)
        book.note_memory("worker", report.peak_memory_bytes)
        paths = {frame.record.frame_id: frame.record.path for frame in task.frames}
        for frame_id, kept, low, high in report.tally:
            book.count_samples(paths[frame_id], kept, low, high)
        for frame_id, reason in report.problems:
            item = LeftOut(paths[frame_id], f"missing from tile {task.number}: {reason}")
            book.leave_out(item, used=True)
        book.emit(TileDone(task.number, len(task.frames), report.pid))

    def _assemble(
        self, summary: RunSummary, cells: list[Rect], assembly: Assembly, streams: dict[str, ImageStream]
    ) -> None:
        """Complete the products, whose pixels are there where a tile was made."""
        progress = self.book.progress("assemble", unit="product")
        n_products = len(streams) + 1 + self.settings.save_uint16
        progress(0, n_products)
        assembly.fill_gaps(cells, between_cells=self.book.cancel.check)
        finish_products(self.paths, streams, summary, assembly.picture)
        if self.settings.save_uint16:
            write_viewer(self.paths, summary, legacy=self.settings.legacy_rgb_cube)
        progress(n_products, n_products)
