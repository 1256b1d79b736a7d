"""Work beside the window: the latest request counts, results come on the main thread, nothing is left."""

import logging
import sys
import threading

import pytest

pytest.importorskip("PySide6")

from PySide6.QtCore import QTimer

from zemosaic_gui_background import Background


def test_the_library_of_the_window_counts_references_right(qtbot):
    """PySide6 6.12.0 loses a reference to None at each call that returns it: Python before 3.12 dies of that."""
    timer = QTimer()
    before = sys.getrefcount(None)
    for _ in range(200):
        timer.setInterval(10)
    assert sys.getrefcount(None) > before - 100


@pytest.fixture
def background(qtbot):
    found = Background()
    yield found
    found.close()


def test_results_come_on_the_main_thread_and_work_is_done_on_another(qtbot, background):
    heard = []
    background.ask(
        "name", threading.current_thread, lambda worker: heard.append((worker, threading.current_thread()))
    )
    qtbot.waitUntil(lambda: not background.busy)
    [(worker, listener)] = heard
    assert listener is threading.main_thread()
    assert worker is not listener


def test_of_several_requests_of_a_name_the_latest_counts(qtbot, background):
    gate, heard, done = threading.Event(), [], []

    def work(number):
        gate.wait(10)
        done.append(number)
        return number

    for number in range(5):
        background.ask("name", lambda number=number: work(number), heard.append)
    background.ask("other", lambda: work("other"), heard.append)
    gate.set()
    qtbot.waitUntil(lambda: not background.busy)
    assert heard == [4, "other"]
    assert set(done) <= {0, 4, "other"}


def test_what_is_forgotten_is_not_delivered(qtbot, background):
    gate, heard = threading.Event(), []
    background.ask("name", lambda: gate.wait(10), heard.append)
    background.forget("name")
    gate.set()
    background.ask("other", lambda: 1, heard.append)
    qtbot.waitUntil(lambda: not background.busy)
    assert heard == [1]


def test_an_error_is_told_or_logged(qtbot, background, caplog):
    def fail():
        raise ValueError("no such thing")

    told = []
    background.ask("name", fail, told.append, lambda error: told.append(str(error)))
    qtbot.waitUntil(lambda: not background.busy)
    assert told == ["no such thing"]
    with caplog.at_level(logging.ERROR, "ZeMosaicWorker.gui"):
        background.ask("name", fail, told.append)
        qtbot.waitUntil(lambda: not background.busy)
    assert "name failed" in caplog.text
    assert told == ["no such thing"]


def test_nothing_is_delivered_and_no_thread_is_left_after_the_end(qtbot, background):
    gate, heard = threading.Event(), []
    before = threading.active_count()
    background.ask("first", lambda: gate.wait(10), heard.append)
    background.ask("second", lambda: 2, heard.append)
    threading.Timer(0.05, gate.set).start()
    background.close()
    qtbot.wait(100)
    background.ask("third", lambda: 3, heard.append)
    qtbot.wait(20)
    assert heard == []
    assert not background.busy
    assert threading.active_count() <= before
