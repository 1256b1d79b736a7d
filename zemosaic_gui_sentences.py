"""What a run tells, in the language of the window.

Below the window every sentence is plain English: it goes into logs, ledgers and terminals, where people who help
each other must find the same words. The window translates a sentence when it shows it. A language has templates
for that, ``sentences`` in its file: ``"{path} cannot be read: {reason}"``, and in its own words the same with the
same placeholders. What stands at a placeholder is translated too if there is a template for it, and else left as
it is: paths, names, numbers, words of other programs.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Iterator, Mapping
from functools import lru_cache

from zemosaic_gui_text import sentences

logger = logging.getLogger("ZeMosaicWorker.gui")

#: What joins sentences and reasons; a language has its own form of it among its sentences.
JOINTS = ("; ", ": ")
_DEEPEST = 8  # sentences within sentences
_LONGEST = 4000  # characters; no sentence of ours is so long
_CACHED = 1 << 16  # reasons of tens of thousands of frames
_CACHED_PARTS = 1 << 12


def told(text: str) -> str:
    """Return what a run tells in the language in use, each line of it; as it is where there is no template."""
    if not text or not sentences():
        return text
    return "\n".join(map(_book().told, text.split("\n")))


def pieces(template: str) -> tuple[list[str], list[str]]:
    """Return the literal texts of a template and the names of the placeholders between them.

    Raises
    ------
    ValueError
        If a placeholder has no name, has one twice, stands right behind another or asks for a format.
    """
    literals, names = [""], []
    for literal, name, form, conversion in string.Formatter().parse(template):
        literals[-1] += literal
        if name is None:
            continue
        if form or conversion or not name.isidentifier() or name in names or (names and not literals[-1]):
            raise ValueError(f"the placeholder {name!r} of {template!r} cannot be used")
        names.append(name)
        literals.append("")
    return literals, names


class _Template:
    """An English sentence with gaps, and its translation."""

    def __init__(self, english: str, text: str) -> None:
        self.literals, self.names = pieces(english)
        self.text = text
        if sorted(self.names) != sorted(pieces(text)[1]):
            raise ValueError(f"{text!r} has not the placeholders of {english!r}")
        self.size = sum(map(len, self.literals))

    def match(self, text: str) -> list[str] | None:
        """Return what stands in the gaps of a text, None if it is another sentence."""
        first, *middle, last = self.literals
        start, end = len(first), len(text) - len(last)
        if start > end or not text.startswith(first) or not text.endswith(last):
            return None
        values = []
        for literal in middle:
            at = text.find(literal, start, end)
            if at < 0:
                return None
            values.append(text[start:at])
            start = at + len(literal)
        return [*values, text[start:end]]

    def fits(self, values: list[str]) -> bool:
        """Whether values can stand in the gaps; only one at the end can be a reason with its subject."""
        inner = values if self.literals[-1] else values[:-1]
        return all(map(_is_one, values)) and all(len(_parts(value, ": ")) == 1 for value in inner)

    def filled(self, values: list[str]) -> str:
        """Return the translation with these values in its gaps."""
        return self.text.format(**dict(zip(self.names, values, strict=True)))

    def words(self) -> Iterator[str]:
        """Yield the words that stand in every such sentence, between spaces or at its ends."""
        for k, literal in enumerate(self.literals):
            before = "" if k == 0 else "_"
            behind = "" if k == len(self.literals) - 1 else "_"
            words = f"{before}{literal}{behind}".split(" ")
            yield from words[bool(before) : len(words) - bool(behind)]


def _parts(text: str, joint: str) -> list[str]:
    """Return what a text is joined of; what stands in brackets is not taken apart."""
    parts: list[str] = []
    for piece in text.split(joint):
        if parts and parts[-1].count("(") > parts[-1].count(")"):
            parts[-1] += f"{joint}{piece}"
        else:
            parts.append(piece)
    return parts


def _is_one(value: str) -> bool:
    """Whether a value can be one name or reason: not the end of a sentence with the beginning of another."""
    paired = value.count("(") == value.count(")") and value.find("(") <= value.find(")")
    return paired and not value.endswith(";") and len(_parts(value, "; ")) == 1


class _Book:
    """The templates of a language; a text is compared with those only that share a long word with it."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self.source = templates
        self._joints = {joint: templates.get(joint, joint) for joint in JOINTS}
        self._whole: dict[str, str] = {}
        self._by_word: dict[str, list[_Template]] = {}
        for english, text in templates.items():
            try:
                template = _Template(english, text)
            except ValueError as error:  # a slip of the translator
                logger.warning("a sentence of the language file cannot be used: %s", error)
                continue
            if template.names:
                self._by_word.setdefault(max(template.words(), key=len, default=""), []).append(template)
            else:
                self._whole["".join(template.literals)] = template.text.format()
        self._part = lru_cache(_CACHED_PARTS)(self._told)
        self.told = lru_cache(_CACHED)(self._told)

    def _told(self, text: str, depth: int = 0) -> str:
        """Return a line translated: as a sentence, as several, or as a reason behind its subject."""
        if depth > _DEEPEST or len(text) > _LONGEST:
            return text
        if " " not in text or text in self._whole:
            return self._whole.get(text, text)
        matches = self._matches(text)
        for template, values in matches:
            if template.fits(values):
                return self._filled(template, values, depth)
        several, known = self._joined(_parts(text, "; "), "; ", depth)
        if all(known):
            return several
        subject, *reason = _parts(text, ": ")
        with_reason, clear = self._joined([subject, ": ".join(reason)] if reason else [text], ": ", depth)
        if clear[-1]:
            return with_reason
        if matches:
            return self._filled(*matches[0], depth)
        return several if any(known) else with_reason

    def _joined(self, parts: list[str], joint: str, depth: int) -> tuple[str, list[bool]]:
        """Return parts translated one by one and joined, and which of them a template knows."""
        if len(parts) == 1:
            return parts[0], [False]
        said = [self._part(part, depth + 1) for part in parts]
        known = [new != old for new, old in zip(said, parts, strict=True)]
        return (self._joints[joint] if any(known) else joint).join(said), known

    def _matches(self, text: str) -> list[tuple[_Template, list[str]]]:
        """Return the templates that a text may be and what stands in their gaps; the one that says most first."""
        words = dict.fromkeys((*text.split(" "), ""))
        candidates = [template for word in words for template in self._by_word.get(word, ())]
        found = [(t, values) for t in candidates if (values := t.match(text)) is not None]
        return sorted(found, key=lambda match: -match[0].size)

    def _filled(self, template: _Template, values: list[str], depth: int) -> str:
        return template.filled([self._part(value, depth + 1) for value in values])


_latest = _Book({})


def _book() -> _Book:
    """Return the templates of the language in use, made ready once."""
    global _latest
    if _latest.source is not sentences():
        _latest = _Book(sentences())
    return _latest
