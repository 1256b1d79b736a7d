"""What a run may say, and how it is stopped.

A pipeline emits events through one callable; a face (command line, desktop program, test) listens. A
listener that raises is logged and never ends a run. Every run ends with exactly one `RunFinished`.
"""

from __future__ import annotations

import enum
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from zemosaic_types import LeftOut, Rect, RunCancelled

logger = logging.getLogger("ZeMosaicWorker.events")

#: The unit of a phase that has no frames or tiles to count.
PERCENT = "percent"

_tag = "GRID"  # of the pipeline whose run this process works for


class _Tagged(logging.LoggerAdapter):
    """A logger whose lines begin with the name of the pipeline."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        """Put the tag before a line."""
        return f"[{_tag}] {msg}", kwargs


def tagged_logger(name: str) -> logging.LoggerAdapter:
    """Return a logger for modules that pipelines share: its lines begin with `log_tag` in brackets."""
    return _Tagged(logging.getLogger(name), {})


def log_tag() -> str:
    """Return the tag of this process's log lines."""
    return _tag


def set_log_tag(tag: str) -> None:
    """Let the lines of every `tagged_logger` of this process begin with another tag."""
    global _tag
    _tag = tag


@contextmanager
def tagged(tag: str) -> Iterator[None]:
    """Use a tag within the block: for one run."""
    before = _tag
    set_log_tag(tag)
    try:
        yield
    finally:
        set_log_tag(before)


class FinishReason(enum.Enum):
    """How a run ended."""

    COMPLETE = "complete"
    WITH_FAILURES = "finished with failures"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run has read its plan."""

    n_frames: int
    output_folder: str


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """`done` of `total` units (frames, tiles or percent) of a phase are finished."""

    phase: str
    done: int
    total: int
    unit: str = "frame"


@dataclass(frozen=True, slots=True)
class FrameLeftOut:
    """A planned frame will not be in the mosaic."""

    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class PlannedTile:
    """A tile to come: its number, its pixels of the canvas, and what it covers on the sky.

    `corners_deg` are the outer corners of its outermost pixels, ``(right ascension, declination)`` ICRS.
    """

    tile: int
    rect: Rect
    corners_deg: tuple[tuple[float, float], ...]
    n_frames: int


@dataclass(frozen=True, slots=True)
class TilesPlanned:
    """The canvas, ``(ny, nx)``, is cut into tiles; those that no frame touches are not among them.

    Classic says so twice: of its master tiles, which overlap, and of the cells that it coadds; numbers go on.
    `kind` is what these tiles are called, ``"tile"`` or ``"master tile"``.
    """

    shape: tuple[int, int]
    tiles: tuple[PlannedTile, ...]
    kind: str = "tile"


@dataclass(frozen=True, slots=True)
class TileStarted:
    """A worker is about to get a tile; another try is not told."""

    tile: int


@dataclass(frozen=True, slots=True)
class TileDone:
    """A tile is on disk."""

    tile: int
    n_frames: int
    worker_pid: int


@dataclass(frozen=True, slots=True)
class TileFailed:
    """A tile could not be made."""

    tile: int
    reason: str


@dataclass(frozen=True, slots=True)
class SurveyFrame:
    """A planned frame as a survey finds it, by its header alone.

    Attributes
    ----------
    frame_id, path : str
        As in the ledger of a run.
    exposure_s : float or None
        None if neither plan nor header say.
    filter, instrument, date : str
        Empty where the header says nothing; `date` is DATE-OBS.
    shape : tuple of int
        ``(ny, nx)``; ``(0, 0)`` if the frame cannot be read.
    corners_deg : tuple of (float, float)
        Outer corners, ``(right ascension, declination)`` ICRS, in order; empty if its place is not known.
    reason : str
        Why the frame is not in the mosaic, or what has to be done first; empty for a frame that is in.
    usable : bool
        Whether a run will try it.
    """

    frame_id: str
    path: str
    exposure_s: float | None = None
    filter: str = ""
    instrument: str = ""
    date: str = ""
    shape: tuple[int, int] = (0, 0)
    corners_deg: tuple[tuple[float, float], ...] = ()
    reason: str = ""
    usable: bool = True


@dataclass(frozen=True, slots=True)
class SurveyFrames:
    """Frames that a survey has read; a frame that is told again replaces what was told of it before."""

    frames: tuple[SurveyFrame, ...]


@dataclass(frozen=True, slots=True)
class SurveyDone:
    """What a run would make of the frames, and roughly what it would cost: ranges are ``(low, high)``.

    Attributes
    ----------
    n_frames, n_usable : int
        Planned frames, and those that a run will try.
    shape : tuple of int
        ``(ny, nx)`` of the canvas; ``(0, 0)`` if no frame has a known place.
    corners_deg : tuple of (float, float)
        Of the canvas, as in `PlannedTile`.
    scale_arcsec : float
        A pixel of the canvas.
    n_channels : int
        Planes of the mosaic: 1 or 3.
    tiles : tuple of PlannedTile
        Of Classic its master tiles.
    pipeline : str
        Which would run: ``"grid"`` or ``"classic"``.
    workers : int
        Processes that a run would use on this machine now.
    cpu_s, wall_s : tuple of float
        Seconds of all processors together, and by the clock.
    memory_bytes, disk_bytes : tuple of int
        Of all processes together at the peak; of the products with their tiles.
    free_bytes : int
        What can be written below the output folder now.
    notes : tuple of str
        What the user should know of these numbers.
    """

    n_frames: int
    n_usable: int
    shape: tuple[int, int] = (0, 0)
    corners_deg: tuple[tuple[float, float], ...] = ()
    scale_arcsec: float = 0.0
    n_channels: int = 1
    tiles: tuple[PlannedTile, ...] = ()
    pipeline: str = "grid"
    workers: int = 1
    cpu_s: tuple[float, float] = (0.0, 0.0)
    wall_s: tuple[float, float] = (0.0, 0.0)
    memory_bytes: tuple[int, int] = (0, 0)
    disk_bytes: tuple[int, int] = (0, 0)
    free_bytes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence for the user; `level` is a name of the logging module."""

    text: str
    level: str = "INFO"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The last event of every run."""

    reason: FinishReason
    message: str = ""


Event = (
    RunStarted
    | PhaseProgress
    | FrameLeftOut
    | TilesPlanned
    | TileStarted
    | TileDone
    | TileFailed
    | SurveyFrames
    | SurveyDone
    | Message
    | RunFinished
)
Listener = Callable[[Event], None]


class Flag(Protocol):
    """What `CancelToken` needs of a flag: the events of threading and multiprocessing both have it."""

    def is_set(self) -> bool:
        """Whether the flag is up."""

    def set(self) -> None:
        """Raise the flag."""


class CancelToken:
    """A request to stop that is looked at between units of work.

    Parameters
    ----------
    flag : Flag, optional
        A ``multiprocessing`` event to share the request between processes; a ``threading`` one by default.
    """

    def __init__(self, flag: Flag | None = None) -> None:
        self.flag: Flag = threading.Event() if flag is None else flag

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to stop."""
        return self.flag.is_set()

    def cancel(self) -> None:
        """Ask the run to stop; harmless when repeated."""
        self.flag.set()

    def check(self) -> None:
        """Raise `RunCancelled` if the run was asked to stop."""
        if self.cancelled:
            raise RunCancelled("the run was cancelled")


