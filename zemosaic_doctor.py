"""What ZeMosaic finds on this machine, and what each missing piece would give.

A probe is a small function that returns records; it imports what it asks only when it is called, so that a machine
on which a library is missing or broken can still be examined.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from zemosaic_programs import (
    HOW_TO_INSTALL,
    Which,
    find_astap,
    find_indexes,
    find_solve_field,
    find_star_database,
)
from zemosaic_types import ConfigError, DeviceUnavailable, SolverMissing

#: What ZeMosaic cannot run without: distribution, module, and what it is for.
LIBRARIES = (
    ("numpy", "numpy", "arrays"),
    ("astropy", "astropy", "FITS files and WCS"),
    ("reproject", "reproject", "centre and rotation of the canvas"),
    ("scipy", "scipy", "the match of frames"),
    ("numba", "numba", "compiled loops"),
    ("sep", "sep", "star detection and photometry"),
    ("shapely", "shapely", "footprints of frames"),
    ("pillow", "PIL", "the PNG preview"),
    ("platformdirs", "platformdirs", "the place of the configuration file"),
    ("tqdm", "tqdm", "the progress bar"),
    ("psutil", "psutil", "free memory"),
)

_GPU_GIVES = "would give: stacking on the GPU"
_DESKTOP = "for the desktop program, `zemosaic gui`"
_SOLVER_GIVES = "would give: frames without WCS"
# What importing a compiled library of the wrong version is known to raise.
_BROKEN = (ImportError, AttributeError, ValueError, RuntimeError, OSError)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for.

    Attributes
    ----------
    name : str
        What was looked for.
    found : str
        What is there, or in which way it is not.
    note : str
        What a missing piece would give, or what else there is to say; may be empty.
    ok : bool
        False if ZeMosaic cannot run as things are; a missing optional piece is no fault.
    """

    name: str
    found: str
    note: str = ""
    ok: bool = True


def examine() -> list[Finding]:
    """Return everything there is to say about this machine, in the order in which it is shown."""
    findings = system() + libraries()
    for name, probe in (
        ("cores and memory", machine),
        ("GPU", gpus),
        ("PySide6", desktop),
        ("plate solvers", plate_solvers),
        ("configuration", configuration),
    ):
        try:
            findings += probe()
        except _BROKEN as error:
            findings.append(Finding(name, f"not known: {_one_line(error)}"))
    return findings


def can_run(findings: Iterable[Finding]) -> bool:
    """Return whether nothing that ZeMosaic needs is missing."""
    return all(finding.ok for finding in findings)


def format_findings(findings: Iterable[Finding]) -> str:
    """Return a line a finding, ``name  found  [note]``, and one that says whether ZeMosaic can run."""
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    lines = [
        f"{finding.name:{width}}  {finding.found}" + f"  [{finding.note}]" * bool(finding.note)
        for finding in findings
    ]
    faults = ", ".join(finding.name for finding in findings if not finding.ok)
    lines += ["", f"ZeMosaic cannot run: see {faults}" if faults else "ZeMosaic can run."]
    return "\n".join(lines)


def system(version: Callable[[str], str] = metadata.version) -> list[Finding]:
    """Say which Python and which ZeMosaic this is, on what."""
    findings = [Finding("Python", f"{platform.python_version()} on {platform.platform()}")]
    try:
        return [*findings, Finding("ZeMosaic", version("zemosaic"))]
    except metadata.PackageNotFoundError:
        how = "in its folder: pip install -e ."
        return [*findings, Finding("ZeMosaic", "not installed", how, ok=False)]


def libraries(
    version: Callable[[str], str] = metadata.version, load: Callable[[str], object] = importlib.import_module
) -> list[Finding]:
    """Say which of the libraries that ZeMosaic depends on are there and can be imported.

    `version` gives the version of an installed distribution or raises `PackageNotFoundError`; `load` imports a
    module.
    """
    return [_library(row, version, load) for row in LIBRARIES]


