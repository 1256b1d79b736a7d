"""Options as a form: an editor for each kind of value, with its help, its default and a way back to it."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from zemosaic_config import Option, Value, find_option
from zemosaic_gui_parts import sized
from zemosaic_gui_settings import Settings
from zemosaic_gui_text import choice_label, option_help, option_label, tr, unit_label
from zemosaic_gui_theme import FollowsLanguage
from zemosaic_types import ConfigError

_EDITOR_WIDTH = 178
_EDITOR_HEIGHT = 28
_MOST = 2**31 - 1
_SWITCH = (None, True, False)


class Editor(QWidget):
    """Edits the value of one option; `edited` has the new value when the user has changed it."""

    edited = Signal(object)

    def __init__(self, option: Option) -> None:
        super().__init__()
        self.option = option
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.setSpacing(6)
        self._build()

    def _build(self) -> None:
        raise NotImplementedError

    def show_value(self, value: Value) -> None:
        """Show a value, without `edited`."""
        raise NotImplementedError

    def retranslate(self) -> None:
        """Take the words anew."""

    def _put(self, *widgets: QWidget) -> None:
        for widget in widgets:
            self._row.addWidget(widget)
            widget.setObjectName(self.option.key)
            widget.setMinimumHeight(sized(_EDITOR_HEIGHT))
        self.setFocusProxy(widgets[0])


class _Tick(Editor):
    def _build(self) -> None:
        self._box = QCheckBox()
        self._box.clicked.connect(lambda value: self.edited.emit(value))
        self._put(self._box)

    def show_value(self, value: Value) -> None:
        self._box.setChecked(bool(value))


class _Choice(Editor):
    """A choice of the table, or a switch: automatic, on, off."""

    def _build(self) -> None:
        self._box = _calm(QComboBox())
        self._values = _SWITCH if self.option.kind == "switch" else self.option.choices
        self._box.addItems([""] * len(self._values))
        self._box.activated.connect(lambda k: self.edited.emit(self._values[k]))
        self._put(self._box)
        self.retranslate()

    def show_value(self, value: Value) -> None:
        self._box.setCurrentIndex(self._values.index(value))

    def retranslate(self) -> None:
        words = {None: "auto", True: "on", False: "off"}
        for k, value in enumerate(self._values):
            self._box.setItemText(k, choice_label(words.get(value, value)))


class _Number(Editor):
    def _build(self) -> None:
        self._box = _spin_box(self.option)
        self._box.valueChanged.connect(lambda value: self.edited.emit(value))
        self._put(self._box)
        self.retranslate()

    def show_value(self, value: Value) -> None:
        _show_number(self._box, value)

    def retranslate(self) -> None:
        self._box.setSuffix(f" {unit_label(self.option.unit)}" if self.option.unit else "")


class _Pair(Editor):
    def _build(self) -> None:
        self._boxes = _spin_box(self.option), _spin_box(self.option)
        for box in self._boxes:
            box.setMaximum(self.option.maximum - 10.0 ** -box.decimals())  # the maximum itself is refused
            box.valueChanged.connect(lambda _: self.edited.emit(tuple(b.value() for b in self._boxes)))
        self._put(*self._boxes)

    def show_value(self, value: Value) -> None:
        for box, part in zip(self._boxes, value, strict=True):
            _show_number(box, part)


def _show_number(box: QAbstractSpinBox, value: float) -> None:
    if box.value() != value:  # else what is half typed would be written anew
        before = box.blockSignals(True)
        box.setValue(value)
        box.blockSignals(before)


class _Text(Editor):
    def _build(self) -> None:
        self._line = QLineEdit()
        self._line.textEdited.connect(lambda value: self.edited.emit(value))
        self._put(self._line)

    def show_value(self, value: Value) -> None:
        if self._line.text() != value:
            self._line.setText(value)


_EDITORS: dict[str, Callable[[Option], Editor]] = {
    "bool": _Tick,
    "switch": _Choice,
    "choice": _Choice,
    "int": _Number,
    "float": _Number,
    "pair": _Pair,
    "str": _Text,
}


class _CalmFilter(QObject):
    """Lets the wheel scroll the page instead of changing a value that the user only passes over."""

    def eventFilter(self, watched: QWidget, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Wheel and not watched.hasFocus():
            event.ignore()
            return True
        return super().eventFilter(watched, event)


def _calm(box: QWidget) -> QWidget:
    box.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    box.installEventFilter(_CalmFilter(box))
    return box


def _spin_box(option: Option) -> QAbstractSpinBox:
    box = QSpinBox() if option.kind == "int" else QDoubleSpinBox()
    if option.kind != "int":
        box.setDecimals(3 if option.unit == "deg" or (option.maximum or _MOST) <= 1 else 2)
        box.setSingleStep(0.01 if (option.maximum or _MOST) <= 1 else 0.1)
    box.setRange(
        -1 if option.minimum is None else option.minimum, _MOST if option.maximum is None else option.maximum
    )
    if option.unit == "MB":
        box.setSingleStep(64)
    return _calm(box)


def editor_for(option: Option, settings: Settings) -> Editor:
    """Return an editor that shows an option's value and changes it."""
    editor = _EDITORS[option.kind](option)
    editor.show_value(settings.value(option.key))

    def refresh(key: str = option.key) -> None:
        if key == option.key:
            editor.show_value(settings.value(key))

    def take(value: Value) -> None:
        try:
            settings.set(option.key, value)
        except ConfigError:  # half typed: a pair or a path on its way to something that can be used
            return

    editor.edited.connect(take)
    settings.changed.connect(refresh)
    settings.replaced.connect(refresh)
    return editor


