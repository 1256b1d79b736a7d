"""Run control: a pipeline in a process of its own, its events, and its end.

A face (command line, desktop program, script) starts a run with `start_run` and hears of it through typed events.
The run is a fresh process, which starts workers of its own. Whatever becomes of it, the face hears events in order
and exactly one `RunFinished`, the last of them, when no process and no temporary file of the run is left.

The child reads its request from its standard input, which stays open: one more byte asks it to stop, its end says
that this process is gone. It writes pickled events to what was its standard output. This module loads no numerical
library; the child does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from parallel_utils import loading_libraries, prepare_workers
from zemosaic_config import Config
from zemosaic_events import CancelToken, Emitter, Event, FinishReason, Listener, RunFinished
from zemosaic_interpreter import VARIABLES, command_to_call
from zemosaic_plan_table import PLAN_NAME
from zemosaic_temp_files import is_running, remove_leftovers
from zemosaic_types import ConfigError, OutputError, PlanError, RunCancelled, RunDied, RunResult, ZeMosaicError

logger = logging.getLogger("ZeMosaicWorker.control")

#: How long a run that was asked to stop may take to do so by itself.
GRACE_S = 1.0

_LINGER_S = 0.4  # for workers to notice that their run is gone, and for what cleans up after them
_SIGNAL_S = 0.25  # for a process to end after a signal
_EXIT_S = 5.0  # for a run that has said its last word to exit
_ORPHAN_S = 3.0  # for a run whose parent is gone to stop by itself
_POLL_S = 0.02
_LAST_WORDS = 10
_MOST_LINES = 500
_LENGTH_BYTES = 8

_HINTS = {
    "SIGKILL": "often memory ran out: try a smaller grid_workers or grid_chunk_ram_mb",
    "SIGTERM": "another program asked it to end; start the run again",
}
_CRASH_HINT = "a library crashed: start it again; if it happens again, report these lines or those of the log"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Where a pipeline is found: ``run(input, output, settings, listener=, cancel=)`` and its settings' class.

    `parallel` says whether it starts workers, which are then prepared while it loads.
    """

    module: str
    run: str
    settings: str
    parallel: bool = True


#: The pipelines of this version. One more is one more entry.
PIPELINES = {
    "grid": Pipeline("grid_mode", "run_grid", "GridSettings"),
    "classic": Pipeline("classic_mode", "run_classic", "ClassicSettings"),
    "survey": Pipeline("zemosaic_survey", "run_survey", "SurveySettings", parallel=False),
}

_TITLES = {"grid": "Grid mode", "classic": "Classic", "survey": "Survey"}
_FOLDERS = ("tiles", "master_tiles")  # of products, below that of a run