def _library(row: tuple[str, str, str], version: Callable[[str], str], load: Callable[[str], object]) -> Finding:
    name, module, use = row
    try:
        found = version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", f"needed for {use}: pip install {name}", ok=False)
    try:
        load(module)
    except _BROKEN as error:
        return Finding(name, f"{found}, cannot be imported: {_one_line(error)}", f"needed for {use}", ok=False)
    return Finding(name, found)


def machine() -> list[Finding]:
    """Say how many cores and how much memory there are."""
    import psutil

    from parallel_utils import machine as usable_now

    cores, free_bytes = usable_now()
    total_bytes = psutil.virtual_memory().total
    return [
        Finding("cores", f"{cores} usable of {psutil.cpu_count()} logical"),
        Finding("memory", f"{_gib(free_bytes)} free of {_gib(total_bytes)}"),
    ]


def gpus() -> list[Finding]:
    """Say which GPUs there are and whether each computes, or why there is none."""
    from zemosaic_backend import find_devices, open_device

    try:
        devices = find_devices()
    except DeviceUnavailable as reason:
        return [Finding("GPU", f"none: {reason}", _GPU_GIVES)]
    findings = []
    for device in devices:
        found = (
            f"{device.name}, {_gib(device.free_bytes)} free of {_gib(device.total_bytes)}, "
            f"CUDA {device.runtime}, {device.library}"
        )
        try:
            open_device(device.index)
        except DeviceUnavailable as reason:
            findings.append(Finding(f"GPU {device.index}", f"{found}, but: {reason}", _GPU_GIVES))
        else:
            findings.append(Finding(f"GPU {device.index}", found))
    return findings


def desktop(version: Callable[[str], str] = metadata.version) -> list[Finding]:
    """Say whether the library of the desktop program is there."""
    try:
        return [Finding("PySide6", version("PySide6-Essentials"), _DESKTOP)]
    except metadata.PackageNotFoundError:
        return [Finding("PySide6", "none", f'{_DESKTOP}: pip install "zemosaic[gui]"')]


def plate_solvers(env: Mapping[str, str] = os.environ, which: Which = shutil.which) -> list[Finding]:
    """Say where ASTAP and astrometry.net are and what they lack; `which` finds a program by name or path."""
    named = _named_solvers(env)
    return [
        _astap(named.get("astap_path", ""), named.get("astap_data_dir", ""), env, which),
        _astrometry_net(named.get("astrometry_local_path", ""), which),
    ]


def _named_solvers(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return the configuration, or nothing where it cannot be read, which `configuration` tells."""
    try:
        from zemosaic_config import config_path, load_file, resolve

        return resolve(load_file(config_path(env)), env)
    except (ConfigError, *_BROKEN):
        return {}


def _astap(named: str, data_dir: str, env: Mapping[str, str], which: Which) -> Finding:
    try:
        program = find_astap(named, env, which)
    except SolverMissing as reason:
        return Finding("ASTAP", f"none: {reason}" if str(reason) else "none", _SOLVER_GIVES)
    try:
        find_star_database(program, data_dir, env)
    except SolverMissing as reason:
        return Finding("ASTAP", program, f"cannot solve: {reason}")
    return Finding("ASTAP", program)


def _astrometry_net(named: str, which: Which) -> Finding:
    try:
        program = find_solve_field(which)
    except SolverMissing:
        return Finding("astrometry.net", "none", f"{_SOLVER_GIVES}. {HOW_TO_INSTALL}")
    if find_indexes(named) == []:
        return Finding("astrometry.net", program, "cannot solve: no index files, see astrometry-data-tycho2")
    return Finding("astrometry.net", program)


def configuration(env: Mapping[str, str] = os.environ) -> list[Finding]:
    """Say where the configuration file is, and whether it and the environment can be used."""
    from zemosaic_config import config_path, load_file, resolve

    path = config_path(env)
    try:
        config = resolve(load_file(path), env)
    except ConfigError as error:
        return [Finding("configuration", str(error), "no run starts until this is mended", ok=False)]
    found = f"{path}, readable" if path.exists() else f"{path}, not there: defaults are used"
    return [Finding("configuration", found, "; ".join(config.notes))]


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