class Emitter:
    """Hands events to a listener, and survives a listener that raises."""

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener

    def __call__(self, event: Event) -> None:
        """Emit one event."""
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("a progress listener raised on %r; the run goes on", event)


@contextmanager
def told_when_it_fails(emit: Emitter) -> Iterator[None]:
    """Emit the last event of a run that ends in this block by an error, whichever it is, or is cancelled."""
    try:
        yield
    except RunCancelled as cancelled:
        emit(RunFinished(FinishReason.CANCELLED, str(cancelled)))
        raise
    except BaseException as error:
        emit(RunFinished(FinishReason.ERROR, str(error)))
        raise


def as_listener(callback: Callable | None) -> Listener | None:
    """Return a listener for typed events from either form of callback.

    Parameters
    ----------
    callback : callable or None
        A function of one argument receives the events; one of ``(message, progress, level)``, the older
        shape, receives a sentence, a percentage or None, and a level name.

    Raises
    ------
    TypeError
        If the callback takes neither one nor three positional arguments.
    """
    if callback is None:
        return None
    if _takes_three(callback):
        return lambda event: _tell_plainly(callback, event)
    if _accepts(callback, 1):
        return callback
    raise TypeError("progress_callback must take one event, or (message, progress, level)")


def _takes_three(callback: Callable) -> bool:
    """Whether a callback names three positional parameters, with or without defaults."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p for p in inspect.signature(callback).parameters.values() if p.kind in positional]
    required = all(p.default is inspect.Parameter.empty for p in named)
    return len(named) == 3 and (required or named[-1].name == "level") and _accepts(callback, 3)


def _accepts(callback: Callable, n_arguments: int) -> bool:
    try:
        inspect.signature(callback).bind(*range(n_arguments))
    except TypeError:
        return False
    return True


def _tell_plainly(callback: Callable, event: Event) -> None:
    text, progress, level = describe(event)
    callback(text, progress, level)


def describe(event: Event) -> tuple[str, float | None, str]:
    """Return an event as ``(sentence, percentage or None, level)``."""
    match event:
        case RunStarted(n_frames, folder):
            return f"{n_frames} frames planned, results go to {folder}", 0.0, "INFO"
        case PhaseProgress(phase, done, total, unit):
            text = f"{done} %" if unit == PERCENT else f"{done}/{total} {unit}s"
            return f"{phase}: {text}", 100.0 * done / max(total, 1), "INFO"
        case FrameLeftOut(left_out):
            return f"left out {left_out.path}: {left_out.reason}", None, "WARNING"
        case TilesPlanned(shape, tiles, kind):
            what = kind if len(tiles) == 1 else f"{kind}s"
            return f"canvas of {shape[1]} x {shape[0]} px, {len(tiles)} {what}", None, "INFO"
        case TileStarted(tile):
            return f"tile {tile} started", None, "DEBUG"
        case TileDone(tile, n_frames, _):
            return f"tile {tile} done, {n_frames} frames", None, "DEBUG"
        case TileFailed(tile, reason):
            return f"tile {tile} failed: {reason}", None, "ERROR"
        case SurveyFrames(frames):
            return f"{len(frames)} frames looked at", None, "DEBUG"
        case SurveyDone(n_frames, n_usable, shape):
            return f"{n_usable} of {n_frames} frames, canvas of {shape[1]} x {shape[0]} px", 100.0, "INFO"
        case Message(text, level):
            return text, None, level
        case RunFinished(reason, message):
            level = "INFO" if reason is FinishReason.COMPLETE else "WARNING"
            return f"run {reason.value}" + (f": {message}" if message else ""), 100.0, level
    raise TypeError(f"not an event: {event!r}")
