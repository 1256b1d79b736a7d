"""The configuration: one declared table of options, and one frozen record of their values for a run.

`OPTIONS` is the only place that names a key, its default and its limits; reading, checking, saving and the
reference page follow from it. A new option is a new row, and ``docs/configuration.md`` written again.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import platformdirs

from zemosaic_types import ConfigError

Value = bool | int | float | str | tuple[float, float] | None

CONFIG_VERSION = 1
VERSION_KEY = "config_version"
GPU_KEYS = ("use_gpu_grid", "use_gpu_phase5", "stack_use_gpu", "use_gpu_stack")  # the first defined one decides
COMMAND_LINE, ENVIRONMENT, FILE, DEFAULT = "command line", "environment", "file", "default"
WINDOW = "window"

_FOLDERS, _STACKING, _GRID, _GPU, _LOGGING = "Input and output", "Stacking", "Grid", "GPU", "Logging"
_CLASSIC = "Classic"
_SOLVING = "Plate solving"
_BOOL_WORDS = {"1": 1, "true": 1, "yes": 1, "on": 1, "0": 0, "false": 0, "no": 0, "off": 0}
_UNDEFINED = (None, "", "auto", "none", "null")


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table.

    `kind` is bool, switch (a bool that may be left undefined: default None), int, float, str (a leading ``~``
    is expanded), choice or pair (two floats; `maximum` itself is refused). `aliases` are older names, renamed
    when the file is saved; `stand_ins` are keys with a life of their own whose value in the file serves where
    this key is absent. Most users never need an `advanced` option.
    """

    key: str
    kind: str
    default: Value
    section: str
    doc: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    advanced: bool = False

    @property
    def label(self) -> str:
        """What it is called in a form: a few words."""
        return _LABELS.get(self.key) or self.key.replace("_", " ").capitalize()

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return f"ZEMOSAIC_{self.key.upper()}"

    @property
    def older_names(self) -> tuple[str, ...]:
        """Other names under which a file may give the value."""
        return self.aliases + self.stand_ins

    @property
    def allowed(self) -> str:
        """What the value may be, in words."""
        match self.kind:
            case "bool":
                return "true or false"
            case "switch":
                return "on, off or auto"
            case "str":
                return "text"
            case "choice":
                return ", ".join(self.choices)
            case "pair":
                return f"two numbers, each from {self.minimum:g} to below {self.maximum:g}"
        whole = self.kind == "int"
        if self.minimum is None:
            return "whole number" if whole else "number"
        if self.maximum is None:
            return f"{'whole number' if whole else 'number'} from {self.minimum:g}"
        return f"{'whole number' if whole else 'number'} from {self.minimum:g} to {self.maximum:g}"


# fmt: off
#: What options are called in a form.
_LABELS = {
    "input_dir": "Frames", "output_dir": "Results", "save_final_as_uint16": "16-bit copy for viewers",
    "legacy_rgb_cube": "Bare colour cube", "stacking_normalize_method": "Bringing frames to one level",
    "stacking_weighting_method": "Weight of a frame", "stacking_rejection_algorithm": "Rejection",
    "stacking_kappa_low": "Rejection threshold, low", "stacking_kappa_high": "Rejection threshold, high",
    "stacking_winsor_limits": "Winsor limits", "stacking_final_combine_method": "Combination",
    "reject_spread": "Spread for rejection", "frame_feather_px": "Soft frame edges",
    "apply_radial_weight": "Less weight in corners", "radial_feather_fraction": "Radial weight: reach",
    "radial_shape_power": "Radial weight: power", "min_radial_weight_floor": "Radial weight: floor",
    "grid_mode_enabled": "Grid mode", "grid_workers": "Workers", "grid_size_factor": "Tile size factor",
    "grid_chunk_ram_mb": "Memory per worker", "grid_overlap_px": "Margin of tile files",
    "grid_rgb_equalize": "Equalise RGB", "flat_from_frames": "Vignetting from the frames",
    "resampling_kernel": "Resampling", "canvas_orientation": "Orientation", "refine_wcs": "Refine positions",
    "cluster_panel_threshold": "Panel threshold", "cluster_target_groups": "Number of groups",
    "cluster_orientation_split_deg": "Orientation split", "cluster_by_filter": "Groups by filter",
    "cluster_by_instrument": "Groups by instrument", "final_assembly_method": "Assembly of master tiles",
    "intertile_photometric_match": "Match of master tiles", "solve_missing_wcs": "Solve frames without WCS",
    "solver_method": "Plate solver", "align_by_stars": "Place by shared stars", "astap_path": "ASTAP program",
    "astap_data_dir": "ASTAP star database", "astrometry_local_path": "astrometry.net index files",
    "astap_search_radius_deg": "Search radius", "solver_downsample": "Downsampling for the solver",
    "solve_timeout_s": "Time limit of the solver", "astap_max_instances": "Solvers at once",
    "solve_retry_failed": "Try failed frames again", "force_resolve_existing_wcs": "Solve all frames anew",
    "use_gpu_grid": "GPU", "use_gpu_phase5": "GPU, older switch 1", "stack_use_gpu": "GPU, older switch 2",
    "use_gpu_stack": "GPU, older switch 3", "logging_level": "Log level",
}

