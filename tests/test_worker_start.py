"""The server of the workers: what it has loaded, and that it may be forked."""

import importlib
import multiprocessing.forkserver
import os
import sys
from dataclasses import replace

import psutil
import pytest

import zemosaic_alignment_kernels
import zemosaic_detection_kernels
import zemosaic_overlap_kernels
import zemosaic_preprocess
import zemosaic_resample_kernels
import zemosaic_stack_kernels
from parallel_utils import TaskPool, prepare_workers
from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_events import CancelToken
from zemosaic_preprocess import demosaic, replace_isolated
from zemosaic_synthetic import small_spec

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


@pytest.mark.parametrize("start", ["zemosaic_worker_start", "zemosaic_main_start"])
@pytest.mark.parametrize("color", [False, True])
def test_runs_with_the_defaults_need_no_other_form_of_the_loops(color, start, tmp_path, monkeypatch):
    importlib.import_module(start).load_loops()
    loops = LOOPS if start == "zemosaic_worker_start" else LOOPS_OF_MAIN
    before = [set(loop.signatures) for loop in loops]
    assert all(before)
    survey_in(tmp_path / "frames", small_spec(color=color, panels=(1, 1)))
    monkeypatch.setattr("zemosaic_pipeline.TaskPool", InThisProcess)
    run = Run(tmp_path / "frames", tmp_path / "out", replace(TWO_WORKERS, workers=1))
    assert run.result.complete
    assert [set(loop.signatures) for loop in loops] == before


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
