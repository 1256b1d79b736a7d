"""Who stacks: the GPUs when they were asked for and answer, the processor's workers otherwise and afterwards.

One process owns each GPU, however many workers there are; the main process never opens one. A task that a GPU's
process could not do, for whatever reason, is done by a worker: a GPU costs no tile and no run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol

from parallel_utils import Outcome, TaskPool
from zemosaic_align_stack_gpu import MOST_FAILURES, DeviceStacker
from zemosaic_backend import Device, DeviceInfo, find_devices, open_device
from zemosaic_events import tagged_logger
from zemosaic_runbook import RunBook
from zemosaic_types import DeviceUnavailable

logger = tagged_logger("ZeMosaicWorker.stack")

_FELL_BACK = "GPU stack failed, falling back to CPU"
_GIGABYTE = 1024**3

# Of a process that owns a GPU: its index, how to open it, and the GPU once it is open, or that it could not be.
_number = 0
_open: Callable[[int], Device] | None = None
_stacker: DeviceStacker | None = None
_refused = False


@dataclass(frozen=True)
class DeviceAccess:
    """How GPUs are found and opened; module-level functions, since other processes call them."""

    find: Callable[[], list[DeviceInfo]] = find_devices
    open: Callable[[int], Device] = open_device


@dataclass(frozen=True)
class DeviceReport:
    """What a GPU's process says after a task: why it fell back meanwhile, and whether the GPU is done with.

    `notes` are what else a user should know.
    """

    index: int
    failures: tuple[str, ...]
    given_up: bool
    notes: tuple[str, ...] = ()


class StackTask(Protocol):
    """A task of a stack; `on_device` says that the process that gets it owns a GPU."""

    on_device: bool


class StackReport(Protocol):
    """What a task of a stack returns; `device` only if it ran in the process of a GPU."""

    device: DeviceReport | None


def device_of_process() -> tuple[DeviceStacker | None, Callable[[], DeviceReport]]:
    """Return the stacker of this process's GPU, None if it cannot be opened, and what makes its report.

    The report counts the failures and notes since this call.
    """
    global _stacker, _refused
    refusal: tuple[str, ...] = ()
    if _stacker is None and not _refused:
        try:
            _stacker = DeviceStacker(_open(_number))
        except DeviceUnavailable as error:
            _refused, refusal = True, (str(error),)
    if _stacker is None:
        return None, lambda: DeviceReport(_number, refusal, True)
    stacker, failed, noted = _stacker, len(_stacker.failures), len(_stacker.notes)
    return stacker, lambda: DeviceReport(
        _number, tuple(stacker.failures[failed:]), stacker.given_up, tuple(stacker.notes[noted:])
    )


def _own_device(opener: Callable[[int], Device], indices: tuple[int, ...], worker: int) -> None:
    global _number, _open
    _number, _open = indices[worker % len(indices)], opener


def _found(find: Callable[[], list[DeviceInfo]]) -> list[DeviceInfo] | str:
    try:
        return find()
    except DeviceUnavailable as error:
        return str(error)


class StackPool:
    """Runs the tasks of a stack on the GPUs, if asked for, and on the workers.

    Parameters
    ----------
    workers : TaskPool
        Of the processor.
    book : RunBook
        Told of GPUs and of every failure.
    use_gpu : bool
    access : DeviceAccess
    """

    def __init__(self, workers: TaskPool, book: RunBook, *, use_gpu: bool, access: DeviceAccess) -> None:
        self.workers, self.book, self.access = workers, book, access
        self.devices = self._find() if use_gpu else []
        if not use_gpu:
            logger.info("GPU=OFF (not asked for)")

    def _find(self) -> list[DeviceInfo]:
        """Return the GPUs; a process of their own looks for them, so that this one holds none of their memory."""
        with TaskPool(1, self.book.cancel) as prober:
            (outcome,) = prober.run(_found, [self.access.find], retry=lambda task: task)
        found = outcome.value if outcome.error is None else f"looking for one failed: {outcome.error}"
        if isinstance(found, str):
            logger.info("GPU=OFF (%s)", found)
            self.book.say(f"{_FELL_BACK}: {found}", "WARNING")
            return []
        for info in found:
            logger.info("GPU=ON (%s, %.1f GiB free)", info.name, info.free_bytes / _GIGABYTE)
        return found

    def run(
        self, function: Callable[[Any], Any], tasks: Iterable[Any], *, retry: Callable[[Any], Any]
    ) -> Iterator[Outcome]:
        """Yield the outcome of every task as it finishes; see `parallel_utils.TaskPool.run`.

        Parameters
        ----------
        function : callable
            Module-level; takes a `StackTask`, returns a `StackReport`.
        tasks : iterable of StackTask
            Each is taken when somebody is free for it.
        retry : callable
            As for `TaskPool.run`.
        """
        left, undone = iter(tasks), []
        if self.devices:
            yield from self._on_devices(function, left, undone)
        yield from self.workers.run(function, chain(undone, left), retry=retry)

    def _on_devices(
        self, function: Callable[[Any], Any], left: Iterator[Any], undone: list[Any]
    ) -> Iterator[Outcome]:
        """Yield what the GPUs get done; what they cannot is put into `undone`, what they did not take is left."""
        alone: set[int] = set()
        indices = tuple(info.index for info in self.devices)

        def feed() -> Iterator[Any]:
            while len(alone) < len(indices) and len(undone) < MOST_FAILURES and (task := next(left, None)):
                yield replace(task, on_device=True)

        setup = partial(_own_device, self.access.open, indices)
        with TaskPool(len(indices), self.book.cancel, setup=setup) as owners:
            for outcome in owners.run(function, feed(), retry=lambda task: task):
                task = replace(outcome.task, on_device=False)
                if outcome.error is not None:
                    self.book.say(f"{_FELL_BACK}: {outcome.error}", "WARNING")
                    undone.append(task)
                    continue
                self._note(outcome.value.device, alone)
                yield replace(outcome, task=task)
        if len(undone) >= MOST_FAILURES:
            self.book.say("the GPUs are left alone for the rest of the run", "WARNING")

    def _note(self, report: DeviceReport, alone: set[int]) -> None:
        for reason in report.failures:
            self.book.say(f"{_FELL_BACK}: {reason}", "WARNING")
        for note in report.notes:
            self.book.say(note, "WARNING")
        if report.given_up and report.index not in alone:
            alone.add(report.index)
            self.book.say(f"GPU {report.index} is left alone for the rest of the run", "WARNING")
