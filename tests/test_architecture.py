"""The house: floors, modules, optional libraries."""

import ast
import fnmatch
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"zemosaic_types"},
    {
        "zemosaic_events",
        "zemosaic_config",
        "zemosaic_links",
        "zemosaic_plain_image",
        "zemosaic_sphere",
        "zemosaic_cards",
        "zemosaic_temp_files",
        "zemosaic_fits_checksums",
        "zemosaic_interpreter",
    },
    {
        "parallel_utils",
        "zemosaic_backend",
        "zemosaic_fits_io",
        "zemosaic_fits_products",
        "zemosaic_plan_table",
        "zemosaic_programs",
        "zemosaic_sky_systems",
    },
    {"zemosaic_estimate"},
    {
        "zemosaic_alignment_kernels",
        "zemosaic_background",
        "zemosaic_clip_kernels",
        "zemosaic_detection_kernels",
        "zemosaic_noise_model",
        "zemosaic_overlap_kernels",
        "zemosaic_resample_kernels",
        "zemosaic_stack_arrays",
        "zemosaic_two_levels",
    },
    {"zemosaic_overlap_fit", "zemosaic_stack_kernels", "zemosaic_cameras", "zemosaic_detections"},
    {"zemosaic_stack_cuda"},
    {
        "zemosaic_alignment",
        "zemosaic_preprocess",
        "zemosaic_stack_core",
        "zemosaic_reproject",
        "zemosaic_registration",
        "zemosaic_photometry",
        "zemosaic_preview",
        "zemosaic_harm",
        "zemosaic_grouping",
        "zemosaic_star_patterns",
        "zemosaic_drawings",
        "zemosaic_flat",
    },
    {"zemosaic_tiling", "zemosaic_pairs", "zemosaic_coadd_match", "zemosaic_frame_arrays", "zemosaic_frame_cuda"},
    {
        "zemosaic_frame_picture",
        "zemosaic_plan",
        "zemosaic_measure",
        "zemosaic_frame_source",
        "zemosaic_device_trials",
        "zemosaic_assembly",
        "zemosaic_outputs",
        "zemosaic_wcs_correction",
        "zemosaic_groups",
    },
    {"zemosaic_align_stack_gpu", "zemosaic_ledger", "zemosaic_astrometry"},
    {"zemosaic_align_stack", "zemosaic_flat_frames", "zemosaic_report_page"},
    {"zemosaic_match", "zemosaic_refine", "zemosaic_runbook", "zemosaic_report", "zemosaic_solving"},
    {"zemosaic_star_placing"},
    {"zemosaic_passes", "zemosaic_settings", "zemosaic_stack_pool", "zemosaic_main_start"},
    {"zemosaic_pipeline"},
    {"zemosaic_mosaic"},
    {"zemosaic_master_tiles"},
    {"zemosaic_coadd"},
    {"classic_mode", "grid_mode", "zemosaic_survey"},
    {"zemosaic_worker", "zemosaic_worker_start"},
    {"zemosaic_synthetic"},
    {"zemosaic_truth_ideal"},
    {"zemosaic_truth_rejection"},
    {"zemosaic_truth"},
    {
        "zemosaic_gui_background",
        "zemosaic_gui_eta",
        "zemosaic_gui_legend",
        "zemosaic_gui_pyramid",
        "zemosaic_gui_settings",
        "zemosaic_gui_sky",
        "zemosaic_gui_text",
        "zemosaic_gui_theme",
    },
    {"zemosaic_gui_parts", "zemosaic_gui_sentences"},
    {
        "zemosaic_gui_controller",
        "zemosaic_gui_form",
        "zemosaic_gui_frames",
        "zemosaic_gui_helper",
        "zemosaic_gui_log",
        "zemosaic_gui_skymap",
        "zemosaic_gui_viewer",
    },
    {"zemosaic_gui_frame_card", "zemosaic_gui_grid_group", "zemosaic_gui_lazy"},
    {"zemosaic_gui_input", "zemosaic_gui_mosaic", "zemosaic_gui_result", "zemosaic_gui_run"},
    {"zemosaic_gui_window"},
    {"zemosaic_gui_qt"},
    {"zemosaic_demo", "zemosaic_terminal", "zemosaic_doctor"},
    {"zemosaic_cli"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
CORE = [module for module in MODULES if not module.startswith("zemosaic_gui")]


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


def code_of(module):
    """The source without comments and docstrings."""
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


def test_only_the_backend_names_cupy():
    assert [module for module in MODULES if "cupy" in code_of(module)] == ["zemosaic_backend"]


SPY = """
import sys
frame = sys._getframe(1)
while "importlib" in frame.f_code.co_filename:
    frame = frame.f_back
print(frame.f_code.co_filename)
raise ModuleNotFoundError("No module named 'cupy'", name="cupy")
"""


def modules_that_import_cupy(code, folder):
    """Which modules of the house import it while `code` runs; other libraries may, where it is installed."""
    (folder / "cupy.py").write_text(SPY, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(folder)}
    run = {"capture_output": True, "text": True, "check": True, "cwd": ROOT, "env": env}
    done = subprocess.run([sys.executable, "-c", code], **run)
    importers = map(Path, done.stdout.splitlines())
    return {path.stem for path in importers if path.parent == ROOT}


def test_no_module_imports_cupy_before_a_gpu_is_asked_for(tmp_path):
    assert modules_that_import_cupy(f"import {', '.join(CORE)}", tmp_path) == set()
    asked = "import zemosaic_doctor; zemosaic_doctor.gpus()"
    assert modules_that_import_cupy(asked, tmp_path) == {"zemosaic_backend"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_too_long_to_be_read(module):
    assert len((ROOT / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= 700


def lines_that_say_something(module):
    """The lines of a module's code without comments, docstrings, imports and blanks, spelled in one way."""
    tree = ast.parse(code_of(module))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return [line.strip() for line in ast.unparse(tree).splitlines() if line.strip() not in ("", "None")]


def test_the_pipelines_share_no_run_of_six_like_lines():
    runs = []
    for module in ("grid_mode", "classic_mode"):
        lines = lines_that_say_something(module)
        assert len(lines) > 30
        runs.append({tuple(lines[k : k + 6]) for k in range(len(lines) - 5)})
    assert runs[0] & runs[1] == set()


def test_the_core_needs_neither_qt_nor_cupy():
    names = ", ".join([*CORE, "zemosaic_gui_pyramid", "zemosaic_gui_sky"])
    code = f"import sys; sys.modules['cupy'] = None; import {names}; print('PySide6' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_the_folders_of_data_are_installed_whole():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for folder in project["packages"]:
        held = {path.name for path in (ROOT / folder).iterdir() if path.is_file()}
        patterns = project["package-data"][folder]
        assert held
        assert held == {name for name in held if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    kernels = {path.stem for path in (ROOT / "zemosaic_cuda").iterdir()}
    assert kernels == {"stack", "frame"}