@dataclass(frozen=True, slots=True)
class _Returned:
    """What a pipeline returned, on its way to the parent."""

    value: Any


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to run: name of a pipeline, folders, resolved configuration, and what is asked of this run alone.

    `excluded` holds the ids of frames that the user wants left out.
    """

    pipeline: str
    input_folder: Path
    output_folder: Path
    config: Config
    overwrite: bool = False
    drop_suggested: bool = False
    excluded: tuple[str, ...] = ()


def choose_pipeline(input_folder: Path | str, config: Config) -> tuple[str, str]:
    """Return the pipeline for a folder of frames, ``"grid"`` or ``"classic"``, and the reason in words.

    Raises
    ------
    PlanError
        If there is no such folder.
    """
    folder = Path(input_folder)
    if not folder.is_dir():
        raise PlanError(f"{folder} is not a folder")
    if (folder / PLAN_NAME).is_file():
        return "grid", f"{folder} has a {PLAN_NAME}"
    if config["grid_mode_enabled"]:
        return "grid", f"grid_mode_enabled is on ({config.source('grid_mode_enabled')})"
    return "classic", f"{folder} has no {PLAN_NAME} and grid_mode_enabled is off"


def title_of(name: str) -> str:
    """Return what a pipeline is called."""
    return _TITLES.get(name, name)


def find_pipeline(name: str) -> Pipeline:
    """Return a pipeline by its name; raise `ConfigError`, with what else can be done, if there is none."""
    if name in PIPELINES:
        return PIPELINES[name]
    there = ", ".join(title_of(other) for other in PIPELINES if other != "survey")  # which makes no mosaic
    raise ConfigError(
        f"{title_of(name)} is not in this version, which has {there}; frames that have a WCS can be stacked "
        "in Grid mode: `zemosaic grid INPUT OUTPUT`, or grid_mode_enabled=true"
    )


def load_pipeline(name: str) -> tuple[Callable[..., RunResult], type]:
    """Import a pipeline into this process; return its function and the class of its settings.

    Raises
    ------
    ConfigError
        If there is no such pipeline.
    """
    return _loaded(find_pipeline(name))


def _loaded(pipeline: Pipeline) -> tuple[Callable[..., RunResult], type]:
    module = importlib.import_module(pipeline.module)
    return getattr(module, pipeline.run), getattr(module, pipeline.settings)


def start_run(request: RunRequest, on_event: Listener | None = None) -> RunHandle:
    """Start a run in a process of its own; returns at once.

    Parameters
    ----------
    request : RunRequest
    on_event : callable, optional
        Called with each event, in order, in a thread of its own. It may be slow, and what it raises is logged: the
        run minds neither. Without it the events wait for `RunHandle.events`.

    Raises
    ------
    ConfigError
        If there is no such pipeline. No other one is run instead.
    OutputError
        If the system can start no process.
    """
    return RunHandle(request, find_pipeline(request.pipeline), on_event)


class RunHandle:
    """A run in its process. As a context manager it cancels what is still running at the end of the block.

    Made by `start_run`. If this process ends, however that comes about, the run ends too.
    """

    def __init__(self, request: RunRequest, pipeline: Pipeline, on_event: Listener | None) -> None:
        self._output_folder = Path(request.output_folder)
        self._cancelled = False
        self._outcome: _Returned | ZeMosaicError | None = None
        self._finished: RunFinished | None = None
        self._over = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._last_words: deque[str] = deque(maxlen=_MOST_LINES)
        self._heard_end = False
        self._child = _start_child()
        self._ear = self._thread(self._hear_last_words)
        self._thread(self._watch)
        self._teller = None if on_event is None else self._thread(self._tell, Emitter(on_event))
        self._send(_framed((request, pipeline)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        self.wait()

    @property
    def pid(self) -> int:
        """Number of the run's process."""
        return self._child.pid

    def cancel(self) -> None:
        """Ask the run to stop; returns at once. A run that has not in `GRACE_S` is ended, workers included."""
        if self._cancelled or self._over.is_set():
            return
        self._cancelled = True
        self._send(b"c")
        self._thread(self._insist)

    def wait(self, timeout: float | None = None) -> RunFinished | None:
        """Return how the run ended, once nothing of it is running and `on_event` has heard it all.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which None is returned.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._over.wait(timeout):
            return None
        if self._teller is not None:
            self._teller.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if self._teller.is_alive():
                return None
        return self._finished

    def result(self) -> Any:
        """Wait for the run and return what its pipeline returned: a `RunResult`, of a survey a `SurveyDone`.

        Raises
        ------
        RunCancelled, RunDied, ZeMosaicError
            What ended the run; `RunDied` if its process ended without a result.
        """
        self.wait()
        if isinstance(self._outcome, _Returned):
            return self._outcome.value
        if self._outcome is not None:
            raise self._outcome
        kind = RunCancelled if self._finished.reason is FinishReason.CANCELLED else RunDied
        raise kind(self._finished.message)

    def events(self) -> Iterator[Event]:
        """Yield the events of a run that was started without `on_event`, each once, until the last."""
        if self._teller is not None:
            raise ValueError("the events of this run go to its listener")
        return self._take()

    def _take(self) -> Iterator[Event]:
        while not self._heard_end:
            event = self._events.get()
            self._heard_end = isinstance(event, RunFinished)
            yield event

    def _tell(self, emit: Emitter) -> None:
        for event in self._take():
            emit(event)

    @staticmethod
    def _thread(target: Callable, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True, name=f"zemosaic{target.__name__}")
        thread.start()
        return thread

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended, which the watching thread finds out
            self._child.stdin.write(data)

    def _insist(self) -> None:
        """End a run that was asked to stop and does not."""
        if not self._over.wait(GRACE_S) and self._child.returncode is None:
            logger.warning("the run does not stop when asked; its processes are ended")
            _end_family(self._child.pid, 0.0)

    # ---- the watching thread -----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Pass on what the child says; when it is gone, clean up and say how it ended."""
        said = None
        for message in self._messages():
            if isinstance(message, _Returned | ZeMosaicError):
                self._outcome = message
            elif said is not None:
                logger.error("the run has spoken after its end: %r", message)
            elif isinstance(message, RunFinished):
                said = message
            else:
                self._events.put(message)
        self._see_it_gone()
        self._finished = said or self._how_it_ended()
        self._events.put(self._finished)
        self._over.set()

    def _messages(self) -> Iterator[Event | _Returned | ZeMosaicError]:
        with io.BufferedReader(self._child.stdout) as stream:
            while True:
                try:
                    yield pickle.load(stream)
                except EOFError:
                    return
                except (pickle.UnpicklingError, AttributeError, ImportError, IndexError):
                    # It was ended in the midst of a word, or speaks of what this process does not know.
                    logger.warning("a message of the run cannot be read", exc_info=True)
                    return

    def _see_it_gone(self) -> None:
        """Wait for all processes of the run, end those that stay, and remove what they did not finish."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_EXIT_S)
        _end_family(self._child.pid, _LINGER_S)
        self._child.wait()
        self._ear.join(_SIGNAL_S)
        self._child.stdin.close()
        for folder in (self._output_folder, *(self._output_folder / name for name in _FOLDERS)):
            try:
                remove_leftovers(folder)
            except OutputError as error:
                logger.warning("%s", error)

    def _hear_last_words(self) -> None:
        with io.BufferedReader(self._child.stderr) as stream:
            for line in stream:
                text = line.decode("utf-8", "replace").rstrip()
                logger.debug("run: %s", text)
                if text and "resource_tracker" not in text:  # it only says that it cleans up
                    self._last_words.append(text)

    def _how_it_ended(self) -> RunFinished:
        """Say how a run ended that did not say so itself."""
        if self._outcome is not None:
            return _end_of(self._outcome)
        if self._cancelled:
            return RunFinished(FinishReason.CANCELLED, "the run was cancelled")
        what, hint = _cause(self._child.returncode)
        log = self._output_folder / "zemosaic.log"
        if log.is_file():
            what = f"{what} (log: {log})"
        told = [f"the process of the run {what}; {hint}", *_telling(list(self._last_words))]
        return RunFinished(FinishReason.ERROR, "\n".join(told).rstrip())


def _end_of(outcome: _Returned | ZeMosaicError) -> RunFinished:
    """Return the last event of a run whose outcome is known."""
    if isinstance(outcome, RunCancelled):
        return RunFinished(FinishReason.CANCELLED, str(outcome))
    if isinstance(outcome, ZeMosaicError):
        return RunFinished(FinishReason.ERROR, str(outcome))
    complete = outcome.value.complete if isinstance(outcome.value, RunResult) else True
    return RunFinished(FinishReason.COMPLETE if complete else FinishReason.WITH_FAILURES)


def _telling(lines: list[str]) -> list[str]:
    """Return the lines that say why a process ended: the head of a crash's report, or the last ones."""
    for number, line in enumerate(lines):
        if line.startswith("Fatal Python error"):
            return lines[number : number + _LAST_WORDS]
    return lines[-_LAST_WORDS:]


