"""The configuration: what a user may write, what a run gets, and what a save leaves on disk."""

import copy
import errno
import json
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import zemosaic_config as zc
from zemosaic_types import ConfigError

ROOT = Path(__file__).resolve().parent.parent

# A file of the older program, edited by hand: its own keys, its forms, and Grid keys its author typed in.
OLDER_FILE = {
    "language": "fr",
    "input_folder": "D:/Astro/M 31 été",
    "output_folder": "D:/Astro/out",
    "astap_executable_path": "C:/ASTAP/astap.exe",
    "astap_data_directory_path": "C:/ASTAP",
    "astap_default_search_radius": 5.0,
    "astap_default_downsample": 2,
    "astap_max_instances": 1,
    "astrometry_timeout": 90,
    "solver_method": "ANSVR",
    "qt_main_window_geometry": [10, 20, 1280, 800],
    "qt_main_left_state": None,
    "stacking_normalize_method": "linear_fit",
    "stacking_rejection_algorithm": "winsorized_sigma_clip",
    "stacking_kappa_low": 2.5,
    "stacking_kappa_high": 3,
    "stacking_winsor_limits": "0.05,0.1",
    "poststack_equalize_rgb": True,
    "winsor_worker_limit": 10,
    "intertile_recenter_clip": [0.85, 1.18],
    "use_gpu_phase5": True,
    "gpu_selector": "",
    "grid_chunk_ram_gb": 1.5,
    "grid_size_factor": 2,
    "logging_level": "info",
}


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Keep every test away from the files and variables of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("ZEMOSAIC_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "APPDATA", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "zemosaic_config.json"


def write(path, values):
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- the table ------------------------------------------------------------------------------------------------


def test_every_default_passes_its_own_check():
    for option in zc.OPTIONS:
        assert zc.check_value(option.key, option.default) == option.default


def test_every_name_in_the_table_is_used_once():
    names = [name for option in zc.OPTIONS for name in (option.key, *option.older_names)]
    assert len(names) == len(set(names))


def test_every_doc_is_one_sentence_without_a_table_mark():
    for option in zc.OPTIONS:
        assert option.doc.endswith(".")
        assert ". " not in option.doc
        assert "|" not in option.doc + option.allowed


def test_defaults_are_those_of_the_table_and_name_themselves_as_their_source():
    config = zc.resolve()
    for option in zc.OPTIONS:
        expected = False if option.kind == "switch" else option.default
        assert config[option.key] == expected
        assert config.source(option.key) == "default"
    assert config.notes == ()


def test_importing_the_configuration_loads_no_array_library():
    code = "import sys, zemosaic_config; print(sorted({'numpy', 'astropy', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the reference page ---------------------------------------------------------------------------------------


def test_the_page_in_docs_is_current():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == zc.reference_page(), "run: zemosaic config doc > docs/configuration.md"


def test_the_page_has_one_full_row_for_every_key_and_is_ascii():
    page = zc.reference_page()
    assert page.isascii()
    assert page.endswith("|\n")
    for option in zc.OPTIONS:
        rows = [line for line in page.splitlines() if line.startswith(f"| `{option.key}` ")]
        assert len(rows) == 1
        assert rows[0].count("|") == 8
        for text in (option.kind, option.unit, option.allowed, option.doc, option.variable, *option.older_names):
            assert text in rows[0]


# --- priorities -----------------------------------------------------------------------------------------------

SOURCES = {
    "file": ({"grid_workers": 1}, {}, {}),
    "environment": ({"grid_workers": 2}, {"ZEMOSAIC_GRID_WORKERS": "1"}, {}),
    "command line": ({"grid_workers": 2}, {"ZEMOSAIC_GRID_WORKERS": "3"}, {"grid_workers": "1"}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_higher_source_wins_and_is_remembered(source):
    config = zc.resolve(*SOURCES[source])
    assert config["grid_workers"] == 1
    assert config.source("grid_workers") == source
    assert config.source("grid_overlap_px") == "default"


@pytest.mark.parametrize("option", zc.OPTIONS, ids=lambda option: option.key)
def test_every_key_can_be_set_from_every_source(option):
    typed, text = {
        "bool": (True, "true"),
        "switch": (True, "on"),
        "int": (70, "70"),
        "float": (0.625, "0.625"),
        "str": ("somewhere", "somewhere"),
        "choice": (option.choices[-1:], "".join(option.choices[-1:])),
        "pair": ((0.125, 0.25), "0.125, 0.25"),
    }[option.kind]
    typed = typed[0] if option.kind == "choice" else typed
    as_json = json.loads(json.dumps(typed))
    assert zc.resolve({option.key: as_json})[option.key] == typed
    assert zc.resolve(env={option.variable: text})[option.key] == typed
    assert zc.resolve(overrides={option.key: text})[option.key] == typed
    assert zc.resolve(overrides={option.key: typed})[option.key] == typed


def test_an_override_of_none_means_not_given():
    assert zc.resolve({"grid_workers": 3}, {}, {"grid_workers": None})["grid_workers"] == 3


def test_an_empty_variable_counts_as_not_set():
    config = zc.resolve({"grid_workers": 3}, {"ZEMOSAIC_GRID_WORKERS": ""})
    assert (config["grid_workers"], config.source("grid_workers")) == (3, "file")


def test_other_variables_of_the_environment_are_ignored():
    env = {"ZEMOSAIC_GRID_WORKER": "x", "ZEMOSAIC_CONFIG": "x", "GRID_WORKERS": "x", "ZEMOSAIC_INPUT_FOLDER": "x"}
    config = zc.resolve(env=env)
    assert config == zc.resolve()


# --- the record -----------------------------------------------------------------------------------------------


def test_a_config_is_a_mapping_in_the_order_of_the_table():
    config = zc.resolve()
    assert list(config) == [option.key for option in zc.OPTIONS]
    assert len(config) == len(zc.OPTIONS)
    assert config.as_dict() == dict(config)
    with pytest.raises(KeyError):
        config["no_such_key"]
    with pytest.raises(KeyError):
        config.source("no_such_key")


def test_a_config_cannot_be_changed():
    config = zc.resolve()
    with pytest.raises(TypeError):
        config["grid_workers"] = 5
    with pytest.raises(FrozenInstanceError):
        config.settings = ()
    with pytest.raises(FrozenInstanceError):
        zc.OPTIONS[0].default = "x"
    config.as_dict()["grid_workers"] = 5
    assert config["grid_workers"] == 0
    assert hash(config) == hash(zc.resolve())


def test_a_config_does_not_follow_the_mappings_it_came_from():
    values = {"stacking_winsor_limits": [0.1, 0.2]}
    config = zc.resolve(values)
    values["stacking_winsor_limits"][0] = 0.4
    assert config["stacking_winsor_limits"] == (0.1, 0.2)


def test_a_config_survives_the_way_into_another_process():
    config = zc.resolve({"grid_worker": 1}, overrides={"use_gpu_stack": "on"})
    assert pickle.loads(pickle.dumps(config)) == config


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [True, 1, "1", "true", "Yes", " ON "])
def test_words_for_true_are_understood_in_the_file_too(word):
    assert zc.resolve({"apply_radial_weight": word})["apply_radial_weight"] is True


@pytest.mark.parametrize("word", [False, 0, "0", "FALSE", "no", "off"])
def test_words_for_false_are_understood_in_the_file_too(word):
    assert zc.resolve({"apply_radial_weight": word})["apply_radial_weight"] is False


def test_numbers_take_the_type_of_the_table():
    config = zc.resolve({"stacking_kappa_low": 3, "grid_workers": 4.0})
    assert isinstance(config["stacking_kappa_low"], float)
    assert isinstance(config["grid_workers"], int)
    assert zc.resolve(overrides={"grid_workers": " -1 "})["grid_workers"] == -1


def test_a_choice_is_found_whatever_its_case():
    config = zc.resolve({"logging_level": "warning"}, overrides={"resampling_kernel": " Bilinear "})
    assert (config["logging_level"], config["resampling_kernel"]) == ("WARNING", "bilinear")


@pytest.mark.parametrize("limits", [[0, 0.49], "0,0.49", " 0 , 0.49 "])
def test_winsor_limits_may_be_a_pair_or_the_older_text(limits):
    for version in ({}, {"config_version": 1}):
        assert zc.resolve({"stacking_winsor_limits": limits, **version})["stacking_winsor_limits"] == (0.0, 0.49)


def test_the_home_folder_is_expanded_and_other_text_is_left_alone(tmp_path):
    config = zc.resolve({"input_dir": "~/frames", "output_dir": "a~b/ c//"})
    assert config["input_dir"] == str(Path("~/frames").expanduser())
    assert config["output_dir"] == "a~b/ c//"


LIMITS = [
    ("stacking_kappa_low", 0.5, 20, 0.49, 20.01),
    ("stacking_kappa_high", 0.5, 20, 0.49, 20.01),
    ("radial_feather_fraction", 0.1, 1, 0.09, 1.01),
    ("radial_shape_power", 0.1, 10, 0.09, 10.1),
    ("min_radial_weight_floor", 0, 1, -0.01, 1.01),
    ("grid_size_factor", 0.1, 100, 0.09, 100.1),
    ("grid_chunk_ram_mb", 64, 10**9, 63, None),
    ("grid_overlap_px", 0, 1000, -1, 1001),
    ("frame_feather_px", -1, 1000, -2, 1001),
    ("cluster_panel_threshold", 0, 180, -0.01, 180.1),
    ("cluster_target_groups", 0, 10**6, -1, None),
    ("cluster_orientation_split_deg", 0, 180, -0.1, 180.1),
    ("astap_search_radius_deg", 0.1, 180, 0.09, 180.1),
    ("solver_downsample", 0, 10**9, -1, None),
    ("solve_timeout_s", 0.5, 3600, 0.49, 3601),
]


@pytest.mark.parametrize(("key", "low", "high", "too_low", "too_high"), LIMITS)
def test_limits_are_included_and_nothing_beyond_them(key, low, high, too_low, too_high):
    assert zc.resolve({key: low})[key] == low
    assert zc.resolve({key: high})[key] == high
    for bad in (too_low, too_high):
        if bad is not None:
            with pytest.raises(ConfigError, match=f"{key} = {bad} is not allowed, expected .* from"):
                zc.resolve({key: bad})


def test_every_limit_of_the_table_is_tried_above():
    limited = {option.key for option in zc.OPTIONS if option.minimum is not None and option.kind != "pair"}
    assert limited == {row[0] for row in LIMITS}


BAD_EVERYWHERE = [
    ("apply_radial_weight", "maybe", "true or false"),
    ("apply_radial_weight", 2, "true or false"),
    ("apply_radial_weight", 1.0, "true or false"),
    ("use_gpu_grid", "perhaps", "on, off or auto"),
    ("use_gpu_stack", -1, "on, off or auto"),
    ("grid_workers", "two", "whole number"),
    ("grid_workers", 1.5, "whole number"),
    ("grid_workers", True, "whole number"),
    ("grid_workers", float("inf"), "whole number"),
    ("grid_workers", [1], "whole number"),
    ("grid_workers", 10**400, "whole number"),
    ("stacking_kappa_low", float("nan"), "number from 0.5 to 20"),
    ("stacking_kappa_low", "nan", "number from 0.5 to 20"),
    ("stacking_kappa_low", "inf", "number from 0.5 to 20"),
    ("stacking_kappa_low", "1_0", "number from 0.5 to 20"),
    ("stacking_kappa_low", "3,5", "number from 0.5 to 20"),
    ("stacking_kappa_low", {}, "number from 0.5 to 20"),
    ("input_dir", 7, "text"),
    ("input_dir", ["a"], "text"),
    ("resampling_kernel", "lanczos", "lanczos3, bilinear"),
    ("resampling_kernel", 3, "lanczos3, bilinear"),
    ("logging_level", ["INFO"], "DEBUG, INFO, WARNING, ERROR"),
    ("stacking_winsor_limits", 0.05, "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", [0.05], "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", [0.05, 0.05, 0.05], "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", [0.05, 0.5], "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", [-0.1, 0.05], "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", [0.05, float("nan")], "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", "0.05", "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", "0.05;0.05", "two numbers, each from 0 to below 0.5"),
    ("stacking_winsor_limits", "0.05,0.5", "two numbers, each from 0 to below 0.5"),
]


@pytest.mark.parametrize(("key", "value", "expected"), BAD_EVERYWHERE)
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(key, value, expected):
    for place, call in (
        ("configuration file", lambda: zc.resolve({key: value})),
        ("command line", lambda: zc.resolve(overrides={key: value})),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value).startswith(f"{place}: {key} = ")
        assert str(caught.value).split("expected ")[1].startswith(expected)


@pytest.mark.parametrize(("key", "value", "expected"), [row for row in BAD_EVERYWHERE if isinstance(row[1], str)])
def test_a_bad_variable_is_refused_with_key_value_and_what_is_allowed(key, value, expected):
    with pytest.raises(ConfigError) as caught:
        zc.resolve(env={zc.find_option(key).variable: value})
    assert str(caught.value).startswith(f"environment: {key} = {value!r} is not allowed, expected {expected}")


def test_text_for_a_number_is_refused_in_the_file():
    with pytest.raises(ConfigError, match="grid_workers = '3' is not allowed"):
        zc.resolve({"grid_workers": "3"})


def test_null_is_a_value_for_a_switch_only():
    assert zc.resolve({"use_gpu_grid": None})["use_gpu_grid"] is False
    with pytest.raises(ConfigError, match="grid_workers = None is not allowed"):
        zc.resolve({"grid_workers": None})


def test_a_home_folder_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="input_dir = '~nobody-of-that-name/x' is not allowed"):
        zc.resolve({"input_dir": "~nobody-of-that-name/x"})


# --- unknown keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("grid_worker", "grid_workers"),
        ("Grid_Workers", "grid_workers"),
        ("kappa_low", "stacking_kappa_low"),
        ("input_folder", "input_dir"),
        ("grid_chunk_ram_gb", "grid_chunk_ram_mb"),
        ("poststack_equalize_rgb", "grid_rgb_equalize"),
    ],
)
def test_an_unknown_key_of_the_command_line_is_refused_with_the_nearest_one(key, near):
    with pytest.raises(ConfigError, match=f"^unknown key '{key}'; did you mean '{near}'"):
        zc.resolve(overrides={key: "1"})


