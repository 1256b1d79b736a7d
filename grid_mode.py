"""Grid mode: a plan of frames in, one mosaic out, tile by tile in parallel processes.

The run goes plan, headers, plate solving, canvas, measure, refine, flat, match, tiles, assembly. All that decides
the value of a pixel is settled for the whole run before the first tile is cut, so tiles, workers, memory and the
order of the plan leave no trace in the mosaic. A frame or tile that fails is named and left out; it never ends the
run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from zemosaic_config import Config, resolve
from zemosaic_events import CancelToken, as_listener, tagged_logger
from zemosaic_frame_source import paths_of
from zemosaic_mosaic import CellReport, CellTask, Mosaic, clear_folder, open_mosaic, open_stackers
from zemosaic_pipeline import run_pipeline, settled_frames
from zemosaic_runbook import RunBook
from zemosaic_settings import RunSettings
from zemosaic_stack_pool import DeviceAccess
from zemosaic_temp_files import remove_leftovers
from zemosaic_types import RunResult

logger = tagged_logger("ZeMosaicWorker.grid")

_TILE_NAME = re.compile(r"tile_\d{4,}\.fits")


@dataclass(frozen=True)
class GridSettings(RunSettings):
    """Everything a user can choose about a Grid run."""

    overlap_px: int = 0

    @classmethod
    def from_config(cls, config: Config, **asked: Any) -> Self:
        """Return the settings that a resolved configuration asks for; see `RunSettings.from_config`."""
        return replace(super().from_config(config, **asked), overlap_px=config["grid_overlap_px"])


def run_grid_mode(
    input_folder: str | Path,
    output_folder: str | Path,
    progress_callback: Callable | None = None,
    *,
    stack_norm_method: str = "global",
    stack_weight_method: str = "noise_variance",
    stack_reject_algo: str = "kappa_sigma",
    stack_kappa_low: float = 3.0,
    stack_kappa_high: float = 3.0,
    winsor_limits: tuple[float, float] = (0.05, 0.05),
    stack_final_combine: str = "mean",
    apply_radial_weight: bool = False,
    radial_feather_fraction: float = 0.8,
    radial_shape_power: float = 2.0,
    save_final_as_uint16: bool = False,
    legacy_rgb_cube: bool = False,
    grid_rgb_equalize: bool | None = None,
    grid_workers: int | None = None,
    grid_use_gpu: bool | None = None,
) -> RunResult:
    """Make a mosaic of a folder of frames in Grid mode.

    Parameters
    ----------
    input_folder : path
        Folder of FITS exposures, with or without a ``stack_plan.csv``. Nothing in it is changed.
    output_folder : path
        Folder for the products; made if needed.
    progress_callback : callable, optional
        Receives the events of `zemosaic_events`, or ``(message, progress, level)``.
    stack_norm_method : {"none", "sky_mean", "linear_fit", "global"}
    stack_weight_method : {"none", "noise_variance", "noise_fwhm"}
    stack_reject_algo : {"none", "kappa_sigma", "winsorized_sigma_clip", "linear_fit_clip"}
    stack_kappa_low, stack_kappa_high : float
    winsor_limits : tuple of float
    stack_final_combine : {"mean", "median"}
    apply_radial_weight : bool
    radial_feather_fraction, radial_shape_power : float
    save_final_as_uint16, legacy_rgb_cube : bool
    grid_rgb_equalize : bool, optional
        None takes the default of the configuration table.
    grid_workers : int, optional
        Positive: used as given; 0 or less: automatic; None: one worker.
    grid_use_gpu : bool, optional
        Stack on the GPUs that are there; what fails on one is stacked on the CPU. None means no GPU.

    Returns
    -------
    RunResult

    Notes
    -----
    Workers are fresh processes that import the calling script, so a script must make this call under
    ``if __name__ == "__main__":``.

    Raises
    ------
    ConfigError, PlanError, OutputError
        If the run cannot start or end; each says why.
    RunCancelled
    """
    values = {
        "stacking_normalize_method": stack_norm_method,
        "stacking_weighting_method": stack_weight_method,
        "stacking_rejection_algorithm": stack_reject_algo,
        "stacking_kappa_low": stack_kappa_low,
        "stacking_kappa_high": stack_kappa_high,
        "stacking_winsor_limits": tuple(winsor_limits),
        "stacking_final_combine_method": stack_final_combine,
        "apply_radial_weight": apply_radial_weight,
        "radial_feather_fraction": radial_feather_fraction,
        "radial_shape_power": radial_shape_power,
        "save_final_as_uint16": save_final_as_uint16,
        "legacy_rgb_cube": legacy_rgb_cube,
    }
    optional = {"grid_rgb_equalize": grid_rgb_equalize, "use_gpu_grid": grid_use_gpu}
    values |= {key: value for key, value in optional.items() if value is not None}
    settings = GridSettings.from_config(resolve({}, {}, values), overwrite=True)
    settings = replace(settings, workers=grid_workers)
    return run_grid(Path(input_folder), Path(output_folder), settings, listener=as_listener(progress_callback))


def run_grid(
    input_folder: Path,
    output_folder: Path,
    settings: GridSettings,
    *,
    listener: Callable | None = None,
    cancel: CancelToken | None = None,
    access: DeviceAccess = DeviceAccess(),  # noqa: B008 - frozen
) -> RunResult:
    """Run Grid mode with given settings; see `run_grid_mode` for folders and errors.

    Emits exactly one `RunFinished`, whatever happens.
    """
    execute = partial(_execute, Path(input_folder), settings, access)
    folders = input_folder, output_folder
    return run_pipeline(folders, settings, execute, name="grid", listener=listener, cancel=cancel)


def _execute(
    input_folder: Path, settings: GridSettings, access: DeviceAccess, book: RunBook, drop: Mapping[str, str]
) -> RunResult:
    with ExitStack() as products:  # what is not finished is removed, once nobody writes into it any more
        with settled_frames(input_folder, settings, book, drop) as (pool, settled), book.phase("stack"):
            mosaic = products.enter_context(open_mosaic(settled, settings, book))
            tasks = _tile_tasks(mosaic, settings, pool.n_workers)
            clear_folder(book.paths.tiles, _TILE_NAME.fullmatch)
            stackers = open_stackers(pool, settings, book, access)
            mosaic.stack(stackers, tasks, phase="stack", note=partial(_note_tile, book))
            remove_leftovers(book.paths.tiles)
            mosaic.check_used()
        return mosaic.finish(n_tiles=len(mosaic.cells))


def _tile_tasks(mosaic: Mosaic, settings: GridSettings, n_workers: int) -> list[CellTask]:
    frames = mosaic.settled.matched.frames
    options = settings.stack_options(mosaic.n_channels, frames)
    files = mosaic.book.paths.tile
    tasks = mosaic.tasks(frames, options, n_workers=n_workers, margin_px=settings.overlap_px, files=files)
    logger.info("Global grid ready: tiles=%d of which %d see a frame", len(mosaic.cells), len(tasks))
    return tasks


def _note_tile(book: RunBook, task: CellTask, report: CellReport) -> None:
    paths = paths_of(task.frames)
    for frame_id, kept, low, high in report.tally:
        book.count_samples(paths[frame_id], kept, low, high)
