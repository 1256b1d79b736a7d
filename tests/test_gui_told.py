"""What the window shows of a run is in its language, and follows it: log, problems, tables, map, notes, boxes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("PySide6")
pytest.importorskip("pyqtgraph")

from PySide6.QtCore import QEvent, Qt
from PySide6.QtWidgets import QApplication

import zemosaic_gui_run
from grid_mode import GridSettings
from pictures import canvas_of, frames_on, nothing_left, settle
from programs import answering, choose_frames, click, opened
from surveys import CLASSIC, ClassicRun, Run, survey_in
from test_bad_input import BAD_FRAMES, GOOD, file_of, spoiled_copy
from zemosaic_events import (
    FinishReason,
    FrameLeftOut,
    Message,
    PhaseProgress,
    RunFinished,
    SurveyDone,
    SurveyFrame,
    SurveyFrames,
    TileFailed,
    describe,
)
from zemosaic_gui_eta import _CLASSIC_SHARES, _SAME
from zemosaic_gui_frames import FramesTable
from zemosaic_gui_input import Found, FrameCard, Summary
from zemosaic_gui_log import LogView, Problems
from zemosaic_gui_run import RunPage
from zemosaic_gui_sentences import told
from zemosaic_gui_skymap import SkyMap
from zemosaic_gui_text import set_language, tr
from zemosaic_gui_viewer import MosaicViewer
from zemosaic_ledger import judge, read_ledger
from zemosaic_survey import SurveySettings, run_survey
from zemosaic_synthetic import small_spec
from zemosaic_types import FrameError, LeftOut, OutputError, PlanError

EMPTY = "the file is empty"
ROOT = Path(__file__).resolve().parents[1]
VIDE = "le fichier est vide"


@pytest.fixture(autouse=True)
def english_again():
    yield
    set_language("en")


def speaking(code, widget):
    """Change the language, as the window does."""
    set_language(code)
    QApplication.sendEvent(widget, QEvent(QEvent.Type.LanguageChange))


# ---- whole runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A folder with a bad frame of every kind."""
    folder = tmp_path_factory.mktemp("told")
    survey_in(folder / "good", small_spec(frames_per_panel=4))
    return spoiled_copy(folder / "good", folder / "raw")


def grid_run(folder, out):
    return Run(folder, out, GridSettings(workers=1, solve=None, excluded=("Light_00_0002.fit", "none.fit")))


def classic_run(folder, out):
    return ClassicRun(folder, out, replace(CLASSIC, workers=1))


def survey_run(folder, out):
    events = []
    run_survey(folder, out, SurveySettings(use_gpu=True, excluded=("Light_00_0002.fit",)), listener=events.append)
    return type("Looked", (), {"events": events})


def said_by(event):
    """The sentences of an event that the window shows."""
    match event:
        case FrameLeftOut(item):
            return [item.reason, describe(event)[0]]
        case TileFailed(_, reason):
            return [reason, describe(event)[0]]
        case SurveyFrames(frames):
            return [frame.reason for frame in frames if frame.reason]
        case SurveyDone():
            return [*event.notes, describe(event)[0]]
        case RunFinished(_, message):
            return [message] if message else []
    return [describe(event)[0]] if not type(event).__name__.endswith("Progress") else []


#: Words that no French sentence has; what stands in brackets may be another library's.
ENGLISH_WORDS = re.compile(r"\b(the|its|it|is|are|of|from|with|cannot|frames?|left|that|and)\b")
PATH = re.compile(r"/\S+|\bLight\S+|\bbad_\S+")


@pytest.mark.parametrize("run", [grid_run, classic_run, survey_run])
def test_every_sentence_of_a_run_on_bad_frames_is_french(spoiled, tmp_path, run):
    events = run(spoiled, tmp_path / "out").events
    sentences = {text for event in events for text in said_by(event)}
    assert len(sentences) > 20
    set_language("fr")
    for text in sentences:
        french = told(text)
        assert french != text
        own = PATH.sub("", re.sub(r"\(.*?\)", "", french))
        assert not ENGLISH_WORDS.search(own), (text, french)
    names = {name for name in map(file_of, BAD_FRAMES) if any(name in text for text in sentences)}
    assert len(names) > 5 or run is survey_run


