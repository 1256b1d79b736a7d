"""How many processes a run uses, and how it survives the death of one of them.

The plan is a pure function of cores, memory and the request. Tasks go through `TaskPool.run`, which keeps a
bounded number of them in flight, hands over results as they come, and when a worker process dies repeats the
tasks that were in flight one by one, so that only the guilty one is lost.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import psutil

from zemosaic_events import CancelToken, log_tag, set_log_tag, tagged_logger
from zemosaic_types import RunCancelled

logger = tagged_logger("ZeMosaicWorker.parallel")

#: Memory of a worker beyond its stacking budget: interpreter, libraries and the section of one frame.
WORKER_BASE_BYTES = 500 * 1024**2

_SHARE_OF_FREE_MEMORY = 0.8
_POLL_S = 0.2
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

# glibc gives the memory of freed arrays back to the system and takes it anew, page by page: a quarter of the time
# of measuring frames. Larger blocks, and more at once, are given back as before.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2), "MALLOC_TRIM_THRESHOLD_": str(128 * 1024**2)}

_NO_MORE = object()

_cancel_in_worker: CancelToken | None = None


def plan_workers(requested: int | None, *, cores: int, free_bytes: int, worker_bytes: int, n_tasks: int) -> int:
    """Return the number of worker processes.

    Parameters
    ----------
    requested : int or None
        Used as given if positive; 0 or less asks for the automatic choice; None, a caller who says nothing,
        means one.
    cores : int
        Logical cores of the machine.
    free_bytes : int
        Memory that is free now.
    worker_bytes : int
        Memory that a worker needs at its peak.
    n_tasks : int
        More workers than tasks are of no use.

    Returns
    -------
    int
        At least 1. The automatic choice leaves two cores to the rest of the machine where that still leaves
        two workers, and takes at most 80 % of the free memory.
    """
    if requested is None:
        return 1
    if requested > 0:
        return requested
    by_cores = cores if cores <= 2 else max(2, cores - 2)
    by_memory = int(free_bytes * _SHARE_OF_FREE_MEMORY) // worker_bytes
    return max(1, min(by_cores, by_memory, n_tasks))


def machine() -> tuple[int, int]:
    """Return the cores this process may use and the bytes of memory that are free."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, psutil.virtual_memory().available


def workers_for(requested: int | None, chunk_ram_mb: int, n_tasks: int) -> int:
    """Return how many workers this machine would be given now.

    Parameters
    ----------
    requested, n_tasks : int
        See `plan_workers`.
    chunk_ram_mb : int
        Memory that a worker may use for its frames, MB; what its interpreter and libraries need is added.
    """
    cores, free = machine()
    need = WORKER_BASE_BYTES + chunk_ram_mb * 1024**2
    return plan_workers(requested, cores=cores, free_bytes=free, worker_bytes=need, n_tasks=n_tasks)