OPTIONS: tuple[Option, ...] = (
    Option("input_dir", "str", "", _FOLDERS, "Folder of the exposures.", aliases=("input_folder",)),
    Option("output_dir", "str", "", _FOLDERS, "Folder that receives the mosaic.", aliases=("output_folder",)),
    Option("save_final_as_uint16", "bool", False, _FOLDERS,
           "Also write mosaic_..._viewer.fits, a 16-bit copy of the mosaic for image viewers."),
    Option("legacy_rgb_cube", "bool", False, _FOLDERS, "Write the viewer file as a bare 3-plane cube.",
           advanced=True),
    Option("canvas_orientation", "choice", "north_up", _FOLDERS,
           "Orientation of the canvas; auto = smallest area.", choices=("north_up", "auto")),
    Option("stacking_normalize_method", "choice", "global", _STACKING,
           "How frames are brought to one level: sky_mean by an offset, linear_fit by a gain and an offset, "
           "global by a gain, an offset and a gradient.",
           choices=("none", "sky_mean", "linear_fit", "global")),
    Option("stacking_weighting_method", "choice", "noise_variance", _STACKING,
           "What a frame weighs: the same as any other, by its noise, or by its noise and its star width.",
           choices=("none", "noise_variance", "noise_fwhm")),
    Option("stacking_rejection_algorithm", "choice", "kappa_sigma", _STACKING,
           "How outlying samples of a pixel (satellites, cosmic rays, hot pixels) are found and removed.",
           choices=("none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip")),
    Option("stacking_kappa_low", "float", 3.0, _STACKING, "Rejection threshold for samples that are too low.",
           unit="sigma", minimum=0.5, maximum=20),
    Option("stacking_kappa_high", "float", 3.0, _STACKING, "Rejection threshold for samples that are too high.",
           unit="sigma", minimum=0.5, maximum=20),
    Option("stacking_winsor_limits", "pair", (0.05, 0.05), _STACKING,
           "Lowest and highest share of the samples that the first pass of winsorized_sigma_clip pulls in.",
           unit="fraction", minimum=0, maximum=0.5, advanced=True),
    Option("stacking_final_combine_method", "choice", "mean", _STACKING,
           "How the samples that are left become one value.", choices=("mean", "median")),
    Option("reject_spread", "choice", "auto", _STACKING,
           "Where the spread of a pixel's samples comes from: auto = robust spread of the samples and the "
           "measured noise of the frames; sample = textbook standard deviation; noise_model = the noise alone.",
           choices=("auto", "sample", "noise_model"), advanced=True),
    Option("frame_feather_px", "int", -1, _STACKING,
           "Distance from the edge of a frame over which its weight rises, so that no edge shows; -1 = automatic.",
           unit="px", minimum=-1, maximum=1000, advanced=True),
    Option("apply_radial_weight", "bool", False, _STACKING, "Lower a frame's weight towards its corners."),
    Option("radial_feather_fraction", "float", 0.8, _STACKING,
           "Distance from the centre of a frame at which the radial weight reaches its floor.",
           unit="half diagonal", minimum=0.1, maximum=1, advanced=True),
    Option("radial_shape_power", "float", 2.0, _STACKING, "Power of the cosine of the radial weight.",
           minimum=0.1, maximum=10, advanced=True),
    Option("min_radial_weight_floor", "float", 0.05, _STACKING, "Smallest radial weight.",
           unit="fraction", minimum=0, maximum=1, advanced=True),
    Option("refine_wcs", "choice", "auto", _STACKING,
           "Correct the frames' WCS so that their common stars coincide; auto = where it brings more than noise; "
           "a frame that is more than 5 px off is left out either way.", choices=("auto", "on", "off")),
    Option("flat_from_frames", "choice", "auto", _STACKING,
           "Find the vignetting of each instrument in its own frames and divide it out: auto = if it is "
           "significant, on = whatever can be told.", choices=("auto", "on", "off")),
    Option("resampling_kernel", "choice", "lanczos3", _STACKING, "Kernel that resamples frames onto the canvas.",
           choices=("lanczos3", "bilinear")),
    Option("grid_mode_enabled", "bool", False, _GRID,
           "Let `zemosaic run` use Grid mode also where the folder has no stack_plan.csv."),
    Option("grid_workers", "int", 0, _GRID,
           "Worker processes that stack tiles; 0 or less = chosen from cores and memory.",
           aliases=("num_processing_workers",)),
    Option("grid_size_factor", "float", 1.0, _GRID,
           "Divides the side of a tile: a bigger value gives smaller tiles and the same mosaic.",
           minimum=0.1, maximum=100, advanced=True),
    Option("grid_chunk_ram_mb", "int", 512, _GRID, "Memory budget of one worker.", unit="MB", minimum=64,
           aliases=("grid_chunk_ram", "grid_chunk_ram_gb")),
    Option("grid_overlap_px", "int", 0, _GRID, "Margin added to the tile files; it never enters the mosaic.",
           unit="px", minimum=0, maximum=1000, advanced=True),
    Option("grid_rgb_equalize", "bool", False, _GRID, "Bring the mosaic's colour channels to one sky level.",
           stand_ins=("poststack_equalize_rgb",)),
    Option("cluster_panel_threshold", "float", 0.0, _CLASSIC,
           "Frames are linked if their centres are no further apart than this; what is linked is one group, cut "
           "where it outgrows a circle of this radius or of half a frame's short side, whichever is larger; "
           "0 = half the short side.", unit="deg", minimum=0, maximum=180),
    Option("cluster_target_groups", "int", 0, _CLASSIC,
           "Number of groups, before orientation splits them, that the threshold is chosen for, however wide they "
           "get; 0 = none.", minimum=0),
    Option("cluster_orientation_split_deg", "float", 0.0, _CLASSIC,
           "Position angles in a group differ by no more than this, half a turn counting as none; 0 = any may.",
           unit="deg", minimum=0, maximum=180),
    Option("cluster_by_filter", "bool", False, _CLASSIC, "Keep frames of different filters in different groups."),
    Option("cluster_by_instrument", "bool", False, _CLASSIC,
           "Keep frames of different instruments in different groups.", advanced=True),
    Option("final_assembly_method", "choice", "reproject_coadd", _CLASSIC,
           "How master tiles become the mosaic: all that cover a part of it at once, or one after the other, "
           "added to sums on the disk; the mosaic is the same.", choices=("reproject_coadd", "incremental")),
    Option("intertile_photometric_match", "bool", True, _CLASSIC,
           "Bring master tiles together by their common stars and sky, where that proves to be worth it.",
           aliases=("match_background_for_final",), advanced=True),
    Option("solve_missing_wcs", "bool", True, _SOLVING,
           "Let a plate solver find the place on the sky of frames that have no usable WCS."),
    Option("align_by_stars", "bool", True, _SOLVING,
           "Give frames that have no WCS and are not solved the place that the stars which they share with other "
           "frames tell."),
    Option("solver_method", "choice", "auto", _SOLVING,
           "The plate solver; auto = ASTAP where it and a star database are there, else astrometry.net.",
           choices=("auto", "astap", "astrometry_net", "none")),
    Option("astap_path", "str", "", _SOLVING, "ASTAP, or its folder; empty = looked for in the usual places.",
           aliases=("astap_executable_path",)),
    Option("astap_data_dir", "str", "", _SOLVING,
           "Folder of ASTAP's star database; empty = looked for in the usual places.",
           aliases=("astap_data_directory_path",)),
    Option("astrometry_local_path", "str", "", _SOLVING,
           "Folder of astrometry.net's index files, or its configuration file; empty = its own.", advanced=True),
    Option("astap_search_radius_deg", "float", 3.0, _SOLVING,
           "How far from where its header points a frame is looked for, by either solver.",
           unit="degrees", minimum=0.1, maximum=180, aliases=("astap_default_search_radius",), advanced=True),
    Option("solver_downsample", "int", 0, _SOLVING,
           "By how much a frame is shrunk for the solver, in its own pixels; 0 = automatic.",
           unit="px", minimum=0, aliases=("astap_default_downsample", "astrometry_downsample"), advanced=True),
    Option("solve_timeout_s", "float", 60.0, _SOLVING, "Time after which a solver is stopped, for each frame.",
           unit="s", minimum=0.5, maximum=3600, aliases=("astrometry_timeout",), advanced=True),
    Option("astap_max_instances", "int", 0, _SOLVING,
           "Solvers that run at once, of either kind; 0 or less = chosen from cores and memory.", advanced=True),
    Option("solve_retry_failed", "bool", False, _SOLVING,
           "Try frames again that the same solver with the same settings has failed before.", advanced=True),
    Option("force_resolve_existing_wcs", "bool", False, _SOLVING,
           "Solve frames that have a WCS, too; one that cannot be solved keeps what it has.", advanced=True),
    Option("use_gpu_grid", "switch", None, _GPU,
           "Stack tiles on the GPU; auto = what the first defined of the older switches says, else off."),
    Option("use_gpu_phase5", "switch", None, _GPU, "Older switch; decides while use_gpu_grid is auto.",
           advanced=True),
    Option("stack_use_gpu", "switch", None, _GPU, "Older switch; decides while the two above are auto.",
           advanced=True),
    Option("use_gpu_stack", "switch", None, _GPU, "Older switch; decides while the three above are auto.",
           advanced=True),
    Option("logging_level", "choice", "INFO", _LOGGING, "Least important message that the log keeps.",
           choices=("DEBUG", "INFO", "WARNING", "ERROR")),
)
# fmt: on

