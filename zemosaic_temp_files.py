"""Temporary files of products: how they are named, and that none outlives the process that wrote it.

Nothing here needs a numerical library, so that a program that only watches a run can clean up after it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil

from zemosaic_types import OutputError

_TEMP_NAME = re.compile(r"\..+\.(\d+)\.part")


def temp_path(path: Path) -> Path:
    """Return the file that becomes the product `path` when this process has finished it."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that are gone: killed, or lost with the power.

    Raises
    ------
    OutputError
        If one cannot be removed.
    """
    for path in folder.glob(".*.part"):
        match = _TEMP_NAME.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            try:
                path.unlink(missing_ok=True)
            except OSError as err:
                raise OutputError(f"{path}, left by an earlier run, cannot be removed: {why(err)}") from err


def is_running(pid: int) -> bool:
    """Whether a process exists that has not ended; one that nobody has waited for has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def why(err: OSError) -> str:
    """Return what an error of the system says, in words of a user."""
    if isinstance(err, PermissionError):
        return "no permission"
    if isinstance(err, FileNotFoundError):
        return "its folder does not exist"
    return err.strerror or str(err)
