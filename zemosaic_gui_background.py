"""Work beside the window: one thread an owner, results on the main thread, nothing left when the owner closes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PySide6.QtCore import QObject, Qt, Signal, Slot

logger = logging.getLogger("ZeMosaicWorker.gui")


def let_others_on() -> None:
    """Let the window have the interpreter, in work beside it that computes in Python itself."""
    time.sleep(0)


class Background(QObject):
    """A thread that does one thing after another for a widget.

    Of several requests of one name only the latest counts: those that wait are forgotten, and the result of one
    that is being worked on is thrown away. `on_result` and `on_error` are called on the thread that this object
    lives in.

    Parameters
    ----------
    parent : QObject, optional
    """

    _done = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool: ThreadPoolExecutor | None = None
        self._latest: dict[str, Future] = {}
        self._closed = False
        self._done.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    @property
    def busy(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._latest)

    def ask(
        self,
        name: str,
        work: Callable[[], Any],
        on_result: Callable[[Any], None],
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        """Do `work` in the thread, then call `on_result` with what it returned, or `on_error` with what it raised.

        Without `on_error` what is raised is logged.
        """
        if self._closed:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "zemosaic_picture")
        if (before := self._latest.pop(name, None)) is not None:
            before.cancel()
        future = self._latest[name] = self._pool.submit(work)
        future.add_done_callback(lambda f: self._announce((name, f, on_result, on_error)))

    def forget(self, name: str) -> None:
        """Let the result of a request go nowhere."""
        if (future := self._latest.pop(name, None)) is not None:
            future.cancel()

    def close(self) -> None:
        """End the thread after what it is doing; nothing is delivered any more."""
        self._closed = True
        self._latest.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _announce(self, what: tuple) -> None:
        if not self._closed:
            self._done.emit(what)

    @Slot(object)
    def _deliver(self, what: tuple) -> None:
        name, future, on_result, on_error = what
        if self._closed or self._latest.get(name) is not future:
            return
        del self._latest[name]
        error = future.exception()
        if error is None:
            on_result(future.result())
        elif on_error is not None and isinstance(error, Exception):
            on_error(error)
        else:
            logger.error("%s failed", name, exc_info=error)
