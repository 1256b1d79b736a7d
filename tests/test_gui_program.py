"""The desktop program, driven by clicks: from a folder of frames to a mosaic, and every way to stop in between."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QSpinBox

import zemosaic_gui_qt
import zemosaic_worker
from programs import LONG_MS, answering, children, choose_frames, chosen, click, opened, typed
from surveys import survey_in
from zemosaic_config import GPU_KEYS, OPTIONS, resolve
from zemosaic_gui_grid_group import GRID_KEYS, all_keys
from zemosaic_gui_parts import TileState
from zemosaic_gui_window import _SURVEY_KEYS
from zemosaic_survey import SurveySettings
from zemosaic_synthetic import small_spec
from zemosaic_types import OutputError
from zemosaic_worker import Pipeline

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"numpy", "astropy", "scipy", "numba", "shapely", "sep", "reproject", "PIL", "pyqtgraph", "grid_mode"}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "frames"
    survey_in(folder, small_spec(seed=3))
    return folder


@pytest.fixture
def strange(monkeypatch):
    """Let a pipeline of the strange ones, or the recording one, take the place of Grid mode."""

    def install(name, module="strange_pipelines"):
        monkeypatch.setitem(zemosaic_worker.PIPELINES, "grid", Pipeline(module, name, "Settings"))

    return install


def to_the_run(qtbot, window):
    for step in ("mosaic", "run"):
        click(qtbot, window.primary)
        assert window.step == step


def start(qtbot, window):
    assert window.primary.text() == "Start"
    click(qtbot, window.primary)
    assert window.run.running


def wait_for_the_end(qtbot, window):
    qtbot.waitUntil(lambda: not window.run.running, timeout=LONG_MS)


def log_of(window):
    return "\n".join(line.text for line in window.run_page.log.lines)


def test_a_run_is_started_watched_cancelled_restarted_and_finished_by_clicks(qtbot, frames, tmp_path, monkeypatch):
    output = tmp_path / "out"
    seen, pages, before = [], [], set(children())  # other tests leave the server of workers
    monkeypatch.setattr("zemosaic_gui_result.show_folder", pages.append)
    with opened(qtbot, grid_mode_enabled=True, grid_workers=2) as window:
        typed(qtbot, window.input.output.line, str(output))
        choose_frames(qtbot, window, frames)
        assert window.input.summary.values["frames"].text() == "6 frames"
        to_the_run(qtbot, window)

        window.run.told.connect(lambda _: seen.append(window.run_page.progress.value()))
        start(qtbot, window)
        assert not window.primary.isVisible()
        qtbot.waitUntil(lambda: window.run_page.progress.value() > 0, timeout=LONG_MS)
        click(qtbot, window.cancel)
        wait_for_the_end(qtbot, window)
        assert window.run_page.status.text() == "Cancelled"
        assert set(children()) <= before
        assert not list(output.rglob("*.part"))

        seen.clear()
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert window.run_page.status.text() == "The mosaic is done"
        assert seen == sorted(seen)
        assert (output / "mosaic_grid.fits").is_file()
        assert "[GRID]" not in log_of(window)

        click(qtbot, window.primary)
        assert window.step == "result"
        assert window.result_page.summary.text().startswith("6 of 6 frames used")
        click(qtbot, window.result_page.report)
        qtbot.waitUntil(lambda: len(pages) == 1, timeout=LONG_MS)
        assert pages[0].is_file()
        assert window.result_page.report.text() == "Show the report"
        qtbot.waitUntil(lambda: window.result_page.viewer.widget is not None, timeout=LONG_MS)
        qtbot.waitUntil(lambda: not window.result_page.viewer.widget.busy, timeout=LONG_MS)


def test_classic_runs_where_grid_mode_is_off(qtbot, frames, tmp_path):
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"), grid_workers=2)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert window.input.summary.values["tiles"].text().endswith("master tiles")
        to_the_run(qtbot, window)
        assert "Classic" in window.run_page.facts.text()
        qtbot.waitUntil(lambda: window.run_page.map.widget is not None, timeout=LONG_MS)
        sky_map = window.run_page.map.widget
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert window.run_page.status.text() == "The mosaic is done"
        assert set(window.run_page.states()) == {"DONE"}
        click(qtbot, window.primary)
        assert window.result_page.heading.text() == "mosaic_classic.fits"
        page = window.result_page
        assert page.summary.text().endswith(window.run_page.eta_note.text())
        qtbot.waitUntil(lambda: not page._background.busy, timeout=LONG_MS)
        assert not page.without.isEnabled()  # these frames are all good
        assert page.without.toolTip().startswith("No frame is suggested")

        window.go("run")
        assert {sky_map.tile_state(tile) for tile in window.run_page._tiles} == {TileState.DONE}
        answering(qtbot, "Replace it")
        click(qtbot, window.cancel)  # it says "Run again"
        assert window.run.running
        assert {sky_map.tile_state(tile) for tile in window.run_page._tiles} == {TileState.WAITING}
        click(qtbot, window.cancel)
        wait_for_the_end(qtbot, window)


def test_a_frame_is_seen_where_it_is_chosen(qtbot, frames, tmp_path):
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"))
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        card = window.input.frame
        names = sorted(window.input.found.frames)
        for name in names[:2]:
            window.input.select(name)
            assert card.name.text().replace("\u200b", "") == name
            qtbot.waitUntil(lambda: not card.picture.busy, timeout=LONG_MS)
            assert not card.picture.pixmap().isNull()
        window.input.select("")
        assert not card.isVisible()


def test_what_a_run_will_make_follows_the_tick_at_grid_mode(qtbot, frames, tmp_path):
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"))
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert window.input.found.done.pipeline == "classic"
        window.go("mosaic")
        click(qtbot, window.mosaic.grid.enabled.editor.focusProxy())
        window.go("run")
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert window.input.found.done.pipeline == "grid"
        assert "master" not in window.input.summary.values["tiles"].text()


def test_an_option_that_a_survey_asks_for_makes_it_anew():
    asked = set()

    class Asked(dict):
        def __getitem__(self, key):
            asked.add(key)
            return super().__getitem__(key)

    SurveySettings.from_config(Asked(resolve({}, {}).as_dict()))
    of_the_solver = {"astap_max_instances", "astap_search_radius_deg", "solve_retry_failed"}
    of_the_solver |= {"solve_timeout_s", "solver_downsample"}  # a survey does not solve
    assert asked - of_the_solver == _SURVEY_KEYS - {"output_dir", *GPU_KEYS[1:]}


def test_a_mosaic_of_the_other_pipeline_is_not_asked_about(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    (tmp_path / "mosaic_classic.fits").write_bytes(b"precious")
    values = dict(input_dir=str(frames), output_dir=str(tmp_path), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        window.go("run")
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert "overwrite = False" in log_of(window)


def test_an_earlier_mosaic_is_replaced_only_by_who_says_so(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    (tmp_path / "mosaic_grid.fits").write_bytes(b"precious")
    values = dict(input_dir=str(frames), output_dir=str(tmp_path), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        window.go("run")
        asked = answering(qtbot, "Keep it")
        click(qtbot, window.primary)
        assert len(asked) == 1
        assert not window.run.running
        answering(qtbot, "Replace it")
        click(qtbot, window.primary)
        wait_for_the_end(qtbot, window)
        assert "overwrite = True" in log_of(window)


def test_the_worker_receives_what_the_widgets_of_grid_mode_say(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    with opened(qtbot) as window:
        typed(qtbot, window.input.output.line, str(tmp_path / "out"))
        choose_frames(qtbot, window, frames)
        click(qtbot, window.primary)
        editors = {key: row.editor.focusProxy() for key, row in window.mosaic.grid.rows.items()}
        click(qtbot, window.mosaic.grid.enabled.editor.focusProxy())
        typed(qtbot, editors["grid_workers"], "3")
        chosen(qtbot, editors["use_gpu_grid"], 1)
        typed(qtbot, editors["grid_size_factor"], "2.5")
        typed(qtbot, editors["grid_chunk_ram_mb"], "768")
        click(qtbot, editors["grid_rgb_equalize"])
        click(qtbot, window.primary)
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        received = dict(line.split(" = ", 1) for line in log_of(window).splitlines() if " = " in line)
    wanted = {
        "workers": "3",
        "use_gpu": "True",
        "size_factor": "2.5",
        "chunk_ram_mb": "768",
        "rgb_equalize": "True",
    }
    assert wanted.items() <= received.items()
    assert received["folders"] == "'frames', 'out'"


def test_a_run_without_the_worst_frames_is_asked_for_by_one_click(qtbot, frames, tmp_path, strange, monkeypatch):
    strange("record", "recording_pipeline")
    monkeypatch.setattr("zemosaic_gui_result._count_worst", lambda _ledger: 2)
    output = tmp_path / "out"
    output.mkdir()
    (output / "ledger.csv").write_text("", encoding="utf-8")
    values = dict(input_dir=str(frames), output_dir=str(output), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        window.go("run")
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert "drop_suggested = False" in log_of(window)
        click(qtbot, window.primary)
        qtbot.waitUntil(window.result_page.without.isEnabled, timeout=LONG_MS)
        assert window.result_page.without.text() == "Run again without the 2 worst"
        click(qtbot, window.result_page.without)
        assert window.step == "run"
        wait_for_the_end(qtbot, window)
        assert "drop_suggested = True" in log_of(window)
        assert "overwrite = True" in log_of(window)


def test_without_the_worst_takes_the_frames_of_the_result_not_those_chosen_since(
    qtbot, frames, tmp_path, strange, monkeypatch
):
    strange("record", "recording_pipeline")
    monkeypatch.setattr("zemosaic_gui_result._count_worst", lambda _ledger: 1)
    output, other = tmp_path / "out", tmp_path / "other"
    for folder in (output, other):
        folder.mkdir()
    (output / "ledger.csv").write_text("", encoding="utf-8")
    values = dict(input_dir=str(frames), output_dir=str(output), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        mine = frozenset([min(window.input.found.frames)])
        window.input.set_excluded(mine)
        window.go("run")
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        window.go("input")
        choose_frames(qtbot, window, other)
        assert window.input.excluded == frozenset()
        window.go("result")
        qtbot.waitUntil(window.result_page.without.isEnabled, timeout=LONG_MS)
        click(qtbot, window.result_page.without)
        wait_for_the_end(qtbot, window)
        assert "folders = 'frames', 'out'" in log_of(window)
        assert "drop_suggested = True" in log_of(window)
        assert f"excluded = {tuple(mine)!r}" in log_of(window)
        assert window.input.input.line.text() == str(frames)


def test_what_is_changed_during_a_run_is_not_in_its_result(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        to_the_run(qtbot, window)
        start(qtbot, window)
        window.settings.set("stacking_kappa_low", 2.5)
        wait_for_the_end(qtbot, window)
        assert window.primary.text() == "Start"
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert window.primary.text() == "See the result"


def test_the_table_of_a_result_leaves_nothing_out_of_another_folder(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    other = tmp_path / "other"
    shutil.copytree(frames, other)
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        name = min(window.input.found.frames)
        to_the_run(qtbot, window)
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        window.result_page.excluded_changed.emit(frozenset({name}))
        assert window.input.excluded == {name}
        window.input.choose(str(other))
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert window.input.excluded == frozenset()
        window.result_page.excluded_changed.emit(frozenset({name}))
        assert window.input.excluded == frozenset()


def test_without_the_worst_replaces_no_mosaic_elsewhere_and_none_unasked(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    result, other = tmp_path / "result", tmp_path / "other"
    for folder in (result, other):
        folder.mkdir()
        (folder / "mosaic_grid.fits").write_bytes(b"precious")
    values = dict(input_dir=str(frames), output_dir=str(other), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        window.result_page._path = result / "mosaic_grid.fits"
        asked = answering(qtbot, "Keep it")
        window.run_without_suggested()
        assert len(asked) == 1
        assert not window.run.running
        assert window.settings.value("output_dir") == str(result)
        window.settings.set("output_dir", str(other))
        asked = answering(qtbot, "Keep it")
        click(qtbot, window.primary)  # nothing of the question before is left
        assert len(asked) == 1
        assert not window.run.running


def test_a_survey_that_a_run_has_ended_is_taken_up_again(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: bool(window.input.found.frames), timeout=LONG_MS)
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        window.look()
        assert window.survey.running
        window.go("run")
        window.start()
        assert window.run_page.facts.text() == f"Grid mode  ·  {tmp_path / 'out'}"  # no number that is none
        wait_for_the_end(qtbot, window)
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        window.go("input")
        qtbot.waitUntil(lambda: window.input.found.done is not None, timeout=LONG_MS)
        assert window.input.summary.values["frames"].text() == "6 frames"
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        window.go("run")
        assert window.primary.text() == "See the result"  # nothing was changed
        window.go("input")
        click(qtbot, window.input.again)
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        window.go("run")
        assert window.primary.text() == "Start"  # the frames may be others


def test_what_was_left_out_of_a_folder_is_not_left_out_of_another(qtbot, frames, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "mine.json").write_text(json.dumps({"input_dir": str(tmp_path / "other")}), encoding="utf-8")
    with opened(qtbot, input_dir=str(frames)) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        window.input.set_excluded(frozenset({"Light_00_0000.fit"}))
        window.settings.load(tmp_path / "mine.json")
        assert window.input.excluded == frozenset()
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)


def test_a_folder_is_dropped_into_the_window(qtbot, frames, tmp_path):
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(next(frames.glob("*.fit"))))])  # a file stands for its folder
    where, actions = QPointF(20, 20), Qt.DropAction.CopyAction
    buttons = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    with opened(qtbot) as window:
        window.input.dragEnterEvent(QDragEnterEvent(where.toPoint(), actions, data, *buttons))
        assert window.input.drop.property("over") is True
        window.input.dropEvent(QDropEvent(where, actions, data, *buttons))
        assert window.settings.value("input_dir") == str(frames)
        assert window.settings.value("output_dir") == str(frames.with_name("frames_mosaic"))
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert window.primary.isEnabled()


def test_a_frame_that_is_left_out_in_the_table_is_left_out_of_the_run(qtbot, frames, tmp_path, strange):
    strange("record", "recording_pipeline")
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        first = min(window.input.found.frames)
        window.input.select(first)
        click(qtbot, window.input.frame.button)
        assert window.input.summary.values["frames"].text() == "5 frames · 1 left out"
        window.go("run")
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert f"excluded = ({first!r},)" in log_of(window)


def test_what_a_run_will_make_and_cost_does_not_count_what_is_left_out(qtbot, frames, tmp_path):
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        whole, page = window.input.found.done, window.input
        panel = frozenset(name for name in page.found.frames if name.startswith("Light_01"))
        page.set_excluded(panel)
        window.go("run")
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert page.found.done.shape[1] < whole.shape[1]
        assert window.run_page.facts.text().startswith(f"{whole.n_frames - len(panel)} frames")
        page.set_excluded(frozenset())
        window.go("input")
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert page.found.done.shape == whole.shape
        assert page.summary.values["frames"].text() == f"{whole.n_frames} frames"


def test_the_number_that_automatic_stands_for_is_shown(qtbot):
    with opened(qtbot) as window:
        window.go("mosaic")
        note = window.mosaic.grid._workers_note.text()
        assert f"{window.mosaic.grid.workers()} worker" in note
        assert note.startswith("0 = automatic")


def test_gpus_are_looked_for_in_a_process_of_their_own(qtbot):
    with opened(qtbot) as window, qtbot.waitSignal(window.mosaic.grid.search.found, timeout=LONG_MS) as found:
        window.go("mosaic")
        assert "Looking for a GPU" in window.mosaic.grid._gpu_note.text()
    names, reason = found.args
    assert bool(names) != bool(reason)
    assert (", ".join(names) or reason) in window.mosaic.grid._gpu_note.text()


def test_a_system_that_can_start_no_process_is_told_where_a_gpu_is_looked_for(qtbot, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no such program/at all")
    with opened(qtbot) as window:
        window.go("mosaic")
        note = window.mosaic.grid._gpu_note
        qtbot.waitUntil(lambda: "Looking for a GPU" not in note.text(), timeout=LONG_MS)
        assert "no process can be started" in note.text()


def test_a_report_that_no_process_can_write_says_why_and_can_be_asked_for_again(qtbot, tmp_path, monkeypatch):
    (tmp_path / "ledger.csv").write_text("frame_id,path\n", encoding="utf-8")
    with opened(qtbot) as window:
        page = window.result_page
        page.open_mosaic(tmp_path / "mosaic.fits")
        window.go("result")
        program = sys.executable
        monkeypatch.setattr(sys, "executable", "/no such program/at all")
        click(qtbot, page.report)
        qtbot.waitUntil(page.report.isEnabled, timeout=LONG_MS)
        assert page.report.text() == "Show the report"
        assert "no process can be started" in page.trouble.text()
        monkeypatch.setattr(sys, "executable", program)
        click(qtbot, page.report)
        assert page.trouble.isHidden()
        for code, words in (("fr", "Rédaction"), ("en", "Writing")):
            window.use_language(code)
            assert page.report.text().startswith(words)
            assert not page.report.isEnabled()
        qtbot.waitUntil(page.report.isEnabled, timeout=LONG_MS)
        assert "no finished run" in page.trouble.text()


def test_a_survey_that_no_process_can_make_says_why_on_its_page(qtbot, frames, tmp_path, monkeypatch):
    with opened(qtbot) as window:
        program = sys.executable
        monkeypatch.setattr(sys, "executable", "/no such program/at all")
        asked = answering(qtbot, "OK")
        typed(qtbot, window.input.input.line, str(tmp_path))
        qtbot.waitUntil(lambda: bool(asked), timeout=LONG_MS)
        assert "no process can be started" in asked[0]
        assert "no process can be started" in window.input.summary.trouble.text()
        assert window.input.summary.status.isHidden()
        assert not window.primary.isEnabled()
        monkeypatch.setattr(sys, "executable", program)
        choose_frames(qtbot, window, frames)  # the page can go on
        assert window.primary.isEnabled()


def test_every_option_has_one_place_and_every_place_an_option(qtbot):
    with opened(qtbot) as window:
        bound = all_keys(window)
        assert sorted([*bound, "input_dir", "output_dir"]) == sorted(option.key for option in OPTIONS)
        assert set(GRID_KEYS) <= set(bound)
        boxes = [b for kind in (QSpinBox, QDoubleSpinBox, QComboBox) for b in window.mosaic.findChildren(kind)]
        assert len(boxes) > 20
        assert {box.objectName() for box in boxes} <= set(bound)


def test_a_worker_that_crashes_is_reported_with_its_last_words_and_what_can_be_done(
    qtbot, frames, tmp_path, strange
):
    strange("crashing")
    values = dict(input_dir=str(frames), output_dir=str(tmp_path), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        window.go("run")
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert window.run_page.status.text() == "The run has crashed"
        assert "report these lines" in window.run_page.detail.text()
        assert "Fatal Python error" in log_of(window)
        assert window.run_page.problems.count() == 1
        start(qtbot, window)  # the window can go on
        wait_for_the_end(qtbot, window)


def test_closing_the_window_during_a_run_asks_and_leaves_no_process(qtbot, frames, tmp_path, strange):
    strange("deaf")
    before = set(children())
    values = dict(input_dir=str(frames), output_dir=str(tmp_path), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        window.go("run")
        start(qtbot, window)
        qtbot.waitUntil(lambda: "started" in log_of(window), timeout=LONG_MS)
        asked = answering(qtbot, "Go on")
        window.close()
        assert len(asked) == 1
        assert window.run.running
        answering(qtbot, "Stop and close")
        window.close()
        qtbot.waitUntil(lambda: not window.isVisible(), timeout=10_000)
        assert not window.run.running
        assert set(children()) <= before


def test_many_events_do_not_block_the_window(qtbot, frames, tmp_path, strange):
    strange("talkative")
    values = dict(input_dir=str(frames), output_dir=str(tmp_path), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        window.go("run")
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert window.run_page.log.lines[-2].text == "9999"
        assert len(window.run_page.log.lines) <= 5000


def test_a_run_whose_process_cannot_be_started_says_why(qtbot, frames, tmp_path, monkeypatch):
    values = dict(input_dir=str(frames), output_dir=str(tmp_path / "out"), grid_mode_enabled=True)
    with opened(qtbot, **values) as window:
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        to_the_run(qtbot, window)

        def refused(_request):
            raise OutputError("no process can be started for the run: too many")

        monkeypatch.setattr(window.run, "start", refused)
        asked = answering(qtbot, "OK")
        click(qtbot, window.primary)
        assert asked == ["no process can be started for the run: too many"]
        assert window.run_page.status.text() == "The run has failed"
        assert "too many" in log_of(window)
        monkeypatch.undo()
        start(qtbot, window)
        wait_for_the_end(qtbot, window)
        assert window.run_page.status.text() == "The mosaic is done"


def test_a_folder_without_frames_says_so(qtbot, tmp_path):
    with opened(qtbot) as window:
        (tmp_path / "empty").mkdir()
        choose_frames(qtbot, window, tmp_path / "empty")
        assert window.input.summary.trouble.isVisible()
        trouble = window.input.summary.trouble
        assert str(tmp_path / "empty") in trouble.text()
        english = trouble.text()
        window.use_language("fr")
        assert trouble.isVisible()
        assert str(tmp_path / "empty") in trouble.text()
        assert trouble.text() != english
        assert not window.primary.isEnabled()


def test_a_run_of_nothing_is_not_offered(qtbot, frames, tmp_path):
    (tmp_path / "empty").mkdir()
    with opened(qtbot) as window:
        choose_frames(qtbot, window, tmp_path / "empty")
        window.go("run")
        assert window.run_page.status.text() == "Not ready yet"
        assert "no FITS file" in window.run_page.detail.text()
        assert not window.primary.isEnabled()
        window.go("input")
        choose_frames(qtbot, window, frames)
        window.go("run")
        assert window.run_page.status.text() == "Ready"
        assert window.primary.isEnabled()
        window.input.set_excluded(frozenset(window.input.found.frames))
        window.go("run")
        qtbot.waitUntil(lambda: not window.survey.running, timeout=LONG_MS)
        assert window.run_page.detail.text().startswith("No frame is left")
        assert not window.primary.isEnabled()


def test_without_classic_a_click_turns_on_grid_mode(qtbot, frames, tmp_path, monkeypatch):
    monkeypatch.delitem(zemosaic_worker.PIPELINES, "classic", raising=False)
    values = dict(input_dir=str(frames), output_dir=str(tmp_path))
    with opened(qtbot, **values) as window:
        window.go("run")
        assert window.primary.text() == "Turn on Grid mode"
        click(qtbot, window.primary)
        assert window.settings.value("grid_mode_enabled") is True
        assert window.primary.text() == "Start"


STARTED = """
import sys, time
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
import zemosaic_gui_qt
application = QApplication([])
def shown():
    print(time.process_time(), *sorted({heavy} & set(sys.modules)))
    assert any(window.isVisible() for window in application.topLevelWidgets())
    QApplication.closeAllWindows()
