"""Programs of others: where plate solvers and their catalogues are, and how a program is run within limits.

Needs the standard library only to find things, so that a machine on which libraries are broken can be examined.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zemosaic_events import CancelToken
from zemosaic_types import SolverMissing

Which = Callable[[str], str | None]

#: What to do where there is no plate solver.
HOW_TO_INSTALL = (
    "Debian and Ubuntu: apt-get install astrometry.net astrometry-data-tycho2, or ASTAP and one of its star "
    "databases from www.hnsky.org"
)

_ASTAP_NAMES = ("astap", "astap_cli")
# Where ASTAP's installers, and people, put it without a place on the search path.
_ASTAP_PLACES = (
    "C:/Program Files/astap/astap.exe",
    "C:/Program Files (x86)/astap/astap.exe",
    "C:/ASTAP/astap.exe",
    "/Applications/ASTAP.app/Contents/MacOS/astap",
    "~/Applications/ASTAP.app/Contents/MacOS/astap",
    "/opt/astap/astap",
    "/opt/astap/bin/astap",
    "~/.local/bin/astap",
    "~/astap/astap",
)
_DATABASE_PLACES = (
    "C:/Program Files/astap",
    "C:/Program Files (x86)/astap",
    "/usr/share/astap",
    "/usr/share/astap/data",
    "/usr/local/share/astap",
    "/opt/astap",
    "/opt/astap/share",
    "~/.local/share/astap",
    "~/Library/Application Support/astap",
)
# One star database is hundreds of files such as d50_0101.1476, h17_0101.290 or w08_0101.001.
_DATABASE_FILE = re.compile(r"[a-z]\d\d_\d{4}\.(1476|290|001)", re.IGNORECASE)
_INDEX_CONFIGS = ("/etc/astrometry.cfg", "/usr/local/astrometry/etc/astrometry.cfg")

_POLL_S = 0.05
_KILL_S = 1.0
_MOST_OUTPUT_BYTES = 16 * 1024**2
_TAIL_BYTES = 64 * 1024
# A library path meant for this Python must not lead another one astray.
_NOT_FOR_OTHERS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP")


# ---- ASTAP -----------------------------------------------------------------------------------------------


def find_astap(named: str = "", env: Mapping[str, str] = os.environ, which: Which = shutil.which) -> str:
    """Return the program ASTAP.

    Parameters
    ----------
    named : str
        A program, a macOS bundle or a folder that holds it, as the configuration names it; it must be right.
    env : mapping
        ``ASTAP_EXE``, ``ASTAP_BIN`` and ``ASTAP_PATH`` may name it too; the first that is given must be right.
    which : callable
        Returns the path of a program by its name or path, or None.

    Raises
    ------
    SolverMissing
        If it is not there; the message is empty if nobody named it and it is in none of its usual places.
    """
    by_env = {name: env.get(name, "") for name in ("ASTAP_EXE", "ASTAP_BIN", "ASTAP_PATH")}
    for name, text in {"astap_path": named, **by_env}.items():
        if text:
            found = next(filter(None, map(which, _programs_at(text))), None)
            if found is None:
                raise SolverMissing(f"{name} names {text}, which is no program")
            return found
    places = (str(Path(place).expanduser()) for place in _ASTAP_PLACES)
    found = next(filter(None, map(which, (*_ASTAP_NAMES, *places))), None)
    if found is None:
        raise SolverMissing("")
    return found


def _programs_at(text: str) -> Iterator[str]:
    """Yield what a name of a program may mean: itself, or what lies in a folder of that name."""
    path = Path(text).expanduser()
    if path.is_dir():
        inside = path / "Contents" / "MacOS" if path.suffix == ".app" else path
        yield from (str(inside / name) for name in _ASTAP_NAMES)
    else:
        yield text


def find_star_database(program: str, named: str = "", env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of ASTAP's star database.

    Parameters
    ----------
    program : str
        ASTAP, beside which a database may lie.
    named : str
        The folder, as the configuration names it; it must be right.
    env : mapping
        ``ASTAP_DATA_DIR``, ``ASTAP_STAR_DB`` and ``ASTAP_DATABASE`` may name it too.

    Raises
    ------
    SolverMissing
        If there is none; the message says where one was expected.
    """
    if named:
        if not star_files(Path(named)):
            raise SolverMissing(f"astap_data_dir names {named}, in which there is no star database")
        return Path(named)
    folder = Path(program).resolve().parent
    by_env = [env.get(name, "") for name in ("ASTAP_DATA_DIR", "ASTAP_STAR_DB", "ASTAP_DATABASE")]
    beside = [folder, folder / "data", folder.parent / "Resources"]
    candidates = [*filter(None, by_env), *beside, *_DATABASE_PLACES]
    for place in (Path(candidate).expanduser() for candidate in candidates):
        if star_files(place):
            return place
    raise SolverMissing("no star database (d05, d20, d50, ... from www.hnsky.org) is there")


