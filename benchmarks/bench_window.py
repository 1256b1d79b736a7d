"""How long the desktop program keeps its user waiting: the longest turns of its loop with a large survey.

    python benchmarks/bench_window.py [--frames 20000] [--tiles 400]

The window is the real one, on no screen (``offscreen``). Survey and run are processes of their own that tell what
those of a large survey tell, a little faster; no frame is read. What the user does in between is done by code.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_helpers import positive_int, print_environment, table

from zemosaic_events import (
    FinishReason,
    FrameLeftOut,
    PhaseProgress,
    PlannedTile,
    RunFinished,
    RunStarted,
    SurveyDone,
    SurveyFrame,
    SurveyFrames,
    TileDone,
    TilesPlanned,
    TileStarted,
)
from zemosaic_types import LeftOut, Rect, RunResult

BATCH = 100
PAUSE_S = 0.004  # between two batches: a fast disk
QUIET_S = 0.4  # nothing more to do for so long is the end of a step
LONG_S = 300.0
CENTRE = (150.0, 40.0)
FRAME_DEG, FIELD_DEG = (1.28, 0.72), 8.0
SIZES = "ZEMOSAIC_BENCH_WINDOW"  # frames and tiles, for the processes


# ---- what the processes tell -------------------------------------------------------------------------------


class Settings:
    """Settings of the stand-ins: none."""

    @classmethod
    def from_config(cls, _config, **_more):
        return cls()


def _sizes() -> tuple[int, int]:
    frames, tiles = os.environ[SIZES].split()
    return int(frames), int(tiles)


def _box(x: float, y: float, width: float, height: float) -> tuple[tuple[float, float], ...]:
    """Return the corners of a box on the sky, degrees from the centre of the survey."""
    ra, dec = CENTRE
    shrink = math.cos(math.radians(dec))
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    return tuple((ra - u / shrink, dec + v) for u, v in corners)


def frame(k: int, n: int) -> SurveyFrame:
    """Return a frame of one of a hundred panels, dithered by its number."""
    panel = k * 100 // n
    x = FIELD_DEG * (panel % 10 - 5) / 10 + 0.02 * math.sin(1.7 * k)
    y = FIELD_DEG * (panel // 10 - 5) / 10 + 0.02 * math.cos(2.3 * k)
    name = f"Light_{k:05d}.fit"
    usable = k % 50 != 49
    return SurveyFrame(
        name,
        f"/frames/night {panel}/{name}",
        exposure_s=(10.0, 20.0, 30.0)[k % 3],
        filter=("IRCUT", "LP")[k % 2],
        instrument="Seestar S50",
        date=f"2025-03-26T20:{k // 60 % 60:02d}:{k % 60:02d}.123",
        shape=(1080, 1920),
        corners_deg=_box(x, y, *FRAME_DEG),
        reason="" if usable else "its distortion moves its corners by 40 px",
        usable=usable,
    )


def planned(n: int) -> tuple[PlannedTile, ...]:
    """Return tiles that cover the survey."""
    side = math.ceil(math.sqrt(n))
    length = FIELD_DEG * 1.2 / side
    return tuple(
        PlannedTile(
            k + 1,
            Rect(0, 512, 0, 512),
            _box(-4.6 + k % side * length, -4.6 + k // side * length, length, length),
            60,
        )
        for k in range(n)
    )


def tell_survey(_input, _output, _settings, *, listener, cancel):
    """Tell what a survey of many frames tells."""
    n_frames, n_tiles = _sizes()
    frames = [frame(k, n_frames) for k in range(n_frames)]
    for start in range(0, n_frames, BATCH):
        cancel.check()
        listener(SurveyFrames(tuple(frames[start : start + BATCH])))
        listener(PhaseProgress("headers", min(start + BATCH, n_frames), n_frames))
        time.sleep(PAUSE_S)
    n_usable = sum(one.usable for one in frames)
    corners = _box(-4.6, -4.6, 9.6, 9.6)
    done = SurveyDone(
        n_frames, n_usable, (14400, 14400), corners, 2.4, 3, planned(n_tiles), wall_s=(3600.0, 7200.0)
    )
    listener(done)
    listener(RunFinished(FinishReason.COMPLETE))
    return done


def tell_run(_input, output, _settings, *, listener, **_more):
    """Tell what a run tells that leaves every frame out and then makes all tiles."""
    n_frames, n_tiles = _sizes()
    listener(RunStarted(n_frames, str(output)))
    listener(TilesPlanned((14400, 14400), planned(n_tiles)))
    for k in range(n_frames):
        listener(FrameLeftOut(LeftOut(f"/frames/Light_{k:05d}.fit", "no stars could be found in it")))
        if k % BATCH == 0:
            listener(PhaseProgress("measure", k, n_frames))
            time.sleep(PAUSE_S)
    for tile in range(1, n_tiles + 1):
        listener(TileStarted(tile))
        time.sleep(PAUSE_S)
        listener(TileDone(tile, 60, 1))
        listener(PhaseProgress("stack", tile, n_tiles, "tile"))
    listener(RunFinished(FinishReason.COMPLETE))
    return RunResult(output / "mosaic_grid.fits", output / "preview.png", 1, n_frames)


def write_ledger(folder: Path, n: int) -> None:
    """Write the ledger of a run of that many frames."""
    from zemosaic_outputs import LedgerRow, ledger_text

    rows = [
        LedgerRow(
            path=f"/frames/Light_{k:05d}.fit",
            frame_id=f"Light_{k:05d}.fit",
            used=True,
            date_obs=f"2025-03-26T20:{k // 60 % 60:02d}:{k % 60:02d}.5",
            exptime_s=10.0,
            filter="LP",
            sky=(900.0,) * 3,
            noise=(30.0 + math.sin(k),) * 3,
            fwhm_px=3.2 + 0.1 * math.cos(k),
            elongation=1.05,
            n_stars=80,
            gain=(1.0,) * 3,
            offset=(0.0,) * 3,
            weight=(1e-3,) * 3,
            gradient_x=(0.01,) * 3,
            gradient_y=(0.01,) * 3,
            transparency=0.97,
            match_residual=(1.2,) * 3,
            align_residual_px=0.15,
            outline="100 100 340 102 338 280 98 278",
            area_ratio=1.0,
            n_tiles=2,
            n_samples=40_000,
            n_rejected_high=100 + k % 200,
        )
        for k in range(n)
    ]
    (folder / "ledger.csv").write_text(ledger_text(rows, 3), encoding="utf-8")


# ---- turns of the loop -------------------------------------------------------------------------------------


class Turns:
    """Turns the loop of the program by hand and keeps how long each turn took."""

    def __init__(self) -> None:
        from PySide6.QtCore import QAbstractEventDispatcher

        self._dispatcher = QAbstractEventDispatcher.instance()
        self.rows: list[tuple[str, ...]] = []
        self._pauses = [0.0, 0.0]  # begin of the collection that goes on; the longest of this step
        gc.callbacks.append(self._on_gc)

    def _on_gc(self, phase: str, _info: dict) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._pauses[0] = now
        else:
            self._pauses[1] = max(self._pauses[1], now - self._pauses[0])

    def _turn(self, act: Callable[[], object] | None = None) -> tuple[bool, float, float]:
        """Turn once, or do something as the slot of a click does; return whether there was work, wall, CPU."""
        from PySide6.QtCore import QEventLoop

        wall, cpu = time.perf_counter(), time.thread_time()
        worked = self._dispatcher.processEvents(QEventLoop.ProcessEventsFlag.AllEvents) if act is None else act()
        return bool(worked), time.perf_counter() - wall, time.thread_time() - cpu

    def step(self, name: str, act: Callable[[], object], done: Callable[[], bool] = lambda: True) -> None:
        """Do something and turn until all that follows from it is done; keep the longest turns."""
        self._pauses[1] = 0.0
        begin = quiet = time.perf_counter()
        walls, cpus = [], []
        todo: Callable[[], object] | None = act
        while time.perf_counter() - quiet < QUIET_S or not done():
            worked, wall, cpu = self._turn(todo)
            worked, todo = worked or todo is not None, None
            walls.append(wall)
            cpus.append(cpu)
            now = time.perf_counter()
            if worked:
                quiet = now
            else:
                time.sleep(0.001)
            if now - begin > LONG_S:
                raise SystemExit(f"{name}: the window does not come to rest")
        took = time.perf_counter() - begin - QUIET_S
        figures = (max(cpus), max(walls), self._pauses[1])
        late = sum(cpu > 0.05 for cpu in cpus)
        row = (name, *(f"{1000 * x:.0f} ms" for x in figures), str(late), f"{sum(cpus):.2f} s", f"{took:.2f} s")
        print(*row, sep="  ", flush=True)
        self.rows.append(row)


def play(turns: Turns, window) -> None:
    """Do what a user does with a large survey."""
    from PySide6.QtCore import Qt

    page, run = window.input, window.run_page
    turns.step("the window opens", window.show, lambda: page.map.widget is not None and not page.map.widget.busy)
    page.tabs.setCurrentIndex(1)
    turns.step("the table opens", lambda: None, lambda: page.table.widget is not None)
    looked_at = lambda: not window.survey.running and not page.table.widget.busy and not page.map.widget.busy  # noqa: E731
    turns.step("frames come in, table shown", window.look, looked_at)
    page.tabs.setCurrentIndex(0)
    turns.step("frames come in, map shown", window.look, looked_at)
    turns.step("table shown", lambda: page.tabs.setCurrentIndex(1))
    sheet = page.table.widget
    view = sheet._view
    for column in (0, 1, 5):
        turns.step(
            f"sorted by column {column}",
            lambda c=column: view.sortByColumn(c, Qt.SortOrder.DescendingOrder),
        )
    turns.step("frames come in, table sorted", window.look, looked_at)
    turns.step("a word is searched", lambda: sheet._search.setText("light_01 lp"), lambda: not sheet.busy)
    turns.step("all are shown again", lambda: sheet._search.setText(""), lambda: not sheet.busy)
    some = frozenset(sorted(page.found.frames)[:1000])
    turns.step("1,000 frames left out", lambda: page.set_excluded(some), looked_at)
    turns.step("all selected", view.selectAll)
    turns.step("all left out", sheet._leave_out.click, looked_at)
    turns.step("all taken in", sheet._take_in.click, looked_at)
    turns.step("map shown", lambda: page.tabs.setCurrentIndex(0), looked_at)
    turns.step("a frame looked at", lambda: page.select("Light_00777.fit"), looked_at)
    turns.step("map closer", lambda: page.map.widget._view.scaleBy((0.3, 0.3)), looked_at)
    turns.step("map as a whole", page.map.widget.fit, looked_at)
    turns.step("to the options", lambda: window.go("mosaic"), lambda: window.mosaic.grid.answered)
    turns.step(
        "to the run", lambda: window.go("run"), lambda: run.map.widget is not None and not run.map.widget.busy
    )
    turns.step("to the frames", lambda: window.go("input"))
    turns.step("to the run again", lambda: window.go("run"), lambda: not run.map.widget.busy)
    ended = lambda: not window.run.running and not run.map.widget.busy  # noqa: E731
    turns.step("a run, log shown", lambda: window.start(overwrite=True), ended)
    run.tabs.setCurrentIndex(1)
    turns.step("a run, problems shown", lambda: window.start(overwrite=True), ended)
    turns.step("the log is searched", lambda: run.log.search.setText("0077"), lambda: not run.log.busy)
    turns.step("all of the log again", lambda: run.log.search.setText(""), lambda: not run.log.busy)
    turns.step("to the result", lambda: window.go("result"), lambda: window.result_page.viewer.widget is not None)
    sheet = window.result_page.table
    turns.step(
        "the frames of the result",
        lambda: window.result_page.tabs.setCurrentIndex(1),
        lambda: sheet.widget is not None and not sheet.widget.busy,
    )
    turns.step(
        "the same, sorted",
        lambda: sheet.widget._view.sortByColumn(4, Qt.SortOrder.DescendingOrder),
    )
    for step in ("result", "input"):
        window.go(step)
        turns.step(f"French, at {step}", lambda: window.use_language("fr"))
        turns.step(f"English, at {step}", lambda: window.use_language("en"))
        turns.step(f"dark, at {step}", lambda: window.use_theme("dark"))
        turns.step(f"light, at {step}", lambda: window.use_theme("light"))
    window._stale_result = False
    turns.step("the window closes", window.close, lambda: not window.isVisible())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=positive_int, default=20_000)
    parser.add_argument("--tiles", type=positive_int, default=400)
    arguments = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ[SIZES] = f"{arguments.frames} {arguments.tiles}"
    print_environment(["PySide6", "pyqtgraph", "numpy"], frames=str(arguments.frames), tiles=str(arguments.tiles))
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "zemosaic_config.json"
        config.write_text("{}", encoding="utf-8")
        os.environ["ZEMOSAIC_CONFIG"] = str(config)
        frames, output = Path(scratch) / "frames", Path(scratch) / "output"
        for folder in (frames, output):
            folder.mkdir()
        write_ledger(output, arguments.frames)
        from PySide6.QtWidgets import QApplication

        import zemosaic_worker
        from zemosaic_gui_settings import Settings as Options
        from zemosaic_gui_theme import apply_theme
        from zemosaic_gui_window import MainWindow, open_memory

        pipeline = zemosaic_worker.Pipeline
        zemosaic_worker.PIPELINES["survey"] = pipeline("bench_window", "tell_survey", "Settings", parallel=False)
        zemosaic_worker.PIPELINES["grid"] = pipeline("bench_window", "tell_run", "Settings", parallel=False)
        application = QApplication([])
        apply_theme(application, "light")
        window = MainWindow(Options({"grid_mode_enabled": True, "output_dir": str(output)}), open_memory())
        window.settings.set("input_dir", str(frames))
        window.input.show_settings()
        turns = Turns()
        play(turns, window)
    print()
    print(table(("step", "CPU of a turn", "wall", "collection", "over 50 ms", "CPU", "in all"), turns.rows))


if __name__ == "__main__":
    main()
