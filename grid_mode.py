"""Grid mode: a plan of frames in, one mosaic out, tile by tile in parallel processes.

The run goes plan, headers, canvas, measure, match, tiles, assembly. All that decides the value of a pixel is
settled for the whole run before the first tile is cut, so tiles, workers, memory and the order of the plan
leave no trace in the mosaic. A frame or tile that fails is named and left out; it never ends the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from parallel_utils import (
    WORKER_BASE_BYTES,
    TaskPool,
    check_cancelled,
    machine,
    peak_memory_bytes,
    plan_workers,
)
from zemosaic_align_stack import RadialWeight, StackedRect, StackFrame, StackOptions, stack_frames
from zemosaic_assembly import assemble
from zemosaic_config import Config, resolve
from zemosaic_events import (
    CancelToken,
    Emitter,
    FinishReason,
    FrameLeftOut,
    Message,
    PhaseProgress,
    RunFinished,
    RunStarted,
    TileDone,
    TileFailed,
    as_listener,
)
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import ensure_writable_folder, write_hdus
from zemosaic_match import MatchOptions, drop_isolated, extent_px, match_frames, trim_canvas
from zemosaic_measure import MeasuredFrame, cell_size_px, measure_frames
from zemosaic_outputs import (
    LedgerRow,
    ProductPaths,
    RunSummary,
    open_products,
    tile_hdus,
    write_ledger,
    write_pictures,
    write_report,
)
from zemosaic_photometry import Match
from zemosaic_plan import PLAN_NAME, load_frames, plan_from_folder, read_plan, write_plan
from zemosaic_reproject import Canvas, optimal_canvas
from zemosaic_tiling import cell_length_px, cut_cells, frames_of_cells
from zemosaic_types import (
    FrameRecord,
    LeftOut,
    PlanError,
    ProductExistsError,
    Rect,
    RunCancelled,
    RunResult,
    StackParams,
    TileFailure,
    ZeMosaicError,
)

logger = logging.getLogger("ZeMosaicWorker.grid")

_MEASURE_BATCH = 4


@dataclass(frozen=True)
class GridSettings:
    """Everything a user can choose about a Grid run; the names are those of the configuration."""

    normalise: str = "linear_fit"
    weight: str = "noise_variance"
    params: StackParams = field(default_factory=StackParams)
    radial: RadialWeight | None = None
    kernel: str = "lanczos3"
    orientation: str = "north_up"
    size_factor: float = 1.0
    overlap_px: int = 0
    chunk_ram_mb: int = 512
    workers: int | None = None
    use_gpu: bool = False
    rgb_equalize: bool = False
    save_uint16: bool = False
    legacy_rgb_cube: bool = False
    overwrite: bool = False

    @classmethod
    def from_config(cls, config: Config, *, overwrite: bool = False) -> GridSettings:
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
            kernel=config["resampling_kernel"],
            orientation=config["canvas_orientation"],
            size_factor=config["grid_size_factor"],
            overlap_px=config["grid_overlap_px"],
            chunk_ram_mb=config["grid_chunk_ram_mb"],
            workers=config["grid_workers"],
            use_gpu=config["use_gpu_grid"],
            rgb_equalize=config["grid_rgb_equalize"],
            save_uint16=config["save_final_as_uint16"],
            legacy_rgb_cube=config["legacy_rgb_cube"],
            overwrite=overwrite,
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
    stack_norm_method: str = "linear_fit",
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
    stack_norm_method : {"none", "sky_mean", "linear_fit"}
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
        None means no GPU.

    Returns
    -------
    RunResult

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
) -> RunResult:
    """Run Grid mode with given settings; see `run_grid_mode` for folders and errors.

    Emits exactly one `RunFinished`, whatever happens.
    """
    emit = Emitter(listener)
    run = _GridRun(Path(input_folder), Path(output_folder), settings, emit, cancel or CancelToken())
    try:
        result = run.execute()
    except RunCancelled as cancelled:
        emit(RunFinished(FinishReason.CANCELLED, str(cancelled)))
        raise
    except BaseException as error:
        logger.error("[GRID] aborted: %s", error, exc_info=not isinstance(error, ZeMosaicError))
        emit(RunFinished(FinishReason.ERROR, str(error)))
        raise
    finally:
        run.close_log()
    reason = FinishReason.COMPLETE if result.complete else FinishReason.WITH_FAILURES
    emit(RunFinished(reason, f"{result.n_used} of {result.n_planned} frames in {result.mosaic_path}"))
    return result


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


@dataclass(frozen=True)
class _TileReport:
    """What a worker says of a tile it has made; `tally` is (frame id, kept, too low, too high)."""

    pid: int
    tally: tuple[tuple[str, int, int, int], ...]
    problems: tuple[tuple[str, str], ...]
    peak_memory_bytes: int


def _measure_task(task: tuple[list[FrameRecord], Canvas, int, int]) -> tuple[list[MeasuredFrame | LeftOut], int]:
    check_cancelled()
    return measure_frames(*task), peak_memory_bytes()


def _tile_task(task: _TileTask) -> _TileReport:
    stacked = stack_frames(list(task.frames), task.canvas, task.rect, task.options, between_slabs=check_cancelled)
    write_hdus(task.path, tile_hdus(stacked.result, task.canvas, task.rect, task.core, task.number))
    return _TileReport(os.getpid(), _tally(task.frames, stacked), stacked.problems, peak_memory_bytes())


def _with_half_the_memory(task: _TileTask) -> _TileTask:
    """Return the task for another try after the process that worked on it died."""
    limit = task.options.mem_limit_bytes // 2
    return replace(task, options=replace(task.options, mem_limit_bytes=limit))


def _tally(frames: tuple[StackFrame, ...], stacked: StackedRect) -> tuple[tuple[str, int, int, int], ...]:
    counts = stacked.result.tally.tolist()
    return tuple((frame.record.frame_id, *row) for frame, row in zip(frames, counts, strict=True))


class _GridRun:
    """One run, phase by phase; each phase hands its result to the next."""

    def __init__(
        self, input_folder: Path, output_folder: Path, settings: GridSettings, emit: Emitter, cancel: CancelToken
    ) -> None:
        self.input_folder = input_folder
        self.paths = ProductPaths(output_folder)
        self.settings = settings
        self.emit = emit
        self.cancel = cancel
        self.seconds: dict[str, float] = {}
        self.rows: dict[str, LedgerRow] = {}
        self.left_out: list[LeftOut] = []
        self.failed_tiles: list[TileFailure] = []
        self.peak = {"main": 0, "worker": 0}
        self._handler: logging.Handler | None = None
        self._level = logging.NOTSET

    def execute(self) -> RunResult:
        ensure_writable_folder(self.paths.folder)
        self._refuse_to_overwrite()
        self._open_log()
        with self._phase("plan"):
            records = self._read_frames()
        with self._phase("canvas"):
            records, canvas, n_channels = self._lay_out(records)
        with TaskPool(self._count_workers(len(records)), self.cancel) as pool:
            with self._phase("measure"):
                measured = self._measure(pool, records, canvas, n_channels)
            with self._phase("match"):
                frames, canvas = self._match(measured, canvas, n_channels)
            summary = self._summarise(canvas, n_channels, records)
            with self._phase("stack"):
                cells, tile_paths = self._stack(pool, frames, canvas, n_channels)
        with self._phase("assemble"):
            self._assemble(summary, cells, tile_paths)
        return self._finish(summary, len(cells))

    # -- plan ---------------------------------------------------------------------------------------------

    def _refuse_to_overwrite(self) -> None:
        if self.paths.mosaic.exists() and not self.settings.overwrite:
            raise ProductExistsError(
                f"{self.paths.mosaic} exists already; choose another output folder or ask for --overwrite"
            )

    def _read_frames(self) -> list[FrameRecord]:
        """Return the usable frames in frame order; the others go to the ledger."""
        folder = self.input_folder
        if not folder.is_dir():
            raise PlanError(f"{folder} is not a folder")
        plan_path = folder / PLAN_NAME
        if plan_path.is_file():
            rows, left_out = read_plan(plan_path)
        else:
            rows, left_out = plan_from_folder(folder, exclude=self.paths.folder, cancel=self.cancel)
            write_plan(self.paths.folder / PLAN_NAME, rows)
            self._say(f"no {PLAN_NAME} in {folder}; made one of {len(rows)} frames in {self.paths.folder}")
        self.emit(RunStarted(len(rows), str(self.paths.folder)))
        records, unusable = load_frames(rows, folder, on_progress=self._progress("headers"), cancel=self.cancel)
        for row in rows:
            self.rows[str(row.path)] = LedgerRow(str(row.path), row.line)
        for item in [*left_out, *unusable]:
            self._leave_out(item)
        for record in records:
            header = record.header
            self.rows[record.path] = LedgerRow(
                record.path,
                record.line,
                frame_id=record.frame_id,
                date_obs=header.date_obs,
                exptime_s=record.exptime_s,
                filter=header.filter,
            )
        if not records:
            raise PlanError(f"no usable frame in {folder}: {self._first_reasons()}")
        logger.info("[GRID] Loaded %d frame(s)", len(records))
        return records

    def _first_reasons(self) -> str:
        return "; ".join(f"{item.path}: {item.reason}" for item in self.left_out[:3]) or "the plan is empty"

    # -- canvas -------------------------------------------------------------------------------------------

    def _lay_out(self, records: list[FrameRecord]) -> tuple[list[FrameRecord], Canvas, int]:
        """Return the frames of the mosaic, its canvas and its number of channels."""
        records, isolated = drop_isolated(records)
        for item in isolated:
            self._leave_out(item)
        frames = [(record.header.shape, frame_wcs(record.header)) for record in records]
        canvas = optimal_canvas(frames, orientation=self.settings.orientation)
        n_channels = max(record.header.n_channels for record in records)
        logger.info(
            "[GRID] canvas %d x %d px, %.3f arcsec/px, %d channel(s)",
            canvas.shape[1], canvas.shape[0], canvas.scale_deg * 3600, n_channels,
        )  # fmt: skip
        return records, canvas, n_channels

    # -- measure and match --------------------------------------------------------------------------------

    def _count_workers(self, n_frames: int) -> int:
        cores, free = machine()
        worker_bytes = WORKER_BASE_BYTES + self.settings.chunk_ram_mb * 1024**2
        workers = plan_workers(
            self.settings.workers, cores=cores, free_bytes=free, worker_bytes=worker_bytes, n_tasks=n_frames
        )
        logger.info("[GRID] workers=%d", workers)
        logger.info("[GRID] using %d workers for tile processing", workers)
        logger.info("[GRID] GPU requested = %s", self.settings.use_gpu)
        if self.settings.use_gpu:
            self._say("the GPU was asked for, but this version stacks on the CPU only", "WARNING")
        logger.info("[GRID] GPU=OFF")
        return workers

    def _measure(
        self, pool: TaskPool, records: list[FrameRecord], canvas: Canvas, n_channels: int
    ) -> list[MeasuredFrame]:
        cell_px = cell_size_px([record.header.shape for record in records])
        batches = [records[k : k + _MEASURE_BATCH] for k in range(0, len(records), _MEASURE_BATCH)]
        tasks = [(batch, canvas, cell_px, n_channels) for batch in batches]
        progress = self._progress("measure")
        measured: list[MeasuredFrame] = []
        singles: list[tuple] = []
        done = 0
        for outcome in pool.run(_measure_task, tasks, retry=lambda task: task):
            batch = outcome.task[0]
            if outcome.error is not None and len(batch) > 1:
                singles += [([record], *outcome.task[1:]) for record in batch]
                continue
            done += self._take_measures(outcome, measured)
            progress(done, len(records))
        for outcome in pool.run(_measure_task, singles, retry=lambda task: task):
            done += self._take_measures(outcome, measured)
            progress(done, len(records))
        if not measured:
            raise PlanError(f"no frame could be measured: {self._first_reasons()}")
        return sorted(measured, key=lambda m: m.record.frame_id)

    def _take_measures(self, outcome: object, measured: list[MeasuredFrame]) -> int:
        """Sort the results of a batch into measured frames and frames left out; return how many there were."""
        batch = outcome.task[0]
        if outcome.error is not None:
            logger.error("[GRID] measuring failed: %s", outcome.error, exc_info=outcome.error)
            for record in batch:
                self._leave_out(LeftOut(record.path, f"cannot be measured: {outcome.error}", record.line))
            return len(batch)
        results, peak = outcome.value
        self.peak["worker"] = max(self.peak["worker"], peak)
        for item in results:
            if isinstance(item, LeftOut):
                self._leave_out(item)
            else:
                measured.append(item)
        return len(batch)

    def _match(
        self, measured: list[MeasuredFrame], canvas: Canvas, n_channels: int
    ) -> tuple[list[StackFrame], Canvas]:
        """Solve the match, tell what it could not do, and note every frame's values in the ledger."""
        settings = self.settings
        equalize = settings.rgb_equalize and n_channels == 3
        matched = match_frames(
            measured, MatchOptions(settings.normalise, settings.weight, settings.kernel, equalize)
        )
        for item in matched.left_out:
            self._leave_out(item)
        if not matched.frames:
            raise PlanError(f"no frame is left after the match: {self._first_reasons()}")
        self._say_limits(matched.match)
        for k, (m, frame) in enumerate(zip(matched.measured, matched.frames, strict=True)):
            self._note_frame(self.rows[m.record.path], m, frame, matched.match, k)
        canvas, frames = trim_canvas(canvas, matched.frames)
        return frames, canvas

    def _say_limits(self, match: Match) -> None:
        n_groups = int(match.group.max()) + 1
        if n_groups > 1:
            self._say(
                f"the frames form {n_groups} groups that do not touch; each is levelled by itself and tied to the "
                "others by its mean sky",
                "WARNING",
            )
        n_gain_groups = int(match.gain_group.max()) + 1
        if self.settings.normalise == "linear_fit" and n_gain_groups > n_groups:
            self._say(
                f"too few common stars: the frames form {n_gain_groups} groups whose gains could not be compared; "
                "their means are taken as equal",
                "WARNING",
            )

    def _note_frame(self, row: LedgerRow, m: MeasuredFrame, frame: StackFrame, match: Match, k: int) -> None:
        row.used = True
        row.sky, row.noise = frame.sky, frame.noise
        row.fwhm_px, row.elongation = m.measure.fwhm_px, m.measure.elongation
        row.n_stars = int(m.measure.star_x.size)
        solution = frame.solution
        row.gain, row.offset, row.weight = solution.gain, solution.offset, solution.weight
        row.group, row.gain_group = int(match.group[k]), int(match.gain_group[k].max())

    # -- tiles --------------------------------------------------------------------------------------------

    def _stack(
        self, pool: TaskPool, frames: list[StackFrame], canvas: Canvas, n_channels: int
    ) -> tuple[list[Rect], list[Path | None]]:
        """Make all tiles; return the cells and the file of each, None where there is none."""
        sizes = [extent_px(frame) for frame in frames]
        cells = cut_cells(canvas.shape, cell_length_px(sizes, self.settings.size_factor))
        tasks = self._tile_tasks(frames, cells, canvas, n_channels)
        logger.info("[GRID] Global grid ready: tiles=%d of which %d see a frame", len(cells), len(tasks))
        self._clear_old_tiles()
        paths: list[Path | None] = [None] * len(cells)
        progress = self._progress("stack", unit="tile")
        progress(0, len(tasks))
        for done, outcome in enumerate(pool.run(_tile_task, tasks, retry=_with_half_the_memory), start=1):
            task = outcome.task
            if outcome.error is None:
                paths[task.number - 1] = task.path
                self._note_tile(task, outcome.value)
            else:
                logger.debug("[GRID] tile %d", task.number, exc_info=outcome.error)
                self._fail_tile(task.number, str(outcome.error) or type(outcome.error).__name__)
            progress(done, len(tasks))
        return cells, paths

    def _tile_tasks(
        self, frames: list[StackFrame], cells: list[Rect], canvas: Canvas, n_channels: int
    ) -> list[_TileTask]:
        options = StackOptions(
            n_channels=n_channels,
            params=self.settings.params,
            kernel=self.settings.kernel,
            radial=self.settings.radial,
            mem_limit_bytes=self.settings.chunk_ram_mb * 1024**2,
        )
        members = frames_of_cells([frame.placement for frame in frames], cells)
        tasks = []
        for number, (cell, indices) in enumerate(zip(cells, members, strict=True), start=1):
            if indices:
                rect = cell.grown(self.settings.overlap_px).intersect(canvas.rect)
                chosen = tuple(frames[k] for k in indices)
                path = self.paths.tile(number)
                tasks.append(_TileTask(number, cell, rect, chosen, canvas, options, path))
        return tasks

    def _clear_old_tiles(self) -> None:
        ensure_writable_folder(self.paths.tiles)
        for old in self.paths.tiles.glob("tile_*.fits"):
            old.unlink()

    def _note_tile(self, task: _TileTask, report: _TileReport) -> None:
        logger.info("[GRID] tile %d processed by worker pid=%d", task.number, report.pid)
        self.peak["worker"] = max(self.peak["worker"], report.peak_memory_bytes)
        paths = {frame.record.frame_id: frame.record.path for frame in task.frames}
        for frame_id, kept, low, high in report.tally:
            row = self.rows[paths[frame_id]]
            row.n_tiles += kept + low + high > 0
            row.n_samples += kept
            row.n_rejected_low += low
            row.n_rejected_high += high
        for frame_id, reason in report.problems:
            logger.error("[GRID] Tile %d lacks frame %s: %s", task.number, paths[frame_id], reason)
            self._leave_out(LeftOut(paths[frame_id], f"missing from tile {task.number}: {reason}"), used=True)
        self.emit(TileDone(task.number, len(task.frames), report.pid))

    def _fail_tile(self, number: int, reason: str) -> None:
        logger.error("[GRID] Tile %d failed with error: %s", number, reason)
        self.failed_tiles.append(TileFailure(number, reason))
        self.emit(TileFailed(number, reason))

    # -- products -----------------------------------------------------------------------------------------

    def _summarise(self, canvas: Canvas, n_channels: int, records: list[FrameRecord]) -> RunSummary:
        rows = sorted(self.rows.values(), key=lambda row: row.frame_id or row.path)
        settings = self.settings.described()
        digest = hashlib.sha256(repr((settings, [(r.frame_id, r.gain, r.offset) for r in rows])).encode())
        saturation = min(record.header.saturation for record in records)
        return RunSummary(canvas, n_channels, settings, digest.hexdigest()[:16], rows, saturation)

    def _assemble(self, summary: RunSummary, cells: list[Rect], tile_paths: list[Path | None]) -> None:
        progress = self._progress("assemble", unit="tile")

        def between(done: int) -> None:
            self.cancel.check()
            progress(done, len(cells))

        with open_products(self.paths, summary) as streams:
            for failure in assemble(cells, tile_paths, streams, summary.n_channels, between_tiles=between):
                self._fail_tile(failure.tile, failure.reason)
        progress(len(cells), len(cells))
        write_pictures(self.paths, summary, uint16=self.settings.save_uint16, legacy=self.settings.legacy_rgb_cube)

    def _finish(self, summary: RunSummary, n_tiles: int) -> RunResult:
        self.peak["main"] = peak_memory_bytes()
        result = RunResult(
            mosaic_path=self.paths.mosaic,
            preview_path=self.paths.preview,
            n_used=len(summary.used),
            n_planned=len(summary.rows),
            left_out=tuple(self.left_out),
            failed_tiles=tuple(self.failed_tiles),
            seconds=dict(self.seconds),
        )
        write_ledger(self.paths, summary)
        write_report(self.paths, summary, result, peak_memory_bytes=self.peak, n_tiles=n_tiles)
        logger.info("[GRID] completed: %d of %d frames", result.n_used, result.n_planned)
        return result

    # -- talking ------------------------------------------------------------------------------------------

    def _leave_out(self, item: LeftOut, *, used: bool = False) -> None:
        logger.warning("[GRID] %s left out: %s", item.path, item.reason)
        self.left_out.append(item)
        row = self.rows.setdefault(item.path, LedgerRow(item.path, item.line))
        row.reason = "; ".join(filter(None, (row.reason, item.reason)))
        row.used = used
        self.emit(FrameLeftOut(item))

    def _say(self, text: str, level: str = "INFO") -> None:
        logger.log(getattr(logging, level), "[GRID] %s", text)
        self.emit(Message(text, level))

    def _progress(self, phase: str, *, unit: str = "frame") -> Callable[[int, int], None]:
        return lambda done, total: self.emit(PhaseProgress(phase, done, total, unit))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.cancel.check()
        start = time.perf_counter()
        logger.info("[GRID] phase %s", name)
        yield
        self.seconds[name] = time.perf_counter() - start

    def _open_log(self) -> None:
        self._handler = logging.FileHandler(self.paths.log, mode="w", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        family = logging.getLogger("ZeMosaicWorker")
        self._level = family.level
        if family.level == logging.NOTSET:
            family.setLevel(logging.INFO)
        family.addHandler(self._handler)

    def close_log(self) -> None:
        if self._handler is not None:
            family = logging.getLogger("ZeMosaicWorker")
            family.removeHandler(self._handler)
            family.setLevel(self._level)
            self._handler.close()
