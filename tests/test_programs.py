"""Programs of others: where they are found, and that nothing of them is left."""

import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import zemosaic_programs
from zemosaic_events import CancelToken
from zemosaic_programs import (
    find_astap,
    find_indexes,
    find_solve_field,
    find_star_database,
    run_boxed,
    star_files,
)
from zemosaic_types import RunCancelled, SolverMissing

posix_only = pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX's")


# ---- finding ---------------------------------------------------------------------------------------------


def programs(*paths):
    """Return a `which` of a machine with these programs, the first ones on its search path."""
    names = {Path(path).name: path for path in reversed(paths)}
    return lambda asked: asked if asked in paths else names.get(asked)


def test_astap_is_found_by_name_by_place_and_by_variable():
    assert find_astap("", {}, programs("/usr/bin/astap_cli")) == "/usr/bin/astap_cli"
    assert find_astap("", {}, {"/opt/astap/astap": "/opt/astap/astap"}.get) == "/opt/astap/astap"
    which = programs("/usr/bin/astap", "/home/me/new/astap", "/home/me/old/astap")
    env = {"ASTAP_PATH": "/home/me/old/astap"}
    assert find_astap("", env, which) == "/home/me/old/astap"
    assert find_astap("/home/me/new/astap", env, which) == "/home/me/new/astap"


@pytest.mark.parametrize("inside", ["astap", "ASTAP.app/Contents/MacOS/astap"])
def test_the_folder_or_the_bundle_of_astap_serves_as_its_name(tmp_path, inside):
    program = tmp_path / inside
    program.parent.mkdir(parents=True, exist_ok=True)
    program.touch()
    named = tmp_path / Path(inside).parts[0] if ".app" in inside else tmp_path
    assert find_astap(str(named), {}, programs(str(program))) == str(program)


@pytest.mark.parametrize("name", ["astap_path", "ASTAP_EXE", "ASTAP_BIN", "ASTAP_PATH"])
def test_an_astap_that_is_named_wrongly_is_not_replaced_by_another(name):
    named, env = ("/gone/astap", {}) if name == "astap_path" else ("", {name: "/gone/astap"})
    with pytest.raises(SolverMissing, match=f"{name} names /gone/astap, which is no program"):
        find_astap(named, env, programs("/usr/bin/astap"))


def test_what_nobody_named_and_nobody_has_is_missing_without_words():
    for find in (lambda which: find_astap("", {}, which), find_solve_field):
        with pytest.raises(SolverMissing) as missing:
            find(programs())
        assert str(missing.value) == ""


@pytest.mark.parametrize("file", ["d50_0101.1476", "h17_3611.1476", "g05_0101.290", "w08_0101.001"])
def test_a_folder_is_a_star_database_if_it_holds_one(tmp_path, file, monkeypatch):
    monkeypatch.setattr(zemosaic_programs, "_DATABASE_PLACES", ())
    beside = tmp_path / "bin"
    (beside / "data").mkdir(parents=True)
    with pytest.raises(SolverMissing, match="no star database"):
        find_star_database(str(beside / "astap"), "", {})
    (beside / "data" / file).touch()
    (beside / "data" / "readme.txt").touch()
    assert find_star_database(str(beside / "astap"), "", {}) == beside / "data"
    assert star_files(beside / "data") == [file]
    other = tmp_path / "other"
    other.mkdir()
    (other / file).touch()
    assert find_star_database(str(beside / "astap"), "", {"ASTAP_STAR_DB": str(other)}) == other
    with pytest.raises(SolverMissing, match=r"astap_data_dir names .*, in which there is no star database"):
        find_star_database(str(beside / "astap"), str(tmp_path), {"ASTAP_STAR_DB": str(other)})


def test_index_files_are_found_in_a_folder_and_through_a_configuration(tmp_path):
    for name in ("index-4107.fits", "index-4108.fits", "readme.fits"):
        (tmp_path / name).touch()
    config = tmp_path / "my.cfg"
    config.write_text(f"# add_path /nowhere\nadd_path {tmp_path}\nindex index-99\nautoindex\n", encoding="utf-8")
    assert find_indexes(str(tmp_path)) == ["index-4107.fits", "index-4108.fits"]
    assert find_indexes(str(config)) == ["index-4107.fits", "index-4108.fits", "index-99"]
    assert find_indexes(str(tmp_path / "gone.cfg")) is None


# ---- running ---------------------------------------------------------------------------------------------

CHILD = f"""
import os, subprocess, sys, time
own = len(sys.argv) > 1
child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(300)"], start_new_session=own)
print("started", child.pid, os.getpid(), flush=True)
"""


def python(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


def pids_in(output):
    return [int(word) for word in output.split()[1:3]]


def all_gone(pids, patience_s=2.0):
    deadline = time.monotonic() + patience_s
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return all(map(gone, pids))


def gone(pid):
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or "time.sleep(300)" not in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True


def test_a_program_gives_its_status_and_the_end_of_what_it_printed(tmp_path):
    code = "import sys; print('a'); print('b', file=sys.stderr); print(repr(sys.stdin.read())); sys.exit(3)"
    finished = run_boxed(python(code), tmp_path, timeout_s=60)
    assert (finished.status, finished.stopped) == (3, "")
    assert sorted(finished.output.split()) == ["''", "a", "b"]


def test_a_program_works_in_its_own_folder_and_sees_no_library_path_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    code = "import os, tempfile; print(os.getcwd(), tempfile.gettempdir(), 'PYTHONPATH' in os.environ)"
    output = run_boxed(python(code), tmp_path, timeout_s=60).output
    assert output.split() == [str(tmp_path), str(tmp_path), "False"]


@posix_only
@pytest.mark.parametrize("session", [[], ["own"]])
def test_a_program_that_hangs_is_killed_in_time_with_its_children(tmp_path, session):
    start = time.monotonic()
    finished = run_boxed(python(CHILD + "time.sleep(300)", *session), tmp_path, timeout_s=1.5)
    assert time.monotonic() - start < 6
    assert (finished.status, finished.stopped) == (None, "after 1.5 s")
    assert all(map(gone, pids_in(finished.output)))


@posix_only
def test_what_a_program_leaves_running_is_killed_when_it_ends(tmp_path):
    finished = run_boxed(python(CHILD), tmp_path, timeout_s=60)
    assert finished.status == 0
    assert all_gone(pids_in(finished.output))


def test_a_program_that_ignores_the_signal_to_end_is_killed(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    assert run_boxed(python(code), tmp_path, timeout_s=1).stopped == "after 1 s"


def test_a_program_that_prints_without_end_is_stopped(tmp_path):
    start = time.monotonic()
    finished = run_boxed(python("while True: print('x' * 10000)"), tmp_path, timeout_s=120)
    assert time.monotonic() - start < 60
    assert finished.stopped == "after printing 16 MB"
    assert len(finished.output) <= 65536


@posix_only
def test_a_cancelled_run_waits_for_no_program(tmp_path):
    cancel = CancelToken()
    threading.Timer(1.0, cancel.cancel).start()
    start = time.monotonic()
    with pytest.raises(RunCancelled):
        run_boxed(python(CHILD + "time.sleep(300)"), tmp_path, timeout_s=120, cancel=cancel)
    assert time.monotonic() - start < 3
    assert all_gone(pids_in((tmp_path / "printed.txt").read_text(encoding="utf-8")))


def test_a_program_that_cannot_be_started_says_so(tmp_path):
    text = tmp_path / "text"
    text.write_text("no program", encoding="utf-8")
    with pytest.raises(OSError, match=r"ermission|format|valid"):
        run_boxed([str(text)], tmp_path, timeout_s=5)
