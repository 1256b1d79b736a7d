"""The window: four steps from left to right, and what leads from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from PySide6.QtCore import QEvent, QLocale, QSettings, Qt, QTimer
from PySide6.QtGui import QActionGroup, QKeyEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QApplication,
    QButtonGroup,
    QFrame,
    QHBoxLayout,
    QMainWindow,
    QMenu,
    QMessageBox,
    QPushButton,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from zemosaic_config import GPU_KEYS, config_path
from zemosaic_events import FinishReason, RunFinished
from zemosaic_gui_controller import Job, was_cancelled
from zemosaic_gui_input import InputPage
from zemosaic_gui_mosaic import MosaicPage
from zemosaic_gui_parts import duration_range, label, make_primary, show_folder
from zemosaic_gui_result import ResultPage
from zemosaic_gui_run import RunPage
from zemosaic_gui_sentences import told
from zemosaic_gui_settings import Settings
from zemosaic_gui_text import language, languages, set_language, tr
from zemosaic_gui_theme import THEMES, FollowsLanguage, apply_theme
from zemosaic_types import ConfigError, PlanError, ProductExistsError, RunResult, ZeMosaicError, mosaic_stem
from zemosaic_worker import PIPELINES, RunRequest, choose_pipeline, find_pipeline, title_of

STEPS = ("input", "mosaic", "run", "result")
_SIZE = (1240, 800)
#: Options that change what a survey says.
_SURVEY_KEYS = {
    "align_by_stars",
    "astap_data_dir",
    "astap_path",
    "astrometry_local_path",
    "canvas_orientation",
    "cluster_by_filter",
    "cluster_by_instrument",
    "cluster_orientation_split_deg",
    "cluster_panel_threshold",
    "cluster_target_groups",
    "force_resolve_existing_wcs",
    "grid_mode_enabled",
    "grid_size_factor",
    "grid_overlap_px",
    "grid_chunk_ram_mb",
    "grid_workers",
    "save_final_as_uint16",
    "solve_missing_wcs",
    "solver_method",
    "output_dir",
    *GPU_KEYS,
}


class MainWindow(FollowsLanguage, QMainWindow):
    """The desktop program.

    Parameters
    ----------
    settings : Settings
    memory : QSettings
        Keeps the place of the window, the language and the theme.
    """

    def __init__(self, settings: Settings, memory: QSettings) -> None:
        super().__init__()
        self.settings, self._memory = settings, memory
        self.survey, self.run = Job(self), Job(self)
        self._stale_survey = self._survey_again = self._stale_result = self._changed_since = False
        self._waiting: QWidget | None = None  # has the keyboard's focus until there is a button for it
        self._leaving = False
        self._warned: set[str] = set()  # of these reasons
        self._request: RunRequest | None = None  # of the run that goes on, or was the last
        self._made_by: RunRequest | None = None  # the result
        self.input, self.run_page, self.result_page = InputPage(settings), RunPage(), ResultPage()
        self.mosaic = MosaicPage(settings, classic="classic" in PIPELINES)
        self.pages = dict(zip(STEPS, (self.input, self.mosaic, self.run_page, self.result_page), strict=True))
        self.steps: dict[str, QToolButton] = {}
        self.back, self.primary, self.cancel = QPushButton(), QPushButton(), QPushButton()
        self.hint = label("faint", wrap=True)
        self._build()
        self._connect()
        self.retranslate()
        self.go("input")
        self._remember()

    # ---- building ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.stack = QStackedWidget()
        for page in self.pages.values():
            self.stack.addWidget(page)
        middle = QWidget()
        column = QVBoxLayout(middle)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._header())
        column.addWidget(self.stack, 1)
        column.addWidget(self._footer())
        self.setCentralWidget(middle)
        self.resize(*_SIZE)

    def _header(self) -> QFrame:
        header = QFrame()
        header.setObjectName("header")
        row = QHBoxLayout(header)
        row.setContentsMargins(16, 8, 16, 8)
        group = QButtonGroup(self)
        for k, name in enumerate(STEPS, start=1):
            step = self.steps[name] = QToolButton(checkable=True)
            step.setObjectName("step")
            step.setToolTip(QKeySequence(f"Ctrl+{k}").toString(QKeySequence.SequenceFormat.NativeText))
            step.clicked.connect(lambda _, name=name: self.go(name))
            QShortcut(QKeySequence(f"Ctrl+{k}"), self, lambda name=name: self.go(name))
            group.addButton(step)
            if k > 1:
                arrow = label("faint")
                arrow.setText("›")
                row.addWidget(arrow)
            row.addWidget(step)
        row.addStretch(1)
        self.view = QToolButton(popupMode=QToolButton.ToolButtonPopupMode.InstantPopup)
        self.view.setMenu(QMenu(self))
        row.addWidget(self.view)
        return header

    def _footer(self) -> QFrame:
        footer = QFrame()
        footer.setObjectName("footer")
        make_primary(self.primary)
        row = QHBoxLayout(footer)
        row.setContentsMargins(16, 10, 16, 10)
        row.setSpacing(12)
        row.addWidget(self.back)
        row.addWidget(self.hint, 1)
        row.addWidget(self.cancel)
        row.addWidget(self.primary)
        return footer

    def _connect(self) -> None:
        self.input.folder_chosen.connect(self.look)
        self.input.rescan.connect(self._look_anew)
        self.input.excluded_changed.connect(self._on_excluded)
        self.result_page.excluded_changed.connect(self._on_result_excluded)
        self.settings.changed.connect(self._on_setting)
        self.settings.replaced.connect(self._look_anew)
        self.survey.told.connect(self._on_survey)
        self.survey.finished.connect(self._on_survey_end)
        self.run.told.connect(self.run_page.hear)
        self.run.finished.connect(self._on_run_end)
        self.result_page.again.connect(self.run_without_suggested)
        self.back.clicked.connect(lambda: self.go(STEPS[STEPS.index(self.step) - 1]))
        self.primary.clicked.connect(self.lead_on)
        self.cancel.clicked.connect(self.stop)
        QApplication.styleHints().colorSchemeChanged.connect(self._follow_system)

    def _remember(self) -> None:
        geometry = self._memory.value("geometry")
        if geometry is not None:
            self.restoreGeometry(geometry)
        if self.settings.value("input_dir"):
            self.look()

    # ---- steps -------------------------------------------------------------------------------------------

    @property
    def step(self) -> str:
        """The step that is shown."""
        return STEPS[self.stack.currentIndex()]

    def go(self, name: str) -> None:
        """Go to a step."""
        self.stack.setCurrentWidget(self.pages[name])
        self.steps[name].setChecked(True)
        for other, step in self.steps.items():  # of them the tab key stops at this one; arrows go to the others
            step.setFocusPolicy(Qt.FocusPolicy.TabFocus if other == name else Qt.FocusPolicy.NoFocus)
        if name in ("input", "run") and self._stale_survey and not self.run.running:
            self.look()
        if name == "run" and not self.run.running:
            self._show_plan()
        if name == "mosaic":
            self.mosaic.look_for_gpu()
        self._show_state()

    def lead_on(self) -> None:
        """Do what the primary button of the step says."""
        if self.step == "input" and not self.settings.value("input_dir"):
            self.input.input.ask()
        elif self.step == "result":
            show_folder(self.result_page.folder)
        elif self.step != "run":
            self.go(STEPS[STEPS.index(self.step) + 1])
        elif self._has_result():
            self.go("result")
        elif self._needs_grid():
            self.settings.set("grid_mode_enabled", True)
            self._show_plan()
            self._show_state()
        else:
            self.start()

    def _has_result(self) -> bool:
        return self.result_page.result is not None and not self.run.running and not self._stale_result

    def _show_state(self) -> None:
        """Name and enable the buttons as things are."""
        running, step = self.run.running, self.step
        self.back.setVisible(step != "input")
        self.cancel.setText(tr("do.cancel" if running else "do.again"))
        name = {"input": "do.next", "mosaic": "do.next", "run": "do.start", "result": "do.folder"}[step]
        if step == "input" and not self.settings.value("input_dir"):
            name = "do.choose"
        elif step == "run" and self._has_result():
            name = "do.result"
        elif step == "run" and self._needs_grid():
            name = "do.grid"
        self.primary.setText(tr(name))
        at_run = step == "run"
        self._offer(primary=not (at_run and running), cancel=at_run and (running or self._has_result()))
        self.hint.setText(tr(f"hint.{step}") if not running else tr("hint.running"))

    def _offer(self, *, primary: bool, cancel: bool) -> None:
        """Show these buttons. While the keyboard's focus cannot stay on one, it waits at the tabs of the page."""
        usable = primary and self._can_lead_on()
        if (self.primary.hasFocus() and not usable) or (self.cancel.hasFocus() and not cancel):
            page = self.pages[self.step]
            self._waiting = self.steps["mosaic"] if page is self.mosaic else page.tabs.tabBar()
            self._waiting.setFocus()
        self.primary.setVisible(primary)
        self.primary.setEnabled(usable)
        self.cancel.setVisible(cancel)
        if usable and self._waiting is not None:
            if self._waiting.hasFocus():
                self.primary.setFocus()
            self._waiting = None

    def _can_lead_on(self) -> bool:
        if self.step == "input":
            return not self.settings.value("input_dir") or self.input.ready
        if self.step == "run":
            return self._has_result() or self._needs_grid() or not self._trouble()
        return self.step == "mosaic" or self.result_page.folder is not None

    # ---- survey ------------------------------------------------------------------------------------------

    def look(self, _folder: str = "") -> None:
        """Look at the frames of the input folder, in a process of its own."""
        if self.survey.running:
            self._survey_again = True
            self.survey.cancel()
            return
        folder = self.settings.value("input_dir")
        self._stale_survey = self._survey_again = False
        if not folder or self._leaving:
            self._show_state()
            return
        self.input.begin()
        output = self.settings.value("output_dir") or folder
        excluded = tuple(sorted(self.input.excluded))
        request = RunRequest("survey", Path(folder), Path(output), self.settings.config(), excluded=excluded)
        if trouble := self._start(self.survey, request):
            self.input.end(trouble)
            self._show_state()

    def _look_anew(self) -> None:
        """Look at frames or settings that are others than those of the result, perhaps."""
        self._stale_result = self._changed_since = True
        self.look()

    def _start(self, job: Job, request: RunRequest) -> str:
        """Start a job; return why that could not be done, which is shown too, nothing if it could."""
        try:
            job.start(request)
        except ZeMosaicError as error:
            QMessageBox.warning(self, tr("program"), told(str(error)))
            return str(error)
        return ""

    def _on_survey(self, event: object) -> None:
        self.input.hear(event)
        self._show_state()

    def _on_survey_end(self, event: RunFinished, outcome: object) -> None:
        failed = isinstance(outcome, ZeMosaicError) and not was_cancelled(event)
        self.input.end(str(outcome) if failed else "")
        self.mosaic.grid.set_n_frames(len(self.input.found.usable(self.input.excluded)))
        if self._leaving:
            self.close()
        elif self._survey_again:
            self.look()
        else:
            if self.step == "run" and not self.run.running:
                self._show_plan()
            self._show_state()

    def _on_excluded(self, frame_ids: frozenset[str]) -> None:
        self._stale_survey = self._stale_result = self._changed_since = True  # the mosaic may be smaller
        self.result_page.set_excluded(frame_ids)
        self._show_state()

    def _on_result_excluded(self, frame_ids: frozenset[str]) -> None:
        """Leave out what was ticked off in the table of the result, if its frames are those of the first page."""
        made_by = self._made_by
        other = made_by is not None and Path(self.settings.value("input_dir")) != made_by.input_folder
        if not other and frame_ids <= self.input.found.frames.keys():
            self.input.set_excluded(frame_ids)

    def _on_setting(self, key: str) -> None:
        self._stale_survey |= key in _SURVEY_KEYS
        self._stale_result = self._changed_since = True
        self._show_state()

    # ---- run ---------------------------------------------------------------------------------------------

    def _trouble(self) -> str:
        """Return why no run can start, nothing if one can."""
        if not self.settings.value("input_dir"):
            return tr("trouble.input")
        if not self.settings.value("output_dir"):
            return tr("trouble.output")
        found = self.input.found
        if not self.survey.running and (found.trouble or (found.done is not None and not self.input.ready)):
            return found.trouble or tr("trouble.frames")
        try:
            find_pipeline(self._choose()[0])
        except PlanError as error:
            return str(error)
        except ConfigError as error:
            return tr("trouble.classic") if "classic" not in PIPELINES else str(error)
        return ""

    def _choose(self) -> tuple[str, str]:
        return choose_pipeline(self.settings.value("input_dir"), self.settings.config())

    def _needs_grid(self) -> bool:
        """Whether a tick at Grid mode is all that is missing."""
        return self._trouble() == tr("trouble.classic")

    def _show_plan(self) -> None:
        found, excluded = self.input.found, self.input.excluded
        if self._has_result():
            return
        trouble = self._trouble()
        tiles = found.done.tiles if found.done else ()
        self.run_page.show_frames(found.frames.values(), tiles, excluded)
        facts = partial(
            _facts,
            len(found.usable(excluded)) if found.done else None,
            "" if trouble else self._choose()[0],
            found.done.wall_s if found.done and found.done.shape[0] else None,
            self.settings.value("output_dir"),
        )
        self.run_page.show_plan(facts, trouble)

    def start(self, *, overwrite: bool = False, drop_suggested: bool = False) -> None:
        """Start the run; asks before an earlier mosaic is replaced, unless that was asked for."""
        if self.run.running or self._trouble():
            return
        output = Path(self.settings.value("output_dir"))
        name, reason = self._choose()
        if not overwrite and (output / f"{mosaic_stem(name)}.fits").exists():
            if not self._ask("replace", tr("replace.text", folder=output)):
                return
            overwrite = True
        self._stale_survey |= self.survey.running
        self.survey.cancel()
        self._keep_settings()
        request = self._request = RunRequest(
            name,
            Path(self.settings.value("input_dir")),
            output,
            self.settings.config(),
            overwrite=overwrite,
            drop_suggested=drop_suggested,
            excluded=tuple(sorted(self.input.excluded)),
        )
        self._changed_since = False
        done = self.input.found.done
        self._show_plan()
        self.run_page.begin(name, done.wall_s if done else None)
        self.run_page.log.add(f"{title_of(name)}: {reason}")
        if trouble := self._start(self.run, request):
            self.run_page.end(RunFinished(FinishReason.ERROR, trouble), trouble)
        self._show_state()

    def stop(self) -> None:
        """Cancel the run that is going on; without one, start it again."""
        if self.run.running:
            self.run_page.stopping()
            self.run.cancel()
        else:
            self.start()

    def run_without_suggested(self) -> None:
        """Run again without the frames that the result suggests to leave out, in the place of the result.

        The frames are those of the result, whatever was chosen since. It is replaced without a question only if
        that is where results go now.
        """
        made_by = self._made_by
        if made_by is not None and Path(self.settings.value("input_dir")) != made_by.input_folder:
            self.input.choose(str(made_by.input_folder))
            self.input.set_excluded(frozenset(made_by.excluded))
        folder = self.result_page.folder
        here = folder is not None and Path(self.settings.value("output_dir")) == folder
        if folder is not None and not here:
            self.settings.set("output_dir", str(folder))
            self.input.output.line.setText(str(folder))
        self._stale_result = True
        self.go("run")
        self.start(overwrite=here, drop_suggested=True)

    def _on_run_end(self, event: RunFinished, outcome: object) -> None:
        self.run_page.end(event, outcome)
        if isinstance(outcome, RunResult):
            self._stale_result, self._made_by = self._changed_since, self._request
            self.result_page.show_result(outcome, self.run_page.took_s)
        self._show_state()
        if self._leaving:
            self.close()
        elif isinstance(outcome, ProductExistsError) and self._ask("replace", told(str(outcome))):
            self.start(overwrite=True, drop_suggested=self._request.drop_suggested)

    def _ask(self, name: str, text: str) -> bool:
        """Ask a question whose safe answer is no."""
        box = QMessageBox(QMessageBox.Icon.Question, tr(f"{name}.title"), text, parent=self)
        yes = box.addButton(tr(f"{name}.yes"), QMessageBox.ButtonRole.AcceptRole)
        no = box.addButton(tr(f"{name}.no"), QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(no)
        box.setEscapeButton(no)
        box.exec()
        return box.clickedButton() is yes

    def _keep_settings(self) -> None:
        try:
            self.settings.keep_edits(config_path())
        except ConfigError as error:
            self.warn_once(str(error), told(str(error)))

    def warn_once(self, reason: str, text: str) -> None:
        """Show a warning unless one of that reason was shown before."""
        if reason not in self._warned:
            self._warned.add(reason)
            QMessageBox.warning(self, tr("program"), text)

    # ---- language and theme ------------------------------------------------------------------------------

    def use_language(self, code: str) -> None:
        """Speak another language from now on."""
        set_language(code)
        self._memory.setValue("language", code)
        QApplication.sendEvent(self, QEvent(QEvent.Type.LanguageChange))

    def use_theme(self, theme: str) -> None:
        """Look otherwise from now on."""
        self._memory.setValue("theme", theme)
        apply_theme(QApplication.instance(), theme)
        self._build_menu()

    @property
    def theme(self) -> str:
        """The theme that the user chose."""
        theme = self._memory.value("theme", "system")
        return theme if theme in THEMES else "system"

    def _follow_system(self) -> None:
        if self.theme == "system":
            apply_theme(QApplication.instance(), "system")

    def _build_menu(self) -> None:
        menu = self.view.menu()
        menu.clear()
        names = {theme: tr(f"theme.{theme}") for theme in THEMES}
        self._choices(tr("menu.language"), languages(), language(), self.use_language)
        menu.addSeparator()
        self._choices(tr("menu.theme"), names, self.theme, self.use_theme)

    def _choices(self, title: str, names: dict[str, str], current: str, use: Callable[[str], None]) -> None:
        menu = self.view.menu()
        menu.addSection(title)
        group = QActionGroup(menu)
        for code, name in names.items():
            action = menu.addAction(name, lambda code=code: use(code))
            action.setCheckable(True)
            action.setChecked(code == current)
            group.addAction(action)

    def retranslate(self) -> None:
        """Take the words anew."""
        self.setLocale(QLocale(language()))  # of numbers
        self.setWindowTitle(tr("program"))
        for k, (name, step) in enumerate(self.steps.items(), start=1):
            step.setText(f"{k}  {tr(f'step.{name}')}")
        self.view.setText(tr("menu.view"))
        self.back.setText(tr("do.back"))
        self._build_menu()
        self._show_state()
        if self.step == "run" and not self.run.running:
            self._show_plan()

    def showEvent(self, event: object) -> None:
        """Begin at the button that leads on."""
        super().showEvent(event)
        QTimer.singleShot(0, self.primary.setFocus)  # after Qt has chosen the first of all

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Let Enter press a button, as the space bar does; Qt knows that for dialogs only."""
        button = self.focusWidget()
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not event.isAutoRepeat()
        if enter and isinstance(button, QPushButton | QToolButton):
            button.click()
        else:
            super().keyPressEvent(event)

    # ---- the end -----------------------------------------------------------------------------------------

    def closeEvent(self, event: object) -> None:
        """Ask while a run is going on; then stop it, and close when nothing is left of it."""
        if self.run.running and not self._leaving and not self._ask("close", tr("close.text")):
            event.ignore()
            return
        if self.run.running or self.survey.running:
            self._leaving = True
            self.hint.setText(tr("run.stopping"))
            self.run.cancel()
            self.survey.cancel()
            event.ignore()
            return
        self._memory.setValue("geometry", self.saveGeometry())
        self._memory.sync()
        self._keep_settings()
        for page in self.pages.values():
            page.shutdown()
        event.accept()


def _facts(
    n_frames: int | None, pipeline: str, wall_s: tuple[float, float] | None, output: str, over: bool
) -> str:
    """Return what a run does, in the language in use: what a survey has found, and until it is `over` its time."""
    facts = [] if n_frames is None else [tr("found.frames", n=n_frames)]
    if pipeline:
        facts.append(tr(f"pipeline.{pipeline}"))
    if wall_s is not None and not over:
        facts.append(tr("run.expected", range=duration_range(*wall_s)))
    return "  ·  ".join([*facts, output])


def open_memory() -> QSettings:
    """Return where the program keeps what is no option of a run: a file beside the configuration."""
    return QSettings(str(config_path().with_name("zemosaic_gui.ini")), QSettings.Format.IniFormat)


def bring_to_front(window: QWidget) -> None:
    """Show a window that was made."""
    window.show()
    window.setWindowState(window.windowState() & ~Qt.WindowState.WindowMinimized)
    window.raise_()
