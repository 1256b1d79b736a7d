"""Runs in a process of their own: their events, their end, and what is left of them."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import zemosaic_worker
from surveys import GRID_PHASES, survey_in
from zemosaic_config import resolve
from zemosaic_events import FinishReason, Message, PhaseProgress, RunFinished, RunStarted, TileDone
from zemosaic_synthetic import small_spec
from zemosaic_temp_files import is_running, remove_leftovers
from zemosaic_types import ConfigError, PlanError, ProductExistsError, RunCancelled, RunDied
from zemosaic_worker import Pipeline, RunRequest, choose_pipeline, start_run

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
TWO_SECONDS = 2.0
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "frames"
    survey_in(folder, small_spec(seed=3))
    return folder


@pytest.fixture(autouse=True)
def strange(monkeypatch):
    """The pipelines of this test file, by the names of their functions."""
    import strange_pipelines

    for name, function in vars(strange_pipelines).items():
        if callable(function) and getattr(function, "__module__", "") == "strange_pipelines":
            monkeypatch.setitem(zemosaic_worker.PIPELINES, name, Pipeline("strange_pipelines", name, "Settings"))


def request(pipeline, output, folder=Path("nowhere"), more=None, **values):
    output.mkdir(exist_ok=True)
    return RunRequest(pipeline, folder, output, resolve({}, {}, values), **more or {})


def run_of(frames, output, **values):
    return request("grid", output, frames, grid_workers=2, **values)


def family_of(handle):
    """The run's process and all it has started, also what has lost its parent."""
    return zemosaic_worker._family_of(handle.pid)


def alive(family):
    """Those that have not ended; who has no parent any more may wait a moment to be forgotten by the system."""
    return [process for process in family if process.is_running() and is_running(process.pid)]


def parts_in(folder):
    return [path.name for path in folder.rglob("*.part")]


def the_end_of(events):
    """The last event, of which there is one."""
    assert [event for event in events if isinstance(event, RunFinished)] == events[-1:]
    return events[-1]


def heard(pipeline, tmp_path, **values):
    """Run a strange pipeline to its end; return its handle, all events but the last, and the last."""
    with start_run(request(pipeline, tmp_path / "out", **values)) as handle:
        events = list(handle.events())
        assert family_of(handle) == []
    assert parts_in(tmp_path) == []
    return handle, events[:-1], the_end_of(events)


def test_a_run_of_grid_mode_streams_its_events_and_gives_its_result(frames, tmp_path):
    events = []
    with start_run(run_of(frames, tmp_path / "out"), events.append) as handle:
        assert handle.wait() == events[-1]
        assert family_of(handle) == []
    assert the_end_of(events).reason is FinishReason.COMPLETE
    assert isinstance(next(e for e in events if not isinstance(e, Message | PhaseProgress)), RunStarted)
    phases = [event.phase for event in events if isinstance(event, PhaseProgress)]
    assert list(dict.fromkeys(phases)) == GRID_PHASES
    assert any(isinstance(event, TileDone) for event in events)
    result = handle.result()
    assert result.complete
    assert result.mosaic_path.is_file()
    assert parts_in(tmp_path) == []


def test_an_error_of_the_pipeline_reaches_who_asks_for_the_result(frames, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mosaic_grid.fits").touch()
    handle = start_run(run_of(frames, tmp_path / "out"))
    end = the_end_of(list(handle.events()))
    assert end.reason is FinishReason.ERROR
    assert "--overwrite" in end.message
    with pytest.raises(ProductExistsError, match="--overwrite"):
        handle.result()


def test_a_run_with_a_bad_frame_finishes_with_failures(frames, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in frames.glob("*.fit"):
        os.link(path, folder / path.name)
    (folder / "broken.fit").write_bytes(b"SIMPLE  =")
    handle = start_run(run_of(folder, tmp_path / "out"))
    assert handle.wait().reason is FinishReason.WITH_FAILURES
    assert [Path(item.path).name for item in handle.result().left_out] == ["broken.fit"]


def cancelled_at(moment, frames, tmp_path):
    """Cancel a run when an event comes; return how long it took to end and its events."""
    events = []
    handle = start_run(run_of(frames, tmp_path / "out", grid_size_factor=4.0))
    asked = None
    for event in handle.events():
        events.append(event)
        if asked is None and moment(event):
            asked = time.monotonic()
            handle.cancel()
    assert asked is not None
    return time.monotonic() - asked, events, handle


@pytest.mark.parametrize("phase", ["headers", "measure", "refine", "stack", "assemble"])
def test_cancelling_ends_a_run_within_two_seconds_in_every_phase(phase, frames, tmp_path):
    def reached(event):
        if phase == "refine":  # and match: they follow the last frame that is measured
            return event == PhaseProgress("measure", 6, 6)
        return isinstance(event, PhaseProgress) and event.phase == phase

    took, events, handle = cancelled_at(reached, frames, tmp_path)
    assert took < TWO_SECONDS
    assert the_end_of(events).reason in (
        [FinishReason.CANCELLED, FinishReason.COMPLETE] if phase == "assemble" else [FinishReason.CANCELLED]
    )
    assert family_of(handle) == []
    assert parts_in(tmp_path) == []
    mosaic = tmp_path / "out" / "mosaic_grid.fits"
    assert mosaic.exists() == (events[-1].reason is FinishReason.COMPLETE)
    if events[-1].reason is FinishReason.CANCELLED:
        with pytest.raises(RunCancelled):
            handle.result()


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.5, 1.0])
def test_cancelling_ends_a_run_that_is_still_loading(delay_s, frames, tmp_path):
    handle = start_run(run_of(frames, tmp_path / "out"))
    time.sleep(delay_s)
    asked = time.monotonic()
    handle.cancel()
    handle.cancel()
    assert handle.wait(10).reason is FinishReason.CANCELLED
    assert time.monotonic() - asked < TWO_SECONDS
    the_end_of(list(handle.events()))
    assert family_of(handle) == []
    assert parts_in(tmp_path) == []


