"""Widgets whose modules load numerical libraries: loaded beside the window, made when they are there."""

from __future__ import annotations

import gc
import importlib
import logging
import threading
from collections.abc import Callable
from itertools import pairwise

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtWidgets import QVBoxLayout, QWidget

from zemosaic_gui_parts import label
from zemosaic_gui_text import tr

logger = logging.getLogger("ZeMosaicWorker.gui")


class LazyWidget(QWidget):
    """The place of a widget that is made from a module when it is first shown.

    Parameters
    ----------
    module, name : str
        Where the widget's class is.
    prepare : callable, optional
        Called with the widget when it is made, to show what there is to show by then.
    """

    ready = Signal(object)
    _loaded = Signal(object)

    def __init__(self, module: str, name: str, prepare: Callable[[QWidget], None] | None = None) -> None:
        super().__init__()
        self._module, self._name, self._prepare = module, name, prepare
        self._thread: threading.Thread | None = None
        self._closed = False
        self.widget: QWidget | None = None
        self._note = label("faint", wrap=True)
        self._note.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(10, 10, 10, 6)
        self._column.addWidget(self._note)
        self._note.setText(tr("lazy.loading"))
        self._loaded.connect(self._make, Qt.ConnectionType.QueuedConnection)

    def do(self, act: Callable[[QWidget], object]) -> None:
        """Do something with the widget, if it is made; `prepare` does it for one that will be."""
        if self.widget is not None:
            act(self.widget)

    def load(self) -> None:
        """Load the module in a thread, if that has not begun; returns at once."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._import, name="zemosaic_load", daemon=True)
            self._thread.start()

    def _import(self) -> None:
        try:
            found = getattr(importlib.import_module(self._module), self._name)
        except ImportError as error:
            found = error
        # What libraries bring stays for good; to go through it all for garbage would hold up the window again and
        # again for a tenth of a second.
        gc.freeze()
        if not self._closed:
            self._loaded.emit(found)

    @Slot(object)
    def _make(self, found: object) -> None:
        if self._closed:
            return
        if isinstance(found, ImportError):
            logger.error("%s cannot be loaded: %s", self._module, found)
            self._note.setText(tr("lazy.failed", reason=found))
            return
        self.widget = found()
        self._note.hide()
        self._column.addWidget(self.widget)
        self._take_place()
        if self._prepare is not None:
            self._prepare(self.widget)
        self.ready.emit(self.widget)

    def _take_place(self) -> None:
        """Give the widget its turn with the tab key here; made last, it would come after all others."""
        before, part = self.previousInFocusChain(), self.widget
        while not _stops(before):
            before = before.previousInFocusChain()
        parts = [before]
        while part is self.widget or self.widget.isAncestorOf(part):
            parts += [part] if _stops(part) else []
            part = part.nextInFocusChain()
        for before, part in pairwise(parts):
            QWidget.setTabOrder(before, part)

    def showEvent(self, event: object) -> None:
        """Load what is to be seen."""
        super().showEvent(event)
        self.load()

    def shutdown(self) -> None:
        """End the thread, and what the widget has running."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()
        self.do(lambda widget: widget.shutdown())


def _stops(widget: QWidget) -> bool:
    """Whether the tab key stops at a widget; Qt orders only those."""
    return bool(widget.focusPolicy() & Qt.FocusPolicy.TabFocus)