def test_an_unknown_key_that_resembles_none_is_refused_with_the_place_of_the_list():
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; docs/configuration\.md lists the keys"):
        zc.resolve(overrides={"zzz": "1"})


def test_a_slip_in_the_file_is_noted_with_the_nearest_key():
    config = zc.resolve({"grid_worker": 3})
    assert config["grid_workers"] == 0
    assert config.notes == ("unknown key 'grid_worker' in the file; did you mean 'grid_workers'?",)


def test_a_hundred_unknown_keys_of_the_file_make_one_short_sentence():
    (note,) = zc.resolve({f"zz{n}": n for n in range(100)}).notes
    assert note == (
        "keys of the file that are kept but not used: zz0, zz1, zz2, zz3, zz4, zz5, zz6, zz7 and 92 more"
    )


# --- the GPU switches -----------------------------------------------------------------------------------------

ON, OFF, UNSET = True, False, None
TRUTH = [
    # use_gpu_grid, use_gpu_phase5, stack_use_gpu, use_gpu_stack -> all four, the key that decided
    ((UNSET, UNSET, UNSET, UNSET), OFF, None),
    ((UNSET, UNSET, UNSET, ON), ON, "use_gpu_stack"),
    ((UNSET, UNSET, UNSET, OFF), OFF, "use_gpu_stack"),
    ((UNSET, UNSET, ON, OFF), ON, "stack_use_gpu"),
    ((UNSET, UNSET, OFF, ON), OFF, "stack_use_gpu"),
    ((UNSET, ON, OFF, OFF), ON, "use_gpu_phase5"),
    ((UNSET, OFF, ON, ON), OFF, "use_gpu_phase5"),
    ((UNSET, ON, UNSET, OFF), ON, "use_gpu_phase5"),
    ((ON, OFF, OFF, OFF), ON, "use_gpu_grid"),
    ((OFF, ON, ON, ON), OFF, "use_gpu_grid"),
    ((ON, UNSET, UNSET, UNSET), ON, "use_gpu_grid"),
    ((OFF, UNSET, UNSET, UNSET), OFF, "use_gpu_grid"),
]


