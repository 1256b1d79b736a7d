"""How the program looks: light, dark, or as the system is; what widgets that follow it have in common."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QEvent, Qt
from PySide6.QtGui import QColor, QFontInfo, QPalette
from PySide6.QtWidgets import QApplication

#: What the user may choose.
THEMES = ("system", "light", "dark")

_PICTURES = Path(__file__).with_name("zemosaic_pictures")

_LIGHT = {
    "window": "#f4f5f7",
    "base": "#ffffff",
    "raised": "#ffffff",
    "text": "#1d2430",
    "faint": "#667085",
    "line": "#d9dde4",
    "edge": "#b4bac4",
    "hover": "#e9ecf1",
    "accent": "#2563c9",
    "accent_hover": "#1d53ab",
    "on_accent": "#ffffff",
    "warning": "#9a5b00",
    "error": "#b3261e",
}
_DARK = {
    "window": "#15181d",
    "base": "#1b1f26",
    "raised": "#1f242c",
    "text": "#e7eaf0",
    "faint": "#98a2b3",
    "line": "#3a424f",
    "edge": "#596372",
    "hover": "#2a303a",
    "accent": "#4c8dff",
    "accent_hover": "#6aa1ff",
    "on_accent": "#0b1220",
    "warning": "#f0b45c",
    "error": "#ff8a80",
}

#: Sizes of letters, in those of the program's font.
_LETTERS = {"title": 1.9, "number": 1.8, "heading": 1.2}

_SHEET = """
QToolTip { color: %(text)s; background: %(raised)s; border: 1px solid %(line)s; padding: 5px; }
QFrame#card { background: %(raised)s; border: 1px solid %(line)s; border-radius: 10px; }
QFrame#footer, QFrame#header { background: %(raised)s; }
QFrame#header { border-bottom: 1px solid %(line)s; }
QFrame#footer { border-top: 1px solid %(line)s; }
QLabel#title { font-size: %(title_pt)spt; font-weight: 600; }
QLabel#heading { font-size: %(heading_pt)spt; font-weight: 600; }
QLabel#faint { color: %(faint)s; }
QLabel#number { font-size: %(number_pt)spt; font-weight: 600; }
QLabel#warning { color: %(warning)s; }
QLabel#error { color: %(error)s; }
QPushButton { padding: 6px 14px; border: 1px solid %(line)s; border-radius: 6px; background: %(raised)s; }
QPushButton:hover, QToolButton:hover { background: %(hover)s; }
QPushButton:focus, QToolButton:focus { border: 2px solid %(accent)s; }
QPushButton:focus { padding: 5px 13px; }
QToolButton:focus { padding: 4px 7px; }
QPushButton:disabled { color: %(faint)s; }
QPushButton[primary="true"] {
    background: %(accent)s; color: %(on_accent)s; border: 1px solid %(accent)s;
    font-weight: 600; padding: 8px 22px;
}
QPushButton[primary="true"]:hover { background: %(accent_hover)s; }
QPushButton[primary="true"]:focus { border: 2px solid %(text)s; padding: 7px 21px; }
QPushButton[primary="true"]:disabled { background: %(hover)s; color: %(faint)s; border-color: %(line)s; }
QToolButton { padding: 5px 8px; border: 1px solid transparent; border-radius: 6px; background: transparent; }
QToolButton#step { padding: 9px 18px; font-size: %(heading_pt)spt; color: %(faint)s; border-radius: 8px; }
QToolButton#step:checked { color: %(accent)s; background: %(hover)s; font-weight: 600; }
QPushButton, QToolButton, QCheckBox { outline: none; }
QToolButton#step:focus { border: 2px solid %(accent)s; padding: 8px 17px; }
QCheckBox::indicator {
    width: 16px; height: 16px; border: 1px solid %(edge)s; border-radius: 4px; background: %(base)s;
}
QCheckBox::indicator:hover { border-color: %(accent)s; }
QCheckBox::indicator:checked {
    background: %(accent)s; border-color: %(accent)s; image: url("%(tick)s");
}
QCheckBox::indicator:focus { border: 2px solid %(accent)s; width: 14px; height: 14px; }
QCheckBox::indicator:checked:focus { border: 2px solid %(text)s; }
QToolButton::menu-indicator { image: none; }
QPushButton#preset { text-align: left; padding: 10px 8px; }
QPushButton#preset:checked { border: 2px solid %(accent)s; padding: 9px 7px; background: %(hover)s; }
QPushButton#preset:focus { border: 2px solid %(text)s; padding: 9px 7px; }
QPushButton#drop { background: %(raised)s; border: 2px dashed %(line)s; border-radius: 14px; padding: 0; }
QPushButton#drop:focus { border-color: %(accent)s; padding: 0; }
QPushButton#drop[over="true"] { border-color: %(accent)s; background: %(hover)s; }
QLineEdit { padding: 4px 8px; border: 1px solid %(line)s; border-radius: 6px; background: %(base)s; }
QLineEdit:focus { padding: 3px 7px; border: 2px solid %(accent)s; }
QPlainTextEdit, QTableView { border: 1px solid %(line)s; border-radius: 6px; padding: 1px; }
QPlainTextEdit:focus, QTableView:focus { border: 2px solid %(accent)s; padding: 0; }
QFrame#ring { border: 2px solid %(accent)s; background: transparent; }
QHeaderView::section { padding: 5px 8px; border: none; border-bottom: 1px solid %(line)s; background: %(raised)s; }
QScrollBar:vertical { background: transparent; width: 10px; margin: 0; }
QScrollBar:horizontal { background: transparent; height: 10px; margin: 0; }
QScrollBar::handle { background: %(line)s; border-radius: 4px; min-height: 32px; min-width: 32px; margin: 1px; }
QScrollBar::handle:hover { background: %(faint)s; }
QScrollBar::add-line, QScrollBar::sub-line { width: 0; height: 0; }
QScrollBar::add-page, QScrollBar::sub-page { background: transparent; }
QScrollArea, QScrollArea > QWidget > QWidget { background: transparent; border: none; }
QScrollArea:focus { border: 2px solid %(accent)s; border-radius: 6px; }
QSlider { border: 1px solid transparent; border-radius: 4px; }
QSlider:focus { border: 1px solid %(accent)s; }
QProgressBar { border: none; border-radius: 5px; background: %(hover)s; max-height: 10px; min-height: 10px; }
QProgressBar::chunk { border-radius: 5px; background: %(accent)s; }
QTabWidget::pane { border: 1px solid %(line)s; border-radius: 8px; background: %(raised)s; top: -1px; }
QTabBar::tab { padding: 7px 16px; border: none; color: %(faint)s; }
QTabBar::tab:selected { color: %(text)s; font-weight: 600; border-bottom: 2px solid %(accent)s; }
QTabBar::tab:focus { color: %(accent)s; }
QSplitter::handle { background: transparent; }
"""


class FollowsLanguage:
    """Makes a widget put its words anew, by its `retranslate`, when the language changes; before Qt's class."""

    def changeEvent(self, event: QEvent) -> None:
        """Follow the language."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.LanguageChange:
            self.retranslate()


class FollowsLook(FollowsLanguage):
    """The same for the colours that a widget paints itself, by its `_paint_theme`."""

    def changeEvent(self, event: QEvent) -> None:
        """Follow the language and the theme."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange):
            self._paint_theme()


