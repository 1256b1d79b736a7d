"""Pictures of every page of the desktop program, in both themes and all languages, from a simulated survey.

    python benchmarks/screenshots.py FOLDER [--frames FRAMES]

They are to be looked at, as who opens the program for the first time sees them. Two of them are in the README
(``docs/gui_input.png`` and ``docs/gui_result.png``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

WAIT_S = 300


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make pictures of the desktop program.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=Path, help="folder of frames (default: the demo's are made)")
    parser.add_argument("--points", type=float, help="size of the letters (default: the system's)")
    parser.add_argument("--size", type=int, nargs=2, default=(1240, 800), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--themes", nargs="+", default=["light", "dark"])
    parser.add_argument("--languages", nargs="+", default=["en", "fr"])
    return parser.parse_args()


def wait(seconds: float) -> None:
    """Let the window work."""
    from PySide6.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    QTimer.singleShot(round(1000 * seconds), loop.quit)
    loop.exec()


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > end:
            raise SystemExit("the program does not come to rest")
        wait(0.1)


class Photographer:
    """Walks through the program and takes pictures."""

    def __init__(self, folder: Path, theme: str, language: str, size: tuple[int, int]) -> None:
        from PySide6.QtWidgets import QApplication

        from zemosaic_gui_settings import Settings
        from zemosaic_gui_text import set_language
        from zemosaic_gui_window import MainWindow, open_memory

        self.folder, self.suffix = folder, f"{theme}_{language}"
        set_language(language)
        self.window = MainWindow(Settings({"grid_mode_enabled": True, "grid_workers": 2}), open_memory())
        self.window.use_theme(theme)
        self.window.resize(*size)
        self.window.show()
        self.application = QApplication.instance()

    def take(self, name: str) -> None:
        wait(0.3)
        path = self.folder / f"{name}_{self.suffix}.png"
        self.window.grab().save(str(path))
        print(path)

    def settle(self, *lazy: object) -> None:
        for place in lazy:
            wait_until(lambda place=place: place.widget is not None and not place.widget.busy)

    def walk(self, frames: Path, output: Path) -> None:
        window, page = self.window, self.window.input
        self.take("0_start")
        page.output.line.setText(str(output))
        window.settings.set("output_dir", str(output))
        page.choose(str(frames))
        wait_until(lambda: not window.survey.running)
        page.select(sorted(page.found.frames)[len(page.found.frames) // 2])
        self.settle(page.map)
        wait_until(lambda: not page.frame.picture.busy)
        self.take("1_input")
        page.tabs.setCurrentIndex(1)
        self.settle(page.table)
        self.take("1_input_frames")
        page.tabs.setCurrentIndex(0)
        window.go("mosaic")
        wait_until(lambda: window.mosaic.grid.answered)
        self.take("2_mosaic")
        window.mosaic.options.search.setText("kappa")
        self.take("2_mosaic_search")
        window.mosaic.options.search.clear()
        self.run()

    def run(self) -> None:
        window = self.window
        window.go("run")
        wait_until(lambda: not window.survey.running)
        self.settle(window.run_page.map)
        self.take("3_run_ready")
        window.start()
        wait_until(lambda: not window.run.running or "DONE" in window.run_page.states())
        self.take("3_run")
        wait_until(lambda: not window.run.running)
        self.take("3_run_done")
        window.go("result")
        self.settle(window.result_page.viewer)
        self.take("4_result")
        window.result_page.tabs.setCurrentIndex(1)
        self.settle(window.result_page.table)
        self.take("4_result_frames")

    def leave(self) -> None:
        self.window.close()
        wait_until(lambda: not self.window.isVisible())
        self.window.deleteLater()
        wait(0.1)


def main() -> None:
    arguments = parse()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config" / "zemosaic_config.json"
        config.parent.mkdir()
        config.write_text("{}", encoding="utf-8")
        os.environ["ZEMOSAIC_CONFIG"] = str(config)
        frames = arguments.frames and arguments.frames.absolute()
        folder = arguments.folder.absolute()
        os.chdir(scratch)  # so that the pictures show short names
        if frames is None:
            from zemosaic_synthetic import demo_spec, make_survey

            frames = Path("Frames")
            make_survey(frames, demo_spec())
        from PySide6.QtWidgets import QApplication

        application = QApplication([])
        if arguments.points:
            font = application.font()
            font.setPointSizeF(arguments.points)
            application.setFont(font)
        for theme in arguments.themes:
            for language in arguments.languages:
                photographer = Photographer(folder, theme, language, arguments.size)
                output = Path("Mosaic")
                photographer.walk(frames, output)
                shutil.rmtree(output)
                photographer.leave()
                config.write_text("{}", encoding="utf-8")
        application.quit()


if __name__ == "__main__":
    main()
