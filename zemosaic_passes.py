"""The passes over all frames before a pipeline stacks: read, solve, measure, refine, flatten, match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from parallel_utils import Outcome, TaskPool, check_cancelled, peak_memory_bytes
from zemosaic_astrometry import SolveOptions, choose_solver
from zemosaic_events import RunStarted, tagged_logger
from zemosaic_fits_io import read_frame_header
from zemosaic_flat_frames import flatten_frames
from zemosaic_frame_source import StackFrame
from zemosaic_ledger import EXCLUDED, as_suggested, frames_to_drop
from zemosaic_match import MatchedFrames, MatchOptions, match_frames
from zemosaic_measure import MeasuredFrame, cell_size_px, measure_frames
from zemosaic_photometry import Match
from zemosaic_plan import frame_id, load_frames, plan_from_folder, read_plan, write_plan
from zemosaic_plan_table import PLAN_NAME
from zemosaic_programs import HOW_TO_INSTALL
from zemosaic_refine import Refined, refine_frames
from zemosaic_reproject import Canvas
from zemosaic_runbook import RunBook
from zemosaic_solving import CACHE_NAME, Verdict, WcsCache, solve_frames
from zemosaic_star_placing import place_unsolved
from zemosaic_types import FrameRecord, LeftOut, PlanError, PlanRow, SolverMissing

logger = tagged_logger("ZeMosaicWorker.passes")

NOTHING: Mapping[str, str] = MappingProxyType({})

_MOST_IN_A_BATCH = 4
_BATCHES_A_WORKER = 10
_MOVED_AT_ONCE = 8

_MeasureTask = tuple[list[FrameRecord], Canvas, int, int]


def unwanted_frames(ledger: Path, *, drop_suggested: bool, excluded: Sequence[str]) -> dict[str, str]:
    """Return the frames that the user wants left out: reasons for the ledger by frame id.

    Parameters
    ----------
    ledger : Path
        Of the earlier run whose suggestions count if `drop_suggested`.
    drop_suggested : bool
    excluded : sequence of str
        Ids of frames.

    Raises
    ------
    PlanError
        If suggestions are asked for and the ledger cannot be read.
    """
    suggested = frames_to_drop(ledger) if drop_suggested else {}
    return {name: as_suggested(reason) for name, reason in suggested.items()} | dict.fromkeys(excluded, EXCLUDED)


def read_frames(
    folder: Path, book: RunBook, drop: Mapping[str, str] = NOTHING, *, keep_unplaced: bool = False
) -> list[FrameRecord]:
    """Return the usable frames of a folder, in frame order; the others are left out with their reasons.

    A folder without a plan gets one, which is kept beside the products.

    Parameters
    ----------
    folder : Path
    book : RunBook
    drop : mapping of str
        Frames that the user wants left out, whatever they are like; see `unwanted_frames`.
    keep_unplaced : bool
        Whether frames without a usable WCS are kept, for `solve_all`.

    Raises
    ------
    PlanError
        If there is no usable frame.
    """
    if not folder.is_dir():
        raise PlanError(f"{folder} is not a folder")
    plan_path = folder / PLAN_NAME
    read, progress = cache(read_frame_header), book.progress("headers")
    if plan_path.is_file():
        rows, left_out = read_plan(plan_path)
    else:
        how = {"read": read, "on_progress": progress, "cancel": book.cancel}
        rows, left_out = plan_from_folder(folder, exclude=book.paths.folder, **how)
        progress = None  # the plan is made of all headers that the run needs
        write_plan(book.paths.folder / PLAN_NAME, rows)
        book.say(f"no {PLAN_NAME} in {folder}; made one of {len(rows)} frames in {book.paths.folder}")
    book.emit(RunStarted(len(rows), str(book.paths.folder)))
    for row in rows:
        book.plan(str(row.path), row.line)
    wanted = _without_unwanted(rows, folder, drop, book)
    how = {"read": read, "on_progress": progress, "cancel": book.cancel}
    records, unusable = load_frames(wanted, folder, keep_unplaced=keep_unplaced, **how)
    for item in [*left_out, *unusable]:
        book.leave_out(item)
    for record in records:
        book.accept(record)
    if not records:
        raise PlanError(f"no usable frame in {folder}: {book.first_reasons()}")
    logger.info("Loaded %d frame(s)", len(records))
    return records


def _without_unwanted(rows: list[PlanRow], folder: Path, drop: Mapping[str, str], book: RunBook) -> list[PlanRow]:
    """Leave out what the user wants left out, remembered by its frame id; return the other rows."""
    names = {row: frame_id(row.path, folder) for row in rows if drop}
    unwanted = [row for row in rows if names.get(row) in drop]
    for row in unwanted:
        book.rows[str(row.path)].frame_id = names[row]
        book.leave_out(LeftOut(str(row.path), drop[names[row]], row.line, asked=True))
    for name in sorted(drop.keys() - names.values()):
        if drop[name] == EXCLUDED:
            book.say(f"{name} was to be left out and is not in the plan", "WARNING")
    return [row for row in rows if names.get(row) not in drop]


def solve_all(records: list[FrameRecord], options: SolveOptions, book: RunBook) -> list[FrameRecord]:
    """Find the place on the sky of the frames that have no usable WCS; leave out those where that fails.

    With `SolveOptions.resolve_all` frames that have a WCS are solved too; where that fails they keep it.

    Solutions are kept in the folder `CACHE_NAME` beside the products. Without a plate solver the user is told what
    to install, once, and only what is remembered there helps. Frames that are not solved get the place that the
    stars which they share with others tell (`SolveOptions.align_by_stars`).

    Parameters
    ----------
    records : list of FrameRecord
        From `read_frames` with `keep_unplaced`.
    options : SolveOptions
    book : RunBook

    Returns
    -------
    list of FrameRecord
        In frame order, all with a WCS.

    Raises
    ------
    PlanError
        If no frame has a place on the sky.
    RunCancelled
    """
    wanted = [record for record in records if record.unplaced or options.resolve_all]
    placed = [record for record in records if not (record.unplaced or options.resolve_all)]
    try:
        solver = choose_solver(options)
        logger.info("%d frame(s) go to %s", len(wanted), solver.name)
    except SolverMissing as missing:
        solver, none = None, "no plate solver is there"
        if str(missing):
            none = f"no plate solver is there ({missing})"
        if options.method != "none":
            book.say(f"{len(wanted)} frame(s) are to be solved and {none}. {HOW_TO_INSTALL}", "WARNING")
    cache = WcsCache(book.paths.folder / CACHE_NAME)
    how = {"placed": placed, "on_progress": book.progress("solve"), "cancel": book.cancel}
    verdicts = solve_frames(wanted, solver, options, cache, **how)
    solved = [verdict for verdict in verdicts if not verdict.reason]
    n_remembered = sum(verdict.remembered for verdict in solved)
    logger.info("solved %d of %d frame(s), %d remembered", len(solved), len(wanted), n_remembered)
    if options.align_by_stars:
        verdicts = place_unsolved(verdicts, placed, options, book)
    placed += [verdict.record for verdict in verdicts if not verdict.reason] + _keep_or_leave_out(verdicts, book)
    if not placed:
        raise PlanError(f"no frame has a place on the sky: {book.first_reasons()}")
    return sorted(placed, key=lambda record: record.frame_id)


def _keep_or_leave_out(verdicts: list[Verdict], book: RunBook) -> list[FrameRecord]:
    """Return the frames that could not be solved but have a WCS; leave out those that have none."""
    kept = []
    for record, reason in ((verdict.record, verdict.reason) for verdict in verdicts if verdict.reason):
        if record.unplaced:
            book.leave_out(LeftOut(record.path, f"{record.unplaced}; {reason}", record.line))
        else:
            logger.warning("%s keeps the WCS that it has: %s", record.path, reason)
            kept.append(record)
    return kept


def measure_all(
    pool: TaskPool, records: list[FrameRecord], canvas: Canvas, n_channels: int, book: RunBook
) -> list[MeasuredFrame]:
    """Measure all frames in the pool; those that cannot be used are left out.

    A batch that kills its worker is taken apart, so that only the guilty frame is lost.

    Raises
    ------
    PlanError
        If no frame is left.
    """
    cell_px = cell_size_px([record.header.shape for record in records])
    # Few in a batch of a small run, so that all workers end together.
    size = min(max(1, len(records) // (_BATCHES_A_WORKER * pool.n_workers)), _MOST_IN_A_BATCH)
    batches = [records[k : k + size] for k in range(0, len(records), size)]
    progress = book.progress("measure")
    progress(0, len(records))
    measured: list[MeasuredFrame] = []
    suspects: list[FrameRecord] = []
    done = 0
    while batches:
        tasks: list[_MeasureTask] = [(batch, canvas, cell_px, n_channels) for batch in batches]
        for outcome in pool.run(_measure_task, tasks, retry=lambda task: task):
            batch = outcome.task[0]
            if outcome.error is not None and len(batch) > 1:
                suspects += batch
                continue
            measured += _taken(outcome, book)
            done += len(batch)
            progress(done, len(records))
        batches, suspects = [[record] for record in suspects], []
    if not measured:
        raise PlanError(f"no frame could be measured: {book.first_reasons()}")
    return sorted(measured, key=lambda m: m.record.frame_id)


def _measure_task(task: _MeasureTask) -> tuple[list[MeasuredFrame | LeftOut], int]:
    check_cancelled()
    return measure_frames(*task), peak_memory_bytes()


def _taken(outcome: Outcome, book: RunBook) -> list[MeasuredFrame]:
    """Return the measured frames of a batch and leave the others out."""
    if outcome.error is not None:
        logger.error("measuring failed: %s", outcome.error, exc_info=outcome.error)
        for record in outcome.task[0]:
            book.leave_out(LeftOut(record.path, f"cannot be measured: {outcome.error}", record.line))
        return []
    results, peak = outcome.value
    book.note_memory("worker", peak)
    for item in results:
        if isinstance(item, LeftOut):
            book.leave_out(item)
    return [item for item in results if isinstance(item, MeasuredFrame)]


def refine_all(
    pool: TaskPool, measured: list[MeasuredFrame], canvas: Canvas, method: str, book: RunBook
) -> list[MeasuredFrame]:
    """Correct the frames' WCS where their stars ask for it; frames that are far off are left out.

    Parameters
    ----------
    pool : TaskPool
        Moves the frames.
    measured : list of MeasuredFrame
    canvas : Canvas
    method : str
        ``"auto"``, ``"on"`` or ``"off"``; see `zemosaic_refine.refine_frames`.
    book : RunBook
        Gets every frame's alignment residual.
    """
    tell = book.share("refine")
    each = partial(pool.map, batch=_MOVED_AT_ONCE)
    refined = refine_frames(measured, canvas, method=method, tell=tell, each=each)
    for item in refined.left_out:
        book.leave_out(item)
    for sentence in refined.warnings:
        book.say(sentence, "WARNING")
    for m, residual in zip(refined.measured, refined.residual_px, strict=True):
        book.rows[m.record.path].align_residual_px = residual
    _say_agreement(refined, book)
    tell(1.0)
    return refined.measured


def _say_agreement(refined: Refined, book: RunBook) -> None:
    if not np.isfinite(refined.before_px):
        book.say("stars: the frames have none in common; their WCS are taken as they are")
    elif refined.n_moved:
        book.say(
            f"stars: frames agree to {refined.before_px:.2f} px, after refining to {refined.after_px:.2f} px "
            f"({refined.n_moved} frames corrected)"
        )
    else:
        book.say(f"stars: frames agree to {refined.before_px:.2f} px; their WCS are taken as they are")


def flatten_all(measured: list[MeasuredFrame], mode: str, book: RunBook) -> list[MeasuredFrame]:
    """Divide the vignetting of every instrument out of what its frames measured; tell what was found.

    See `flatten_frames` for `mode`. The frames carry their flats into the stack.
    """
    measured, flats = flatten_frames(measured, mode, tell=book.share("flat"))
    book.flats = flats
    for flat in flats:
        book.say(flat.sentence)
    return measured


def match_all(
    measured: list[MeasuredFrame], canvas: Canvas, options: MatchOptions, book: RunBook
) -> MatchedFrames:
    """Solve the match, tell what it could not do, and note every frame's values.

    Raises
    ------
    PlanError
        If no frame is left.
    """
    matched = match_frames(measured, canvas, options, tell=book.share("match"))
    for item in matched.left_out:
        book.leave_out(item)
    if not matched.frames:
        raise PlanError(f"no frame is left after the match: {book.first_reasons()}")
    _say_limits(matched.match, options, book)
    _note_values(matched, options, book)
    return matched


def _say_limits(match: Match, options: MatchOptions, book: RunBook) -> None:
    n_groups = int(match.group.max()) + 1
    if n_groups > 1:
        book.say(
            f"the frames form {n_groups} groups that share no sky; each is levelled by itself and tied to the "
            "others by its mean sky",
            "WARNING",
        )
    n_gain_groups = int(match.gain_group.max()) + 1
    if options.knows_gains and n_gain_groups > n_groups:
        book.say(
            f"too few common stars: the frames form {n_gain_groups} groups whose gains could not be compared; "
            "frames of one camera are taken as alike",
            "WARNING",
        )
    if n_by_sky := int(match.by_sky.sum()):
        book.say(
            f"{n_by_sky} frame(s) are of cameras that share too few stars with the others; how bright they are is "
            "told by their sky alone",
            "WARNING",
        )


def _note_values(matched: MatchedFrames, options: MatchOptions, book: RunBook) -> None:
    match = matched.match
    for k, (m, frame) in enumerate(zip(matched.measured, matched.frames, strict=True)):
        row = book.rows[m.record.path]
        row.used = True
        row.sky, row.noise = frame.sky, frame.noise
        row.fwhm_px, row.elongation = m.measure.fwhm_px, m.measure.elongation
        row.n_stars = int(m.measure.star_x.size)
        solution = frame.solution
        row.gain, row.offset, row.weight = solution.gain, solution.offset, solution.weight
        row.gradient_x, row.gradient_y = (tuple(axis) for axis in match.gradient[k].T.tolist())
        row.match_residual = tuple(match.residual[k].tolist())
        row.transparency = matched.transparency[k] if options.knows_gains else None
        row.area_ratio, row.outline = m.placement.area_ratio, _corners(frame)
        row.group, row.gain_group = int(match.group[k]), int(match.gain_group[k])


def _corners(frame: StackFrame) -> str:
    """Return the corners of a frame as text, ``x y`` four times."""
    polygon = frame.placement.polygon
    return " ".join(f"{value:.1f}" for corner in polygon[:: len(polygon) // 4] for value in corner)