def star_files(folder: Path) -> list[str]:
    """Return the names of the files of ASTAP's star databases in a folder, sorted."""
    return sorted(name for name in _names_in(folder) if _DATABASE_FILE.fullmatch(name))


# ---- astrometry.net --------------------------------------------------------------------------------------


def find_solve_field(which: Which = shutil.which) -> str:
    """Return astrometry.net's program solve-field; raise `SolverMissing`, without words, if it is not there."""
    found = which("solve-field")
    if found is None:
        raise SolverMissing("")
    return found


def find_indexes(named: str = "") -> list[str] | None:
    """Return the names of astrometry.net's index files, sorted; None if where they are is not known.

    Parameters
    ----------
    named : str
        A folder of index files, or a configuration file of astrometry.net; empty means its own file.
    """
    if named and Path(named).is_dir():
        return _indexes_in(Path(named))
    for config in [named] if named else _INDEX_CONFIGS:
        try:
            lines = Path(config).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        words = [line.split() for line in lines]
        listed = [Path(row[1]).name for row in words if len(row) > 1 and row[0] == "index"]
        folders = [Path(row[1]) for row in words if len(row) > 1 and row[0] == "add_path"]
        return sorted(listed + [name for folder in folders for name in _indexes_in(folder)])
    return None


def _indexes_in(folder: Path) -> list[str]:
    return sorted(name for name in _names_in(folder) if name.startswith("index-") and name.endswith(".fits"))


def _names_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


# ---- running a program -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended: its exit status, or why it had to be stopped, and the end of what it printed."""

    status: int | None
    output: str
    stopped: str = ""


def run_boxed(
    command: Sequence[str], folder: Path, *, timeout_s: float, cancel: CancelToken | None = None
) -> Finished:
    """Run a program and leave nothing of it running, whatever it does.

    It works in `folder`, which is its place for temporary files too, reads nothing, and prints into a file there.
    When its time is up, or it has printed more than 16 MB, it is killed with all that it has started; so is
    what it leaves running when it ends.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments; no shell sees them.
    folder : Path
        An existing folder that is removed afterwards, by the caller.
    timeout_s : float
        Seconds on the clock.
    cancel : CancelToken, optional
        Looked at twenty times a second.

    Raises
    ------
    OSError
        If it cannot be started.
    RunCancelled
        If `cancel` was set; the program is gone by then.
    """
    env = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_OTHERS}
    env |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    printed = folder / "printed.txt"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            stopped = _wait(process, printed, timeout_s, cancel)
        finally:
            _kill_all(process)
    return Finished(None if stopped else process.returncode, _tail(printed), stopped)


def _wait(process: subprocess.Popen, printed: Path, timeout_s: float, cancel: CancelToken | None) -> str:
    """Wait for the end of a program; return why it must be stopped, nothing if it has ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        if cancel is not None:
            cancel.check()
        try:
            process.wait(timeout=_POLL_S)
            return ""
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                return f"after {timeout_s:g} s"
            if printed.stat().st_size > _MOST_OUTPUT_BYTES:
                return f"after printing {_MOST_OUTPUT_BYTES >> 20} MB"


def _kill_all(process: subprocess.Popen) -> None:
    """Kill a program, its process group and, where it still runs, the children that have left the group."""
    import psutil  # not needed to find programs

    try:
        family = psutil.Process(process.pid).children(recursive=True) if process.returncode is None else []
    except psutil.NoSuchProcess:
        family = []
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nobody is left; macOS says so in its own way
            pass
    elif process.returncode is None:
        process.kill()
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=_KILL_S)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