@pytest.mark.parametrize(("given", "verdict", "decided_by"), TRUTH)
def test_the_first_defined_gpu_switch_decides_all_four(given, verdict, decided_by):
    absent = {key: value for key, value in zip(zc.GPU_KEYS, given, strict=True) if value is not UNSET}
    spelled = {key: {ON: "yes", OFF: "no", UNSET: "auto"}[v] for key, v in zip(zc.GPU_KEYS, given, strict=True)}
    for values in (absent, spelled, dict(zip(zc.GPU_KEYS, given, strict=True))):
        before = dict(values)
        flags, key = zc.normalize_gpu_flags(values)
        assert (flags, key) == (dict.fromkeys(zc.GPU_KEYS, verdict), decided_by)
        assert values == before
        for config in (zc.resolve(values), zc.resolve(overrides=values)):
            assert [config[key] for key in zc.GPU_KEYS] == [verdict] * 4
            assert config.gpu_decided_by == decided_by


@pytest.mark.parametrize("word", ["", " ", "none", "Auto", "NULL", None])
def test_these_words_leave_a_gpu_switch_undefined(word):
    assert zc.normalize_gpu_flags({"use_gpu_grid": word, "use_gpu_stack": 1})[1] == "use_gpu_stack"


def test_normalizing_gpu_switches_keeps_the_other_values():
    flags, _ = zc.normalize_gpu_flags({"language": "fr", "use_gpu_phase5": "on"})
    assert flags == {"language": "fr", **dict.fromkeys(zc.GPU_KEYS, True)}


