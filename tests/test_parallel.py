"""Worker counts, and a pool that survives the death of its workers."""

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import parallel_utils
from parallel_utils import (
    WORKER_BASE_BYTES,
    TaskPool,
    WorkerDied,
    check_cancelled,
    loading_libraries,
    meanwhile,
    peak_memory_bytes,
    plan_workers,
    workers_for,
)
from zemosaic_events import CancelToken, log_tag, tagged
from zemosaic_types import RunCancelled

GB = 1024**3


@pytest.mark.parametrize(
    ("requested", "cores", "free", "tasks", "expected"),
    [
        (None, 16, 64 * GB, 100, 1),
        (5, 2, 1 * GB, 100, 5),
        (0, 1, 64 * GB, 100, 1),
        (0, 2, 64 * GB, 100, 2),
        (0, 4, 64 * GB, 100, 2),
        (0, 16, 64 * GB, 100, 14),
        (-1, 16, 64 * GB, 100, 14),
        (0, 16, 4 * GB, 100, 3),
        (0, 16, GB // 2, 100, 1),
        (0, 16, 64 * GB, 6, 6),
        (0, 16, 64 * GB, 0, 1),
    ],
)
def test_the_number_of_workers(requested, cores, free, tasks, expected):
    assert plan_workers(requested, cores=cores, free_bytes=free, worker_bytes=GB, n_tasks=tasks) == expected


def test_as_many_workers_are_given_as_fit_the_memory_with_what_they_may_use(monkeypatch):
    room = 3 * (WORKER_BASE_BYTES + 700 * 1024**2)
    monkeypatch.setattr(parallel_utils, "machine", lambda: (16, int(room / 0.8) + 1))
    assert workers_for(0, 700, 100) == 3
    assert workers_for(0, 0, 100) == room // WORKER_BASE_BYTES
    assert workers_for(0, 0, 2) == 2
    assert workers_for(9, 700, 100) == 9


def double(value):
    return 2 * value


def fail_on_three(value):
    if value == 3:
        raise ValueError("three is not allowed")
    return value


def die_unless_small(task):
    kind, size = task
    if kind == "big" and size > 1:
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    time.sleep(0.05)
    return task


def always_die(task):
    if task == "bad":
        os._exit(3)
    time.sleep(0.05)
    return task


def die_in_a_worker(task):
    main, value = task
    if os.getpid() != main and value == 5:
        os._exit(3)
    return value


def wait_for_cancel(_task):
    for _ in range(600):
        check_cancelled()
        time.sleep(0.05)
    return "never cancelled"


def pages_taken(_task):
    """Page faults of a worker that makes and drops arrays again and again, after the first time."""
    import resource  # Linux only, as the test is

    before = 0
    for turn in range(6):
        arrays = [np.ones(3 * 1024**2, dtype=np.uint8) for _ in range(8)]
        assert len(arrays) == 8
        del arrays
        if turn == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def threads(_task):
    return os.environ["OMP_NUM_THREADS"]


def workers_of(process):
    """The processes that a pool has started; not the server that they are forked from, nor the tracker."""
    children = process.children(recursive=True)
    if sys.platform == "linux":
        servers = [p for p in children if "forkserver" in " ".join(p.cmdline()) and p.ppid() == process.pid]
        return [p for server in servers for p in server.children(recursive=True)]
    return [p for p in children if "spawn_main" in " ".join(p.cmdline())]


def run(function, tasks, n_workers=2, retry=lambda task: task):
    with TaskPool(n_workers, CancelToken()) as pool:
        return list(pool.run(function, tasks, retry=retry))


def test_every_task_has_one_outcome():
    outcomes = run(double, range(20))
    assert sorted((o.task, o.value) for o in outcomes) == [(k, 2 * k) for k in range(20)]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_results_come_in_the_order_of_the_tasks(batch):
    with TaskPool(2, CancelToken()) as pool:
        assert list(pool.map(double, list(range(20)), batch=batch)) == [2 * k for k in range(20)]
        assert list(pool.map(double, [], batch=batch)) == []


def test_what_a_task_raises_ends_the_map_and_not_the_pool():
    with TaskPool(2, CancelToken()) as pool:
        with pytest.raises(ValueError, match="three is not allowed"):
            list(pool.map(fail_on_three, list(range(10))))
        assert list(pool.map(double, [4])) == [8]


def test_a_task_that_kills_every_worker_is_done_here():
    tasks = [(os.getpid(), value) for value in range(8)]
    with TaskPool(2, CancelToken()) as pool:
        assert list(pool.map(die_in_a_worker, tasks, batch=2)) == list(range(8))


def test_a_task_that_raises_costs_no_other():
    outcomes = {o.task: o for o in run(fail_on_three, range(6))}
    assert isinstance(outcomes[3].error, ValueError)
    assert [outcomes[k].value for k in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]


def test_a_task_whose_worker_dies_is_tried_once_more_with_less():
    tasks = [("small", k) for k in range(5)] + [("big", 2)] + [("small", k) for k in range(5, 9)]
    outcomes = run(die_unless_small, tasks, retry=lambda task: (task[0], task[1] // 2))
    assert len(outcomes) == len(tasks)
    assert all(o.error is None for o in outcomes)
    assert next(o for o in outcomes if o.task == ("big", 2)).value == ("big", 1)


def test_a_task_that_kills_every_worker_is_given_up_and_costs_no_other():
    outcomes = {o.task: o for o in run(always_die, ["a", "b", "bad", "c", "d", "e"])}
    assert isinstance(outcomes["bad"].error, WorkerDied)
    assert {k: o.value for k, o in outcomes.items() if k != "bad"} == {k: k for k in "abcde"}


def test_cancelling_stops_the_workers_and_leaves_none_behind():
    cancel = CancelToken()
    with TaskPool(2, cancel) as pool:
        outcomes = pool.run(wait_for_cancel, range(4), retry=lambda task: task)
        cancel.cancel()
        with pytest.raises(RunCancelled):
            next(outcomes)
    assert workers_of(psutil.Process()) == []


def test_inner_threads_are_shared_out_among_the_workers_and_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    outcomes = run(threads, range(3), n_workers=64)
    assert {o.value for o in outcomes} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "77"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own way with memory is left alone")
def test_workers_use_the_memory_of_freed_arrays_again():
    faults = [outcome.value for outcome in run(pages_taken, [0, 1])]
    one_turn = 8 * 3 * 1024**2 / os.sysconf("SC_PAGESIZE")
    assert max(faults) < 0.1 * 5 * one_turn


def test_libraries_load_with_one_thread_each_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with loading_libraries():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]) == ("7", "1")
        assert not gc.isenabled()
    assert gc.isenabled()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_the_peak_memory_is_that_of_a_python_process():
    assert 10**7 < peak_memory_bytes() < 10**11


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
def test_workers_leave_when_their_parent_is_killed(tmp_path):
    """An overnight run that is killed hard leaves no worker behind."""
    import subprocess

    script = tmp_path / "parent.py"
    script.write_text(
        "from parallel_utils import TaskPool\n"
        "from zemosaic_events import CancelToken\n"
        "from test_parallel import wait_for_cancel\n"
        "if __name__ == '__main__':\n"
        "    with TaskPool(2, CancelToken()) as pool:\n"
        "        list(pool.run(wait_for_cancel, range(4), retry=lambda t: t))\n",
        encoding="utf-8",
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path})
    workers = []
    deadline = time.monotonic() + 30
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = workers_of(psutil.Process(parent.pid))
        time.sleep(0.1)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def tag_of(_task):
    return log_tag()