_BY_KEY = {option.key: option for option in OPTIONS}
_OTHER_NAMES = {name: option.key for option in OPTIONS for name in option.older_names}


# Options of the older program that are gone, and what became of what they were for.
_GONE = tuple(
    (re.compile(names), instead)
    for names, instead in (
        (
            "(auto_)?(max_raw|limit_frames)_per_master_tile|winsor_.*|extreme_group_.*",
            "groups need no limit, since grid_chunk_ram_mb bounds the memory whatever their size",
        ),
        ("allow_batch_duplication|min_safe_stack|target_stack", "no frame is counted twice to fill a group"),
        ("batch_overlap_pct", "grid_overlap_px adds a margin to tile files"),
        ("enable_tile_weighting|tile_weight_.*", "master tiles weigh what their frames weigh"),
        (
            "intertile_.*|use_auto_intertile|center_out_.*|p3_center_.*|anchor_quality_.*|(enable_)?poststack_anchor_.*"
            "|two_pass_.*|inter_master_.*",
            "stacking_normalize_method matches all frames of a run at once, intertile_photometric_match the tiles",
        ),
        (
            "incremental_feather_parity|(apply_)?master_tile_crop.*|quality_(crop|gate)_.*|crop_follow_signal|altaz_.*",
            "edges are softened by frame_feather_px, corners weigh less with apply_radial_weight",
        ),
        (
            "coadd_.*|cleanup_temp_artifacts|cache_retention",
            "final_assembly_method=incremental keeps its sums on the disk; temporary files are always removed",
        ),
        ("enable_resource_telemetry|resource_telemetry_.*", "report.json has times and memory of a run"),
        ("parallel_.*|assembly_process_workers", "grid_workers and grid_chunk_ram_mb say what a run may take"),
        ("gpu_id_phase5|gpu_selector", "every GPU that is found is used"),
        (
            "auto_detect_seestar|force_seestar_mode|sds_.*|global_(coadd|wcs)_.*",
            "every run lays out one canvas first; canvas_orientation turns it",
        ),
        ("astap_default_sensitivity", "it never reached ASTAP"),
        ("astrometry_api_key", "frames are solved on this machine; solver_method says how"),
        ("preferred_gui_backend(_explicit)?|enable_early_filter", "there is one desktop program"),
    )
)


