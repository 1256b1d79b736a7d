"""The desktop program: ``zemosaic gui``, or ``zemosaic-gui`` without a console."""

from __future__ import annotations

import os
import sys

from zemosaic_types import ConfigError, ZeMosaicError

_MISSING = (
    "the desktop program needs PySide6, which cannot be loaded ({reason}); "
    'install it with: pip install "zemosaic[gui]"'
)


class DesktopMissing(ZeMosaicError):
    """The library of the desktop program is not there; the message says how to install it."""


def main() -> int:
    """Open the window; return the exit status when it is closed."""
    try:
        return run()
    except DesktopMissing as error:
        if sys.stderr is not None:  # without a console there is nobody to tell
            sys.stderr.write(f"zemosaic: {error}\n")
        return 1


def run() -> int:
    """Open the window and wait until it is closed.

    Raises
    ------
    DesktopMissing
        If PySide6 or a system library that it needs is not there.
    """
    try:
        from PySide6.QtCore import QLocale
        from PySide6.QtWidgets import QApplication, QMessageBox
    except ImportError as error:
        raise DesktopMissing(_MISSING.format(reason=error)) from error

    from zemosaic_config import load_file
    from zemosaic_gui_sentences import told
    from zemosaic_gui_settings import Settings
    from zemosaic_gui_text import ENGLISH, languages, set_language, tr
    from zemosaic_gui_theme import apply_theme
    from zemosaic_gui_window import MainWindow, bring_to_front, open_memory

    application = QApplication.instance() or QApplication(sys.argv[:1])
    application.setApplicationName("ZeMosaic")
    application.setDesktopFileName("zemosaic")
    memory = open_memory()
    system = QLocale.system().name().split("_")[0]
    code = memory.value("language", system)
    set_language(code if code in languages() else ENGLISH)
    apply_theme(application, memory.value("theme", "system"))
    try:
        settings, trouble = Settings(load_file(), os.environ), ""
    except ConfigError as error:
        settings, trouble = Settings(), str(error)
    window = MainWindow(settings, memory)
    bring_to_front(window)
    if trouble:
        QMessageBox.warning(window, tr("program"), tr("settings.broken", reason=told(trouble)))
    return application.exec()


if __name__ == "__main__":
    sys.exit(main())