def value_text(option: Option, value: Value) -> str:
    """Return a value as people read it."""
    if option.kind in ("bool", "switch"):
        return choice_label({None: "auto", True: "on", False: "off"}[value])
    if option.kind == "choice":
        return choice_label(value)
    if option.kind == "pair":
        return " · ".join(f"{part:g}" for part in value)
    if option.kind == "str":
        return value or tr("form.empty")
    return f"{value:g}"


class OptionRow(FollowsLanguage, QWidget):
    """An option in the form: what it is called, what it does, its editor, its default.

    Parameters
    ----------
    key : str
        Of the option.
    settings : Settings
    brief : bool
        Without the line that says what the option does; the tool tip has it.
    """

    def __init__(self, key: str, settings: Settings, *, brief: bool = False) -> None:
        super().__init__()
        self.option = find_option(key)
        self._settings = settings
        self._label, self._help = QLabel(wordWrap=True), QLabel(wordWrap=True)
        self._help.setObjectName("faint")
        self._help.setVisible(not brief)
        self._back = QToolButton(text="↺")
        self._back.clicked.connect(lambda: settings.reset(key))
        policy = self._back.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self._back.setSizePolicy(policy)
        self.editor = editor_for(self.option, settings)
        self._lay_out()
        settings.changed.connect(self._mark)
        settings.replaced.connect(self._mark)
        self.retranslate()

    def _lay_out(self) -> None:
        words = QVBoxLayout()
        words.setSpacing(1)
        words.addWidget(self._label)
        words.addWidget(self._help)
        self.editor.setFixedWidth(sized(_EDITOR_WIDTH))
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 5, 0, 5)
        row.setSpacing(6)
        row.addLayout(words, 1)
        row.addWidget(self.editor)
        row.addWidget(self._back)

    def matches(self, words: list[str]) -> bool:
        """Whether all words are in the key, the name or the help, in any case."""
        text = " ".join((self.option.key, option_label(self.option), option_help(self.option))).casefold()
        return all(word in text for word in words)

    def retranslate(self) -> None:
        """Take the words anew."""
        option = self.option
        self._label.setText(option_label(option))
        self._help.setText(option_help(option))
        default = tr("form.default", value=value_text(option, option.default))
        self._back.setToolTip(tr("form.reset", default=default))
        self._back.setAccessibleName(self._back.toolTip())
        self.setToolTip(f"{option_help(option)}\n{default}\n{option.key}")
        self.editor.retranslate()
        for part in self.editor.findChildren(QWidget, option.key):
            part.setAccessibleName(option_label(option))
            part.setAccessibleDescription(option_help(option))
        self._mark()

    def _mark(self, key: str = "") -> None:
        if key in ("", self.option.key):
            self._back.setVisible(not self._settings.is_default(self.option.key))
