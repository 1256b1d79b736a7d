"""Functions of ours in fresh interpreters, wherever they lie and whatever they are told."""

import os
import subprocess
import sys

import pytest

from zemosaic_interpreter import VARIABLES, command_to_call

MODULE = """
import sys

def say(*arguments):
    print(ascii(arguments))
    print("\\u661f \\xe9")

def leave(status):
    return status

def path():
    print(ascii(sys.path))
"""


def called(function, *arguments, **variables):
    command = command_to_call(function, *arguments)
    return subprocess.run(command, capture_output=True, env={**os.environ, **VARIABLES, **variables})


@pytest.fixture(params=["plain", "with spaces", 'it\'s "quoted"', "Übung \u661f", "back\\slash {x} %y$z"])
def folder(request, tmp_path, monkeypatch):
    """A folder with a module, from which this interpreter imports."""
    if os.name == "nt" and set(request.param) & set('"\\'):
        pytest.skip("no name of a folder on Windows")
    folder = tmp_path / request.param
    folder.mkdir()
    (folder / "helper_module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}], ids=["own locale", "C"])
def test_what_is_said_arrives_whatever_folders_and_arguments_are_called(folder, locale):
    arguments = ["report", str(folder), "\udce9\n\t\u661f"], 3, -0.5
    done = called("helper_module.say", *arguments, **locale)
    assert done.stderr == b""
    assert done.stdout.decode("utf-8").splitlines() == [ascii(arguments), "\u661f \xe9"]


def test_the_command_line_asks_no_encoding_of_the_system(folder):
    assert all(part.isascii() for part in command_to_call("helper_module.say", str(folder), "\u661f")[1:])


def test_the_exit_status_is_what_the_function_returns(folder):
    assert called("helper_module.leave", 3).returncode == 3
    assert called("helper_module.leave", 0).returncode == 0
    assert called("helper_module.say").returncode == 0


def test_no_module_of_the_folder_it_runs_in_takes_the_place_of_ours(tmp_path, monkeypatch):
    for name in ("json", "zemosaic_types"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(command_to_call("zemosaic_types.Rect", 0, 1, 0, 1), capture_output=True, text=True)
    assert "the wrong module" not in done.stderr
    assert "Rect(" in done.stderr  # what is no number is printed, as `sys.exit` does


def test_the_modules_are_found_where_this_process_finds_them(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [".", *sys.path])
    done = called("helper_module.path")
    assert done.stdout.decode().startswith(ascii([str(folder)])[:-1])
