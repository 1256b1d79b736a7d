"""The one place that talks to the worker: a run or a survey in its process, its events as Qt signals."""

from __future__ import annotations

import threading
import time
from collections import deque

from PySide6.QtCore import QObject, Qt, Signal, Slot

from zemosaic_events import Event, FinishReason, RunFinished
from zemosaic_gui_parts import Later
from zemosaic_types import ZeMosaicError
from zemosaic_worker import RunHandle, RunRequest, start_run

_SLICE_S = 0.02  # of the window's time for events that have come


class Job(QObject):
    """One run after another in processes of their own; all signals come on the thread of this object.

    `told` has each event but the last; `finished` has the last, a `RunFinished`, and what the pipeline returned or
    the `ZeMosaicError` that ended it (`RunDied` if its process crashed).
    """

    started = Signal()
    told = Signal(object)
    finished = Signal(object, object)
    _woken = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._handle: RunHandle | None = None
        self._waiting: deque[Event] = deque()
        self._lock = threading.Lock()
        self._told_of = False
        # Not by `_woken`: a signal that is sent while signals are delivered comes in the same turn of the loop.
        self._again = Later(self, 0, self._deliver)
        self._woken.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    @property
    def running(self) -> bool:
        """Whether a run has not ended, or its end is not told yet."""
        return self._handle is not None

    @property
    def pid(self) -> int | None:
        """Number of the run's process."""
        return None if self._handle is None else self._handle.pid

    def start(self, request: RunRequest) -> None:
        """Start a run; returns at once.

        Raises
        ------
        ConfigError, OutputError
            As `zemosaic_worker.start_run`.
        """
        if self.running:
            raise RuntimeError("a run is going on already")
        self._handle = start_run(request, self._listen)
        self.started.emit()

    def cancel(self) -> None:
        """Ask the run to stop, if there is one; `finished` tells when nothing is left of it."""
        if self._handle is not None:
            self._handle.cancel()

    def _listen(self, event: Event) -> None:
        """Hear an event, in the thread of the run's handle; the window is woken once for many."""
        with self._lock:
            self._waiting.append(event)
            if self._told_of:
                return
            self._told_of = True
        self._woken.emit()

    def _next(self) -> Event | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._told_of = False
            return None

    @Slot()
    def _deliver(self) -> None:
        deadline = time.monotonic() + _SLICE_S
        while (event := self._next()) is not None:
            if isinstance(event, RunFinished):
                with self._lock:
                    self._told_of = False
                self._end(event)
                return
            self.told.emit(event)
            if time.monotonic() > deadline:
                self._again.start()  # the window has other things to do in between
                return

    def _end(self, event: RunFinished) -> None:
        handle, self._handle = self._handle, None
        try:
            outcome = handle.result()
        except ZeMosaicError as error:
            outcome = error
        self.finished.emit(event, outcome)


def was_cancelled(event: RunFinished) -> bool:
    """Whether a run ended because it was asked to."""
    return event.reason is FinishReason.CANCELLED
