"""What ``zemosaic doctor`` finds, and what it says about what it does not find."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import parallel_utils
import zemosaic_backend
import zemosaic_programs
from zemosaic_backend import DeviceInfo
from zemosaic_cli import main
from zemosaic_doctor import (
    LIBRARIES,
    Finding,
    can_run,
    configuration,
    desktop,
    examine,
    format_findings,
    gpus,
    libraries,
    machine,
    plate_solvers,
    system,
)
from zemosaic_types import DeviceUnavailable

ROOT = Path(__file__).resolve().parents[1]
GB = 2**30
T0 = DeviceInfo(0, "NVIDIA T0", 6 * GB, 8 * GB, "12.9", "CuPy 14.2.0")
T1 = DeviceInfo(1, "NVIDIA T1", GB // 2, 2 * GB, "12.9", "CuPy 14.2.0")


def absent(*names):
    """Versions of distributions of which `names` are not installed."""

    def version(name):
        if name in names:
            raise PackageNotFoundError(name)
        return "9.8"

    return version


def broken(name, error):
    def load(module):
        if module == name:
            raise error

    return load


def programs(*paths):
    """Stands for `shutil.which` where these programs are."""
    places = {Path(path).name: path for path in paths} | {path: path for path in paths}
    return places.get


# --- the table -------------------------------------------------------------------------------------------------


def test_a_finding_is_a_line_with_its_note_in_brackets():
    findings = [Finding("Python", "3.11"), Finding("GPU", "none: no driver", "would give: speed")]
    assert format_findings(findings).splitlines() == [
        "Python  3.11",
        "GPU     none: no driver  [would give: speed]",
        "",
        "ZeMosaic can run.",
    ]


def test_what_keeps_zemosaic_from_running_is_named_last():
    findings = [Finding("numpy", "missing", ok=False), Finding("GPU", "none"), Finding("sep", "missing", ok=False)]
    assert format_findings(findings).endswith("\n\nZeMosaic cannot run: see numpy, sep")
    assert not can_run(findings)
    assert can_run(findings[1:2])


# --- probes ----------------------------------------------------------------------------------------------------


def test_python_and_zemosaic_are_told():
    python, zemosaic = system(absent())
    assert python.found.startswith("{}.{}.{} on ".format(*sys.version_info))
    assert zemosaic == Finding("ZeMosaic", "9.8")


def test_a_zemosaic_that_is_not_installed_cannot_run():
    assert system(absent("zemosaic"))[1] == Finding(
        "ZeMosaic", "not installed", "in its folder: pip install -e .", ok=False
    )


def test_the_libraries_are_those_that_the_project_depends_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]]
    assert sorted(name for name, _, _ in LIBRARIES) == sorted(needed)


def test_the_libraries_of_this_environment_are_all_found():
    findings = libraries()
    assert can_run(findings)
    assert all(re.match(r"\d+\.\d+", finding.found) for finding in findings)


@pytest.mark.parametrize("name", [name for name, _, _ in LIBRARIES])
def test_a_missing_library_keeps_zemosaic_from_running(name):
    (missing,) = [finding for finding in libraries(absent(name), lambda module: None) if not finding.ok]
    assert (missing.name, missing.found) == (name, "missing")
    assert missing.note.endswith(f": pip install {name}")


@pytest.mark.parametrize(
    "error", [ImportError("Numba needs NumPy 2.3\nor less"), ValueError("Numba needs NumPy 2.3 or less")]
)
def test_a_library_that_is_there_but_cannot_be_imported_keeps_zemosaic_from_running(error):
    (faulty,) = [finding for finding in libraries(absent(), broken("numba", error)) if not finding.ok]
    assert faulty == Finding(
        "numba",
        "9.8, cannot be imported: Numba needs NumPy 2.3 or less",
        "needed for compiled loops",
        ok=False,
    )


def test_cores_and_memory_are_told(monkeypatch):
    memory = SimpleNamespace(total=16 * GB, available=12.25 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 32)
    monkeypatch.setattr(parallel_utils, "machine", lambda: (8, memory.available))
    assert machine() == [
        Finding("cores", "8 usable of 32 logical"),
        Finding("memory", "12.2 GiB free of 16.0 GiB"),
    ]


def test_no_gpu_is_told_with_its_reason_and_is_no_fault(monkeypatch):
    def none():
        raise DeviceUnavailable("no NVIDIA driver is installed")

    monkeypatch.setattr(zemosaic_backend, "find_devices", none)
    assert gpus() == [Finding("GPU", "none: no NVIDIA driver is installed", "would give: stacking on the GPU")]


def test_every_gpu_is_described_and_tried_out(monkeypatch):
    def open_device(index):
        if index == 1:
            raise DeviceUnavailable("GPU 1 cannot compute: no compiler")

    monkeypatch.setattr(zemosaic_backend, "find_devices", lambda: [T0, T1])
    monkeypatch.setattr(zemosaic_backend, "open_device", open_device)
    assert gpus() == [
        Finding("GPU 0", "NVIDIA T0, 6.0 GiB free of 8.0 GiB, CUDA 12.9, CuPy 14.2.0"),
        Finding(
            "GPU 1",
            "NVIDIA T1, 0.5 GiB free of 2.0 GiB, CUDA 12.9, CuPy 14.2.0, but: GPU 1 cannot compute: no compiler",
            "would give: stacking on the GPU",
        ),
    ]


def test_the_library_of_the_desktop_program_is_optional():
    assert [(finding.found, finding.ok) for finding in desktop(absent())] == [("9.8", True)]
    assert [(finding.found, finding.ok) for finding in desktop(absent("PySide6-Essentials"))] == [("none", True)]


def test_plate_solvers_are_found_on_the_search_path():
    astap, astrometry = plate_solvers({}, programs("/usr/bin/astap_cli", "/usr/bin/solve-field"))
    assert (astap.name, astap.found) == ("ASTAP", "/usr/bin/astap_cli")
    assert (astrometry.name, astrometry.found) == ("astrometry.net", "/usr/bin/solve-field")


def test_astap_is_found_where_its_installer_puts_it():
    place = str(Path("C:/Program Files/astap/astap.exe"))
    assert plate_solvers({}, {place: place}.get)[0].found == place


def test_the_astap_that_the_environment_names_comes_first():
    which = programs("/usr/bin/astap", "/home/me/astap_cli")
    assert plate_solvers({"ASTAP_EXE": "/home/me/astap_cli"}, which)[0].found == "/home/me/astap_cli"
    lost = plate_solvers({"ASTAP_EXE": "/home/me/gone"}, which)[0]
    assert lost.found == "none: ASTAP_EXE names /home/me/gone, which is no program"
    assert lost.ok


def test_a_missing_solver_is_no_fault_and_says_what_it_would_give_and_how_to_get_one():
    for finding in plate_solvers({}, programs()):
        assert finding.ok
        assert finding.found == "none"
        assert "would give: frames without WCS" in finding.note
    assert "apt-get install astrometry.net astrometry-data-tycho2" in finding.note
    assert "www.hnsky.org" in finding.note


def test_a_solver_without_its_catalogue_is_told_apart_from_one_that_works(tmp_path, monkeypatch):
    monkeypatch.setattr(zemosaic_programs, "_DATABASE_PLACES", ())
    program, data = tmp_path / "astap", tmp_path / "data"
    data.mkdir()
    which = programs(str(program), "/usr/bin/solve-field")
    env = {"ZEMOSAIC_ASTROMETRY_LOCAL_PATH": str(data)}
    astap, astrometry = plate_solvers(env, which)
    assert astap.note.startswith("cannot solve: no star database")
    assert astrometry.note.startswith("cannot solve: no index files")
    (data / "d05_0101.1476").touch()
    (data / "index-4107.fits").touch()
    for finding in plate_solvers(env, which):
        assert (finding.note, finding.ok) == ("", True)


def test_the_solver_of_the_configuration_is_the_one_that_is_shown(tmp_path):
    which = programs("/opt/other/astap", "/usr/bin/astap")
    path = tmp_path / "own.json"
    path.write_text('{"astap_path": "/opt/other/astap"}', encoding="utf-8")
    assert plate_solvers({"ZEMOSAIC_CONFIG": str(path)}, which)[0].found == "/opt/other/astap"
    path.write_text("{", encoding="utf-8")
    assert plate_solvers({"ZEMOSAIC_CONFIG": str(path)}, which)[0].found == "/usr/bin/astap"


def test_the_configuration_file_is_named_and_tried(tmp_path):
    path = tmp_path / "own.json"
    env = {"ZEMOSAIC_CONFIG": str(path)}
    path.write_text('{"grid_worker": 3}', encoding="utf-8")
    (finding,) = configuration(env)
    assert (finding.found, finding.ok) == (f"{path}, readable", True)
    assert "did you mean 'grid_workers'?" in finding.note


def test_no_configuration_file_is_no_fault():
    (finding,) = configuration({})
    assert finding.found.endswith("zemosaic_config.json, not there: defaults are used")
    assert finding.ok


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ('{"grid_workers": 3,,}', {}, "line 1"),
        ('{"grid_workers": "many"}', {}, "configuration file: grid_workers = 'many' is not allowed"),
        ("{}", {"ZEMOSAIC_GRID_WORKERS": "many"}, "environment: grid_workers = 'many' is not allowed"),
        (None, {}, "does not exist"),
    ],
)
def test_a_configuration_that_stops_every_run_is_a_fault(text, more, reason, tmp_path):
    path = tmp_path / "own.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    (finding,) = configuration({"ZEMOSAIC_CONFIG": str(path), **more})
    assert reason in finding.found
    assert not finding.ok


# --- everything together ---------------------------------------------------------------------------------------


def test_everything_is_looked_for():
    names = [re.sub(r"^GPU \d+$", "GPU", finding.name) for finding in examine()]
    assert names[:2] == ["Python", "ZeMosaic"]
    assert {"numba", "cores", "memory", "GPU", "PySide6", "ASTAP", "astrometry.net", "configuration"} <= set(names)


def test_a_machine_without_its_libraries_is_still_examined():
    hidden = ["numpy", "psutil", "platformdirs", "tqdm"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({hidden}))
from zemosaic_doctor import can_run, examine, format_findings
findings = examine()
print(format_findings(findings))
sys.exit(0 if can_run(findings) else 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    for name in hidden:
        assert re.search(rf"^{name} .* cannot be imported", done.stdout, re.MULTILINE), name
    for name in ("cores and memory", "GPU", "configuration"):
        assert re.search(rf"^{name} +not known: ", done.stdout, re.MULTILINE), name
    assert re.search(r"^ASTAP ", done.stdout, re.MULTILINE)


def test_the_command_shows_the_table_and_ends_with_status_0():
    full = [sys.executable, "-m", "zemosaic_cli", "doctor"]
    done = subprocess.run(full, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^numpy +\d+\.\d+", done.stdout, re.MULTILINE)
    assert re.search(r"^GPU", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\nZeMosaic can run.\n")


def test_the_command_ends_with_status_1_where_something_needed_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("zemosaic_doctor.examine", lambda: [Finding("numba", "missing", ok=False)])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == "numba  missing\n\nZeMosaic cannot run: see numba\n"


def test_the_progress_bar_is_not_needed_to_be_told_that_it_is_missing():
    code = "import sys; sys.modules['tqdm'] = None; from zemosaic_cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "ZeMosaic cannot run: see tqdm" in done.stdout


def test_the_command_explains_itself():
    full = [sys.executable, "-m", "zemosaic_cli", "doctor", "--help"]
    done = subprocess.run(full, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0
    assert "usage: zemosaic doctor" in done.stdout


@pytest.mark.gpu
def test_a_real_gpu_is_found_and_found_to_compute(gpu_device):
    first = gpus()[0]
    assert first.name == "GPU 0"
    assert gpu_device.info.name in first.found
    assert first.note == ""