def test_a_run_that_stops_when_asked_is_given_the_time(tmp_path):
    handle = start_run(request("cooperative", tmp_path / "out"))
    assert next(handle.events()) == Message("started")
    handle.cancel()
    assert handle.wait(10) == RunFinished(FinishReason.CANCELLED, "done")
    assert (tmp_path / "out" / "stopped.txt").read_text(encoding="utf-8") == "by itself"


@POSIX_ONLY
def test_a_run_that_reacts_to_nothing_is_ended_with_its_workers_and_leaves_no_file(tmp_path):
    handle = start_run(request("stubborn", tmp_path / "out"))
    assert next(handle.events()) == Message("deaf from now on")
    family = family_of(handle)
    assert len(family) >= 4
    assert len(parts_in(tmp_path)) == 3
    asked = time.monotonic()
    handle.cancel()
    assert handle.wait(10).reason is FinishReason.CANCELLED
    assert time.monotonic() - asked < TWO_SECONDS
    assert alive(family) == []
    assert parts_in(tmp_path) == []


@POSIX_ONLY
def test_a_run_that_is_killed_says_so_and_takes_its_workers_with_it(tmp_path):
    handle = start_run(request("killed", tmp_path / "out"))
    deadline = time.monotonic() + 30
    while len(parts_in(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = family_of(handle)
    time.sleep(0.3)  # now the workers hear nothing any more
    os.kill(handle.pid, signal.SIGKILL)
    end = the_end_of(list(handle.events()))
    assert end.reason is FinishReason.ERROR
    assert "ended by SIGKILL" in end.message
    assert "grid_chunk_ram_mb" in end.message
    assert len(family) >= 4
    assert alive(family) == []
    assert parts_in(tmp_path) == []
    with pytest.raises(RunDied, match="SIGKILL"):
        handle.result()


@POSIX_ONLY
def test_a_killed_run_of_grid_mode_leaves_nothing_half_written(frames, tmp_path):
    handle = start_run(run_of(frames, tmp_path / "out", grid_size_factor=4.0))
    for event in handle.events():
        if isinstance(event, TileDone):
            os.kill(handle.pid, signal.SIGKILL)
    assert event.reason is FinishReason.ERROR
    assert str(tmp_path / "out" / "zemosaic.log") in event.message
    assert family_of(handle) == []
    assert parts_in(tmp_path) == []
    assert not (tmp_path / "out" / "mosaic_grid.fits").exists()


@POSIX_ONLY
def test_a_crash_of_a_library_is_told_with_its_place(tmp_path):
    _, events, end = heard("crashing", tmp_path)
    assert events == [Message("before the crash")]
    assert end.reason is FinishReason.ERROR
    assert "ended by SIGSEGV" in end.message
    assert "Fatal Python error: Segmentation fault" in end.message
    assert "in crashing" in end.message


def test_an_exception_before_the_run_says_anything_is_told_in_its_last_words(tmp_path):
    handle, events, end = heard("raising", tmp_path)
    assert events == []
    assert end.reason is FinishReason.ERROR
    assert "KeyError: 'a slip of the programmer'" in end.message
    with pytest.raises(RunDied, match="slip of the programmer"):
        handle.result()


def test_a_pipeline_that_cannot_be_loaded_is_an_error_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(zemosaic_worker.PIPELINES, "absent", Pipeline("no_such_module", "run", "Settings"))
    _, _, end = heard("absent", tmp_path)
    assert end.reason is FinishReason.ERROR
    assert "No module named 'no_such_module'" in end.message


def test_settings_that_are_refused_end_the_run_with_their_reason(tmp_path):
    handle, _, end = heard("silent", tmp_path, input_dir="refused")
    assert end == RunFinished(FinishReason.ERROR, "these settings are refused")
    with pytest.raises(PlanError, match="refused"):
        handle.result()


def test_ten_thousand_events_come_in_order_without_loss(tmp_path):
    _, events, end = heard("talkative", tmp_path)
    assert events == [Message(str(number)) for number in range(10_000)]
    assert end == RunFinished(FinishReason.COMPLETE, "done")


@pytest.mark.parametrize("pipeline", ["twice_finished", "silent"])
def test_a_pipeline_that_finishes_twice_or_never_ends_with_one_event(pipeline, tmp_path):
    handle, _, end = heard(pipeline, tmp_path)
    assert isinstance(end, RunFinished)
    assert handle.result().complete


def test_a_run_that_does_not_exit_after_its_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(zemosaic_worker, "_EXIT_S", 0.5)
    handle, _, end = heard("never_leaving", tmp_path)
    assert end.reason is FinishReason.COMPLETE
    assert handle.result().complete


def test_a_slow_listener_holds_nothing_up(tmp_path):
    seen = []

    def slow(event):
        time.sleep(0.0 if seen else 3.0)
        seen.append(event)

    handle = start_run(request("talkative", tmp_path / "out"), slow)
    assert handle.wait(0.01) is None
    assert handle._over.wait(60)
    assert len(seen) < 10_000
    assert handle.wait(60).reason is FinishReason.COMPLETE
    assert len(seen) == 10_001
    the_end_of(seen)


def test_a_listener_that_raises_hears_everything_all_the_same(tmp_path, caplog):
    seen = []

    def clumsy(event):
        seen.append(event)
        raise ValueError("a slip of the listener")

    with caplog.at_level(logging.CRITICAL, logger="ZeMosaicWorker.events"):
        handle = start_run(request("twice_finished", tmp_path / "out"), clumsy)
        assert handle.wait(30).reason is FinishReason.COMPLETE
    the_end_of(seen)
    with pytest.raises(ValueError, match="listener"):
        handle.events()


def test_the_end_of_the_block_is_the_end_of_the_run(tmp_path):
    with pytest.raises(ZeroDivisionError), start_run(request("cooperative", tmp_path / "out")) as handle:
        _ = 1 / 0
    assert family_of(handle) == []
    assert handle.wait(0).reason is FinishReason.CANCELLED


PARENT = """
import sys, time
from pathlib import Path
import zemosaic_worker as worker
from zemosaic_config import resolve
name, frames, output = sys.argv[1:]
if name != "grid":
    worker.PIPELINES[name] = worker.Pipeline("strange_pipelines", name, "Settings")
Path(output).mkdir()
config = resolve({}, {}, {"grid_workers": 2})
run = worker.start_run(worker.RunRequest(name, Path(frames), Path(output), config))
for event in run.events():
    print(run.pid, type(event).__name__, getattr(event, "phase", ""), flush=True)
"""


@POSIX_ONLY
@pytest.mark.parametrize(
    ("name", "moment"), [("cooperative", "Message"), ("deaf", "Message"), ("grid", "measure"), ("grid", "stack")]
)
def test_a_run_ends_with_the_program_that_started_it(name, moment, frames, tmp_path):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    full = [sys.executable, "-c", PARENT, name, frames, tmp_path / "out"]
    env = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(full, stdout=subprocess.PIPE, text=True, env=env) as parent:
        for line in parent.stdout:
            if moment in line:
                break
        family = zemosaic_worker._family_of(int(line.split()[0]))
        parent.kill()
    assert len(family) >= (3 if name == "grid" else 1)  # with the server of workers and its tracker
    deadline = time.monotonic() + 10
    while alive(family):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert parts_in(tmp_path) == []


def test_who_starts_a_run_loads_no_numerical_library(frames, tmp_path):
    heavy = "{'numpy', 'astropy', 'numba', 'scipy', 'grid_mode'}"
    code = f"{PARENT}\nprint(run.result().n_used, sorted({heavy} & set(sys.modules)))"
    full = [sys.executable, "-c", code, "grid", frames, tmp_path / "out"]
    done = subprocess.run(full, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "6 []"


def test_the_pipeline_is_chosen_by_the_plan_and_the_option(tmp_path):
    off, on = resolve({}, {}, {}), resolve({}, {}, {"grid_mode_enabled": True})
    name, reason = choose_pipeline(tmp_path, off)
    assert name == "classic"
    assert "no stack_plan.csv" in reason
    assert choose_pipeline(tmp_path, on) == ("grid", "grid_mode_enabled is on (command line)")
    (tmp_path / "stack_plan.csv").touch()
    assert choose_pipeline(tmp_path, off) == ("grid", f"{tmp_path} has a stack_plan.csv")
    with pytest.raises(PlanError, match="nowhere is not a folder"):
        choose_pipeline(tmp_path / "nowhere", on)


def test_a_pipeline_that_is_not_there_is_an_error_and_no_run_of_another(frames, tmp_path, monkeypatch):
    monkeypatch.delitem(zemosaic_worker.PIPELINES, "classic", raising=False)
    with pytest.raises(ConfigError, match="Classic is not in this version, which has Grid mode"):
        start_run(request("classic", tmp_path / "out", frames))
    assert list((tmp_path / "out").iterdir()) == []


@POSIX_ONLY
def test_a_process_that_nobody_has_waited_for_keeps_no_temporary_file(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        (tmp_path / f".a.fits.{ended.pid}.part").touch()
        (tmp_path / f".a.fits.{os.getpid()}.part").touch()
        remove_leftovers(tmp_path)
    assert parts_in(tmp_path) == [f".a.fits.{os.getpid()}.part"]