class Setting(NamedTuple):
    """A key, its checked value, and where the value comes from."""

    key: str
    value: Value
    source: str


@dataclass(frozen=True, slots=True)
class Config(Mapping[str, Value]):
    """The configuration of one run: every key of the table, checked; nothing in it can be changed.

    The four GPU keys hold the same bool; `gpu_decided_by` is the key that set it, None if none is defined.
    `notes` are sentences for the user about the file.
    """

    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()
    gpu_decided_by: str | None = None

    def __getitem__(self, key: str) -> Value:
        return {setting.key: setting.value for setting in self.settings}[key]

    def __iter__(self) -> Iterator[str]:
        return (setting.key for setting in self.settings)

    def __len__(self) -> int:
        return len(self.settings)

    def source(self, key: str) -> str:
        """Return ``"default"``, ``"file"``, ``"environment"``, ``"command line"`` or ``"window"``."""
        return {setting.key: setting.source for setting in self.settings}[key]

    def chosen_in_window(self, keys: Collection[str]) -> Config:
        """Return the same values, those of `keys` said to be of the window; one GPU key decides all four."""
        keys = {*keys}.difference(GPU_KEYS).union(GPU_KEYS if self.gpu_decided_by in keys else ())
        settings = (s._replace(source=WINDOW) if s.key in keys else s for s in self.settings)
        return replace(self, settings=tuple(settings))

    def as_dict(self) -> dict[str, Value]:
        """Return a new dict of all values."""
        return {setting.key: setting.value for setting in self.settings}


