"""A function of ours beside the window, in a process of its own, which may hang or crash alone."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QObject, QProcess, QProcessEnvironment, Signal

from zemosaic_gui_text import tr
from zemosaic_interpreter import VARIABLES, command_to_call


class Helper(QObject):
    """Makes one call after another; each ends with exactly one signal.

    `done` has what the function printed, `failed` the last words of one that did not return 0, and `not_started`
    why the system could start no process.
    """

    done = Signal(str)
    failed = Signal(str)
    not_started = Signal(str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._process = QProcess(self)
        environment = QProcessEnvironment.systemEnvironment()
        for name, value in VARIABLES.items():
            environment.insert(name, value)
        self._process.setProcessEnvironment(environment)
        self._process.finished.connect(self._end)
        self._process.errorOccurred.connect(self._on_error)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function; see `zemosaic_interpreter.command_to_call`. Returns at once."""
        program, *rest = command_to_call(function, *arguments)
        self._process.start(program, rest)

    def shutdown(self) -> None:
        """End the call, if there is one; no signal comes any more."""
        self.blockSignals(True)
        if self._process.state() != QProcess.ProcessState.NotRunning:
            self._process.kill()
            self._process.waitForFinished(1000)

    def _end(self, code: int, status: QProcess.ExitStatus) -> None:
        said, words = (
            bytes(stream).decode("utf-8", "replace").strip()
            for stream in (self._process.readAllStandardOutput(), self._process.readAllStandardError())
        )
        if code == 0 and status == QProcess.ExitStatus.NormalExit:
            self.done.emit(said)
        else:
            self.failed.emit(words)

    def _on_error(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:  # of any other, `finished` tells
            self.not_started.emit(tr("helper.not_started", reason=self._process.errorString()))
