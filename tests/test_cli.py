"""The ``zemosaic`` command, run as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from surveys import survey_in
from zemosaic_fits_products import read_image
from zemosaic_synthetic import small_spec

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))


def command(*arguments, **more):
    full = [sys.executable, "-m", "zemosaic_cli", *map(str, arguments)]
    return subprocess.run(full, capture_output=True, text=True, encoding="utf-8", check=False, **more)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "frames"
    survey_in(folder, small_spec(seed=3))
    return folder


@pytest.fixture(scope="module")
def finished(frames, tmp_path_factory):
    """A complete run with most options, and what it printed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    before = {path.name: path.read_bytes() for path in frames.iterdir()}
    done = command(
        "grid", frames, out, "--workers", 2, "--gpu", "on", "--set", "grid_size_factor=2", "--log-level", "DEBUG"
    )
    assert {path.name: path.read_bytes() for path in frames.iterdir()} == before
    return out, done


def test_a_complete_run_says_where_things_are(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert f"mosaic:  {out / 'mosaic_grid.fits'}" in done.stdout
    assert f"preview: {out / 'mosaic_grid_preview.png'}" in done.stdout
    assert "frames:  6 of 6 used" in done.stdout


def test_a_folder_without_a_plan_gets_one_in_the_output_and_is_told(finished):
    out, done = finished
    assert (
        (out / "stack_plan.csv").read_text(encoding="utf-8").startswith("order,batch_id,mount,bortle,telescope,")
    )
    assert re.search(r"no stack_plan.csv in .*; made one of 6 frames in ", done.stderr)


def test_progress_comes_in_plain_lines_where_there_is_no_terminal(finished):
    _, done = finished
    for phase in ("headers: 6/6 frames", "measure: 6/6 frames", "assemble:"):
        assert phase in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


def test_the_log_has_the_lines_that_users_rely_on(finished):
    out, done = finished
    log = (out / "zemosaic.log").read_text(encoding="utf-8")
    for line in (
        r"\[GRID\] workers=2\n",
        r"\[GRID\] using 2 workers for tile processing\n",
        r"\[GRID\] GPU requested = True \(use_gpu_grid\)\n",
        r"\[GRID\] GPU=(ON|OFF) \(.+\)\n",
        r"\[GRID\] tile 1 processed by worker pid=\d+\n",
    ):
        assert re.search(line, log), line
    assert "[GRID] [GRID]" not in log
    assert ("GPU stack failed, falling back to CPU: " in done.stderr) == ("GPU=OFF" in log)


def test_the_options_reach_the_run(finished):
    out, _ = finished
    settings = json.loads((out / "report.json").read_text(encoding="utf-8"))["settings"]
    assert settings["workers"] == 2
    assert settings["size_factor"] == 2.0
    assert settings["use_gpu"] is True


def test_an_existing_mosaic_is_kept_without_overwrite(finished, frames):
    out, _ = finished
    before = (out / "mosaic_grid.fits").read_bytes()
    done = command("grid", frames, out)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert (out / "mosaic_grid.fits").read_bytes() == before


def test_one_bad_file_is_listed_and_the_status_is_3(frames, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in frames.glob("*.fit"):
        os.link(path, folder / path.name)
    (folder / "broken.fit").write_bytes(b"SIMPLE  =")
    done = command("grid", folder, tmp_path / "out", "--quiet")
    assert done.returncode == 3
    assert "broken.fit" in done.stdout
    assert "6 of" in done.stdout
    assert "measure:" not in done.stderr


UNUSABLE = {
    "no such folder": (["grid", "{tmp}/nowhere", "{tmp}/out"], "is not a folder"),
    "empty folder": (["grid", "{tmp}/empty", "{tmp}/out"], "no FITS file"),
    "unknown option": (["grid", "{tmp}/empty", "{tmp}/out", "--wokers", "3"], "--wokers"),
    "no command": ([], "COMMAND"),
    "unknown key": (["grid", "{tmp}/empty", "{tmp}/out", "--set", "grid_worker=3"], "grid_workers"),
    "bad value": (["grid", "{tmp}/empty", "{tmp}/out", "--set", "stacking_kappa_low=abc"], "stacking_kappa_low"),
    "no equals sign": (["grid", "{tmp}/empty", "{tmp}/out", "--set", "grid_workers"], "KEY=VALUE"),
    "missing configuration": (["grid", "{tmp}/empty", "{tmp}/out", "--config", "{tmp}/none.json"], "none.json"),
    "broken configuration": (["grid", "{tmp}/empty", "{tmp}/out", "--config", "{tmp}/broken.json"], "line 1"),
    "empty plan": (["grid", "{tmp}/planned", "{tmp}/out"], "stack_plan.csv"),
    "plan of nothing": (["plan", "{tmp}/nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_ends_with_status_2_and_a_reason(case, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / "stack_plan.csv").touch()
    (tmp_path / "broken.json").write_text('{"grid_workers": 2,,}', encoding="utf-8")
    arguments, reason = UNUSABLE[case]
    done = command(*(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_status_1(frames, tmp_path):
    (tmp_path / "file").touch()
    done = command("grid", frames, tmp_path / "file")
    assert done.returncode == 1
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_chooses_grid_mode_where_there_is_a_plan_and_does_the_same(frames, finished, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in frames.glob("*.fit"):
        os.link(path, folder / path.name)
    assert command("plan", folder).returncode == 0
    done = command("run", folder, tmp_path / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"Grid mode: {folder} has a stack_plan.csv\n")
    assert "frames:  6 of 6 used" in done.stdout
    one, other = ((out / "mosaic_grid.fits") for out in (finished[0], tmp_path / "out"))
    np.testing.assert_array_equal(read_image(one, 0)[1], read_image(other, 0)[1])
    again = command("run", folder, tmp_path / "out", "--quiet")
    assert again.returncode == 2
    assert again.stderr.startswith("zemosaic: ")
    assert "--overwrite" in again.stderr


def test_run_without_a_plan_chooses_classic_and_does_the_same(frames, tmp_path):
    done = command("run", frames, tmp_path / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert f"Classic: {frames} has no stack_plan.csv and grid_mode_enabled is off" in done.stderr
    alone = command("classic", frames, tmp_path / "alone", "--workers", 2)
    assert alone.returncode == 0, alone.stderr
    assert "frames:  6 of 6 used" in alone.stdout
    one, other = ((tmp_path / name / "mosaic_classic.fits") for name in ("out", "alone"))
    np.testing.assert_array_equal(read_image(one, 0)[1], read_image(other, 0)[1])
    again = command("classic", frames, tmp_path / "alone", "--quiet")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert command("run", tmp_path / "nowhere", tmp_path / "out").returncode == 2


def test_run_with_a_broken_frame_has_status_3_and_one_into_a_file_status_1(frames, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in frames.glob("*.fit"):
        os.link(path, folder / path.name)
    (folder / "broken.fit").write_bytes(b"SIMPLE  =")
    options = "--set", "grid_mode_enabled=true", "--quiet"
    done = command("run", folder, tmp_path / "out", *options)
    assert done.returncode == 3
    assert "broken.fit" in done.stdout
    (tmp_path / "file").touch()
    refused = command("run", folder, tmp_path / "file", *options)
    assert refused.returncode == 1
    assert "file" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
@pytest.mark.parametrize("name", ["grid", "run"])
def test_ctrl_c_ends_with_status_130_and_leaves_nothing_behind(name, frames, tmp_path):
    full = [sys.executable, "-m", "zemosaic_cli", name, str(frames), str(tmp_path / "out"), "--workers", "2"]
    full += ["--set", "grid_mode_enabled=true"]
    process = subprocess.Popen(full, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("measure:"):
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cancelled" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not {name for name in left if name.endswith(".part") or name.startswith("mosaic_grid")}


def started(*arguments):
    """Start the command; return it once the server of its workers runs, with all processes it has started."""
    full = [sys.executable, "-m", "zemosaic_cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(full, start_new_session=True, **pipes)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        if any("forkserver" in " ".join(child.cmdline()) for child in children):
            return process, children
    raise AssertionError(f"no server of workers was started: {process.communicate()}")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server of workers")
def test_a_run_that_cannot_start_leaves_no_server_of_workers_behind(tmp_path):
    process, children = started("grid", tmp_path / "nowhere", tmp_path / "out")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors == f"zemosaic: {tmp_path / 'nowhere'} is not a folder\n"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server of workers")
def test_ctrl_c_while_libraries_load_ends_with_status_130_and_leaves_nothing_behind(frames, tmp_path):
    process, children = started("grid", frames, tmp_path / "out")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "cancelled")
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server of workers")
def test_commands_that_make_no_mosaic_start_no_server_of_workers(frames, tmp_path):
    code = (
        "import sys, zemosaic_cli; zemosaic_cli.main(sys.argv[1:])\n"
        "from multiprocessing.forkserver import _forkserver; print(_forkserver._forkserver_pid)"
    )
    for arguments in (["config", "path"], ["plan", frames, "--output", tmp_path / "plan.csv"]):
        full = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(full, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "None"


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX systems")
def test_a_terminal_shows_a_bar_with_the_time_left(frames, tmp_path):
    import pty
    import termios

    screen, stream = pty.openpty()
    termios.tcsetwinsize(stream, (24, 100))
    full = [sys.executable, "-m", "zemosaic_cli", "grid", str(frames), str(tmp_path / "out")]
    process = subprocess.Popen(full, stderr=stream, stdout=subprocess.DEVNULL)
    os.close(stream)
    shown = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            part = os.read(screen, 65536)
        except OSError:  # the program has closed the terminal
            break
        if not part:
            break
        shown += part
    os.close(screen)
    assert process.wait(timeout=60) == 0
    text = shown.decode("utf-8", "replace")
    for phase in ("headers", "measure", "stack", "assemble"):
        assert re.search(rf"{phase}\s*:\s+100%\|", text), phase
    assert "\r" in text
    assert re.search(r"\[\d\d:\d\d<", text)


def test_plan_writes_into_the_folder_or_where_it_is_told(frames, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in frames.glob("*.fit"):
        os.link(path, folder / path.name)
    elsewhere = tmp_path / "plan.csv"
    done = command("plan", folder, "--output", elsewhere)
    assert done.returncode == 0, done.stderr
    assert elsewhere.is_file()
    assert not (folder / "stack_plan.csv").exists()
    assert command("plan", folder).returncode == 0
    text = (folder / "stack_plan.csv").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 7
    assert command("plan", folder).returncode == 2
    assert command("plan", folder, "--overwrite").returncode == 0


def test_the_configuration_is_shown_changed_and_documented(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = command("config", "path").stdout.strip()
    assert path.endswith("zemosaic_config.json")
    assert command("config", "set", "grid_workers=3").returncode == 0
    assert json.loads(Path(path).read_text(encoding="utf-8"))["grid_workers"] == 3
    assert "grid_workers = 3  (file)" in command("config", "show").stdout
    assert command("config", "show", "grid_workers").stdout == "grid_workers = 3  (file)\n"
    assert command("config", "set", "grid_workers=many").returncode == 2
    page = command("config", "doc").stdout
    assert page == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["demo", "plan", "grid", "run", "report", "config"])
def test_every_command_explains_itself(name):
    done = command(name, "--help")
    assert done.returncode == 0
    assert "usage: zemosaic" in done.stdout


@pytest.mark.parametrize("name", ["grid", "run"])
def test_the_help_of_grid_and_run_names_every_option(name):
    text = command(name, "--help").stdout
    for option in ("--workers", "--gpu", "--config", "--set", "--overwrite", "--quiet", "--log-level"):
        assert option in text


def test_the_version_is_told():
    assert re.fullmatch(r"ZeMosaic \d+\.\d+\.\d+\n", command("--version").stdout)


def test_the_command_starts_without_the_numerical_libraries():
    code = "import sys, zemosaic_cli; print(sorted({'numpy', 'astropy', 'numba', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_demo_ends_with_the_distance_from_the_truth(tmp_path):
    done = command("demo", "--output", tmp_path / "demo", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "star positions" in done.stdout
    assert "trail residue" in done.stdout
    assert (tmp_path / "demo" / "mosaic" / "mosaic_grid_preview.png").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").touch()
    refused = command("demo", "--output", tmp_path / "other")
    assert refused.returncode == 1
    assert "holds something" in refused.stderr
