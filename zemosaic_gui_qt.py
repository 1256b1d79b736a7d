"""The desktop program: ``zemosaic gui``, or ``zemosaic-gui`` without a console."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from zemosaic_types import ConfigError, ZeMosaicError

_MISSING = (
    "the desktop program needs PySide6, which cannot be loaded ({reason}); "
    'install it with: pip install "zemosaic[gui]"'
)
_NO_DISPLAY = "the desktop program needs a display, and there is none: neither DISPLAY nor WAYLAND_DISPLAY is set"
_NO_WINDOWS = (
    "the desktop program cannot open windows ({reason}); Debian and Ubuntu: "
    "apt-get install libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0 libxcb-xkb1 libxkbcommon-x11-0"
)


class DesktopMissing(ZeMosaicError):
    """What the desktop program needs is not there; the message says what, and how to install it."""


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
        If PySide6, a system library that it needs or a display is not there.
    """
    try:
        from PySide6.QtCore import QLibraryInfo, QLocale
        from PySide6.QtWidgets import QApplication
    except ImportError as error:
        raise DesktopMissing(_MISSING.format(reason=error)) from error

    if sys.platform == "linux":
        _check_display(Path(QLibraryInfo.path(QLibraryInfo.LibraryPath.PluginsPath)))

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
        window.warn_once(trouble, tr("settings.broken", reason=told(trouble)))
    return application.exec()


def _check_display(plugins: Path) -> None:
    """Raise `DesktopMissing` where Qt would end the process because it can open no window."""
    if os.environ.get("QT_QPA_PLATFORM") or os.environ.get("WAYLAND_DISPLAY"):
        return  # the user's own choice; nothing that distributions leave out
    if not os.environ.get("DISPLAY"):
        raise DesktopMissing(_NO_DISPLAY)
    library = plugins / "platforms" / "libqxcb.so"
    if library.is_file():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            raise DesktopMissing(_NO_WINDOWS.format(reason=error)) from error


if __name__ == "__main__":
    sys.exit(main())