def test_a_bad_gpu_switch_is_refused_even_where_another_decides():
    with pytest.raises(ConfigError, match="use_gpu_stack = 'cuda' is not allowed, expected on, off or auto"):
        zc.normalize_gpu_flags({"use_gpu_grid": True, "use_gpu_stack": "cuda"})


def test_any_gpu_switch_of_a_higher_source_beats_all_of_a_lower_one():
    config = zc.resolve({"use_gpu_grid": False}, {"ZEMOSAIC_USE_GPU_STACK": "on"})
    assert config["use_gpu_grid"] is True
    assert {config.source(key) for key in zc.GPU_KEYS} == {"environment"}
    config = zc.resolve({"use_gpu_phase5": True}, {}, {"use_gpu_grid": "auto"})
    assert (config["use_gpu_grid"], config.source("use_gpu_grid")) == (True, "file")


# --- where the file is ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the place on Linux")
def test_the_file_is_in_the_configuration_folder_of_the_user_on_linux(tmp_path, monkeypatch):
    assert zc.config_path() == tmp_path / "home" / "ZeMosaic" / "zemosaic_config.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert zc.config_path() == tmp_path / "home" / ".config" / "ZeMosaic" / "zemosaic_config.json"


@pytest.mark.skipif(sys.platform != "darwin", reason="the place on macOS")
def test_the_file_is_in_application_support_on_macos(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    folder = tmp_path / "home" / "Library" / "Application Support" / "ZeMosaic"
    assert zc.config_path() == folder / "zemosaic_config.json"


@pytest.mark.skipif(sys.platform != "win32", reason="the place on Windows")
def test_the_file_is_in_the_roaming_folder_on_windows():
    parts = zc.config_path().parts
    assert parts[-3:] == ("Roaming", "ZeMosaic", "zemosaic_config.json")


def test_a_variable_names_another_file(tmp_path, monkeypatch):
    named = tmp_path / "mine.json"
    assert zc.config_path({"ZEMOSAIC_CONFIG": str(named)}) == named
    monkeypatch.setenv("ZEMOSAIC_CONFIG", str(named))
    write(named, {"grid_workers": 7})
    assert zc.config_path() == named
    assert zc.load_file() == {"grid_workers": 7}


# --- reading --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no variable moves the folder of the user there")
def test_the_file_of_the_user_may_be_absent():
    assert zc.load_file() == {}
    assert zc.load_file(zc.config_path()) == {}
    assert zc.load_file(str(zc.config_path())) == {}


def test_a_named_file_must_exist(file, monkeypatch):
    with pytest.raises(ConfigError, match=f"{file.name} does not exist"):
        zc.load_file(file)
    monkeypatch.setenv("ZEMOSAIC_CONFIG", str(file))
    with pytest.raises(ConfigError, match=f"{file.name} does not exist"):
        zc.load_file()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path.name} cannot be read"):
        zc.load_file(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_refused(file):
    write(file, {})
    file.chmod(0)
    with pytest.raises(ConfigError, match=f"{file.name} cannot be read: Permission denied"):
        zc.load_file(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1, column 1: not JSON"),
        (b'{"a": 1,\n "b" 2}', "line 2, column 6: not JSON"),
        (b'{"a": 1', "line 1, column 8: not JSON"),
        (b"[1, 2]", "must hold one JSON object"),
        (b"null", "must hold one JSON object"),
        (b'"text"', "must hold one JSON object"),
        ('{"a": "é"}'.encode("latin-1"), "cannot be understood"),
        ('{"a": 1}'.encode("utf-16"), "cannot be understood"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be understood"),
        (b"[" * 100_000, "cannot be understood"),
    ],
    ids=["empty", "colon", "cut", "list", "null", "text", "latin-1", "utf-16", "digits", "nesting"],
)
def test_a_broken_file_is_refused_by_name(file, content, message):
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        zc.load_file(file)
    assert file.name in str(caught.value)


def test_a_byte_order_mark_is_tolerated(file):
    file.write_bytes(b"\xef\xbb\xbf" + '{"input_dir": "été"}'.encode())
    assert zc.load_file(file) == {"input_dir": "été"}


# --- migration ------------------------------------------------------------------------------------------------


def test_a_file_of_the_older_program_is_understood():
    config = zc.resolve(OLDER_FILE)
    expected = {
        "input_dir": "D:/Astro/M 31 été",
        "output_dir": "D:/Astro/out",
        "stacking_rejection_algorithm": "winsorized_sigma_clip",
        "stacking_kappa_low": 2.5,
        "stacking_kappa_high": 3.0,
        "stacking_winsor_limits": (0.05, 0.1),
        "grid_rgb_equalize": True,
        "grid_chunk_ram_mb": 1536,
        "grid_size_factor": 2.0,
        "logging_level": "INFO",
        "use_gpu_grid": True,
        "astap_path": "C:/ASTAP/astap.exe",
        "astap_data_dir": "C:/ASTAP",
        "astap_search_radius_deg": 5.0,
        "solver_downsample": 2,
        "astap_max_instances": 1,
        "solve_timeout_s": 90.0,
        "solver_method": "auto",
    }
    assert {key: config[key] for key in expected} == expected
    assert {config.source(key) for key in expected} == {"file"}
    assert config.gpu_decided_by == "use_gpu_phase5"
    *gone, note = config.notes
    assert note == (
        "keys of the file that are kept but not used: language, qt_main_window_geometry, qt_main_left_state"
    )
    assert [text.partition(" is gone: ")[0] for text in gone] == [
        "winsor_worker_limit",
        "intertile_recenter_clip",
        "gpu_selector",
    ]


def test_options_that_are_gone_are_named_once_with_what_replaces_them():
    file = {
        "max_raw_per_master_tile": 50,
        "winsor_worker_limit": 4,
        "parallel_max_cpu_workers": 2,
        "sds_mode_default": True,
        "apply_master_tile_crop": True,
    }
    notes = zc.resolve(file).notes
    assert len(notes) == 4
    assert notes[0].startswith("max_raw_per_master_tile, winsor_worker_limit are gone: ")
    for replacement in ("grid_chunk_ram_mb", "grid_workers", "frame_feather_px", "canvas_orientation"):
        assert sum(replacement in note for note in notes) >= 1
    assert not any("not used" in note for note in notes)


def test_options_of_master_tiles_are_found_under_their_older_names():
    older = {
        "num_processing_workers": -1,
        "match_background_for_final": False,
        "final_assembly_method": "INCREMENTAL",
    }
    config = zc.resolve(older)
    assert config["grid_workers"] == -1
    assert config["intertile_photometric_match"] is False
    assert config["final_assembly_method"] == "incremental"
    assert config.notes == ()


@pytest.mark.parametrize(
    ("older", "today"),
    [("ANSVR", "auto"), ("ASTROMETRY", "astrometry_net"), ("ASTAP", "astap"), ("NONE", "none"), ("auto", "auto")],
)
def test_the_older_names_of_the_plate_solvers_are_understood(older, today):
    assert zc.resolve({"solver_method": older})["solver_method"] == today


def test_migration_leaves_its_input_alone_and_is_done_once():
    before = copy.deepcopy(OLDER_FILE)
    values = zc.migrate(OLDER_FILE)
    values["intertile_recenter_clip"].append(9)
    assert before == OLDER_FILE
    values = zc.migrate(OLDER_FILE)
    assert values["config_version"] == 1
    assert values["stacking_winsor_limits"] == [0.05, 0.1]
    assert not {"input_folder", "output_folder", "grid_chunk_ram_gb"} & set(values)
    assert values["poststack_equalize_rgb"] is True
    assert "grid_rgb_equalize" not in values
    assert zc.migrate(values) == values


@pytest.mark.parametrize(
    ("values", "budget_mb"),
    [
        ({"grid_chunk_ram_gb": 0.5}, 512),
        ({"grid_chunk_ram_gb": 2}, 2048),
        ({"grid_chunk_ram": 300, "grid_chunk_ram_gb": 2}, 300),
        ({"grid_chunk_ram_mb": 100, "grid_chunk_ram": 300, "grid_chunk_ram_gb": 2}, 100),
    ],
)
@pytest.mark.parametrize("version", [{}, {"config_version": 1}])
def test_the_memory_budget_is_read_under_its_older_names(values, budget_mb, version):
    assert zc.resolve({**values, **version})["grid_chunk_ram_mb"] == budget_mb


@pytest.mark.parametrize(("older", "value"), [("grid_chunk_ram_gb", "lots"), ("grid_chunk_ram_gb", 0.01)])
def test_a_bad_value_under_an_older_name_is_refused_with_that_name(older, value):
    with pytest.raises(ConfigError, match=f"grid_chunk_ram_mb = .*older names: .*{older}"):
        zc.resolve({older: value})


def test_the_name_of_today_beats_an_older_one_unless_it_is_empty():
    assert zc.resolve({"input_dir": "new", "input_folder": "old"})["input_dir"] == "new"
    assert zc.resolve({"input_dir": "", "input_folder": "old"})["input_dir"] == "old"


def test_the_stand_in_serves_only_where_the_key_is_absent():
    assert zc.resolve({"poststack_equalize_rgb": True})["grid_rgb_equalize"] is True
    assert zc.resolve({"poststack_equalize_rgb": True, "grid_rgb_equalize": False})["grid_rgb_equalize"] is False


@pytest.mark.parametrize("version", ["1", 1.0, True, -1, None])
def test_a_version_that_is_no_whole_number_is_refused(version):
    with pytest.raises(ConfigError, match="config_version = "):
        zc.resolve({"config_version": version})


def test_a_file_of_a_newer_version_is_used_with_a_note_and_keeps_its_version(file):
    write(file, {"config_version": 7, "grid_workers": 2})
    config = zc.resolve(zc.load_file(file))
    assert config["grid_workers"] == 2
    assert config.notes == ("the file is of a newer ZeMosaic (config_version 7); parts may be ignored",)
    zc.save(file, {"grid_workers": 3})
    assert read(file) == {"config_version": 7, "grid_workers": 3}


def test_winsor_limits_that_cannot_be_read_are_left_for_the_check():
    with pytest.raises(ConfigError, match="stacking_winsor_limits = 'a,b' is not allowed"):
        zc.resolve(zc.migrate({"stacking_winsor_limits": "a,b"}))


# --- writing --------------------------------------------------------------------------------------------------


def test_every_key_comes_back_from_the_file_as_it_was_saved(file):
    values = {option.key: option.default for option in zc.OPTIONS} | {
        "input_dir": "/data/été",
        "stacking_winsor_limits": (0.1, 0.2),
        "stacking_kappa_low": 2.25,
        "use_gpu_grid": True,
        "logging_level": "DEBUG",
    }
    zc.save(file, values)
    config = zc.resolve(zc.load_file(file))
    assert config.as_dict() == values | dict.fromkeys(zc.GPU_KEYS, True)
    assert {config.source(key) for key in config} == {"file"}
    zc.save(file, config)
    assert zc.resolve(zc.load_file(file)) == config


def test_only_what_was_set_is_written_with_the_version(file):
    zc.save(file, {"input_dir": "/data/été"})
    text = file.read_text(encoding="utf-8")
    assert text == '{\n    "config_version": 1,\n    "input_dir": "/data/été"\n}\n'


def test_unknown_keys_of_the_file_survive_a_save(file):
    write(file, OLDER_FILE)
    zc.save(file, {"grid_workers": 2})
    after = read(file)
    renamed = {name for option in zc.OPTIONS for name in option.aliases}
    unknown = set(OLDER_FILE) - renamed - {"stacking_winsor_limits", "solver_method"}
    assert {key: after[key] for key in unknown} == {key: OLDER_FILE[key] for key in unknown}
    assert after["input_dir"] == OLDER_FILE["input_folder"]
    assert after["stacking_winsor_limits"] == [0.05, 0.1]
    before, now = zc.resolve(OLDER_FILE), zc.resolve(after)
    assert now.as_dict() == before.as_dict() | {"grid_workers": 2}


def test_a_save_makes_the_folder(tmp_path):
    zc.save(tmp_path / "a" / "b" / "c.json", {"grid_workers": 2})
    assert read(tmp_path / "a" / "b" / "c.json")["grid_workers"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")
def test_a_save_keeps_a_link_and_the_mode_of_the_file(tmp_path, file):
    target = tmp_path / "real.json"
    write(target, {})
    target.chmod(0o640)
    file.symlink_to(target)
    zc.save(file, {"grid_workers": 2})
    assert file.is_symlink()
    assert read(target)["grid_workers"] == 2
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid_worker": 1}, "unknown key 'grid_worker'; did you mean 'grid_workers'"),
        ({"grid_workers": "many"}, "grid_workers = 'many' is not allowed"),
        ({"input_dir": "\ud800"}, "cannot be written"),
    ],
)
def test_a_save_of_something_bad_leaves_the_file_as_it_was(tmp_path, file, values, message):
    write(file, {"grid_workers": 5})
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=message):
        zc.save(file, {"grid_overlap_px": 1, **values})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_save_never_replaces_a_file_that_cannot_be_understood(file):
    file.write_bytes(b'{"api_key": "precious",')
    with pytest.raises(ConfigError, match="not JSON"):
        zc.save(file, {"grid_workers": 2})
    assert file.read_bytes() == b'{"api_key": "precious",'


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, file, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(file, {"grid_workers": 5})
    monkeypatch.setattr(*{"fsync": (os, "fsync", fail), "replace": (os, "replace", fail)}[step])
    with pytest.raises(ConfigError, match=f"{file.name} cannot be written: .*No space left"):
        zc.save(file, {"grid_workers": 2})
    assert read(file) == {"grid_workers": 5}
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_beyond_the_size_limit_leaves_the_old_file_and_nothing_else(tmp_path, file):
    resource = pytest.importorskip("resource")
    write(file, {"note": "x" * 5000})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written: .*File too large"):
            zc.save(file, {"grid_workers": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(file) == {"note": "x" * 5000}
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(ConfigError, match=r"plain.*c\.json cannot be"):
        zc.save(tmp_path / "plain" / "c.json", {"grid_workers": 2})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_reported(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(ConfigError, match=r"c\.json cannot be written: .*Permission denied"):
        zc.save(folder / "c.json", {"grid_workers": 2})


def test_a_gpu_switch_that_is_set_takes_the_others_of_the_file_along(file):
    write(file, {"use_gpu_grid": False, "stack_use_gpu": False})
    zc.set_in_file(file, "use_gpu_phase5", "on")
    assert read(file) == {
        "use_gpu_grid": True,
        "stack_use_gpu": True,
        "config_version": 1,
        "use_gpu_phase5": True,
    }
    zc.set_in_file(file, "use_gpu_grid", "auto")
    assert read(file)["use_gpu_grid"] is None
    assert zc.resolve(read(file)).gpu_decided_by == "use_gpu_phase5"


# --- KEY=VALUE ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid_workers=4", ("grid_workers", "4")),
        (" grid_workers =4", ("grid_workers", "4")),
        ("input_dir=/a=b", ("input_dir", "/a=b")),
        ("input_dir=", ("input_dir", "")),
    ],
)
def test_an_assignment_is_cut_at_its_first_equals_sign(text, expected):
    assert zc.parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["grid_workers", "", "=4", "  =4"])