def test_lines_of_a_worker_name_the_pipeline_that_it_works_for():
    with tagged("CLASSIC"), TaskPool(1, CancelToken()) as pool:
        (outcome,) = pool.run(tag_of, [0], retry=lambda task: task)
    assert (outcome.value, log_tag()) == ("CLASSIC", "GRID")


def where_from(_task):
    import grid_mode

    return grid_mode.__file__, dict(os.environ)


def test_workers_load_the_modules_of_this_process_not_those_of_the_folder_it_runs_in(tmp_path):
    """A folder may hold another program's modules of the same names. The environment is that of this process."""
    import subprocess

    (tmp_path / "grid_mode.py").write_text("WRONG = True\n", encoding="utf-8")
    script = tmp_path / "elsewhere" / "parent.py"
    script.parent.mkdir()
    script.write_text(
        "import os\n"
        "from parallel_utils import TaskPool, prepare_workers\n"
        "from zemosaic_events import CancelToken\n"
        "from test_parallel import where_from\n"
        "if __name__ == '__main__':\n"
        "    prepare_workers(['grid_mode'])\n"
        "    os.environ['SET_LATE'] = 'yes'\n"
        "    with TaskPool(1, CancelToken()) as pool:\n"
        "        (outcome,) = pool.run(where_from, [0], retry=lambda t: t)\n"
        "    file, environment = outcome.value\n"
        "    print(file, environment['SET_LATE'], 'PYTHONSAFEPATH' in environment)\n",
        encoding="utf-8",
    )
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    done = subprocess.run([sys.executable, str(script)], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(here.parent / "grid_mode.py"), "yes", "False"], done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server of workers")
def test_a_folder_for_temporary_files_with_a_long_name_costs_only_the_server(tmp_path):
    import subprocess

    long = tmp_path / ("t" * 120)
    long.mkdir()
    code = "import test_parallel as t; print([o.value for o in t.run(t.double, range(3))])"
    script = tmp_path / "parent.py"
    script.write_text(f"if __name__ == '__main__':\n    {code}\n", encoding="utf-8")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(long)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True)
    assert sorted(eval(done.stdout)) == [0, 2, 4], done.stderr
    assert "workers are started one by one" in done.stderr


# ---- meanwhile -------------------------------------------------------------------------------------------


def test_a_function_runs_meanwhile_and_the_block_waits_for_its_end():
    begun, done = threading.Event(), []

    def work():
        begun.set()
        time.sleep(0.05)
        done.append(threading.current_thread())

    with meanwhile(work):
        assert begun.wait(10.0)
        assert done == []
    assert done[0] is not threading.main_thread()


def test_a_block_that_fails_waits_for_nobody():
    going = threading.Event()
    with pytest.raises(RunCancelled), meanwhile(lambda: going.wait(60.0)):
        raise RunCancelled("enough")
    assert not going.is_set()  # the function is still waiting
    going.set()