def find_option(key: str) -> Option:
    """Return the row of a key; raise `ConfigError`, naming the nearest key, if there is none."""
    if key in _BY_KEY:
        return _BY_KEY[key]
    near = _nearest(key, cutoff=0.5)
    hint = f"did you mean '{near}'?" if near else "docs/configuration.md lists the keys"
    raise ConfigError(f"unknown key '{key}'; {hint}")


def _nearest(key: str, *, cutoff: float) -> str | None:
    matches = difflib.get_close_matches(key.lower(), (*_BY_KEY, *_OTHER_NAMES), n=1, cutoff=cutoff)
    return _OTHER_NAMES.get(matches[0], matches[0]) if matches else None


def check_value(key: str, value: object, *, from_text: bool = False, where: str = "") -> Value:
    """Return a value in the form that the table asks for.

    Words such as ``"yes"`` always serve as a bool; text such as ``"3"`` serves as a number only with
    `from_text`, for the environment and ``--set``. `where` says in the message where the value was found.

    Raises
    ------
    ConfigError
        If the value has the wrong type, is not finite, is out of range or no choice; or for an unknown key.
    """
    option = find_option(key)
    try:
        return _convert(option, value, from_text)
    except (ValueError, OverflowError, RuntimeError) as err:  # the last two: a huge int, no such home folder
        wrong = f"{key} = {value!r} is not allowed, expected {option.allowed}"
        if option.older_names:
            wrong = f"{wrong} (older names: {', '.join(option.older_names)})"
        raise ConfigError(f"{where}: {wrong}" if where else wrong) from err


