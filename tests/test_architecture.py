"""The house: floors, modules, optional libraries."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"zemosaic_types"},
    {"zemosaic_events", "zemosaic_config"},
    {"parallel_utils", "zemosaic_fits_io", "zemosaic_fits_products", "zemosaic_plan_table"},
    {"zemosaic_stack_kernels", "zemosaic_resample_kernels"},
    {
        "zemosaic_preprocess",
        "zemosaic_stack_core",
        "zemosaic_reproject",
        "zemosaic_registration",
        "zemosaic_photometry",
        "zemosaic_preview",
    },
    {"zemosaic_tiling"},
    {"zemosaic_plan", "zemosaic_measure", "zemosaic_align_stack", "zemosaic_assembly", "zemosaic_outputs"},
    {"zemosaic_match", "zemosaic_runbook"},
    {"zemosaic_passes"},
    {"grid_mode"},
    {"zemosaic_synthetic"},
    {"zemosaic_truth"},
    {"zemosaic_demo", "zemosaic_terminal"},
    {"zemosaic_cli"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))


def imports_of(module):
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module.split(".")[0]


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOOR_OF)


def test_every_module_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(project["tool"]["setuptools"]["py-modules"]) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    for other in set(imports_of(module)) & set(MODULES):
        assert FLOOR_OF[other] < FLOOR_OF[module], f"{module} imports {other}"


def test_only_the_file_modules_open_fits_and_png():
    for module in MODULES:
        if module in ("zemosaic_fits_io", "zemosaic_fits_products", "zemosaic_synthetic"):
            continue
        text = (ROOT / f"{module}.py").read_text(encoding="utf-8")
        assert "fits.open" not in text, module
        assert "from PIL" not in text, module


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_too_long_to_be_read(module):
    assert len((ROOT / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= 700


def test_the_core_needs_neither_qt_nor_cupy():
    names = ", ".join(MODULES)
    code = f"import sys, {names}; print(sorted(set(sys.modules) & {{'PySide6', 'cupy', 'dask', 'matplotlib'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "PySide6" not in done.stdout
    assert "cupy" not in done.stdout