def is_dark(theme: str) -> bool:
    """Whether a theme is dark now; that of the system may change."""
    if theme == "system":
        return QApplication.styleHints().colorScheme() == Qt.ColorScheme.Dark
    return theme == "dark"


def apply_theme(application: QApplication, theme: str) -> None:
    """Give the program a theme, one of `THEMES`."""
    colours = _DARK if is_dark(theme) else _LIGHT
    # To replace a sheet takes several times as long as to take it off and put one on; it also hides the style.
    application.setStyleSheet("")
    if application.style().objectName() != "fusion":
        application.setStyle("Fusion")
    application.setPalette(_palette(colours))
    tick = _PICTURES / ("tick_dark.svg" if is_dark(theme) else "tick_light.svg")
    application.setStyleSheet(_SHEET % (colours | _sizes(application) | {"tick": tick.as_posix()}))


def _sizes(application: QApplication) -> dict[str, str]:
    """Return the sizes of the large letters, which grow with the system's own."""
    points = QFontInfo(application.font()).pointSizeF()
    return {f"{name}_pt": f"{times * points:.1f}" for name, times in _LETTERS.items()}


def _palette(colours: dict[str, str]) -> QPalette:
    roles = QPalette.ColorRole
    named = {
        roles.Window: "window",
        roles.WindowText: "text",
        roles.Base: "base",
        roles.AlternateBase: "window",
        roles.Text: "text",
        roles.Button: "raised",
        roles.ButtonText: "text",
        roles.BrightText: "error",
        roles.ToolTipBase: "raised",
        roles.ToolTipText: "text",
        roles.PlaceholderText: "faint",
        roles.Highlight: "accent",
        roles.HighlightedText: "on_accent",
        roles.Link: "accent",
        roles.Light: "hover",
        roles.Midlight: "hover",
        roles.Mid: "line",
        roles.Dark: "edge",
        roles.Shadow: "edge",
        roles.Accent: "accent",
    }
    palette = QPalette()
    for role, name in named.items():
        palette.setColor(role, QColor(colours[name]))
    for role in (roles.WindowText, roles.Text, roles.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, role, QColor(colours["faint"]))
    return palette
