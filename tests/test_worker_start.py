"""The server of the workers: what it has loaded, and that it may be forked."""

import importlib
import multiprocessing.forkserver
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import zemosaic_alignment_kernels
import zemosaic_detection_kernels
import zemosaic_overlap_kernels
import zemosaic_pipeline
import zemosaic_preprocess
import zemosaic_resample_kernels
import zemosaic_stack_kernels
from parallel_utils import TaskPool, prepare_workers
from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_events import CancelToken
from zemosaic_preprocess import demosaic, replace_isolated
from zemosaic_synthetic import small_spec

HERE = Path(__file__).parent

LOOPS = (
    zemosaic_preprocess._bin,  # of large mono frames
    demosaic,
    replace_isolated,
    zemosaic_resample_kernels.lanczos3,
    zemosaic_stack_kernels.stack_rows,
)


LOOPS_OF_MAIN = [
    loop
    for module in (zemosaic_alignment_kernels, zemosaic_overlap_kernels, zemosaic_detection_kernels)
    for name, loop in vars(module).items()
    if hasattr(loop, "signatures") and not name.startswith("_")
]


def loaded(_task):
    """Return the parent, and how many forms of each loop are loaded before it is called.

    This module must not load them by itself: workers import it.
    """
    return os.getppid(), [len(loop.signatures) for loop in LOOPS]


class InThisProcess:
    """A pool whose one worker is this process."""

    n_workers = 1

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, function, tasks, *, retry):
        from parallel_utils import Outcome

        return (Outcome(task, function(task)) for task in tasks)

    def map(self, function, tasks, *, batch):
        return map(function, tasks)


def check_that_a_run_loads_no_other_forms(start, loops, color, folder):
    """Load the loops of a module, have this process do a whole run, and compare; for a fresh process."""
    loops, color, folder = globals()[loops], color == "True", Path(folder)
    importlib.import_module(start).load_loops()
    before = [set(loop.signatures) for loop in loops]
    assert all(before)
    survey_in(folder / "frames", small_spec(color=color, panels=(1, 1)))
    zemosaic_pipeline.TaskPool = InThisProcess
    run = Run(folder / "frames", folder / "out", replace(TWO_WORKERS, workers=1))
    assert run.result.complete
    assert [set(loop.signatures) for loop in loops] == before


@pytest.mark.parametrize(
    ("start", "loops"), [("zemosaic_worker_start", "LOOPS"), ("zemosaic_main_start", "LOOPS_OF_MAIN")]
)
@pytest.mark.parametrize("color", [False, True])
def test_runs_with_the_defaults_need_no_other_form_of_the_loops(color, start, loops, tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_worker_start as t; "
    code += "t.check_that_a_run_loads_no_other_forms(*sys.argv[2:])"
    arguments = [sys.executable, "-c", code, str(HERE), start, loops, str(color), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no server of workers")
def test_workers_start_with_the_loops_of_a_server_that_has_one_thread():
    multiprocessing.forkserver._forkserver._stop()  # a server of earlier tests may have loaded less
    prepare_workers(["zemosaic_worker_start"])
    with TaskPool(1, CancelToken()) as pool:
        (outcome,) = pool.run(loaded, [0], retry=lambda task: task)
    server, forms = outcome.value
    assert min(forms) >= 1
    assert server == multiprocessing.forkserver._forkserver._forkserver_pid
    assert psutil.Process(server).num_threads() == 1
