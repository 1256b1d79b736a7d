"""The form, its values, its files and its words."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
from PySide6.QtCore import QEvent, Qt
from PySide6.QtGui import QPalette
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QLabel,
    QLineEdit,
    QMessageBox,
    QWidget,
)

import zemosaic_gui_text
from programs import answering, click, opened, typed
from zemosaic_config import GPU_KEYS, OPTIONS, config_path, find_option, load_file
from zemosaic_gui_form import OptionRow
from zemosaic_gui_parts import bytes_text
from zemosaic_gui_settings import PRESETS, Settings
from zemosaic_gui_text import languages, number_text, option_label, set_language, texts_of, tr
from zemosaic_gui_theme import THEMES, apply_theme
from zemosaic_gui_window import open_memory
from zemosaic_types import ConfigError
from zemosaic_worker import choose_pipeline

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("en", "fr")


@pytest.fixture(autouse=True)
def english():
    set_language("en")
    yield
    set_language("en")


# ---- values ------------------------------------------------------------------------------------------------


def test_settings_survive_a_round_trip_with_keys_that_nobody_knows(tmp_path):
    path = tmp_path / "mine.json"
    written = {
        "grid_workers": 5,
        "my_own_note": [1, 2],
        "stacking_winsor_limits": [0.1, 0.2],
        "use_gpu_stack": True,
    }
    path.write_text(json.dumps(written), encoding="utf-8")
    settings = Settings()
    settings.load(path)
    settings.set("grid_size_factor", 2.0)
    settings.save_as(tmp_path / "copy.json")
    content = json.loads((tmp_path / "copy.json").read_text(encoding="utf-8"))
    assert content["my_own_note"] == [1, 2]
    again = Settings(content)
    for option in OPTIONS:
        assert again.value(option.key) == settings.value(option.key), option.key
    assert again.value("grid_workers") == 5
    assert again.config()["use_gpu_grid"] is True


def test_a_hand_edited_file_is_honoured_and_only_what_was_changed_is_written(tmp_path):
    path = tmp_path / "hand.json"
    path.write_text('{"grid_chunk_ram": 1024, "solver_method": "ASTAP", "x": "kept"}', encoding="utf-8")
    settings = Settings(load_file(path))
    assert settings.value("grid_chunk_ram_mb") == 1024
    assert settings.value("solver_method") == "astap"
    settings.set("grid_workers", 2)
    settings.keep_edits(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["x"] == "kept"
    assert content["grid_workers"] == 2
    assert "grid_size_factor" not in content
    assert settings.edits() == {}


def test_what_a_loaded_file_says_is_kept_and_folders_that_it_does_not_name_stay(tmp_path):
    mine, other = tmp_path / "mine.json", tmp_path / "other.json"
    mine.write_text('{"input_dir": "here", "grid_workers": 2, "note": 1}', encoding="utf-8")
    other.write_text('{"output_dir": "there", "grid_size_factor": 3, "hint": 2}', encoding="utf-8")
    settings = Settings(load_file(mine))
    settings.load(other)
    assert (settings.value("input_dir"), settings.value("output_dir")) == ("here", "there")
    assert settings.config()["input_dir"] == "here"
    settings.keep_edits(mine)
    content = json.loads(mine.read_text(encoding="utf-8"))
    assert content["note"] == 1
    assert (content["grid_workers"], content["grid_size_factor"], content["output_dir"]) == (0, 3, "there")


def test_what_is_chosen_in_the_window_is_said_to_come_from_there_until_a_file_is_loaded(tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text('{"grid_mode_enabled": false, "grid_size_factor": 2}', encoding="utf-8")
    settings = Settings(load_file(mine), {"ZEMOSAIC_GRID_WORKERS": "4"})
    settings.set("grid_mode_enabled", True)
    settings.set("use_gpu_grid", True)
    for _ in ("changed", "kept"):
        config = settings.config()
        assert choose_pipeline(tmp_path, config) == ("grid", "grid_mode_enabled is on (window)")
        assert {config.source(key) for key in GPU_KEYS} == {"window"}
        assert (config.source("grid_workers"), config.source("grid_size_factor")) == ("environment", "file")
        assert config.source("grid_overlap_px") == "default"
        settings.keep_edits(mine)
    settings.load(mine)
    assert {settings.config().source(key) for key in ("grid_mode_enabled", *GPU_KEYS)} == {"file"}


def test_a_file_that_is_no_good_changes_nothing(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{"grid_workers": "many"}', encoding="utf-8")
    settings = Settings({"grid_workers": 3})
    with pytest.raises(ConfigError, match="grid_workers"):
        settings.load(path)
    assert settings.value("grid_workers") == 3


def test_what_is_changed_in_the_program_comes_before_the_environment(tmp_path):
    settings = Settings({}, {"ZEMOSAIC_GRID_WORKERS": "4"})
    assert settings.value("grid_workers") == settings.config()["grid_workers"] == 4
    settings.set("grid_workers", 2)
    assert settings.config()["grid_workers"] == 2
    settings.keep_edits(tmp_path / "config.json")
    assert settings.value("grid_workers") == settings.config()["grid_workers"] == 2


@pytest.mark.parametrize(("wanted", "used"), [(True, True), (False, False), (None, True)])
def test_a_gpu_left_to_the_older_switches_is_decided_by_them(wanted, used):
    settings = Settings({"stack_use_gpu": True})
    settings.set("use_gpu_grid", False if wanted is None else wanted)
    settings.set("use_gpu_grid", wanted)
    assert settings.config()["use_gpu_grid"] is used


def test_presets_name_the_same_options_and_balanced_is_the_default():
    assert len({frozenset(values) for values in PRESETS.values()}) == 1
    assert Settings().preset() == "balanced"
    for key, value in PRESETS["balanced"].items():
        assert find_option(key).default == value
    settings = Settings()
    for name in PRESETS:
        settings.apply_preset(name)
        assert settings.preset() == name
    settings.set("stacking_final_combine_method", "median")
    assert settings.preset() == ""


# ---- the form ----------------------------------------------------------------------------------------------


def other_value(option):
    """Another value of an option than its default."""
    match option.kind:
        case "bool":
            return not option.default
        case "switch":
            return True
        case "choice":
            return next(choice for choice in option.choices if choice != option.default)
        case "int":
            return option.default + 7
        case "float":
            return option.default + 0.125 if option.default < 1 else option.default - 0.5
        case "pair":
            return (0.125, 0.25)
    return "/somewhere"


def seen_in(editor):
    """What the boxes of an editor show."""
    kinds = QCheckBox, QComboBox, QAbstractSpinBox
    boxes = [widget for widget in editor.findChildren(QWidget) if isinstance(widget, kinds)]
    match boxes or editor.findChildren(QLineEdit):
        case [QCheckBox() as box]:
            return box.isChecked()
        case [QComboBox() as box]:
            return editor._values[box.currentIndex()]
        case [one, other]:
            return one.value(), other.value()
        case [QAbstractSpinBox() as box]:
            return box.value()
        case [QLineEdit() as line]:
            return line.text()


def changed_by_keys(qtbot, editor):
    """Change the value of an editor by the keyboard."""
    box = editor.focusProxy()
    box.setFocus()
    if isinstance(box, QLineEdit):
        typed(qtbot, box, "/elsewhere")
    elif isinstance(box, QCheckBox):
        qtbot.keyClick(box, Qt.Key.Key_Space)
    else:
        start = seen_in(editor)
        for key in (Qt.Key.Key_Up, Qt.Key.Key_Down):
            if seen_in(editor) == start:
                qtbot.keyClick(box, key)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_an_editor_shows_a_value_changes_nothing_by_it_and_goes_back_to_the_default(qtbot, option):
    settings = Settings()
    row = OptionRow(option.key, settings)
    qtbot.addWidget(row)
    row.show()
    assert not row._back.isVisible()
    assert seen_in(row.editor) == option.default
    value = other_value(option)
    settings.set(option.key, value)
    assert seen_in(row.editor) == settings.value(option.key) == value
    assert row._back.isVisible()
    changed_by_keys(qtbot, row.editor)
    assert seen_in(row.editor) == settings.value(option.key) != value
    settings.set(option.key, value)
    click(qtbot, row._back)
    assert seen_in(row.editor) == settings.value(option.key) == option.default


def test_what_a_loaded_file_agrees_with_is_kept_too(tmp_path):
    (tmp_path / "mine.json").write_text('{"grid_workers": 5}', encoding="utf-8")
    settings = Settings()
    settings.set("grid_workers", 5)
    settings.set("grid_chunk_ram_mb", 640)
    settings.load(tmp_path / "mine.json")
    settings.load(tmp_path / "mine.json")
    settings.keep_edits(tmp_path / "config.json")
    again = Settings(load_file(tmp_path / "config.json"))
    assert again.value("grid_workers") == 5
    assert again.value("grid_chunk_ram_mb") == settings.value("grid_chunk_ram_mb") == 512


def test_options_are_found_by_their_words_and_advanced_ones_too(qtbot):
    with opened(qtbot) as window:
        window.go("mosaic")
        options = window.mosaic.options
        shown = lambda: [row.option.key for row in options.rows if row.isVisible()]  # noqa: E731
        assert "frame_feather_px" not in shown()
        typed(qtbot, options.search, "soft edge")
        assert shown() == ["frame_feather_px"]
        typed(qtbot, options.search, "no such words")
        assert shown() == []
        assert options._none.isVisible()
        options.search.clear()
        click(qtbot, options.advanced)
        assert len(shown()) == len(options.rows)


def test_presets_are_chosen_by_clicks_and_settings_files_are_read(qtbot, tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"grid_wrokers": 2, "resampling_kernel": "bilinear"}', encoding="utf-8")
    with opened(qtbot) as window:
        window.go("mosaic")
        click(qtbot, window.mosaic.presets.buttons["best"])
        assert window.settings.value("stacking_weighting_method") == "noise_fwhm"
        asked = answering(qtbot, "OK")
        window.mosaic.load_settings(str(path))
        assert "did you mean 'grid_workers'" in asked[0]
        assert window.settings.value("stacking_weighting_method") == "noise_variance"
        window.mosaic.save_settings(str(tmp_path / "copy.json"))
    assert json.loads((tmp_path / "copy.json").read_text(encoding="utf-8"))["grid_wrokers"] == 2


def test_what_was_changed_is_kept_in_the_configuration_when_the_window_closes(qtbot):
    with opened(qtbot) as window:
        window.settings.set("grid_workers", 3)
    assert load_file(config_path())["grid_workers"] == 3


# ---- words -------------------------------------------------------------------------------------------------


def words_used():
    """The keys that the sources ask for: whole ones, and patterns of those that are put together."""
    whole, patterns = set(), set()
    for path in ROOT.glob("zemosaic_gui_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                whole.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    re.escape(p.value) if isinstance(p, ast.Constant) else "[A-Za-z0-9_]+" for p in node.values
                ]
                if any(isinstance(part, ast.Constant) and "." in part.value for part in node.values):
                    patterns.add("".join(parts))
    return whole, patterns


def asked_for():
    """The whole keys of calls of `tr`."""
    for path in ROOT.glob("zemosaic_gui_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_tr = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tr" and node.args
            if is_tr and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value


def test_no_text_is_missing_and_none_is_unused():
    english = texts_of("en")
    assert set(asked_for()) <= set(english)
    whole, patterns = words_used()
    for key in english:
        base = key.removesuffix(".one")
        used = base in whole or any(re.fullmatch(pattern, base) for pattern in patterns)
        assert used or base == "language.name" or base.startswith("choice."), key
    choices = {choice for option in OPTIONS for choice in option.choices} | {"auto", "on", "off"}
    assert {key for key in english if key.startswith("choice.")} == {f"choice.{choice}" for choice in choices}


def test_french_says_all_that_english_says():
    english, french = texts_of("en"), texts_of("fr")
    of_options = {f"option.{option.key}.{what}" for option in OPTIONS for what in ("label", "help")}
    of_options |= {f"section.{option.section}" for option in OPTIONS}
    of_options |= {f"unit.{option.unit}" for option in OPTIONS if option.unit}
    assert set(french) == set(english) | of_options
    for key, text in english.items():
        fields = lambda words: sorted(re.findall(r"{\w+}", words))  # noqa: E731
        assert fields(french[key]) == fields(text), key
    assert all(
        option.label != option.key.replace("_", " ").capitalize() or option.key in ("grid_mode_enabled",)
        for option in OPTIONS
    )


def words_of(window):
    kinds = (QLabel, QAbstractButton)
    return {found.text() for kind in kinds for found in window.findChildren(kind) if found.text()}


def test_the_language_changes_without_a_restart_and_is_remembered(qtbot):
    with opened(qtbot) as window:
        before = words_of(window)
        window.use_language("fr")
        french = words_of(window)
        assert window.steps["run"].text() == "3  Calcul"
        assert len(french & before) < 0.15 * len(before), sorted(french & before)
        assert window.mosaic.grid.rows["grid_size_factor"].editor.focusProxy().text() == "1,00"
        window.use_language("en")
        assert words_of(window) == before
        window.use_language("fr")
    assert open_memory().value("language") == "fr"


def test_a_language_can_be_dropped_in_and_says_the_rest_in_english():
    folder = config_path().parent / "languages"
    folder.mkdir(parents=True)
    (folder / "eo.json").write_text('{"language.name": "Esperanto", "do.start": "Ek"}', encoding="utf-8")
    (folder / "xx.json").write_text("not a language", encoding="utf-8")
    assert languages()["eo"] == "Esperanto"
    set_language("eo")
    assert (tr("do.start"), tr("do.back")) == ("Ek", "Back")
    set_language("xx")
    assert tr("do.start") == "Start"


def test_a_language_file_that_cannot_be_read_is_not_offered(caplog):
    folder = config_path().parent / "languages"
    folder.mkdir(parents=True)
    (folder / "de.json").write_text("{broken", encoding="utf-8")
    assert list(languages()) == ["en", "fr"]
    assert "de.json cannot be used" in caplog.text


def test_a_slip_of_a_translator_costs_one_text(monkeypatch):
    monkeypatch.setitem(zemosaic_gui_text._current.texts, "run.of", "{don} de {total}")
    monkeypatch.setattr(zemosaic_gui_text._current, "english", texts_of("en"))
    assert tr("run.of", done=1, total=2) == "1 of 2"


def test_numbers_are_written_as_the_language_writes_them():
    assert [number_text(2.375, ".2f"), number_text(0.9, ".0%")] == ["2.38", "90%"]
    assert bytes_text(1.1e9) == "1.1 GB"
    set_language("fr")
    assert [number_text(2.375, ".2f"), number_text(-0.9, ".1%")] == ["2,38", "-90,0\u00a0%"]
    assert bytes_text(1.1e9) == "1,1 Go"


def test_one_is_no_plural():
    assert tr("found.frames", n=1) == "1 frame"
    assert tr("found.frames", n=2) == "2 frames"


# ---- looks -------------------------------------------------------------------------------------------------


def luminance(colour):
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.getRgbF()[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(palette, one, other):
    pair = sorted(luminance(palette.color(role)) + 0.05 for role in (one, other))
    return pair[1] / pair[0]


@pytest.mark.parametrize("theme", THEMES)
def test_both_themes_can_be_read_and_are_remembered(qtbot, theme):
    roles = QPalette.ColorRole
    with opened(qtbot) as window:
        window.use_theme(theme)
        palette = QApplication.instance().palette()
        for text, ground in ((roles.WindowText, roles.Window), (roles.Text, roles.Base)):
            assert contrast(palette, text, ground) > 7
        for ground in (roles.Window, roles.Base, roles.Button):
            assert contrast(palette, roles.PlaceholderText, ground) > 4.5
        assert contrast(palette, roles.HighlightedText, roles.Highlight) > 4.5
        dark = palette.color(roles.Window).lightness() < 128
        assert theme == "system" or dark == (theme == "dark")
    assert open_memory().value("theme") == theme


def test_a_file_that_cannot_be_read_is_warned_of_once(qtbot, monkeypatch):
    shown = []
    monkeypatch.setattr(QMessageBox, "warning", lambda *words: shown.append(words[-1]))
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text("{", encoding="utf-8")
    with opened(qtbot) as window:
        window.settings.set("grid_workers", 2)
        for _ in range(3):
            window._keep_settings()
        assert len(shown) == 1
        assert str(config_path()) in shown[0]
        config_path().write_text("[]", encoding="utf-8")
        window._keep_settings()
        assert len(shown) == 2  # another reason
        assert window.settings.config()["grid_workers"] == 2
    assert len(shown) == 2


def test_what_was_said_of_a_file_at_the_start_is_not_said_again(qtbot, monkeypatch):
    shown = []
    monkeypatch.setattr(QMessageBox, "warning", lambda *words: shown.append(words[-1]))
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError) as trouble:
        load_file()
    with opened(qtbot) as window:
        window.warn_once(str(trouble.value), "at the start")
        window.settings.set("grid_workers", 2)
        window._keep_settings()
    assert shown == ["at the start"]


def test_the_place_of_the_window_is_kept(qtbot):
    with opened(qtbot) as window:
        window.resize(790, 690)
    assert Path(open_memory().fileName()).parent == config_path().parent
    with opened(qtbot) as window:
        assert (window.width(), window.height()) == (790, 690)


def test_every_control_is_reached_by_the_keyboard_and_named(qtbot):
    with opened(qtbot) as window:
        window.go("mosaic")
        for row in window.mosaic.findChildren(OptionRow):
            control = row.editor.focusProxy()
            assert control.focusPolicy() != 0
            assert control.accessibleName() == option_label(row.option)


def test_widgets_take_their_words_when_qt_tells_them(qtbot):
    row = OptionRow("grid_workers", Settings())
    qtbot.addWidget(row)
    set_language("fr")
    QApplication.sendEvent(row, QEvent(QEvent.Type.LanguageChange))
    assert row._label.text() == "Processus"


def test_the_tests_have_a_configuration_of_their_own():
    assert str(config_path()).startswith(os.environ["XDG_CONFIG_HOME"])
    apply_theme(QApplication.instance() or QApplication([]), "light")