def test_every_reason_of_a_ledger_is_french(spoiled, tmp_path):
    rows, n_channels = read_ledger(grid_run(spoiled, tmp_path / "out").paths.ledger)
    reasons = {row.reason for row in rows} | set(judge(rows, n_channels).remarks)
    set_language("fr")
    assert len(reasons) > 10
    assert all(told(reason) != reason for reason in reasons - {""})


def test_a_run_that_fails_says_why_in_french(spoiled, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for case in ("empty", "constant"):
        BAD_FRAMES[case][0](spoiled / GOOD, raw / file_of(case))
    with pytest.raises(PlanError) as caught:
        grid_run(raw, tmp_path / "out")
    set_language("fr")
    assert "aucune image utilisable dans" in told(str(caught.value)) or "aucune image n’a pu" in told(
        str(caught.value)
    )
    assert VIDE in told(str(caught.value))


# ---- the widgets -----------------------------------------------------------------------------------------


def shown(qtbot, log):
    """Return the text of the log once all that has come is shown."""
    qtbot.waitUntil(lambda: not log.busy)
    return log.view.toPlainText()


def test_the_log_is_said_anew_in_another_language_and_searched_as_it_is_shown(qtbot):
    log = LogView()
    qtbot.addWidget(log)
    log.add(f"left out /a/b.fit: {EMPTY}", "WARNING")
    log.add(lambda: "always so")
    assert EMPTY in shown(qtbot, log)
    speaking("fr", log)
    assert f"écartée, /a/b.fit : {VIDE}" in shown(qtbot, log)
    assert EMPTY not in shown(qtbot, log)
    log.search.setText("VIDE")
    assert shown(qtbot, log).count("\n") == 0
    assert VIDE in shown(qtbot, log)
    log.search.setText("empty")
    assert shown(qtbot, log) == ""
    speaking("en", log)
    assert EMPTY in shown(qtbot, log)


def cells(problems, column, role=Qt.ItemDataRole.DisplayRole):
    """Return what the list of problems shows in a column."""
    problems.show_now()
    model = problems.model()
    return [model.data(model.index(row, column), role) for row in range(model.rowCount())]


def test_problems_are_said_anew(qtbot):
    problems = Problems()
    qtbot.addWidget(problems)
    problems.add("b.fit", EMPTY)
    speaking("fr", problems)
    assert (cells(problems, 0), cells(problems, 1)) == (["b.fit"], [VIDE])
    assert cells(problems, 1, Qt.ItemDataRole.ToolTipRole) == [VIDE]
    with qtbot.waitSignal(problems.model().dataChanged):  # what is on the screen is painted anew
        speaking("en", problems)
    assert cells(problems, 1) == [EMPTY]
    problems.clear()
    speaking("en", problems)
    assert cells(problems, 0) == []


def test_the_page_of_a_run_follows_the_language_to_the_end(qtbot):
    page = RunPage()
    qtbot.addWidget(page)
    page.begin("grid", None)
    page.hear(TileFailed(3, "its memory is full, even for a small slab"))
    page.hear(FrameLeftOut(LeftOut("/a/b.fit", EMPTY)))
    page.hear(Message("GPU 0 is left alone for the rest of the run", "WARNING"))
    page.stopping()
    error = OutputError("/o/m.fits cannot be written: no permission")
    page.end(RunFinished(FinishReason.ERROR, str(error)), error)
    assert page.detail.text() == str(error)
    speaking("fr", page)
    for widget in (page.log, page.problems):
        QApplication.sendEvent(widget, QEvent(QEvent.Type.LanguageChange))
    assert page.detail.text() == "/o/m.fits ne peut pas être écrit : accès refusé"
    log = shown(qtbot, page.log)
    assert "la tuile 3 a échoué : sa mémoire est pleine" in log
    assert "le GPU 0 est laissé de côté" in log
    assert "Arrêt…" in log
    assert "Le calcul a échoué\n/o/m.fits ne peut pas être écrit : accès refusé" in log
    assert cells(page.problems, 0) == ["Tuile 3", "b.fit", "Le calcul"]
    assert cells(page.problems, 1)[2] == "/o/m.fits ne peut pas être écrit : accès refusé"
    page.shutdown()


def test_what_a_run_does_and_did_follows_the_language_in_its_midst_and_behind_it(qtbot):
    page = RunPage()
    qtbot.addWidget(page)
    page.show_plan(lambda _over: tr("found.frames", n=12))
    page.begin("grid", None)
    page.hear(PhaseProgress("measure", 3, 12))
    qtbot.waitUntil(lambda: page.detail.text() == "3 of 12")
    speaking("fr", page)
    assert page.detail.text() == "3 sur 12"
    assert page.facts.text() == "12 images"
    page.end(RunFinished(FinishReason.COMPLETE, ""), None)
    assert page.eta_note.text().startswith("Durée")
    speaking("en", page)
    assert page.eta_note.text().startswith("It took")
    assert page.facts.text() == "12 frames"
    page.shutdown()


def test_every_phase_that_a_run_tells_of_has_words_and_a_share_of_the_time():
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    phases = set(re.findall(r"""(?:\.(?:progress|share)\(|\bphase=)"(\w+)\"""", source))
    assert {"headers", "align", "stack", "coadd"} < phases
    assert phases == set(zemosaic_gui_run._PHASES)
    assert {_SAME.get(phase, phase) for phase in phases} == set(_CLASSIC_SHARES)


def test_a_frame_that_is_missing_from_many_tiles_is_listed_once(qtbot):
    page = RunPage()
    qtbot.addWidget(page)
    page.begin("grid", None)
    page.hear(FrameLeftOut(LeftOut("/a/b.fit", f"missing from tile 3: {EMPTY}")))
    page.hear(FrameLeftOut(LeftOut("/a/c.fit", EMPTY)))
    for tile in range(4, 8):
        page.hear(FrameLeftOut(LeftOut("/a/b.fit", f"missing from tile {tile}: {EMPTY}")))
    assert cells(page.problems, 0) == ["b.fit", "c.fit"]
    assert cells(page.problems, 1) == [f"missing from tile 3: {EMPTY}; 4 more in the log", EMPTY]
    speaking("fr", page)
    assert cells(page.problems, 1)[0].endswith("; 4 autre(s) dans le journal")
    page.begin("grid", None)
    page.hear(FrameLeftOut(LeftOut("/a/b.fit", EMPTY)))
    assert len(cells(page.problems, 0)) == 1
    page.shutdown()


def test_what_was_expected_of_a_run_is_not_said_behind_it(qtbot):
    page = RunPage()
    qtbot.addWidget(page)
    page.show_plan(lambda over: "six frames" if over else "six frames, 3 to 9 s")
    page.begin("grid", (3.0, 9.0))
    assert page.facts.text() == "six frames, 3 to 9 s"
    page.end(RunFinished(FinishReason.COMPLETE), None)
    assert page.facts.text() == "six frames"
    page.show_plan(lambda over: "six frames" if over else "six frames, 3 to 9 s")
    assert page.facts.text() == "six frames, 3 to 9 s"
    page.shutdown()


@pytest.fixture
def reasoned():
    """Two frames that can be used and one that cannot."""
    bad = SurveyFrame("c.fit", "/a/c.fit", reason=EMPTY, usable=False)
    return [*frames_on(canvas_of(), 2, seed=1), bad]


def test_the_reasons_of_the_table_are_shown_sorted_and_searched_in_french(qtbot, reasoned):
    table = FramesTable()
    table.show()
    with nothing_left(table):
        table.set_frames(reasoned)
        settle(qtbot, table)
        column = [column.key for column in table.model.columns].index("reason")
        speaking("fr", table)
        row = table.model.row_of("c.fit")
        assert table.model.index(row, column).data() == VIDE
        assert table.model.index(row, column).data(Qt.ItemDataRole.ToolTipRole) == VIDE
        table._search.setText("vide")
        settle(qtbot, table)
        assert table._filter.rowCount() == 1
        table._search.setText("")
        settle(qtbot, table)
        table.model.sort(column)
        assert table.model.lines[0].frame_id == "c.fit"
        table._on_error(PlanError("/o/ledger.csv is not a ledger: it is not UTF-8 text"))
        assert "n’est pas un registre" in table._counts.text()


def test_the_map_names_reasons_in_french(qtbot, reasoned):
    sky_map = SkyMap()
    sky_map.show()
    with nothing_left(sky_map):
        sky_map.set_frames([replace(reasoned[0], reason=EMPTY)])
        settle(qtbot, sky_map)
        set_language("fr")
        assert VIDE in sky_map._one_line(reasoned[0].frame_id)
        sky_map.set_frames([replace(reasoned[0], exposure_s=2.5)])
        assert "2,5 s" in sky_map._one_line(reasoned[0].frame_id)


def test_the_viewer_says_what_is_wrong_in_french(qtbot):
    viewer = MosaicViewer()
    viewer.show()
    with nothing_left(viewer):
        viewer._on_error(FrameError(EMPTY))
        assert EMPTY in viewer._note.text()
        speaking("fr", viewer)
        assert VIDE in viewer._note.text()


def test_the_first_page_says_notes_and_reasons_in_french(qtbot, reasoned):
    card, summary = FrameCard(), Summary()
    for widget in (card, summary):
        qtbot.addWidget(widget)
    set_language("fr")
    card.show_frame(reasoned[2], False)
    assert card.text.text() == VIDE  # nothing else is known of it
    summary._show_done(SurveyDone(1, 1, notes=("the time is that of the processor; a GPU stacks faster",)))
    assert summary.notes.text() == "La durée est celle du processeur ; un GPU empile plus vite."
    found = Found()
    found.trouble = "/a is not a folder"
    summary.show_found(found, frozenset())
    assert summary.trouble.text() == "/a n’est pas un dossier"


def test_the_window_speaks_french_when_something_goes_wrong(qtbot, tmp_path):
    with opened(qtbot) as window:
        window.use_language("fr")
        (tmp_path / "empty").mkdir()
        choose_frames(qtbot, window, tmp_path / "empty")
        assert "aucun fichier FITS" in window.input.summary.trouble.text()
        window.mosaic.grid._show_gpu([], "the NVIDIA driver shows no GPU")
        assert "le pilote NVIDIA ne montre aucun GPU" in window.mosaic.grid._gpu_note.text()
        window.use_language("en")
        assert "the NVIDIA driver shows no GPU" in window.mosaic.grid._gpu_note.text()
        window.use_language("fr")
        (tmp_path / "bad.json").write_text('{"grid_workers": "many"}', encoding="utf-8")
        asked = answering(qtbot, "OK")
        window.mosaic.load_settings(str(tmp_path / "bad.json"))
        assert "n’est pas permis, attendu : un nombre entier" in asked[0]
        (tmp_path / "old.json").write_text('{"grid_worker": 1, "gpu_selector": 0}', encoding="utf-8")
        asked = answering(qtbot, "OK")
        window.mosaic.load_settings(str(tmp_path / "old.json"))
        assert "vouliez-vous dire « grid_workers » ?" in asked[0]
        assert "gpu_selector n’existe plus : chaque GPU trouvé est utilisé" in asked[0]
        window.result_page.open_mosaic(Path(tmp_path / "mosaic_grid.fits"))
        window.result_page.make_report()
        qtbot.waitUntil(lambda: bool(window.result_page.trouble.text()), timeout=60_000)
        assert "pas de calcul terminé dans" in window.result_page.trouble.text()
        window.go("input")
        click(qtbot, window.steps["mosaic"])
