"""What the benchmarks share: the environment, measured commands, best times, tables.

Run as a script, this file is the launcher of `measure`: ``bench_helpers.py RESULT COMMAND...`` runs a command
and writes what it used to the file RESULT. It imports the standard library only, because it must stay small.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

BYTES_PER_MB = 1e6


@dataclass(frozen=True)
class Usage:
    """What a command used, its child processes included.

    `peak_bytes` is the largest resident size of any single one of its processes.
    """

    user_s: float
    system_s: float
    wall_s: float
    peak_bytes: int

    @property
    def cpu_s(self) -> float:
        """CPU seconds, user and system."""
        return self.user_s + self.system_s


def measure(command: Sequence[str | Path], *, folder: Path, env: dict[str, str] | None = None) -> Usage:
    """Run a command in a folder and return what it used; its output goes to ``command.log`` there.

    A process inherits the peak memory of the one that starts it. The command is therefore started by a small
    launcher, not by a benchmark that may have held a survey in memory.

    Raises
    ------
    SystemExit
        If the command fails, with the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "usage.json", folder / "command.log"
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(result.resolve())]
    with log.open("w", encoding="utf-8") as out:
        # Both kinds of output in one file, and nothing to read from.
        status = subprocess.run(
            [*launcher, *map(str, command)],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"exit status {status} from: {' '.join(map(str, command))}\n{tail}")
    return Usage(**json.loads(result.read_text(encoding="utf-8")))


def _launch(result: str, command: list[str]) -> int:
    """Run a command, write its `Usage` as JSON; return its exit status."""
    _adopt_orphans()
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)  # of the command and of every child that it waited for
    wall = time.perf_counter() - start
    parts = [used, *_orphans()]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(part.ru_maxrss for part in parts) * unit
    usage = Usage(sum(part.ru_utime for part in parts), sum(part.ru_stime for part in parts), wall, peak)
    Path(result).write_text(json.dumps(asdict(usage)), encoding="utf-8")
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _adopt_orphans() -> None:
    """Become the parent of every process that a command leaves behind, such as a server of its workers."""
    if sys.platform == "linux":
        import ctypes

        set_child_subreaper = 36
        if ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "processes left behind cannot be adopted, nor counted")


def _orphans() -> Iterable[resource.struct_rusage]:
    """Wait for all that a command left behind and yield what each used, with the children that it waited for."""
    while True:
        try:
            yield os.wait4(-1, 0)[2]
        except ChildProcessError:
            return


def median_usage(runs: Sequence[Usage]) -> Usage:
    """Return the median of every field, each for itself."""
    return Usage(**{f.name: statistics.median(getattr(run, f.name) for run in runs) for f in fields(Usage)})


def added_usage(parts: Sequence[Usage]) -> Usage:
    """Return what commands that ran one after the other used: times add up, the peak is the largest."""
    sums = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(Usage)}
    return Usage(**sums | {"peak_bytes": max(part.peak_bytes for part in parts)})


def positive_int(text: str) -> int:
    """Return a whole number above 0 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def best_of(count: int, function: Callable[[], object]) -> tuple[float, object]:
    """Call a function `count` times; return the shortest wall time in seconds and the last result."""
    best, value = float("inf"), None
    for _ in range(count):
        value = None  # two results side by side could be more than the memory holds
        start = time.perf_counter()
        value = function()
        best = min(best, time.perf_counter() - start)
    return best, value


def print_environment(packages: Iterable[str], **more: str) -> None:
    """Print processor, system, load and the versions of packages, then further lines ``name = text``."""
    lines = {"processor": processor(), "cores": cores(), "system": platform.platform()}
    lines["load"] = f"{os.getloadavg()[0]:.2f} (other work on the machine makes every time below meaningless)"
    lines["python"] = platform.python_version()
    lines |= {name: installed(name) for name in packages} | more
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        print(f"{name:<{width}}{text}")
    print()


def processor() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> str:
    """Return the number of logical cores that this process may use, and of the machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} usable of {os.cpu_count()}"


def installed(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text in columns: the first to the left, the others to the right."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{text:>{width}}" for text, width in others)]).rstrip()


if __name__ == "__main__":
    sys.exit(_launch(sys.argv[1], sys.argv[2:]))
