"""A look at the frames before a run: where they lie, what the mosaic will be, and what it will cost, roughly.

It reads a plan or scans a folder, loads headers, lays out canvas and tiles by the functions of a run, and writes
nothing anywhere. What only pixels tell (clouds, positions refined by stars, a frame that cannot be read to its
end) is told by the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from astropy.wcs import WCS

from parallel_utils import machine, workers_for
from zemosaic_astrometry import PlateSolver, SolveOptions, choose_solver
from zemosaic_config import Config
from zemosaic_estimate import estimate_disk, estimate_memory, estimate_seconds, loops_are_compiled
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
from zemosaic_groups import GROUPS_NAME, GroupPlan, GroupSettings, canvas_of_group, find_groups, read_groups
from zemosaic_ledger import EXCLUDED
from zemosaic_match import drop_misfits, extent_px
from zemosaic_outputs import ProductPaths
from zemosaic_passes import unwanted_frames
from zemosaic_plan import find_frames, frame_id, load_frames, read_plan
from zemosaic_plan_table import PLAN_NAME
from zemosaic_preview import shrink_factor
from zemosaic_programs import HOW_TO_INSTALL
from zemosaic_reproject import Canvas, Placement, optimal_canvas, place_roughly, sky_outline
from zemosaic_solving import CACHE_NAME, NO_SOLVER, NOT_ASKED, WcsCache, solve_frames
from zemosaic_tiling import cell_length_px, cut_cells, frames_of_cells
from zemosaic_types import FrameError, FrameRecord, LeftOut, PlanError, PlanRow, SolverMissing

logger = logging.getLogger("ZeMosaicWorker.survey")

_BATCH = 100  # frames an event
_STACKER = "zemosaic_stack_kernels.py"
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
    grid_mode: bool = False
    groups: GroupSettings = field(default_factory=GroupSettings)
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
            grid_mode=config["grid_mode_enabled"],
            groups=GroupSettings.from_config(config),
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
        self._has_plan = (folder / PLAN_NAME).is_file()
        self._solver, self._no_solver = _find_solver(settings.solve)
        self._groups: GroupPlan | None = None  # of the user
        # A GPU stacks without the loops of the stacker.
        loops = Path(__file__).with_name("zemosaic_preprocess.py" if settings.use_gpu else _STACKER)
        self._compiles = loops_are_compiled(loops) is False

    @property
    def _in_grid(self) -> bool:
        """Whether a run would be in Grid mode; see `zemosaic_worker.choose_pipeline`."""
        return self._has_plan or self.settings.grid_mode

    @property
    def _places(self) -> bool:
        """Whether a run would look for the places of frames that have none."""
        solve = self.settings.solve
        return solve is not None and (self._solver is not None or solve.align_by_stars)

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
        n_placed = len(placed)
        if placed:
            kept, misfits = drop_misfits(placed)
            reasons = {item.path: item.reason for item in misfits}
            self._tell(self._told(r, reason=reasons[r.path], usable=False) for r in placed if r.path in reasons)
            placed = self._grouped_by_user(kept)
        n_unplaced = len(records) - n_placed if self._places else 0
        n_frames = len(rows) + sum(item.missed for item in left_out)
        if not placed:
            notes = self._notes(len(records) - n_placed)
            return SurveyDone(n_frames, n_unplaced, free_bytes=free_bytes(self.output), notes=notes)
        done = self._lay_out(placed)
        notes = done.notes + self._notes(len(records) - n_placed)
        return replace(done, n_frames=n_frames, n_usable=len(placed) + n_unplaced, notes=notes)

    def _plan(self) -> tuple[list[PlanRow], list[LeftOut]]:
        if not self.folder.is_dir():
            raise PlanError(f"{self.folder} is not a folder")
        if self._has_plan:
            return read_plan(self.folder / PLAN_NAME)
        # A run reads all headers to put its plan into order; frames enter in the order of their ids anyway.
        paths, left_out = find_frames(self.folder, exclude=self.output, cancel=self.cancel)
        return [PlanRow(line=0, path=path) for path in paths], left_out

    def _progress(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, total: self.emit(PhaseProgress(phase, done, total))

    def _load(self, rows: list[PlanRow], drop: Mapping[str, str]) -> list[FrameRecord]:
        """Read the headers batch by batch and tell of each; return the usable frames in frame order.

        A frame that is left out is read too, so that its place can be shown. One that the user excludes is told as
        it is: who asked knows of the wish, and may take it back.
        """
        progress = self._progress("headers")
        records: list[FrameRecord] = []
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            found, unusable = load_frames(
                batch, self.folder, keep_unplaced=self.settings.solve is not None, cancel=self.cancel
            )
            wanted = [record for record in found if record.frame_id not in drop]
            out = {name: reason for name, reason in drop.items() if reason != EXCLUDED}
            self._tell(self._told(record) for record in found if record.frame_id not in out)
            self._tell(self._told(r, reason=out[r.frame_id], usable=False) for r in found if r.frame_id in out)
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
            notes.append(self._unsolved(n_unplaced))
        if self.settings.solve is not None and self.settings.solve.resolve_all and self._solver is not None:
            notes.append(f"{self._solver.name} solves all frames again; this takes time that is not counted here")
        if not self._has_plan:
            notes.append(f"there is no {PLAN_NAME} in the folder; the run makes one beside its products")
        if self.settings.use_gpu:
            notes.append("the time is that of the processor; a GPU stacks faster")
        if self._compiles:
            notes.append("the first run on this machine compiles its loops, about half a minute more")
        return tuple(notes)

    def _told(self, record: FrameRecord, *, reason: str = "", usable: bool = True) -> SurveyFrame:
        """Return what is told of a frame whose header could be read."""
        header, row = record.header, self._rows[record.path]
        if record.unplaced and not reason:
            usable = self._places
            why_not = NOT_ASKED if self.settings.solve.method == "none" else NO_SOLVER
            reason = f"{record.unplaced}; {_NOT_PLACED if usable else why_not}"
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

    def _grouped_by_user(self, records: list[FrameRecord]) -> list[FrameRecord]:
        """Return the frames of the user's groups where Classic will run and there is a file of them."""
        path = self.folder / GROUPS_NAME
        if self._in_grid or not path.is_file():
            return records
        known = {record.frame_id for record in records}
        planned = {frame_id(Path(path), self.folder) for path in self._rows}
        self._groups = read_groups(path, records, left_out=planned - known)
        why = self._groups.ungrouped
        self._tell(self._told(r, reason=why[r.frame_id], usable=False) for r in records if r.frame_id in why)
        return [record for record in records if record.frame_id not in why]

    def _lay_out(self, records: list[FrameRecord]) -> SurveyDone:
        """Return what a run would make of frames that have a place, but for their number."""
        settings = self.settings
        canvas = optimal_canvas([_geometry(record) for record in records], orientation=settings.orientation)
        n_channels = max(record.header.n_channels for record in records)
        notes, masters = (), ()
        if self._in_grid:
            tiles = _tiles(_placed_frames(records, canvas), canvas, settings)
        else:
            plan = self._groups or find_groups(records, settings.groups)
            tiles, masters = _master_tiles(plan, records, canvas)
            notes = plan.notes
        cores, _ = machine()
        workers = workers_for(settings.workers, settings.chunk_ram_mb, len(records))
        more = {"master_tiles": masters}
        cpu, wall = estimate_seconds(
            records, canvas.shape, n_channels, workers, cores, compiles=self._compiles, **more
        )
        return SurveyDone(
            pipeline="grid" if self._in_grid else "classic",
            n_frames=len(records),
            n_usable=len(records),
            shape=canvas.shape,
            corners_deg=canvas.corners_deg(canvas.rect),
            scale_arcsec=3600.0 * canvas.scale_deg,
            n_channels=n_channels,
            tiles=tiles,
            workers=workers,
            cpu_s=cpu,
            wall_s=wall,
            memory_bytes=estimate_memory(len(records), n_channels, workers, settings.chunk_ram_mb, **more),
            disk_bytes=estimate_disk(canvas.shape, n_channels, save_uint16=settings.save_uint16, **more),
            free_bytes=free_bytes(self.output),
            notes=notes,
        )

    def _unsolved(self, n_unplaced: int) -> str:
        """Return what becomes of frames without a place."""
        lost = f"{n_unplaced} frames have no place on the sky yet"
        uncounted = "this takes time that is not counted here, and may make the canvas larger"
        if self._solver is not None:
            return f"{lost}; {self._solver.name} solves them when the run starts; {uncounted}"
        stars = "the run places them by the stars that they share with others, where it can"
        what = f"{lost}; {stars}; {uncounted}" if self._places else f"{lost}, and are left out"
        return f"{what}; {self._no_solver}" if self._no_solver else what


