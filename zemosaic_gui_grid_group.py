"""The group of Grid mode: its checkbox, workers, GPU, tile size, memory, colour.

What stands for "automatic" on this machine is shown beside it. GPUs are looked for in a process of its own, so
that a driver that hangs or crashes costs the window nothing.
"""

from __future__ import annotations

import json

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QWidget

from parallel_utils import machine, workers_for
from zemosaic_gui_form import OptionRow
from zemosaic_gui_helper import Helper
from zemosaic_gui_parts import Card, label
from zemosaic_gui_sentences import told
from zemosaic_gui_settings import Settings
from zemosaic_gui_text import tr
from zemosaic_gui_theme import FollowsLanguage

#: The options of the group below its checkbox, in order.
GRID_KEYS = ("grid_workers", "use_gpu_grid", "grid_size_factor", "grid_chunk_ram_mb", "grid_rgb_equalize")

_MANY_TASKS = 10_000


class GpuSearch(QObject):
    """Looks for GPUs in a process of its own; `found` has their names, and why there is none."""

    found = Signal(list, str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._helper = Helper(self)
        self._helper.done.connect(self._read)
        self._helper.failed.connect(lambda _words: self._read(""))
        self._helper.not_started.connect(lambda reason: self.found.emit([], reason))

    def start(self) -> None:
        """Look; returns at once."""
        self._helper.call("zemosaic_backend.print_devices")

    def shutdown(self) -> None:
        """End the process, if it still looks."""
        self._helper.shutdown()

    def _read(self, said: str) -> None:
        try:
            names, reason = json.loads(said.splitlines()[-1])
        except (IndexError, ValueError):  # it crashed; so would a run that used this GPU
            names, reason = [], tr("grid.gpu.crashed")
        self.found.emit(names, reason)


class GridGroup(FollowsLanguage, Card):
    """The group of Grid mode."""

    def __init__(self, settings: Settings, *, classic: bool) -> None:
        super().__init__(spacing=4)
        self._settings = settings
        self._classic = classic
        self._n_frames = 0
        self._gpu: tuple[list[str], str] | None = None
        self._looked = False
        self._heading, self._note = label("heading"), label("faint", wrap=True)
        self.enabled = OptionRow("grid_mode_enabled", settings, brief=True)
        self.rows = {key: OptionRow(key, settings, brief=True) for key in GRID_KEYS}
        self._workers_note, self._gpu_note = label("faint", wrap=True), label("faint", wrap=True)
        self._size_note = label("faint", wrap=True)
        notes = {
            "grid_workers": self._workers_note,
            "use_gpu_grid": self._gpu_note,
            "grid_size_factor": self._size_note,
        }
        for widget in (self._heading, self.enabled, self._note):
            self.column.addWidget(widget)
        for key, row in self.rows.items():
            self.column.addWidget(row)
            if key in notes:
                self.column.addWidget(notes[key])
        self.search = GpuSearch(self)
        self.search.found.connect(self._show_gpu)
        settings.changed.connect(self._refresh)
        settings.replaced.connect(self._refresh)
        self.retranslate()

    def set_n_frames(self, n: int) -> None:
        """Take the number of frames into account: more workers than frames are of no use."""
        self._n_frames = n
        self._refresh()

    def look_for_gpu(self) -> None:
        """Look for GPUs, once."""
        if not self._looked:
            self._looked = True
            self.search.start()

    @property
    def answered(self) -> bool:
        """Whether it is known which GPUs there are."""
        return self._gpu is not None

    def workers(self) -> int:
        """Return how many workers a run would start now."""
        value = self._settings.value
        return workers_for(value("grid_workers"), value("grid_chunk_ram_mb"), self._n_frames or _MANY_TASKS)

    def retranslate(self) -> None:
        """Take the words anew."""
        self._heading.setText(tr("grid.heading"))
        self._note.setText(tr("grid.note" if self._classic else "grid.note.only"))
        self._size_note.setText(tr("grid.size.note"))
        self._refresh()

    def _refresh(self, _key: str = "") -> None:
        cores, _ = machine()
        key = "grid.workers.auto" if self._settings.value("grid_workers") <= 0 else "grid.workers.fixed"
        self._workers_note.setText(tr(key, n=self.workers(), cores=cores))
        self._gpu_note.setText(self._gpu_text())

    def _gpu_text(self) -> str:
        if self._gpu is None:
            return tr("grid.gpu.looking")
        names, reason = self._gpu
        return tr("grid.gpu.found", names=", ".join(names)) if names else tr("grid.gpu.none", reason=told(reason))

    def _show_gpu(self, names: list[str], reason: str) -> None:
        self._gpu = names, reason
        self._refresh()


def all_keys(widget: QWidget) -> list[str]:
    """Return the options that rows below a widget are bound to."""
    return [row.option.key for row in widget.findChildren(OptionRow)]