def check_cancelled() -> None:
    """Raise `RunCancelled` in a worker process whose run was cancelled; does nothing elsewhere."""
    if _cancel_in_worker is not None:
        _cancel_in_worker.check()


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had, or its present one where that is not known."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    try:
        import resource  # not on Windows
    except ImportError:
        return int(info.rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if os.uname().sysname == "Darwin" else int(peak) * 1024


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Let the libraries that are imported within the block load quickly, and use one thread each.

    Their threads would wait for work in a busy loop while the workers compute. What imports make stays to the end,
    so the garbage collector need not look at it.
    """
    unset = [name for name in _THREAD_VARIABLES if name not in os.environ]
    before = _set_environment(dict.fromkeys(unset, "1"))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        _set_environment(before)


@contextmanager
def meanwhile(function: Callable[[], None]) -> Iterator[None]:
    """Have a thread call `function` during the block, which is left when both have ended.

    What the block raises, a cancelled run say, leaves it at once; the thread then ends by itself, or with the
    process.
    """
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    yield
    thread.join()


def prepare_workers(modules: Sequence[str]) -> None:
    """Let the workers of all pools to come start with `modules` loaded; returns at once.

    On Linux they are forked from a server, a small process that loads the modules once and runs no thread: as
    clean as a spawned process, at a tenth of the cost. Elsewhere forking is not safe, and nothing happens here.
    """
    if sys.platform == "linux":
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
        _context_of_workers()


def _context_of_workers() -> BaseContext:
    """Return how workers are started: by the running server, or spawned where there is none."""
    if sys.platform == "linux":
        from multiprocessing import forkserver  # made for POSIX systems only

        # The server must find the modules that this process finds, and no others.
        path = os.pathsep.join(entry for entry in sys.path if Path(entry).is_absolute())
        values = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", **dict.fromkeys(_THREAD_VARIABLES, "1")}
        values |= {name: value for name, value in _KEPT_MEMORY.items() if name not in os.environ}
        before = _set_environment(values)
        # Ctrl-C reaches the whole process group; only this process acts on it, also while the server starts.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
            return multiprocessing.get_context("forkserver")
        except OSError as error:  # its socket lies in the folder for temporary files, whose path may be too long
            logger.warning("workers are started one by one, since no server for them can run: %s", error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            _set_environment(before)
    return multiprocessing.get_context("spawn")


def _set_environment(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Set variables, or remove those that are None; return what they were before."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


def _start_worker(
    flag: Any, started: Any, environment: dict[str, str], tag: str, setup: Callable[[int], None] | None
) -> None:
    global _cancel_in_worker
    _cancel_in_worker = CancelToken(flag)
    set_log_tag(tag)
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C reaches the whole process group; only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if setup is not None:
        with started.get_lock():
            number = started.value
            started.value += 1
        setup(number)


def _leave_with_parent() -> None:
    """End this worker when its parent is gone, however that came about."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its `value`, or the `error` that ended its last attempt."""

    task: Any
    value: Any = None
    error: BaseException | None = None


class WorkerDied(RuntimeError):
    """The process that worked on a task died (killed, out of memory, or a crash in a library)."""


def _all_of(task: tuple[int, Callable[[Any], Any], Sequence[Any]]) -> list[Any]:
    """Do some tasks of `TaskPool.map` in a worker."""
    _, function, tasks = task
    check_cancelled()
    return [function(item) for item in tasks]


class TaskPool:
    """Fresh worker processes for the tasks of a run.

    Parameters
    ----------
    n_workers : int
    cancel : CancelToken
        Looked at while waiting; its request reaches the workers through `check_cancelled`.
    setup : callable, optional
        Module-level function run once in every worker before its first task, with the worker's number: 0 for the
        first that the pool starts, and so on, also for those that take the place of dead ones.
    """

    def __init__(self, n_workers: int, cancel: CancelToken, *, setup: Callable[[int], None] | None = None) -> None:
        self.n_workers = n_workers
        self._cancel = cancel
        self._setup = setup
        self._context = _context_of_workers()
        self._flag = self._context.Event()
        self._started = self._context.Value("i", 0)
        self._executor: ProcessPoolExecutor | None = None
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> TaskPool:
        # Libraries read these when they load, and workers may be started at any time until the pool is closed.
        # What a server of workers has loaded before runs in one thread.
        cores, _ = machine()
        threads = str(max(1, cores // self.n_workers))
        self._environment = _set_environment(dict.fromkeys(_THREAD_VARIABLES, threads))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._flag.set()
        self._stop()
        _set_environment(self._environment)

    def run(
        self, function: Callable[[Any], Any], tasks: Iterable[Any], *, retry: Callable[[Any], Any]
    ) -> Iterator[Outcome]:
        """Yield the outcome of every task, in the order in which they finish.

        Parameters
        ----------
        function : callable
            Module-level function of one task.
        tasks : iterable
            Small picklable tasks, taken one by one as workers become free.
        retry : callable
            Returns the task to try, alone, after the process that worked on `task` died.

        Raises
        ------
        RunCancelled
            When the run is cancelled, after the workers have stopped.
        """
        source, exhausted = iter(tasks), False
        suspects: deque[tuple[Any, Any]] = deque()
        running: dict[Future, Any] = {}
        while running or suspects or not exhausted:
            self._look_for_cancel()
            if suspects and not running:
                yield self._run_alone(function, *suspects.popleft())
                continue
            while not (exhausted or suspects) and len(running) < self.n_workers:
                task = next(source, _NO_MORE)
                if task is _NO_MORE:
                    exhausted = True
                    break
                try:
                    running[self._submit(function, task)] = task
                except BrokenProcessPool:
                    # A worker died between two tasks; nobody is to blame yet.
                    suspects.append((task, retry(task)))
            done, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                outcome = _outcome(future, task)
                if isinstance(outcome.error, WorkerDied):
                    logger.warning("a worker process died; its task is tried once more, alone")
                    suspects.append((task, retry(task)))
                else:
                    yield outcome
            if suspects:
                self._gather_suspects(running, suspects, retry)

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any], *, batch: int = 1) -> Iterator[Any]:
        """Yield the result of every task, in the order of the tasks; of one whose workers die it is found here.

        Parameters
        ----------
        function : callable
            Module-level function of one task.
        tasks : sequence
            Small and picklable.
        batch : int
            So many cross the border between processes at a time.

        Raises
        ------
        RunCancelled
            When the run is cancelled, after the workers have stopped.
        Exception
            What a task raised.
        """
        batches = [(k, function, tasks[k : k + batch]) for k in range(0, len(tasks), batch)]
        ready: dict[int, list[Any]] = {}
        first = 0
        for outcome in self.run(_all_of, batches, retry=lambda task: task):
            if isinstance(outcome.error, WorkerDied):
                ready[outcome.task[0]] = [function(item) for item in outcome.task[2]]
            elif outcome.error is not None:
                raise outcome.error
            else:
                ready[outcome.task[0]] = outcome.value
            while first in ready:
                yield from ready.pop(first)
                first += batch

    def _gather_suspects(self, running: dict, suspects: deque, retry: Callable[[Any], Any]) -> None:
        """Every task in flight when the pool broke is a suspect; start a fresh pool for them."""
        for task in running.values():
            suspects.append((task, retry(task)))
        running.clear()
        self._stop()

    def _run_alone(self, function: Callable[[Any], Any], task: Any, attempt: Any) -> Outcome:
        try:
            future = self._submit(function, attempt)
        except BrokenProcessPool:
            self._stop()
            future = self._submit(function, attempt)
        while not wait([future], timeout=_POLL_S).done:
            self._look_for_cancel()
        outcome = _outcome(future, task)
        if isinstance(outcome.error, WorkerDied):
            self._stop()
        return outcome

    def _submit(self, function: Callable[[Any], Any], task: Any) -> Future:
        if self._executor is None:
            self._executor = self._start()
        return self._executor.submit(function, task)

    def _start(self) -> ProcessPoolExecutor:
        self._started.value = 0
        return ProcessPoolExecutor(
            self.n_workers,
            mp_context=self._context,
            initializer=_start_worker,
            initargs=(self._flag, self._started, dict(os.environ), log_tag(), self._setup),
        )

    def _look_for_cancel(self) -> None:
        if self._cancel.cancelled:
            self._flag.set()
            self._stop()
            raise RunCancelled("the run was cancelled")

    def _stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


def _outcome(future: Future, task: Any) -> Outcome:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        error = WorkerDied("its worker process died (killed, out of memory, or a crash)")
    return Outcome(task, None, error) if error is not None else Outcome(task, future.result())