def _find_solver(options: SolveOptions | None) -> tuple[PlateSolver | None, str]:
    """Return the plate solver of a run, or None and why there is none where one is wanted."""
    if options is None:
        return None, ""
    try:
        return choose_solver(options), ""
    except SolverMissing as missing:
        if options.method == "none":
            return None, ""
        if str(missing):
            return None, f"no plate solver is there ({missing}). {HOW_TO_INSTALL}"
        return None, f"no plate solver is there. {HOW_TO_INSTALL}"


def _geometry(record: FrameRecord) -> tuple[tuple[int, int], WCS]:
    return record.header.shape, frame_wcs(record.header)


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


_Masters = tuple[tuple[PlannedTile, ...], tuple[tuple[int, int], ...]]


def _master_tiles(plan: GroupPlan, records: list[FrameRecord], canvas: Canvas) -> _Masters:
    """Return the master tiles of the groups, numbered as a run numbers them, and their shapes."""
    known = {record.frame_id: record for record in records}
    tiles, shapes = [], []
    for number, group in enumerate(plan.groups, start=1):
        frames = [_geometry(known[name]) for name in group.frame_ids]
        try:
            own, on_mosaic = canvas_of_group(frames, group, canvas)
        except FrameError as error:  # the run leaves out what cannot be one tile, and says so
            logger.debug("%s: %s", group.name, error)
            continue
        outline = on_mosaic.bounds.intersect(canvas.rect)
        tiles.append(PlannedTile(number, outline, own.corners_deg(own.rect), len(frames)))
        shapes.append(own.shape)
    return tuple(tiles), tuple(shapes)
