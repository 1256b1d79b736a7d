"""Plate solving of many frames: in parallel, and never twice.

What a solver said of a frame is kept beside the outputs, under the digest of the frame's content.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from parallel_utils import workers_for
from zemosaic_astrometry import (
    Hint,
    PlateSolver,
    SolveOptions,
    check_place,
    hint_of,
    odd_parities,
    parity_of,
    solve_frame,
    wcs_of,
)
from zemosaic_events import CancelToken, tagged_logger
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import ensure_writable_folder, write_text
from zemosaic_types import FrameError, FrameRecord, OutputError, SolveError

logger = tagged_logger("ZeMosaicWorker.solving")

CACHE_NAME = "wcs_cache"
NOT_ASKED = "plate solving is turned off"
NO_SOLVER = "no plate solver is there"

_FORMAT = 1
_CARD = 80


# ---- what is remembered ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What a solver said of a frame: the cards of its WCS, or why there are none, and which solver it was."""

    text: str
    failure: str
    solver: Mapping[str, str]


class WcsCache:
    """Solutions and failures, a small text file each, named after the SHA-256 of the frame's file.

    Parameters
    ----------
    folder : Path
        It is made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._works = True

    def path(self, digest: str) -> Path:
        """Return the file of an entry."""
        return self.folder / f"{digest}.json"

    def get(self, digest: str) -> Entry | None:
        """Return what is remembered of a frame, None if that is nothing, or damaged."""
        try:
            content = json.loads(self.path(digest).read_bytes())
            if content["format"] != _FORMAT or content["frame_sha256"] != digest:
                raise ValueError("of another version, or another frame")
            cards, failure, solver = content["wcs"], content["failure"], content["solver"]
            texts = [failure, *cards, *solver, *solver.values()]
            if not all(isinstance(text, str) for text in texts) or bool(cards) == bool(failure):
                raise ValueError("neither a solution nor a failure")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
            logger.warning("%s is damaged and is not used: %s", self.path(digest), err)
            return None
        return Entry("".join(f"{card:<{_CARD}}" for card in cards), failure, solver)

    def put(self, digest: str, entry: Entry) -> None:
        """Remember what a solver said; a folder that takes no file costs the next run time, not this one."""
        cards = [entry.text[k : k + _CARD].rstrip() for k in range(0, len(entry.text), _CARD)]
        content = {
            "format": _FORMAT,
            "frame_sha256": digest,
            "wcs": cards,
            "failure": entry.failure,
            "solver": dict(entry.solver),
        }
        try:
            ensure_writable_folder(self.folder)
            write_text(self.path(digest), json.dumps(content, indent=1) + "\n")
        except OutputError as err:
            if self._works:
                logger.warning("solutions cannot be kept for the next run: %s", err)
            self._works = False


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; raise `FrameError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise FrameError(f"the file cannot be read: {err.strerror or err}") from err


# ---- many frames -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a frame: its record with a WCS, or the reason why it has none."""

    record: FrameRecord
    reason: str = ""
    remembered: bool = False


class _EitherFlag:
    """A flag of its own that is up, too, while a run is cancelled."""

    def __init__(self, cancel: CancelToken) -> None:
        self._cancel = cancel
        self._own = threading.Event()

    def is_set(self) -> bool:
        return self._own.is_set() or self._cancel.cancelled

    def set(self) -> None:
        self._own.set()