def test_an_assignment_needs_a_key_and_an_equals_sign(text):
    with pytest.raises(ConfigError, match=f"'{text}' is not of the form KEY=VALUE"):
        zc.parse_assignment(text)


@pytest.mark.parametrize(
    ("key", "text", "stored"),
    [
        ("grid_workers", "4", 4),
        ("stacking_kappa_low", "2", 2.0),
        ("apply_radial_weight", "yes", True),
        ("stacking_winsor_limits", "0.1,0.2", [0.1, 0.2]),
        ("logging_level", "debug", "DEBUG"),
        ("input_dir", "/données", "/données"),
    ],
)
def test_a_value_given_as_text_is_stored_in_its_own_type(file, key, text, stored):
    zc.set_in_file(file, key, text)
    assert read(file) == {"config_version": 1, key: stored}
    assert type(read(file)[key]) is type(stored)


def test_a_bad_text_is_not_stored(file):
    with pytest.raises(ConfigError, match="grid_workers = 'four' is not allowed, expected whole number"):
        zc.set_in_file(file, "grid_workers", "four")
    with pytest.raises(ConfigError, match="unknown key 'grid_wrokers'; did you mean 'grid_workers'"):
        zc.set_in_file(file, "grid_wrokers", "4")
    assert not file.exists()
