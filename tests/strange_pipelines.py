"""Pipelines that do in a process of their own what a run should never do."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from parallel_utils import TaskPool
from zemosaic_events import FinishReason as Reason
from zemosaic_events import Message, RunFinished
from zemosaic_temp_files import temp_path
from zemosaic_types import PlanError, RunResult


class Settings:
    """Settings that are the configuration."""

    @classmethod
    def from_config(cls, config, *, overwrite, drop_suggested, excluded):
        if config["input_dir"] == "refused":
            raise PlanError("these settings are refused")
        return config


def result_in(output):
    return RunResult(output / "mosaic.fits", output / "preview.png", 1, 1)


def finish(output, listener, reason=Reason.COMPLETE):
    listener(RunFinished(reason, "done"))
    return result_in(output)


def talkative(_input, output, _settings, *, listener, cancel):
    os.write(1, b"a library that prints must not spoil the events")
    for number in range(10_000):
        listener(Message(str(number)))
    return finish(output, listener)


def twice_finished(_input, output, _settings, *, listener, cancel):
    finish(output, listener)
    listener(Message("one more thing"))
    return finish(output, listener, Reason.WITH_FAILURES)


def silent(_input, output, _settings, *, listener, cancel):
    return result_in(output)


def crashing(_input, _output, _settings, *, listener, cancel):
    listener(Message("before the crash"))
    ctypes.string_at(0)


def raising(_input, _output, _settings, *, listener, cancel):
    raise KeyError("a slip of the programmer")


def killed(_input, output, _settings, *, listener, cancel):
    temp_path(output / "mosaic.fits").write_bytes(b"half")
    with TaskPool(2, cancel) as pool:
        for _ in pool.run(half_a_tile, [output] * 2, retry=lambda task: task):
            pass


def cooperative(_input, output, _settings, *, listener, cancel):
    listener(Message("started"))
    while not cancel.cancelled:
        time.sleep(0.01)
    (output / "stopped.txt").write_text("by itself", encoding="utf-8")
    return finish(output, listener, Reason.CANCELLED)


def deaf(_input, _output, _settings, *, listener, cancel):
    """Never look whether the run is cancelled."""
    listener(Message("started"))
    time.sleep(600)


def half_a_tile(output):
    """Ignore every request to end, with half a tile on the disk."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=hold_the_interpreter, daemon=True).start()
    path = temp_path(output / "tiles" / f"tile_{os.getpid()}.fits")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    time.sleep(600)


def hold_the_interpreter():
    """Keep every other thread of this process from running, as a long compiled loop does."""
    time.sleep(0.2)
    sys.setswitchinterval(1000)
    ctypes.PyDLL(None).sleep(30)


def stubborn(_input, output, _settings, *, listener, cancel):
    """React to nothing, with two workers that do not either."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    temp_path(output / "mosaic.fits").write_bytes(b"half")

    def occupy():
        with TaskPool(2, type(cancel)()) as pool:
            list(pool.run(half_a_tile, [output] * 2, retry=lambda task: task))

    threading.Thread(target=occupy, daemon=True).start()
    while len(list(Path(output).rglob(".*.part"))) < 3:
        time.sleep(0.02)
    listener(Message("deaf from now on"))
    hold_the_interpreter()


def never_leaving(_input, output, _settings, *, listener, cancel):
    """Finish, and keep the process from ending, in a thread that goes on talking."""

    def talk():
        for number in range(60_000):
            listener(Message(str(number)))
            time.sleep(0.01)

    threading.Thread(target=talk).start()
    return finish(output, listener)
