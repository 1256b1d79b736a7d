"""The second page: what the mosaic is to be. Presets and Grid mode on the left, every option on the right."""

from __future__ import annotations

from PySide6.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from zemosaic_config import OPTIONS
from zemosaic_gui_form import OptionRow
from zemosaic_gui_grid_group import GRID_KEYS, GridGroup
from zemosaic_gui_parts import GAP, Card, ScrollArea, label
from zemosaic_gui_sentences import told
from zemosaic_gui_settings import PRESETS, Settings
from zemosaic_gui_text import section_label, tr
from zemosaic_gui_theme import FollowsLanguage
from zemosaic_types import ConfigError

#: Options that have a place of their own elsewhere.
ELSEWHERE = {"input_dir", "output_dir", "grid_mode_enabled", *GRID_KEYS}


class Presets(Card):
    """Three ways to start from."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._heading = label("heading")
        self.column.addWidget(self._heading)
        self.buttons: dict[str, QPushButton] = {}
        row = QHBoxLayout()
        row.setSpacing(8)
        for name in PRESETS:
            button = self.buttons[name] = QPushButton(checkable=True)
            button.setObjectName("preset")
            button.clicked.connect(lambda _, name=name: self._apply(name))
            row.addWidget(button, 1)
        self._help = label("faint", wrap=True)
        self.column.addLayout(row)
        self.column.addWidget(self._help)
        settings.changed.connect(self._refresh)
        settings.replaced.connect(self._refresh)
        self.retranslate()

    def _apply(self, name: str) -> None:
        self._settings.apply_preset(name)
        self._refresh()

    def _refresh(self, _key: str = "") -> None:
        current = self._settings.preset()
        for name, button in self.buttons.items():
            button.setChecked(name == current)
        self._help.setText(tr(f"preset.{current or 'own'}.help"))

    def retranslate(self) -> None:
        """Take the words anew."""
        self._heading.setText(tr("preset.heading"))
        for name, button in self.buttons.items():
            button.setText(tr(f"preset.{name}"))
            button.setToolTip(tr(f"preset.{name}.help"))
        self._refresh()


class AllOptions(Card):
    """Every option that has no place elsewhere, by sections, searchable."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._heading = label("heading")
        self.search = QLineEdit(clearButtonEnabled=True)
        self.advanced = QCheckBox()
        self._none = label("faint")
        self.rows = [OptionRow(option.key, settings) for option in OPTIONS if option.key not in ELSEWHERE]
        self._sections: dict[str, QLabel] = {}
        self.search.textChanged.connect(self._look)
        self.advanced.toggled.connect(self._look)
        top = QHBoxLayout()
        top.addWidget(self._heading)
        top.addStretch(1)
        top.addWidget(self.advanced)
        self.column.addLayout(top)
        self.column.addWidget(self.search)
        self.column.addWidget(self._scroll(), 1)
        self.retranslate()
        self._look()

    def _scroll(self) -> ScrollArea:
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 8, 0)
        column.setSpacing(2)
        for row in self.rows:
            section = row.option.section
            if section not in self._sections:
                self._sections[section] = label("heading")
                self._sections[section].setContentsMargins(0, 12, 0, 2)
                column.addWidget(self._sections[section])
            column.addWidget(row)
        column.addWidget(self._none)
        column.addStretch(1)
        return ScrollArea(inside, stops=False)

    def _look(self) -> None:
        """Show what the words are found in, advanced or not; without words what most users need."""
        words = self.search.text().casefold().split()
        shown = set()
        for row in self.rows:
            wanted = row.matches(words) if words else self.advanced.isChecked() or not row.option.advanced
            row.setVisible(wanted)
            if wanted:
                shown.add(row.option.section)
        for section, heading in self._sections.items():
            heading.setVisible(section in shown)
        self._none.setVisible(not shown)

    def retranslate(self) -> None:
        """Take the words anew."""
        self._heading.setText(tr("options.heading"))
        self.search.setPlaceholderText(tr("options.search"))
        self.search.setAccessibleName(tr("options.search"))
        self.advanced.setText(tr("options.advanced"))
        self._none.setText(tr("options.none"))
        for section, heading in self._sections.items():
            heading.setText(section_label(section))


class MosaicPage(FollowsLanguage, QWidget):
    """The page of the options."""

    def __init__(self, settings: Settings, *, classic: bool) -> None:
        super().__init__()
        self._settings = settings
        self.presets, self.options = Presets(settings), AllOptions(settings)
        self.grid = GridGroup(settings, classic=classic)
        self.load, self.save = QPushButton(), QPushButton()
        self.load.clicked.connect(self._ask_load)
        self.save.clicked.connect(self._ask_save)
        self._lay_out()
        self.retranslate()

    def _lay_out(self) -> None:
        files = QHBoxLayout()
        files.addWidget(self.load)
        files.addWidget(self.save)
        files.addStretch(1)
        inside = QWidget()
        left = QVBoxLayout(inside)
        left.setContentsMargins(0, 0, 0, 0)
        left.setSpacing(GAP)
        left.addWidget(self.presets)
        left.addWidget(self.grid)
        left.addLayout(files)
        left.addStretch(1)
        row = QHBoxLayout(self)
        row.setContentsMargins(GAP, GAP, GAP, GAP)
        row.setSpacing(GAP)
        row.addWidget(ScrollArea(inside, stops=False), 5)
        row.addWidget(self.options, 6)

    def look_for_gpu(self) -> None:
        """Look for GPUs, the first time that the page is shown."""
        self.grid.look_for_gpu()

    def shutdown(self) -> None:
        """End what the page has started."""
        self.grid.search.shutdown()

    def load_settings(self, path: str) -> None:
        """Take all options from a file, or say why not."""
        try:
            self._settings.load(path)
        except ConfigError as error:
            QMessageBox.warning(self, tr("settings.load"), told(str(error)))
            return
        if self._settings.notes:
            QMessageBox.information(self, tr("settings.load"), "\n\n".join(map(told, self._settings.notes)))

    def save_settings(self, path: str) -> None:
        """Write all options into a file, or say why not."""
        try:
            self._settings.save_as(path)
        except ConfigError as error:
            QMessageBox.warning(self, tr("settings.save"), told(str(error)))

    def _ask_load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, tr("settings.load"), "", "JSON (*.json)")
        if path:
            self.load_settings(path)

    def _ask_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, tr("settings.save"), "zemosaic_settings.json", "JSON (*.json)")
        if path:
            self.save_settings(path)

    def retranslate(self) -> None:
        """Take the words anew."""
        self.load.setText(tr("settings.load"))
        self.save.setText(tr("settings.save"))
        self.presets.retranslate()
        self.options.retranslate()
