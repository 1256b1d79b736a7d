"""The desktop program in a test: a window of its own, clicks, and that nothing of it is left."""

import gc
import threading
from contextlib import contextmanager

import psutil
from PySide6.QtCore import QPoint, QProcess, Qt, QTimer
from PySide6.QtWidgets import QApplication, QMessageBox

from zemosaic_gui_settings import Settings
from zemosaic_gui_text import set_language
from zemosaic_gui_theme import apply_theme
from zemosaic_gui_window import MainWindow, open_memory

LONG_MS = 180_000  # the first run of a machine compiles its loops


@contextmanager
def opened(qtbot, **values):
    """A window, shown; at the end it is closed, and its threads, timers and processes must be gone."""
    set_language("en")
    apply_theme(QApplication.instance(), "light")
    threads, processes = set(threading.enumerate()), set(children())
    window = MainWindow(Settings(values), open_memory())
    window.show()
    try:
        yield window
    finally:
        set_language("en")
        for job in (window.run, window.survey):
            job.cancel()
            qtbot.waitUntil(lambda job=job: not job.running, timeout=LONG_MS)
        window.close()
        qtbot.waitUntil(lambda: set(threading.enumerate()) <= threads, timeout=5000)
        left = [timer for timer in window.findChildren(QTimer) if timer.isActive()]
        running = [p for p in window.findChildren(QProcess) if p.state() != QProcess.ProcessState.NotRunning]
        assert not window.isVisible()
        assert left == running == []
        assert set(children()) <= processes
        window.deleteLater()
        gc.collect()


def children():
    """What this process has started and has not ended."""
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def click(qtbot, widget):
    """Click on a widget as a user does: it must be there, and enabled."""
    assert widget.isVisible()
    assert widget.isEnabled()
    qtbot.mouseClick(widget, Qt.MouseButton.LeftButton, pos=QPoint(10, widget.height() // 2))


def typed(qtbot, box, text):
    """Replace what is in a box by the keyboard."""
    box.setFocus()
    box.selectAll()
    qtbot.keyClicks(box, text)
    qtbot.keyClick(box, Qt.Key.Key_Return)


def chosen(qtbot, box, index):
    """Choose from a box by the keyboard."""
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_Home)
    for _ in range(index):
        qtbot.keyClick(box, Qt.Key.Key_Down)
    assert box.currentIndex() == index


def answering(qtbot, word):
    """Click on the button of that word in the next question; returns the list of questions that were answered."""
    asked = []

    def answer():
        box = QApplication.activeModalWidget()
        if not isinstance(box, QMessageBox):
            QTimer.singleShot(50, answer)
            return
        asked.append(box.text())
        click(qtbot, next(button for button in box.buttons() if button.text() == word))

    QTimer.singleShot(0, answer)
    return asked


def choose_frames(qtbot, window, folder):
    """Type a folder of frames and wait until its frames are looked at."""
    typed(qtbot, window.input.input.line, str(folder))
    assert window.survey.running
    qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
