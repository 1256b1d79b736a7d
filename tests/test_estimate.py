"""What a run will cost: the time to compile loops counts where they are not compiled yet."""

import os
import sys

import numba
import pytest

from zemosaic_estimate import estimate_seconds, loops_are_compiled

SOURCE = """
import numba


@numba.njit(cache=True)
def twice(x):
    return 2 * x


twice(3)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module with a loop, beside which compiled ones are kept."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 0)
    path = tmp_path / "loops" / "some_loops.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def compile_loops(module, monkeypatch):
    monkeypatch.syspath_prepend(str(module.parent))
    __import__(module.stem)
    del sys.modules[module.stem]


def test_loops_are_compiled_once_numba_has_kept_them_beside_their_module(module, monkeypatch):
    assert loops_are_compiled(module) is False
    compile_loops(module, monkeypatch)
    assert loops_are_compiled(module) is True


def test_loops_are_looked_for_where_numba_is_told_to_keep_them(module, monkeypatch, tmp_path):
    kept = tmp_path / "kept"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(kept))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(kept))
    assert loops_are_compiled(module) is False
    compile_loops(module, monkeypatch)
    assert loops_are_compiled(module) is True
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert loops_are_compiled(module) is False


def test_loops_of_another_module_or_python_do_not_count(module, monkeypatch):
    compile_loops(module, monkeypatch)
    (index,) = module.parent.rglob("*.nbi")
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    index = index.rename(index.with_name(index.name.replace(version, "py20")))
    assert loops_are_compiled(module) is False
    index.rename(index.with_name(index.name.replace("some_loops", "some_loops_more").replace("py20", version)))
    assert loops_are_compiled(module) is False


def test_nothing_is_known_where_numba_keeps_loops_elsewhere_or_compiles_none(module, monkeypatch):
    assert loops_are_compiled(module.with_name("absent.py")) is None
    with monkeypatch.context() as changed:
        changed.setattr(os, "access", lambda *_: False)
        assert loops_are_compiled(module) is None
    for name in ("NUMBA_CACHE_LOCATOR_CLASSES", "NUMBA_DISABLE_JIT"):
        with monkeypatch.context() as changed:
            changed.setenv(name, "1")
            assert loops_are_compiled(module) is None


def test_compiling_counts_at_the_high_end_only():
    known, first = (estimate_seconds([], (100, 100), 1, 1, 1, compiles=compiles) for compiles in (False, True))
    for (low, high), (first_low, first_high) in zip(known, first, strict=True):
        assert first_low == low
        assert first_high >= high + 30.0