def _cause(status: int) -> tuple[str, str]:
    """Return what an exit status means, and what can be done."""
    if status >= 0:
        hint = "its last words say why" if status < 256 else _CRASH_HINT  # large: a crash on Windows
        return f"ended before its time (exit status {status})", hint
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}", _HINTS.get(name, _CRASH_HINT)


# ---- processes -------------------------------------------------------------------------------------------


def _start_child() -> subprocess.Popen:
    """Start a process that serves one run.

    It leads a process group, by which it and its workers are found even when it is gone; Ctrl-C in a terminal does
    not reach it.
    """
    command, environment = command_to_call("zemosaic_worker.serve"), {**os.environ, **VARIABLES}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    apart: dict[str, Any] = {"process_group": 0}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NO_WINDOW}
    try:
        # Unbuffered: a request to stop must not wait, nor be written again when the pipe is closed.
        return subprocess.Popen(command, bufsize=0, env=environment, **pipes, **apart)
    except OSError as error:
        raise OutputError(f"no process can be started for the run: {error.strerror}") from error


def _family_of(pid: int) -> list[psutil.Process]:
    """Return the processes of a run that have not ended: the child `pid`, its workers, what serves them."""
    if sys.platform == "win32":
        with contextlib.suppress(psutil.NoSuchProcess):
            child = psutil.Process(pid)
            return [child, *child.children(recursive=True)]
        return []
    family = []
    for other in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if os.getpgid(other) == pid and is_running(other):
                family.append(psutil.Process(other))
    return family