QTimer.singleShot(0, shown)
sys.exit(zemosaic_gui_qt.main())
"""


def test_the_window_opens_at_once_and_without_numerical_libraries():
    code = STARTED.replace("{heavy}", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    seconds, *loaded = done.stdout.split()
    assert loaded == []
    assert float(seconds) < 2.0


def test_without_qt_the_program_says_how_to_install_it():
    code = "import sys; sys.modules['PySide6'] = None; import zemosaic_cli; sys.exit(zemosaic_cli.main(['gui']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert done.returncode == 1
    assert 'pip install "zemosaic[gui]"' in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_without_a_display_the_program_says_so():
    unset = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    code = "import sys, zemosaic_cli; sys.exit(zemosaic_cli.main(['gui']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 1
    assert "needs a display" in done.stderr


def test_a_library_that_qt_lacks_is_named(monkeypatch, tmp_path):
    for name in ("WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    zemosaic_gui_qt._check_display(tmp_path)  # of a Qt that keeps its plugins elsewhere
    (tmp_path / "platforms").mkdir()
    (tmp_path / "platforms" / "libqxcb.so").write_bytes(b"no library")
    with pytest.raises(zemosaic_gui_qt.DesktopMissing, match="libxcb-cursor0") as told:
        zemosaic_gui_qt._check_display(tmp_path)
    assert "libqxcb.so" in str(told.value)
