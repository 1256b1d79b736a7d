"""A look at the frames before a run: where they lie, what the mosaic will be, and what it will cost, roughly.

It reads a plan or scans a folder, loads headers, lays out canvas and tiles by the functions of a run, and writes
nothing anywhere. What only pixels tell (clouds, positions refined by stars, a frame that cannot be read to its
end) is told by the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from parallel_utils import WORKER_BASE_BYTES, machine, workers_for
from zemosaic_astrometry import SolveOptions, choose_solver
from zemosaic_config import Config
from zemosaic_events import (
    CancelToken,
    Emitter,
    FinishReason,
    Listener,
    PhaseProgress,
    PlannedTile,
    RunFinished,
    RunStarted,
    SurveyDone,
    SurveyFrame,
    SurveyFrames,
    told_when_it_fails,
)
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import free_bytes
from zemosaic_match import drop_misfits, extent_px
from zemosaic_outputs import ProductPaths
from zemosaic_passes import unwanted_frames
from zemosaic_plan import find_frames, frame_id, load_frames, read_plan
from zemosaic_plan_table import PLAN_NAME
from zemosaic_preview import shrink_factor
from zemosaic_programs import HOW_TO_INSTALL
from zemosaic_reproject import Canvas, Placement, optimal_canvas, place_roughly, sky_outline
from zemosaic_solving import CACHE_NAME, WcsCache, solve_frames
from zemosaic_tiling import cell_length_px, cut_cells, frames_of_cells
from zemosaic_types import FrameError, FrameRecord, LeftOut, PlanError, PlanRow, SolverMissing

logger = logging.getLogger("ZeMosaicWorker.survey")

_BATCH = 100  # frames an event
_MEGA = 1e6
_BYTES_A_PIXEL = 12  # of a plane: image, weight, coverage
_NOT_PLACED = "the run looks for its place on the sky"


@dataclass(frozen=True)
class SurveySettings:
    """What a survey needs of the choices of a run; the names are those of `grid_mode.GridSettings`."""

    orientation: str = "north_up"
    size_factor: float = 1.0
    overlap_px: int = 0
    chunk_ram_mb: int = 512
    workers: int | None = 0
    save_uint16: bool = False
    use_gpu: bool = False
    solve: SolveOptions | None = field(default_factory=SolveOptions)
    drop_suggested: bool = False
    excluded: tuple[str, ...] = ()

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        overwrite: bool = False,  # noqa: ARG003 - nothing is written
        drop_suggested: bool = False,
        excluded: tuple[str, ...] = (),
    ) -> SurveySettings:
        """Return the settings that a resolved configuration asks for."""
        return cls(
            orientation=config["canvas_orientation"],
            size_factor=config["grid_size_factor"],
            overlap_px=config["grid_overlap_px"],
            chunk_ram_mb=config["grid_chunk_ram_mb"],
            workers=config["grid_workers"],
            save_uint16=config["save_final_as_uint16"],
            use_gpu=config["use_gpu_grid"],
            solve=SolveOptions.from_config(config),
            drop_suggested=drop_suggested,
            excluded=tuple(excluded),
        )


def run_survey(
    input_folder: Path,
    output_folder: Path,
    settings: SurveySettings,
    *,
    listener: Listener | None = None,
    cancel: CancelToken | None = None,
) -> SurveyDone:
    """Look at the frames of a folder; see the module.

    Emits `RunStarted`, `SurveyFrames` in batches while headers are read, at last `SurveyDone` and exactly one
    `RunFinished`.

    Parameters
    ----------
    input_folder : Path
        Folder of FITS exposures, with or without a ``stack_plan.csv``.
    output_folder : Path
        Where a run would write; not looked into for frames. It need not exist.
    settings : SurveySettings
    listener : callable, optional
    cancel : CancelToken, optional
        Looked at before each header.

    Raises
    ------
    PlanError
        If the folder gives no frame.
    RunCancelled
    """
    emit = Emitter(listener)
    with told_when_it_fails(emit):
        survey = _Survey(Path(input_folder), Path(output_folder), settings, emit, cancel or CancelToken())
        done = survey.execute()
    emit(done)
    emit(RunFinished(FinishReason.COMPLETE, f"{done.n_usable} of {done.n_frames} frames can be used"))
    return done


@dataclass(frozen=True)
class _Placed:
    """A frame on the canvas, as `extent_px` wants it."""

    record: FrameRecord
    placement: Placement


class _Survey:
    """One survey, step by step."""

    def __init__(
        self, folder: Path, output: Path, settings: SurveySettings, emit: Emitter, cancel: CancelToken
    ) -> None:
        self.folder, self.output = folder, output
        self.settings = settings
        self.emit, self.cancel = emit, cancel
        self._rows: dict[str, PlanRow] = {}

    def execute(self) -> SurveyDone:
        settings = self.settings
        ledger = ProductPaths(self.output).ledger
        drop = unwanted_frames(ledger, drop_suggested=settings.drop_suggested, excluded=settings.excluded)
        rows, left_out = self._plan()
        self._rows = {str(row.path): row for row in rows}
        self.emit(RunStarted(len(rows), str(self.output)))
        self._tell(self._unread(item) for item in left_out if not item.harmless)
        records = self._remembered(self._load(rows, drop))
        placed = [record for record in records if not record.unplaced]
        n_unplaced = len(records) - len(placed)
        if placed:
            kept, misfits = drop_misfits(placed)
            reasons = {item.path: item.reason for item in misfits}
            self._tell(self._told(r, reason=reasons[r.path], usable=False) for r in placed if r.path in reasons)
            placed = kept
        n_frames = len(rows) + sum(item.missed for item in left_out)
        if not placed:
            notes = self._notes(n_unplaced)
            return SurveyDone(n_frames, n_unplaced, free_bytes=free_bytes(self.output), notes=notes)
        return self._lay_out(placed, n_frames, n_unplaced)

    def _plan(self) -> tuple[list[PlanRow], list[LeftOut]]:
        if not self.folder.is_dir():
            raise PlanError(f"{self.folder} is not a folder")
        plan_path = self.folder / PLAN_NAME
        if plan_path.is_file():
            return read_plan(plan_path)
        # A run reads all headers to put its plan into order; frames enter in the order of their ids anyway.
        paths, left_out = find_frames(self.folder, exclude=self.output, cancel=self.cancel)
        return [PlanRow(line=0, path=path) for path in paths], left_out

    def _progress(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, total: self.emit(PhaseProgress(phase, done, total))

    def _load(self, rows: list[PlanRow], drop: Mapping[str, str]) -> list[FrameRecord]:
        """Read the headers batch by batch and tell of each; return the usable frames in frame order.

        A frame that the user wants left out is read too, so that its place can be shown.
        """
        progress = self._progress("headers")
        records: list[FrameRecord] = []
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            found, unusable = load_frames(
                batch, self.folder, keep_unplaced=self.settings.solve is not None, cancel=self.cancel
            )
            wanted = [record for record in found if record.frame_id not in drop]
            self._tell(self._told(record) for record in wanted)
            self._tell(self._told(r, reason=drop[r.frame_id], usable=False) for r in found if r.frame_id in drop)
            self._tell(self._unread(item) for item in unusable)
            records += wanted
            progress(min(start + _BATCH, len(rows)), len(rows))
        return sorted(records, key=lambda record: record.frame_id)

    def _remembered(self, records: list[FrameRecord]) -> list[FrameRecord]:
        """Give frames without a place the one that an earlier run into the output folder has found."""
        cache = WcsCache(self.output / CACHE_NAME)
        unplaced = [record for record in records if record.unplaced]
        if not unplaced or not cache.folder.is_dir():
            return records
        how = {"on_progress": self._progress("solve"), "cancel": self.cancel}
        placed = [record for record in records if not record.unplaced]
        verdicts = solve_frames(unplaced, None, self.settings.solve, cache, placed=placed, **how)
        known = {verdict.record.path: verdict.record for verdict in verdicts if not verdict.reason}
        self._tell(self._told(record) for record in known.values())
        return [known.get(record.path, record) for record in records]

    def _notes(self, n_unplaced: int) -> tuple[str, ...]:
        notes = []
        if n_unplaced:
            notes.append(_unsolved(n_unplaced, self.settings.solve))
        if not (self.folder / PLAN_NAME).is_file():
            notes.append(f"there is no {PLAN_NAME} in the folder; the run makes one beside its products")
        if self.settings.use_gpu:
            notes.append("the time is that of the processor; a GPU stacks faster")
        return tuple(notes)

    def _told(self, record: FrameRecord, *, reason: str = "", usable: bool = True) -> SurveyFrame:
        """Return what is told of a frame whose header could be read."""
        header, row = record.header, self._rows[record.path]
        if record.unplaced and not reason:
            reason = f"{record.unplaced}; {_NOT_PLACED}"
        known = row.exposure_s is not None or (header.exptime_s or 0.0) > 0.0
        return SurveyFrame(
            frame_id=record.frame_id,
            path=record.path,
            exposure_s=record.exptime_s if known else None,
            filter=header.filter.strip() or row.filter,
            instrument=(header.instrument or header.telescope).strip(),
            date=header.date_obs.strip(),
            shape=header.shape,
            corners_deg=() if record.unplaced else sky_outline(frame_wcs(header), header.shape),
            reason=reason,
            usable=usable,
        )

    def _unread(self, item: LeftOut) -> SurveyFrame:
        name = frame_id(Path(item.path), self.folder) if Path(item.path).is_absolute() else item.path
        return SurveyFrame(name, item.path, reason=item.reason, usable=False)

    def _tell(self, frames: Iterator[SurveyFrame]) -> None:
        batch = tuple(frames)
        if batch:
            self.emit(SurveyFrames(batch))

    def _lay_out(self, records: list[FrameRecord], n_frames: int, n_unplaced: int) -> SurveyDone:
        settings = self.settings
        canvas = optimal_canvas([_geometry(record) for record in records], orientation=settings.orientation)
        frames = _placed_frames(records, canvas)
        n_channels = max(record.header.n_channels for record in records)
        tiles = _tiles(frames, canvas, settings)
        cores, _ = machine()
        workers = workers_for(settings.workers, settings.chunk_ram_mb, len(records))
        cpu, wall = estimate_seconds(records, canvas.shape, n_channels, workers, cores)
        return SurveyDone(
            n_frames=n_frames,
            n_usable=len(records) + n_unplaced,
            shape=canvas.shape,
            corners_deg=canvas.corners_deg(canvas.rect),
            scale_arcsec=3600.0 * canvas.scale_deg,
            n_channels=n_channels,
            tiles=tiles,
            workers=workers,
            cpu_s=cpu,
            wall_s=wall,
            memory_bytes=estimate_memory(len(records), workers, settings.chunk_ram_mb),
            disk_bytes=estimate_disk(canvas.shape, n_channels, save_uint16=settings.save_uint16),
            free_bytes=free_bytes(self.output),
            notes=self._notes(n_unplaced),
        )


def _geometry(record: FrameRecord) -> tuple[tuple[int, int], WCS]:
    return record.header.shape, frame_wcs(record.header)


def _unsolved(n_unplaced: int, options: SolveOptions) -> str:
    """Return what becomes of frames without a place."""
    lost = f"{n_unplaced} frames have no place on the sky yet"
    stars = "the run places them by the stars that they share with others, where it can"
    uncounted = "this takes time that is not counted here, and may make the canvas larger"
    try:
        solver = choose_solver(options)
    except SolverMissing as missing:
        none = f"no plate solver is there ({missing})" if str(missing) else "no plate solver is there"
        none = "" if options.method == "none" else f"; {none}. {HOW_TO_INSTALL}"
        return (
            f"{lost}; {stars}; {uncounted}{none}" if options.align_by_stars else f"{lost}, and are left out{none}"
        )
    return f"{lost}; {solver.name} solves them when the run starts; {uncounted}"


def _placed_frames(records: list[FrameRecord], canvas: Canvas) -> list[_Placed]:
    frames = []
    for record in records:
        shape, wcs = _geometry(record)
        try:
            frames.append(_Placed(record, place_roughly(wcs, shape, canvas)))
        except FrameError as error:  # `optimal_canvas` has projected it; the run says why it cannot
            logger.debug("%s: %s", record.path, error)
    return frames


def _tiles(frames: list[_Placed], canvas: Canvas, settings: SurveySettings) -> tuple[PlannedTile, ...]:
    """Return the tiles that see a frame, numbered as a run numbers them."""
    length = cell_length_px([extent_px(frame) for frame in frames], settings.size_factor)
    cells = cut_cells(canvas.shape, length, step=shrink_factor(canvas.shape))
    margins = [cell.grown(settings.overlap_px) for cell in cells]
    members = frames_of_cells([frame.placement for frame in frames], margins)
    return tuple(
        PlannedTile(number, cell, canvas.corners_deg(cell), len(indices))
        for number, (cell, indices) in enumerate(zip(cells, members, strict=True), start=1)
        if indices
    )


# ---- what a run costs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Costs:
    """Seconds of one core for a kind of frame: a megapixel of a frame, a frame in the process of the run."""

    pixels: float
    serial: float


_MONO = _Costs(pixels=0.088, serial=0.010)
_COLOUR = _Costs(pixels=0.23, serial=0.023)
_HEADER_S = 0.01  # a frame
_CANVAS_S = 0.025  # a megapixel of a plane of the mosaic
_START_S = 1.5
_HELP = 0.5  # of a further core, at worst
_RANGE = (0.6, 2.0)  # from a fast machine to a slow or busy one


def estimate_seconds(
    records: Sequence[FrameRecord], shape: tuple[int, int], n_channels: int, workers: int, cores: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges of processor time and wall time of a run, in seconds.

    The model is linear: a frame costs what its header costs, a share of the serial phases (refine, flat, match)
    and a price a pixel (measure, stack) that its kind decides; a plane of the canvas a price a pixel (assemble).
    Workers share what is counted by pixels of frames: at best each core that has one adds its whole speed, at
    worst half of it. The prices were measured once, roughly, on the surveys of 60 frames of 1920 x 1080 px in nine
    panels of the benchmarks (`swarp_spec`, mono and colour) with one worker on a core of a server: mono 14.5 s,
    colour 33 s of wall time. The range says how far machines lie apart, no more.

    Parameters
    ----------
    records : sequence of FrameRecord
    shape : tuple of int
        ``(ny, nx)`` of the canvas.
    n_channels, workers, cores : int
    """
    costs = [_MONO if record.header.n_channels == 1 else _COLOUR for record in records]
    pixels = sum(
        cost.pixels * float(np.prod(r.header.shape)) / _MEGA for cost, r in zip(costs, records, strict=True)
    )
    canvas = _CANVAS_S * n_channels * float(np.prod(shape)) / _MEGA
    serial = _START_S + canvas + sum(cost.serial + _HEADER_S for cost in costs)
    start = 0.5 * _START_S * workers  # of each worker
    cpu, at_once = pixels + serial + start, min(workers, cores)
    best, worst = pixels / at_once + serial, pixels / (1.0 + _HELP * (at_once - 1)) + serial
    low, high = _RANGE
    return (low * cpu, high * cpu), (low * best, high * worst)


def estimate_memory(n_frames: int, workers: int, chunk_ram_mb: int) -> tuple[int, int]:
    """Return the range of the memory of all processes of a run together, in bytes.

    At the least each worker holds its libraries and the sections of a small tile, at the most all that it may use;
    a frame costs the process of the run some 20 kB (stars, coarse levels), at the most 100 kB.
    """
    low = 350 * 10**6 + 20_000 * n_frames + workers * (250 * 10**6 + chunk_ram_mb * 1024**2 // 4)
    high = 500 * 10**6 + 100_000 * n_frames + workers * (WORKER_BASE_BYTES + chunk_ram_mb * 1024**2)
    return low, high


def estimate_disk(shape: tuple[int, int], n_channels: int, *, save_uint16: bool) -> tuple[int, int]:
    """Return the range of the disk space of all products, in bytes: mosaic, weight, coverage, and their tiles."""
    plane = shape[0] * shape[1]
    low = n_channels * plane * (2 * _BYTES_A_PIXEL + 2 * save_uint16)
    return low, low + low // 10 + 50 * 10**6