def _end_family(pid: int, patience_s: float) -> None:
    """Wait for the processes of a run to end; then tell them to, then kill them."""
    family = _gone(pid, patience_s)
    for how in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                how(process)
        if family:
            family = _gone(pid, _SIGNAL_S)


def _gone(pid: int, patience_s: float) -> list[psutil.Process]:
    """Wait for the processes of a run; return those that are left."""
    deadline = time.monotonic() + patience_s
    while (family := _family_of(pid)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return family


def _framed(message: object) -> bytes:
    data = pickle.dumps(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


# ---- in the child ----------------------------------------------------------------------------------------


def serve() -> None:
    """Do the run that the standard input asks for; the main function of the child."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request, pipeline = pickle.loads(_read(int.from_bytes(_read(_LENGTH_BYTES), "big")))
    voice, cancel = _Voice(), CancelToken()
    threading.Thread(target=_stop_when_asked, args=(cancel,), daemon=True).start()
    try:
        voice.say(_Returned(_run(request, pipeline, voice, cancel)))
    except ZeMosaicError as error:
        voice.say(error)
    finally:
        voice.say_the_end()


def _run(request: RunRequest, pipeline: Pipeline, listener: Listener, cancel: CancelToken) -> Any:
    family = logging.getLogger("ZeMosaicWorker")
    family.setLevel(request.config["logging_level"])
    family.propagate = False
    if pipeline.parallel:  # the server of the workers loads the numerical libraries while this process does
        prepare_workers(["zemosaic_worker_start"])
    with loading_libraries():
        run, settings_class = _loaded(pipeline)
    settings = settings_class.from_config(
        request.config,
        overwrite=request.overwrite,
        drop_suggested=request.drop_suggested,
        excluded=request.excluded,
    )
    folders = Path(request.input_folder), Path(request.output_folder)
    return run(*folders, settings, listener=listener, cancel=cancel)


class _Voice:
    """What a run says to its parent, through what was the standard output; that now goes where errors go."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "wb")
        self._lock = threading.Lock()
        self._end: RunFinished | None = None
        os.dup2(2, 1)

    def __call__(self, event: Event) -> None:
        """Listen to the pipeline; its last event waits for the outcome."""
        if isinstance(event, RunFinished):
            self._end = self._end or event
        elif self._end is None:
            self.say(event)

    def say_the_end(self) -> None:
        """Say how the run ended, if it told, and nothing more."""
        if self._end is not None:
            self.say(self._end)
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._stream.close()

    def say(self, message: Event | _Returned | ZeMosaicError) -> None:
        """Send a message."""
        data = pickle.dumps(message)
        with self._lock, contextlib.suppress(BrokenPipeError):  # the parent is gone, and the run with it
            if not self._stream.closed:
                self._stream.write(data)
                self._stream.flush()


def _read(n_bytes: int) -> bytes:
    """Read from the standard input, no byte more; the program ends if there are fewer."""
    data = b""
    while len(data) < n_bytes:
        part = os.read(0, n_bytes - len(data))
        if not part:
            sys.exit("zemosaic: the program that started this run is gone")
        data += part
    return data


def _stop_when_asked(cancel: CancelToken) -> None:
    """Cancel the run when the parent asks for it or is gone; a run without a parent has not long to live."""
    asked = os.read(0, 1)
    cancel.cancel()
    while asked:
        asked = os.read(0, 1)
    time.sleep(_ORPHAN_S)
    for process in _family_of(os.getpid()):
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    os._exit(1)