def solve_frames(
    records: Sequence[FrameRecord],
    solver: PlateSolver | None,
    options: SolveOptions,
    cache: WcsCache,
    *,
    placed: Sequence[FrameRecord] = (),
    on_progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> list[Verdict]:
    """Find the place of frames on the sky.

    Parameters
    ----------
    records : sequence of FrameRecord
        Frames that are to be solved, as a rule without a WCS.
    solver : PlateSolver or None
        Without one only what is remembered helps.
    options : SolveOptions
    cache : WcsCache
    placed : sequence of FrameRecord
        Frames with a WCS, which have a say in the parity of their instrument.
    on_progress : callable, optional
        Called with ``(done, total)``.
    cancel : CancelToken, optional

    Returns
    -------
    list of Verdict
        In the order of `records`.

    Raises
    ------
    RunCancelled
        If `cancel` was set; no solver runs any more by then.
    """
    flag = _EitherFlag(cancel or CancelToken())
    tell = on_progress or _tell_nobody
    tell(0, len(records))
    verdicts: dict[str, Verdict] = {}
    pool = ThreadPoolExecutor(count_instances(options, len(records)), thread_name_prefix="solve")
    try:
        tasks = [pool.submit(_solve_one, record, solver, options, cache, CancelToken(flag)) for record in records]
        for done, task in enumerate(as_completed(tasks), start=1):
            verdict, news = task.result()
            if news is not None:
                cache.put(*news)
            verdicts[verdict.record.path] = verdict
            tell(done, len(records))
    finally:
        flag.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return _without_mirrored([verdicts[record.path] for record in records], records, placed)


def _tell_nobody(_done: int, _total: int) -> None:
    """Take the place of a progress that nobody wants."""


def count_instances(options: SolveOptions, n_frames: int) -> int:
    """Return in how many threads frames are worked on at once."""
    return workers_for(options.max_instances, 0, n_frames)


def _solve_one(
    record: FrameRecord, solver: PlateSolver | None, options: SolveOptions, cache: WcsCache, cancel: CancelToken
) -> tuple[Verdict, tuple[str, Entry] | None]:
    """Return the verdict on a frame, and what is to be remembered under which digest."""
    cancel.check()
    hint = hint_of(record.header, options.search_radius_deg)
    try:
        digest = digest_of(Path(record.path))
        known = cache.get(digest)
        text = _believed(known, record, hint) if known is not None else ""
        if text:
            return Verdict(_placed(record, text, cache.path(digest)), remembered=True), None
        if solver is None:
            return Verdict(record, NOT_ASKED if options.method == "none" else NO_SOLVER), None
        if known is not None and known.failure and known.solver == solver.identity and not options.retry_failed:
            return Verdict(record, f"{known.failure} (as in an earlier run)", remembered=True), None
        text = solve_frame(record, solver, hint, cancel)
    except FrameError as err:
        return Verdict(record, str(err)), None
    except SolveError as err:
        reason = f"{solver.name}: {err}"
        return Verdict(record, reason), (digest, Entry("", reason, solver.identity))
    return Verdict(_placed(record, text, cache.path(digest))), (digest, Entry(text, "", solver.identity))


def _believed(known: Entry, record: FrameRecord, hint: Hint) -> str:
    """Return the cards of a remembered solution that passes today's checks, else an empty text."""
    if known.text:
        try:
            check_place(known.text, record.header.shape, hint)
            return known.text
        except SolveError as err:
            logger.warning("%s: what is remembered of it is not used: %s", record.path, err)
    return ""


def _placed(record: FrameRecord, text: str, source: Path) -> FrameRecord:
    header = replace(record.header, wcs_text=text, wcs_path=str(source))
    return replace(record, header=header, unplaced="")


def _without_mirrored(
    verdicts: list[Verdict], records: Sequence[FrameRecord], placed: Sequence[FrameRecord]
) -> list[Verdict]:
    """Refuse solutions of the other parity than nearly all frames of their instrument have."""
    voices: dict[tuple, list[tuple[int, int | None]]] = defaultdict(list)
    for record in placed:
        voices[_instrument(record)].append((parity_of(frame_wcs(record.header)), None))
    for k, verdict in enumerate(verdicts):
        if not verdict.reason:
            header = verdict.record.header
            parity = parity_of(wcs_of(header.wcs_text, header.shape))
            voices[_instrument(verdict.record)].append((parity, k))
    checked = list(verdicts)
    for group in voices.values():
        for odd in odd_parities([parity for parity, _ in group]):
            k = group[odd][1]
            if k is not None:
                reason = f"refused: the solution is mirrored against those of {len(group) - 1} frames like it"
                checked[k] = Verdict(records[k], reason)
    return checked


def _instrument(record: FrameRecord) -> tuple:
    header = record.header
    return header.telescope, header.instrument, header.shape, header.layout