def _convert(option: Option, value: object, from_text: bool) -> Value:
    word = value.strip().lower() if isinstance(value, str) else value
    match option.kind:
        case "switch" if word in _UNDEFINED:
            return None
        case "bool" | "switch":
            number = _BOOL_WORDS.get(word) if isinstance(word, str) else word
            if isinstance(number, int) and number in (0, 1):
                return bool(number)
        case "int" if (number := _number(option, value, from_text)).is_integer():
            return int(number)
        case "float":
            return _number(option, value, from_text)
        case "str" if isinstance(value, str):
            return str(Path(value).expanduser()) if value.startswith("~") else value
        case "choice":
            for choice in option.choices:
                if choice.lower() == word:
                    return choice
        case "pair":
            parts = value.split(",") if isinstance(value, str) else value  # text: the older program's form
            if isinstance(parts, list | tuple) and len(parts) == 2:
                low, high = (_number(option, part, from_text or parts is not value) for part in parts)
                return low, high
    raise ValueError(f"not a {option.kind}")


def _number(option: Option, value: object, from_text: bool) -> float:
    if from_text and isinstance(value, str) and "_" not in value:  # float() takes 1_0 for ten
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError("not a finite number")
    low = -math.inf if option.minimum is None else option.minimum
    high = math.inf if option.maximum is None else option.maximum
    if not low <= value <= high or (option.kind == "pair" and value == high):
        raise ValueError("out of range")
    return float(value)


def normalize_gpu_flags(values: Mapping[str, object]) -> tuple[dict[str, object], str | None]:
    """Return a copy of `values` in which the four GPU keys say the same, and the key that decided.

    The first defined one of `GPU_KEYS` decides; if all are absent, None, ``""``, ``"auto"``, ``"none"`` or
    ``"null"``, all four become False and the key is None. Raises `ConfigError` for any other non-bool.
    """
    flags = {key: check_value(key, values.get(key)) for key in GPU_KEYS}
    decided_by = next((key for key in GPU_KEYS if flags[key] is not None), None)
    verdict = decided_by is not None and flags[decided_by]
    return {**values, **dict.fromkeys(GPU_KEYS, verdict)}, decided_by


