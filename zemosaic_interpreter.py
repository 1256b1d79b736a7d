"""A function of ours in a fresh interpreter: the command line that calls it.

A frozen program would have to change this module and its own first lines, nothing else. There `sys.executable` is
the program, which knows neither ``-P`` nor ``-c``: the command line would be the program, a word that nobody
types, the function and its arguments, and the program would look for that word before anything else and make the
call. Its modules are in it, so that no path need be handed on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

#: What must be in the environment of such a process beside all that is in ours: it speaks UTF-8.
VARIABLES = MappingProxyType({"PYTHONIOENCODING": "utf-8"})


def command_to_call(function: str, *arguments: Any) -> list[str]:
    """Return the command line that calls a function in a fresh interpreter and exits with what it returns.

    The interpreter finds the modules that this one finds and no others. But for the program, all of the line is
    ASCII, whatever paths and arguments hold: no encoding of the system is asked.

    Parameters
    ----------
    function : str
        ``"module.function"``; it returns an exit status, or None for 0.
    *arguments
        Texts, numbers, and lists or tuples of them.
    """
    module, name = function.rsplit(".", 1)
    path = [str(Path(entry).absolute()) for entry in sys.path]
    call = f"import {module}; sys.exit({module}.{name}(*{arguments!a}))"
    return [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {path!a}; {call}"]
