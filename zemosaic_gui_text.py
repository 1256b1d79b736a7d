"""The words of the desktop program, in the language that the user chose.

A language is one JSON file, ``zemosaic_locales/xx.json``: a text by its key, with placeholders in braces. A file
of that form in the folder ``languages`` beside the user's configuration is one more language, or replaces texts of
one. What a language lacks is said in English. Labels and help of options are English in the table of options
(`zemosaic_config.OPTIONS`); a language translates them under ``option.KEY.label`` and ``option.KEY.help``. What a
run tells is English; a language translates it in the object ``sentences`` (`zemosaic_gui_sentences`).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from zemosaic_config import Option, config_path

logger = logging.getLogger("ZeMosaicWorker.gui")

ENGLISH = "en"
_SHIPPED = Path(__file__).with_name("zemosaic_locales")


def _folders() -> tuple[Path, ...]:
    return _SHIPPED, config_path().parent / "languages"


def _read(path: Path) -> dict[str, object]:
    """Return the content of a file; one of somebody else's that cannot be used is logged and has none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("the language file %s cannot be used: %s", path, error)
        return {}
    if not isinstance(content, dict):
        logger.warning("the language file %s must hold one JSON object", path)
        return {}
    return content


def _contents(code: str) -> list[dict[str, object]]:
    """Return what the files of a language hold; the user's comes last, and so before the program's."""
    paths = (folder / f"{code}.json" for folder in _folders())
    return [_read(path) for path in paths if path.is_file()]


def _texts_in(content: object) -> dict[str, str]:
    known = content if isinstance(content, dict) else {}
    return {key: text for key, text in known.items() if isinstance(text, str)}


def texts_of(code: str) -> dict[str, str]:
    """Return all texts that a language has, by their keys; a user's file comes before the program's."""
    return {key: text for content in _contents(code) for key, text in _texts_in(content).items()}


def sentences_of(code: str) -> dict[str, str]:
    """Return how a language says the English sentences of a run, by these; a user's file comes first here too."""
    parts = (_texts_in(content.get("sentences")) for content in _contents(code))
    return {english: text for part in parts for english, text in part.items()}


def languages() -> dict[str, str]:
    """Return the name of each language, in itself, by its code; sorted by code."""
    codes = sorted({path.stem for folder in _folders() if folder.is_dir() for path in folder.glob("*.json")})
    return {code: texts_of(code).get("language.name", code) for code in codes}


class _Current:
    """The language in use."""

    def __init__(self) -> None:
        self.english = texts_of(ENGLISH)
        self.code, self.texts = ENGLISH, self.english
        self.sentences: dict[str, str] = {}


_current = _Current()


def language() -> str:
    """Return the code of the language in use."""
    return _current.code


def set_language(code: str) -> None:
    """Use a language from now on; widgets take their words anew when Qt tells them of a change of language."""
    _current.code = code
    _current.texts = _current.english | texts_of(code)
    _current.sentences = sentences_of(code)


def sentences() -> dict[str, str]:
    """Return those of the language in use: another object after each `set_language`."""
    return _current.sentences


def tr(key: str, **values: object) -> str:
    """Return a text, its placeholders filled; for ``n=1`` the text of ``KEY.one`` if there is one.

    Raises
    ------
    KeyError
        If there is no such text, a slip of the programmer.
    """
    if values.get("n") == 1 and f"{key}.one" in _current.texts:
        key = f"{key}.one"
    text = _current.texts[key]
    try:
        return text.format(**values)
    except (KeyError, IndexError, ValueError):  # a slip of the translator
        logger.warning("the text %s of the language %s cannot be filled", key, _current.code)
        return _current.english[key].format(**values)


def number_text(value: float, form: str) -> str:
    """Return a number in a format of Python, a percentage too, as the language in use writes it."""
    text = format(value, form).replace(".", tr("number.decimal"))
    return tr("number.percent", n=text[:-1]) if text.endswith("%") else text


def option_label(option: Option) -> str:
    """Return what an option is called."""
    return _current.texts.get(f"option.{option.key}.label", option.label)


def option_help(option: Option) -> str:
    """Return what an option does."""
    return _current.texts.get(f"option.{option.key}.help", option.doc)


def section_label(section: str) -> str:
    """Return what a section of the options is called."""
    return _current.texts.get(f"section.{section}", section)


def unit_label(unit: str) -> str:
    """Return a unit."""
    return _current.texts.get(f"unit.{unit}", unit)


def choice_label(choice: str) -> str:
    """Return what a choice of an option is called."""
    return _current.texts.get(f"choice.{choice}", choice)