def resolve(
    file_values: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """Settle every value of a run: command line > environment > file > default.

    `overrides` holds text or typed values, None meaning not given; an empty environment variable counts as
    not set. The four GPU keys are one setting: the highest place that defines any of them decides them all.

    Raises
    ------
    ConfigError
        If a value cannot be used, or `overrides` holds an unknown key.
    """
    raw, env, overrides = file_values or {}, env or {}, overrides or {}
    given = {key: value for key, value in overrides.items() if value is not None}
    variables = {option.key: env[option.variable] for option in OPTIONS if env.get(option.variable)}
    layers = {
        COMMAND_LINE: _check_all(given, from_text=True, where=COMMAND_LINE),
        ENVIRONMENT: _check_all(variables, from_text=True, where=ENVIRONMENT),
        FILE: _check_all(_known(migrate(raw)), from_text=False, where="configuration file"),
    }
    found = {option.key: Setting(option.key, option.default, DEFAULT) for option in OPTIONS}
    for source, values in reversed(layers.items()):
        found |= {key: Setting(key, value, source) for key, value in values.items()}
    gpu_settings, decided_by = _settle_gpu(layers)
    return Config(tuple((found | gpu_settings).values()), _notes_on(raw), decided_by)


def _check_all(values: Mapping[str, object], *, from_text: bool, where: str) -> dict[str, Value]:
    return {key: check_value(key, value, from_text=from_text, where=where) for key, value in values.items()}


def _known(values: Mapping[str, object]) -> dict[str, object]:
    names = {name: option.key for option in OPTIONS for name in (*option.stand_ins, option.key)}
    return {key: values[name] for name, key in names.items() if name in values}


def _settle_gpu(layers: Mapping[str, Mapping[str, Value]]) -> tuple[dict[str, Setting], str | None]:
    for source, values in layers.items():
        flags, decided_by = normalize_gpu_flags(values)
        if decided_by is not None:
            return {key: Setting(key, flags[key], source) for key in GPU_KEYS}, decided_by
    return {key: Setting(key, False, DEFAULT) for key in GPU_KEYS}, None


def _notes_on(raw: Mapping[str, object]) -> tuple[str, ...]:
    """Say which keys of the file do nothing: a sentence for each likely slip, and one for all the others."""
    unknown = [key for key in raw if key not in _BY_KEY and key not in _OTHER_NAMES and key != VERSION_KEY]
    gone = {key: instead for key in unknown if (instead := _instead_of(key))}
    unknown = [key for key in unknown if key not in gone]
    near = {key: _nearest(key, cutoff=0.85) for key in unknown}
    notes = [f"unknown key '{key}' in the file; did you mean '{hit}'?" for key, hit in near.items() if hit]
    for instead in dict.fromkeys(gone.values()):
        names = [key for key, what in gone.items() if what == instead]
        notes.append(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} gone: {instead}")
    others = [key for key in unknown if not near[key]]
    if others:
        named = ", ".join(others[:8])
        if len(others) > 8:
            named = f"{named} and {len(others) - 8} more"
        notes.append(f"keys of the file that are kept but not used: {named}")
    if _version_of(raw) > CONFIG_VERSION:
        notes.append(f"the file is of a newer ZeMosaic ({VERSION_KEY} {raw[VERSION_KEY]}); parts may be ignored")
    return tuple(notes)


def _instead_of(key: str) -> str:
    """Return what became of an option that is gone; empty for any other key."""
    return next((instead for names, instead in _GONE if names.fullmatch(key)), "")


Migration = Callable[[dict[str, object]], None]
_MIGRATIONS: list[tuple[int, Migration]] = []


def _migration(from_version: int) -> Callable[[Migration], Migration]:
    """Register the next step, which brings values of `from_version` to the version after it, in place."""

    def register(step: Migration) -> Migration:
        _MIGRATIONS.append((from_version, step))
        return step

    return register


def migrate(raw: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a file of any version in today's names and forms; `raw` is left as it is.

    A file of the older program has no version; one of a newer ZeMosaic keeps its own. A value that a step
    cannot read stays for the check to name. Raises `ConfigError` if ``config_version`` is no whole number.
    """
    values, version = copy.deepcopy(dict(raw)), _version_of(raw)
    for from_version, step in _MIGRATIONS:
        if version <= from_version:
            step(values)
    _rename_aliases(values)
    values[VERSION_KEY] = max(version, CONFIG_VERSION)
    return values


def _version_of(raw: Mapping[str, object]) -> int:
    version = raw.get(VERSION_KEY, 0)
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ConfigError(f"configuration file: {VERSION_KEY} = {version!r} is not a whole number from 0")
    return version


@_migration(from_version=0)
def _pair_from_text(values: dict[str, object]) -> None:
    limits = values.get("stacking_winsor_limits")
    if isinstance(limits, str):
        try:
            values["stacking_winsor_limits"] = [float(part) for part in limits.split(",")]
        except ValueError:
            return  # the check names it


@_migration(from_version=0)
def _solver_by_its_older_name(values: dict[str, object]) -> None:
    older = {"ansvr": "auto", "astrometry": "astrometry_net"}
    word = values.get("solver_method")
    if isinstance(word, str):
        values["solver_method"] = older.get(word.strip().lower(), word)


def _rename_aliases(values: dict[str, object]) -> None:
    """Bring older names to today's, in a file of any version: people copy lines from old files."""
    ram_gb = values.get("grid_chunk_ram_gb")
    if isinstance(ram_gb, int | float) and not isinstance(ram_gb, bool) and math.isfinite(ram_gb):
        values["grid_chunk_ram_gb"] = round(ram_gb * 1024)
    for alias, key in [(alias, option.key) for option in OPTIONS for alias in option.aliases]:
        older = values.pop(alias, None)
        if older is not None and values.get(key) in (None, ""):
            values[key] = older


def _default_path() -> Path:
    return platformdirs.user_config_path("ZeMosaic", appauthor=False, roaming=True) / "zemosaic_config.json"


def config_path(env: Mapping[str, str] | None = None) -> Path:
    """Return the user's file: what ``ZEMOSAIC_CONFIG`` of `env` (``os.environ``) names, else the default."""
    named = (os.environ if env is None else env).get("ZEMOSAIC_CONFIG")
    return Path(named) if named else _default_path()


def load_file(path: Path | str | None = None) -> dict[str, object]:
    """Return the content of a configuration file, `config_path` by default, as it is written.

    The per-user file may be absent and gives an empty dict.

    Raises
    ------
    ConfigError
        If any other file is absent, or a file cannot be read or is not one JSON object in UTF-8.
    """
    path = config_path() if path is None else Path(path)
    return _read_json(path, may_be_absent=path == _default_path())


def _read_json(path: Path, *, may_be_absent: bool) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as err:
        if may_be_absent:
            return {}
        raise ConfigError(f"configuration file {path} does not exist") from err
    except OSError as err:
        raise ConfigError(f"configuration file {path} cannot be read: {err.strerror or err}") from err
    except json.JSONDecodeError as err:
        raise ConfigError(f"{path}, line {err.lineno}, column {err.colno}: not JSON: {err.msg}") from err
    except (ValueError, RecursionError) as err:  # not UTF-8, a number of thousands of digits, endless nesting
        raise ConfigError(f"configuration file {path} cannot be understood: {err}") from err
    if not isinstance(content, dict):
        raise ConfigError(f"configuration file {path} must hold one JSON object, {{...}}")
    return content


def save(path: Path | str, values: Mapping[str, object], *, keep: Mapping[str, object] | None = None) -> None:
    """Merge `values` into a configuration file, in one step: a failure leaves the old file as it was.

    Every other key of the file stays, known or not; older names become today's. A GPU key takes the others of
    the file along, or one of them could overrule what was just set. What another file holds and this one does not
    is copied if it is given as `keep`.

    Raises
    ------
    ConfigError
        If a key or value is no good, or the file cannot be read or written.
    """
    checked = {key: check_value(key, value) for key, value in values.items()}
    content = migrate({**(keep or {}), **_read_json(Path(path), may_be_absent=True)})
    flags, decided_by = normalize_gpu_flags(checked)
    if decided_by is not None:
        content |= {key: flags[key] for key in GPU_KEYS if key in content}
    _write_json(Path(path), content | checked)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    try:
        data = (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode("utf-8")
        target = path.resolve()  # a link to the file stays a link
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, name)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
    except (OSError, UnicodeEncodeError) as err:
        reason = getattr(err, "strerror", None) or err
        raise ConfigError(f"configuration file {path} cannot be written: {reason}") from err


def parse_assignment(text: str) -> tuple[str, str]:
    """Return key and text of ``KEY=VALUE``; raise `ConfigError` without a key or ``=``."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{text}' is not of the form KEY=VALUE")
    return key.strip(), value


def set_in_file(path: Path | str, key: str, text: str) -> None:
    """Check the text of one value and `save` it; raises `ConfigError` as that does."""
    save(path, {key: check_value(key, text, from_text=True)})


_PAGE_HEAD = """\
# Configuration

Made from the table in `zemosaic_config.py`; do not edit it. To write it again:
`zemosaic config doc > docs/configuration.md`.

A value comes from the command line (`--set KEY=VALUE`), else from the environment, else from the configuration
file, else from the default below. The file holds one JSON object. `zemosaic config path` says where it is: what
`ZEMOSAIC_CONFIG` names, else `zemosaic_config.json` in the folder `ZeMosaic` of `%APPDATA%` (Windows),
`~/Library/Application Support` (macOS) or `$XDG_CONFIG_HOME`, usually `~/.config` (Linux). Keys of the file that
are not listed here are kept and do nothing.
"""
_TABLE_HEAD = "| Key | Type | Default | Unit | Allowed | Meaning | Environment |\n" + "| --- " * 7 + "|"


def reference_page() -> str:
    """Return the Markdown page of all keys: ASCII, with the newline of its last line."""
    page = _PAGE_HEAD
    for section in dict.fromkeys(option.section for option in OPTIONS):
        rows = [_table_row(option) for option in OPTIONS if option.section == section]
        page += "\n".join(["", f"## {section}", "", _TABLE_HEAD, *rows, ""])
    return page


def _table_row(option: Option) -> str:
    older = " or ".join(f"`{name}`" for name in option.older_names)
    meaning = option.doc + (f" A file may also say {older}." if older else "") + " (Advanced.)" * option.advanced
    default = "auto" if option.default is None else json.dumps(option.default).strip('[]"')
    cells = (option.kind, default, option.unit, option.allowed, meaning, f"`{option.variable}`")
    return f"| `{option.key}` | " + " | ".join(cells) + " |"
