"""What every pipeline does before it stacks: begin a run and end it, find the frames, settle what decides a pixel.

All that decides the value of a pixel is settled for the whole run before anything is stacked, so no division of
the work leaves a trace in the mosaic. A frame that fails is named and left out; it never ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parallel_utils import TaskPool, meanwhile, prepare_workers, workers_for
from zemosaic_events import (
    CancelToken,
    Emitter,
    FinishReason,
    RunFinished,
    tagged,
    tagged_logger,
    told_when_it_fails,
)
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import ensure_writable_folder
from zemosaic_main_start import load_loops
from zemosaic_match import MatchedFrames, drop_misfits, lowest_saturation
from zemosaic_measure import MeasuredFrame
from zemosaic_outputs import ProductPaths
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
from zemosaic_settings import RunSettings
from zemosaic_temp_files import remove_leftovers
from zemosaic_types import (
    FrameRecord,
    PlanError,
    ProductExistsError,
    RunResult,
    ZeMosaicError,
    mosaic_stem,
)

logger = tagged_logger("ZeMosaicWorker.run")

Execute = Callable[[RunBook, Mapping[str, str]], RunResult]
Choose = Callable[[list[FrameRecord]], list[FrameRecord]]

_SHARE_OF_MISFITS = 0.5  # of the work of laying out a canvas


# ---- a run from its first word to its last ---------------------------------------------------------------


def run_pipeline(
    folders: tuple[Path, Path],
    settings: RunSettings,
    execute: Execute,
    *,
    name: str,
    listener: Callable | None,
    cancel: CancelToken | None,
) -> RunResult:
    """Run a pipeline; emits exactly one `RunFinished`, the last event, whatever happens.

    Parameters
    ----------
    folders : tuple of Path
        Of the frames, in which nothing is changed, and of the products; the latter is made if needed.
    settings : RunSettings
    execute : callable
        The pipeline itself: takes the book of the run and what the user wants left out (`unwanted_frames`).
    name : str
        Of the pipeline, lower case: products begin with ``mosaic_`` and it, lines of the log with it in capitals.
    listener : callable or None
        Receives the events of `zemosaic_events`.
    cancel : CancelToken or None

    Raises
    ------
    ConfigError, PlanError, OutputError
        If the run cannot start or end; each says why.
    RunCancelled
    """
    emit = Emitter(listener)
    with told_when_it_fails(emit), tagged(name.upper()):
        book = RunBook(ProductPaths(Path(folders[1]), mosaic_stem(name)), emit, cancel or CancelToken())
        result = _logged_run(Path(folders[0]), book, settings, execute)
    reason = FinishReason.COMPLETE if result.complete else FinishReason.WITH_FAILURES
    emit(RunFinished(reason, f"{result.n_used} of {result.n_planned} frames in {result.mosaic_path}"))
    return result


def _logged_run(input_folder: Path, book: RunBook, settings: RunSettings, execute: Execute) -> RunResult:
    paths = book.paths
    if paths.folder.resolve() == input_folder.resolve():
        raise PlanError(f"{input_folder} cannot be input and output at once; nothing is written among raw frames")
    drop = unwanted_frames(paths.ledger, drop_suggested=settings.drop_suggested, excluded=settings.excluded)
    ensure_writable_folder(paths.folder)
    remove_leftovers(paths.folder)
    if paths.mosaic.exists() and not settings.overwrite:
        raise ProductExistsError(
            f"{paths.mosaic} exists already; choose another output folder or ask for --overwrite"
        )
    with book.log_file():
        try:
            return execute(book, drop)
        except BaseException as error:
            logger.error("aborted: %s", error, exc_info=not isinstance(error, ZeMosaicError))
            raise


# ---- all frames at once ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settled:
    """All that decides the value of a pixel.

    Attributes
    ----------
    matched : MatchedFrames
        The frames of the run with their solutions, on the canvas.
    n_channels : int
        Of the mosaic.
    """

    matched: MatchedFrames
    n_channels: int

    @property
    def canvas(self) -> Canvas:
        """The canvas of the mosaic."""
        return self.matched.canvas

    @property
    def saturation(self) -> float:
        """The lowest level at which a frame saturates, in units of the mosaic."""
        return lowest_saturation(self.matched.frames)


@contextmanager
def settled_frames(
    input_folder: Path,
    settings: RunSettings,
    book: RunBook,
    drop: Mapping[str, str],
    *,
    choose: Choose = lambda records: records,
) -> Iterator[tuple[TaskPool, Settled]]:
    """Find, place, measure and match the frames of a run; yield the pool of workers and what is settled.

    Parameters
    ----------
    input_folder : Path
    settings : RunSettings
    book : RunBook
        Gets what becomes of every frame.
    drop : mapping of str
        Frames that the user wants left out, from `unwanted_frames`.
    choose : callable
        Returns those of the frames with a place on the sky that the pipeline wants; the others leave no trace.

    Raises
    ------
    PlanError
        If no frame is left.
    RunCancelled
    """
    prepare_workers(["zemosaic_worker_start"])
    records = choose(_find_frames(input_folder, settings, book, drop))
    with book.phase("canvas"):
        records, canvas, n_channels = _lay_out(records, settings, book)
    with TaskPool(_count_workers(settings, len(records)), book.cancel) as pool:
        yield pool, _settled(pool, (records, canvas, n_channels), settings, book)


def _find_frames(
    input_folder: Path, settings: RunSettings, book: RunBook, drop: Mapping[str, str]
) -> list[FrameRecord]:
    """Return the frames that have a place on the sky, solved where they need it."""
    with book.phase("plan"):
        if settings.drop_suggested and not drop.keys() - set(settings.excluded):
            book.say("the ledger of the earlier run suggests no frame to leave out")
        records = read_frames(input_folder, book, drop, keep_unplaced=settings.solve is not None)
    if settings.solve is not None and settings.solve.concerns(records):
        with book.phase("solve"):
            records = solve_all(records, settings.solve, book)
    return records


_Layout = tuple[list[FrameRecord], Canvas, int]


def _lay_out(records: list[FrameRecord], settings: RunSettings, book: RunBook) -> _Layout:
    """Return the frames of the mosaic, its canvas and its number of channels."""
    tell = book.share("canvas")
    records, misfits = drop_misfits(records)
    for item in misfits:
        book.leave_out(item)
    if not records:
        raise PlanError(f"no frame is left for a mosaic: {book.first_reasons()}")
    frames = [(record.header.shape, frame_wcs(record.header)) for record in records]
    tell(_SHARE_OF_MISFITS)
    canvas = optimal_canvas(frames, orientation=settings.orientation)
    n_channels = max(record.header.n_channels for record in records)
    ny, nx = canvas.shape
    scale = canvas.scale_deg * 3600
    logger.info("canvas %d x %d px, %.3f arcsec/px, %d channel(s)", nx, ny, scale, n_channels)
    tell(1.0)
    return records, canvas, n_channels


def _settled(pool: TaskPool, layout: _Layout, settings: RunSettings, book: RunBook) -> Settled:
    """Measure, place and match the frames.

    Where the match leaves out all that have colours, the mosaic has none, and all begins anew.
    """
    while True:
        measured, canvas, n_channels = _measure(pool, layout, settings, book)
        with book.phase("flat"):
            measured = flatten_all(measured, settings.flat_from_frames, book)
        with book.phase("match"):
            matched = match_all(measured, canvas, settings.match_options(n_channels), book)
        records = [m.record for m in matched.measured]
        if max(record.header.n_channels for record in records) == n_channels:
            return Settled(matched, n_channels)
        layout = _lay_out(records, settings, book)


def _measure(
    pool: TaskPool, layout: _Layout, settings: RunSettings, book: RunBook
) -> tuple[list[MeasuredFrame], Canvas, int]:
    """Measure the frames and place them by their stars; return them, their canvas and its number of channels.

    A frame that turns out unusable must leave no trace, in the projection either: all begins anew without it.
    """
    while True:
        records, canvas, n_channels = layout
        with book.phase("measure"):
            with meanwhile(load_loops):
                measured = measure_all(pool, records, canvas, n_channels, book)
        if len(measured) == len(records):
            with book.phase("refine"):
                measured = refine_all(pool, measured, canvas, settings.refine_wcs, book)
            if len(measured) == len(records):
                return measured, canvas, n_channels
        kept = {m.record.path for m in measured}
        layout = _lay_out([record for record in records if record.path in kept], settings, book)


def _count_workers(settings: RunSettings, n_frames: int) -> int:
    workers = workers_for(settings.workers, settings.chunk_ram_mb, n_frames)
    logger.info("workers=%d", workers)
    logger.info("using %d workers for tile processing", workers)
    return workers
