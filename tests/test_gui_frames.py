"""The frames' table: twenty thousand rows, a survey or a ledger, ticks, search and order."""

import math
import time
from dataclasses import replace

import pytest

pytest.importorskip("PySide6")

from PySide6.QtCore import QItemSelectionModel, Qt

from grid_mode import GridSettings
from pictures import (
    BAD_REASON,
    assert_it_goes,
    assert_it_speaks_french,
    canvas_of,
    frames_on,
    nothing_left,
    settle,
)
from surveys import Run, survey_in
from zemosaic_events import SurveyFrame
from zemosaic_gui_frames import FramesTable, lines_of_ledger
from zemosaic_gui_log import LogView, Problems
from zemosaic_ledger import judge, read_ledger
from zemosaic_synthetic import small_spec
from zemosaic_types import PlanError

FRAMES = frames_on(canvas_of(), 40, seed=1)
WAITING = SurveyFrame("a_first.fit", "/frames/a_first.fit", reason="no WCS; the run will ask a plate solver")
CHECK = Qt.ItemDataRole.CheckStateRole


@pytest.fixture
def table(qtbot):
    widget = FramesTable()
    widget.resize(900, 400)
    widget.show()
    with nothing_left(widget):
        yield widget


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of which one frame was left out by the user."""
    folder = tmp_path_factory.mktemp("run")
    survey_in(folder / "frames", small_spec(seed=8))
    settings = GridSettings(workers=1, excluded=("Light_00_0001.fit",))
    return Run(folder / "frames", folder / "out", settings)


def column_of(table, key):
    return [column.key for column in table.model.columns].index(key)


def texts(table, key):
    """What a column shows, row by row."""
    proxy = table._filter
    return [proxy.index(row, column_of(table, key)).data() for row in range(proxy.rowCount())]


def search(qtbot, table, text):
    table._search.clear()
    qtbot.keyClicks(table._search, text)
    settle(qtbot, table)
    return texts(table, "frame")


def press_space(qtbot, table):
    qtbot.keyClick(table._view, Qt.Key.Key_Space)


def test_a_survey_is_shown_with_why_frames_are_out(qtbot, table):
    table.set_frames([*FRAMES, WAITING])
    assert texts(table, "frame") == [*(frame.frame_id for frame in FRAMES), "a_first.fit"]
    assert texts(table, "state")[9:11] == ["cannot be used", "used"]
    assert texts(table, "state")[-1] == "to be solved"
    assert texts(table, "reason")[9] == BAD_REASON
    assert texts(table, "exposure")[:3] == ["10", "11", "12"]
    assert texts(table, "exposure")[-1] == ""
    assert "41 of 41 frames shown · 37 used · 0 left out by you" in table._counts.text()


def test_headings_stand_on_the_side_of_what_is_below_them(qtbot, table):
    side = Qt.ItemDataRole.TextAlignmentRole
    table.set_frames(FRAMES)
    horizontal, proxy = Qt.Orientation.Horizontal, table._filter
    for k, column in enumerate(table.model.columns):
        heading = proxy.headerData(k, horizontal, side)
        assert heading & Qt.AlignmentFlag.AlignRight if column.number else heading & Qt.AlignmentFlag.AlignLeft
        cell = proxy.index(0, k).data(side)
        assert cell == heading if column.number else cell is None  # a cell's words begin on the left
    assert any(column.number for column in table.model.columns)


def test_a_tick_taken_away_leaves_the_frame_out(qtbot, table):
    table.set_frames(FRAMES)
    index = table._filter.index(3, 0)
    with qtbot.waitSignal(table.excluded_changed) as heard:
        assert table._filter.setData(index, Qt.CheckState.Unchecked, CHECK)
    assert heard.args == [frozenset({"Light_00003.fit"})]
    assert index.data(CHECK) == Qt.CheckState.Unchecked
    assert texts(table, "state")[3] == "left out by you"
    with qtbot.waitSignal(table.excluded_changed) as heard:
        table._filter.setData(index, Qt.CheckState.Checked, CHECK)
    assert heard.args == [frozenset()]


def test_a_frame_that_cannot_be_used_has_no_tick_to_turn(table):
    table.set_frames(FRAMES)
    index = table._filter.index(9, 0)
    assert not index.flags() & Qt.ItemFlag.ItemIsUserCheckable
    assert index.data(CHECK) == Qt.CheckState.Unchecked


def test_the_space_bar_turns_the_ticks_of_all_frames_selected(qtbot, table):
    table.set_frames(FRAMES)
    model, flags = table._view.selectionModel(), QItemSelectionModel.SelectionFlag
    for row in (9, 5, 6, 7):
        model.setCurrentIndex(table._filter.index(row, 0), flags.Select | flags.Rows)
    press_space(qtbot, table)
    assert table.excluded() == {"Light_00005.fit", "Light_00006.fit", "Light_00007.fit"}
    press_space(qtbot, table)
    assert table.excluded() == frozenset()
    qtbot.mouseClick(table._leave_out, Qt.MouseButton.LeftButton)
    assert len(table.excluded()) == 3
    qtbot.mouseClick(table._take_in, Qt.MouseButton.LeftButton)
    assert table.excluded() == frozenset()


def test_all_frames_that_are_shown_can_be_left_out_at_once(qtbot, table):
    table.set_frames(FRAMES)
    table._view.sortByColumn(0, Qt.SortOrder.DescendingOrder)
    assert len(search(qtbot, table, "ircut")) == 20
    table._view.selectAll()
    qtbot.mouseClick(table._leave_out, Qt.MouseButton.LeftButton)
    assert table.excluded() == {frame.frame_id for frame in FRAMES if frame.filter == "IRCUT" and frame.usable}


def test_the_search_finds_all_words_in_any_column(qtbot, table):
    table.set_frames(FRAMES)
    assert search(qtbot, table, "DISTORTION") == [f"Light_000{k}9.fit" for k in range(4)]
    assert search(qtbot, table, "corners ircut") == []
    assert search(qtbot, table, "corners lp 0002") == ["Light_00029.fit"]
    assert len(search(qtbot, table, "seestar")) == 40


def test_frames_are_chosen_by_their_state(qtbot, table):
    table.set_frames(FRAMES)
    table.set_excluded({"Light_00004.fit"})
    table._state.setCurrentIndex(table._state.findData("excluded"))
    assert texts(table, "frame") == ["Light_00004.fit"]
    table._state.setCurrentIndex(table._state.findData("out"))
    assert len(texts(table, "frame")) == 4


@pytest.mark.parametrize("order", list(Qt.SortOrder))
def test_columns_are_sorted_with_what_is_not_known_last(table, order):
    table.set_frames([WAITING, *FRAMES])
    table._view.sortByColumn(column_of(table, "exposure"), order)
    numbers = [float(text) for text in texts(table, "exposure")[:-1]]
    assert numbers == sorted(numbers, reverse=order == Qt.SortOrder.DescendingOrder)
    assert texts(table, "frame")[-1] == "a_first.fit"


def test_the_selection_stays_on_its_frame_when_the_order_changes(qtbot, table):
    table.set_frames(FRAMES)
    table.select("Light_00004.fit")
    table._view.sortByColumn(0, Qt.SortOrder.DescendingOrder)
    assert table._view.currentIndex().siblingAtColumn(0).data() == "Light_00004.fit"


def test_the_frame_that_the_user_goes_to_is_told_and_that_of_the_program_is_not(qtbot, table):
    table.set_frames(FRAMES)
    with qtbot.assertNotEmitted(table.frame_selected):
        table.select("Light_00010.fit")
        table.select("no such frame")
    assert table._view.currentIndex().row() == 10
    with qtbot.waitSignal(table.frame_selected) as heard:
        qtbot.keyClick(table._view, Qt.Key.Key_Down)
    assert heard.args == ["Light_00011.fit"]


def test_frames_come_in_batches_and_are_told_again(qtbot, table):
    table.add_frames(FRAMES[:20])
    table.add_frames(FRAMES[20:])
    table.add_frames([replace(FRAMES[0], usable=False, reason="too far from the mosaic")])
    settle(qtbot, table)
    assert len(texts(table, "frame")) == 40
    assert texts(table, "reason")[0] == "too far from the mosaic"


def test_twenty_thousand_frames_are_shown_sorted_and_searched(qtbot, table):
    frames = frames_on(canvas_of(), 20_000, seed=2)
    table.set_frames(frames)
    settle(qtbot, table)
    assert table._filter.rowCount() == 20_000
    table._view.sortByColumn(0, Qt.SortOrder.DescendingOrder)
    assert texts(table, "frame")[0] == "Light_19999.fit"
    assert search(qtbot, table, "light_1234") == [f"Light_1234{k}.fit" for k in range(9, -1, -1)]


def test_the_ledger_of_a_run_is_sorted_by_harm(qtbot, table, run):
    table.set_ledger(run.paths.ledger)
    settle(qtbot, table)
    judgement = judge(*read_ledger(run.paths.ledger))
    worst = {row.frame_id: 100 * harm for row, harm in zip(judgement.rows, judgement.harm.total, strict=True)}
    assert texts(table, "frame") == [*sorted(worst, key=lambda name: -worst[name]), "Light_00_0001.fit"]
    assert texts(table, "harm")[0] == f"{max(worst.values()):.2f}"
    assert texts(table, "reason")[-1] == "left out by the user"
    assert texts(table, "state")[-1] == "cannot be used"
    assert all(float(text) > 1 for text in texts(table, "fwhm")[:-1])


def test_the_quality_of_a_ledgers_line_is_the_ledgers(run):
    rows = {row.frame_id: row for row in read_ledger(run.paths.ledger)[0]}
    lines = lines_of_ledger(run.paths.ledger)
    assert len(lines) == len(rows)
    for line in lines[:-1]:
        assert line.values["stars"] == rows[line.frame_id].n_stars
        assert line.values["rejected"] == pytest.approx(rows[line.frame_id].rejected_fraction)
    assert math.isnan(lines[-1].values["harm"])


def test_a_ledger_that_is_none_is_told(qtbot, table, tmp_path):
    (tmp_path / "ledger.csv").write_text("no ledger\n", encoding="utf-8")
    with qtbot.waitSignal(table.failed) as heard:
        table.set_ledger(tmp_path / "ledger.csv")
    assert "ledger.csv" in heard.args[0]
    assert "ledger.csv" in table._counts.text()
    with pytest.raises(PlanError):
        lines_of_ledger(tmp_path / "absent.csv")


def test_a_survey_after_a_ledger_shows_its_own_columns(qtbot, table, run):
    table.set_ledger(run.paths.ledger)
    settle(qtbot, table)
    table.add_frames(FRAMES)
    settle(qtbot, table)
    assert "harm" not in [column.key for column in table.model.columns]
    assert len(texts(table, "frame")) == 40


def test_frames_told_while_a_ledger_is_read_are_what_is_shown(qtbot, table, run):
    table.set_ledger(run.paths.ledger)
    table.set_frames(FRAMES)
    settle(qtbot, table)
    time.sleep(0.2)
    qtbot.wait(50)
    assert len(texts(table, "frame")) == 40


def test_nothing_is_left_of_what_is_closed(qtbot):
    assert_it_goes(qtbot, FramesTable)


def test_the_words_follow_the_language(table):
    assert "Écarter" in assert_it_speaks_french(table)


def test_frames_that_come_while_many_are_made_ready_are_not_lost(qtbot, table):
    many, late = frames_on(canvas_of(), 2000, seed=3), frames_on(canvas_of(), 2010, seed=3)[2000:]
    table.set_frames(many)
    table.add_frames(late)
    settle(qtbot, table)
    assert len(table.model.lines) == 2010


def test_a_new_survey_is_sorted_as_the_header_still_says(qtbot, table):
    table.set_frames(FRAMES)
    table._view.sortByColumn(0, Qt.SortOrder.DescendingOrder)
    table.set_frames(FRAMES[::2])
    assert table._view.horizontalHeader().sortIndicatorSection() == 0
    assert texts(table, "frame") == sorted((frame.frame_id for frame in FRAMES[::2]), reverse=True)


def test_a_batch_costs_what_is_new_and_not_what_is_there(qtbot, table, monkeypatch):
    numbered, counts = [], []
    number = table.model._number_rows
    monkeypatch.setattr(table.model, "_number_rows", lambda first=0: (numbered.append(first), number(first)))
    table._counting.timeout.connect(lambda: counts.append(1))
    for start in range(0, 40, 10):
        table.add_frames(FRAMES[start : start + 10])
    assert numbered == [0, 10, 20, 30]
    settle(qtbot, table)
    assert len(counts) == 1
    assert [table.model.row_of(frame.frame_id) for frame in FRAMES] == list(range(40))


def test_problems_and_lines_of_the_log_that_come_together_are_shown_together(qtbot):
    problems, log = Problems(), LogView()
    for widget in (problems, log):
        qtbot.addWidget(widget)
    counts = []
    problems.counted.connect(counts.append)
    for k in range(700):
        problems.add(f"{k}.fit", "no stars")
        log.add(str(k), "ERROR")
    qtbot.waitUntil(lambda: not log.busy and bool(counts), timeout=5000)
    assert counts == [700]
    assert problems.model().index(699, 0).data() == "699.fit"
    lines = log.view.toPlainText().splitlines()
    assert [line.split()[-1] for line in lines] == [str(k) for k in range(700)]
    log.search.setText("69")
    qtbot.waitUntil(lambda: not log.busy, timeout=5000)
    assert len(log.view.toPlainText().splitlines()) == sum("69" in str(k) for k in range(700))
