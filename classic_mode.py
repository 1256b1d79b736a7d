"""Classic: raw frames in, one mosaic out, by way of master tiles.

The run goes plan, headers, plate solving, canvas, measure, refine, flat, match, as in Grid mode; then frames are
grouped, each group is stacked into a master tile on a canvas of its own, and the master tiles are coadded. What
a frame gives to the mosaic is settled for the whole run before it is grouped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from zemosaic_coadd import coadd, tile_frames
from zemosaic_config import Config
from zemosaic_events import CancelToken
from zemosaic_groups import GROUPS_NAME, GroupPlan, GroupSettings, find_groups, read_groups, write_groups
from zemosaic_master_tiles import MasterTile, TileWork, plan_tiles
from zemosaic_mosaic import open_mosaic, open_stackers
from zemosaic_pipeline import Settled, run_pipeline, settled_frames
from zemosaic_plan import frame_id
from zemosaic_runbook import RunBook
from zemosaic_settings import RunSettings
from zemosaic_stack_pool import DeviceAccess
from zemosaic_types import FrameRecord, PlanError, RunResult


@dataclass(frozen=True)
class ClassicSettings(RunSettings):
    """Everything a user can choose about a Classic run."""

    groups: GroupSettings = field(default_factory=GroupSettings)
    final_assembly_method: str = "reproject_coadd"
    intertile_match: bool = True

    @classmethod
    def from_config(cls, config: Config, **asked: Any) -> Self:
        """Return the settings that a resolved configuration asks for; see `RunSettings.from_config`."""
        own = {
            "groups": GroupSettings.from_config(config),
            "final_assembly_method": config["final_assembly_method"],
            "intertile_match": config["intertile_photometric_match"],
        }
        return replace(super().from_config(config, **asked), **own)


def run_classic(
    input_folder: Path,
    output_folder: Path,
    settings: ClassicSettings,
    *,
    listener: Callable | None = None,
    cancel: CancelToken | None = None,
    access: DeviceAccess = DeviceAccess(),  # noqa: B008 - frozen
) -> RunResult:
    """Make a mosaic of a folder of frames by way of master tiles.

    Emits exactly one `RunFinished`, whatever happens.

    Parameters
    ----------
    input_folder : Path
        Folder of FITS exposures, with or without a WCS, a ``stack_plan.csv`` or a ``groups.json``, which says what
        goes together. Nothing in it is changed.
    output_folder : Path
        Folder for the products; made if needed.
    settings : ClassicSettings
    listener : callable, optional
        Receives the events of `zemosaic_events`.
    cancel : CancelToken, optional
    access : DeviceAccess
        How GPUs are found.

    Raises
    ------
    ConfigError, PlanError, OutputError
        If the run cannot start or end; each says why.
    RunCancelled
    """

    def execute(book: RunBook, drop: Mapping[str, str]) -> RunResult:
        return _ClassicRun(Path(input_folder), settings, book, access).execute(drop)

    where = Path(input_folder), Path(output_folder)
    return run_pipeline(where, settings, execute, name="classic", listener=listener, cancel=cancel)


class _ClassicRun:
    """One run; the plan of its groups is the user's, or is made once the frames are known."""

    def __init__(self, input_folder: Path, settings: ClassicSettings, book: RunBook, access: DeviceAccess) -> None:
        self.input_folder, self.settings, self.book, self.access = input_folder, settings, book, access
        self.given: GroupPlan | None = None

    def execute(self, drop: Mapping[str, str]) -> RunResult:
        """Do everything; see `run_classic`."""
        book, settings = self.book, self.settings
        with ExitStack() as files:  # as in Grid mode: nothing is removed before its writers have stopped
            front = settled_frames(self.input_folder, settings, book, drop, choose=self._grouped_by_user)
            with front as (pool, settled):
                with book.phase("group"):
                    tell = book.share("group")
                    tiles = plan_tiles(self._groups(settled), settled, pool, book)
                    tell(1.0)
                mosaic = files.enter_context(open_mosaic(settled, settings, book))  # a full disk is told at once
                with book.phase("stack"):
                    stackers = open_stackers(pool, settings, book, self.access)
                    work = TileWork(tiles, settled, settings, book, n_workers=pool.n_workers)
                    made = files.enter_context(work).run(stackers)
                with book.phase("coadd"):
                    method = settings.normalise if settings.intertile_match else "none"
                    frames = tile_frames(made, settled, method, pool, book)
                    how = settings.final_assembly_method
                    coadd(mosaic, frames, stackers, settings, how, first=tiles[-1].number + 1)
                mosaic.check_used()
            return mosaic.finish(n_tiles=len(tiles), more={"pipeline": "classic", "groups": _listed(made)})

    def _grouped_by_user(self, records: list[FrameRecord]) -> list[FrameRecord]:
        """Return the frames of the user's groups, where there is a file of them; leave the others out."""
        path = self.input_folder / GROUPS_NAME
        if not path.is_file():
            return records
        known = {record.frame_id for record in records}
        planned = {frame_id(self.input_folder / row.path, self.input_folder) for row in self.book.rows.values()}
        self.given = read_groups(path, records, left_out=planned - known)
        self.book.say(f"{path}: {len(self.given.groups)} group(s) are taken from there")
        for item in self.given.left_out(records):
            self.book.leave_out(replace(item, asked=True))
        kept = [record for record in records if record.frame_id not in self.given.ungrouped]
        if not kept:
            raise PlanError(f"{path} has no group with a frame that can be used: {self.book.first_reasons()}")
        return kept

    def _groups(self, settled: Settled) -> GroupPlan:
        """Return who goes together, and write it down for the user to change."""
        plan = self.given
        if plan is None:
            plan = find_groups([frame.record for frame in settled.matched.frames], self.settings.groups)
        for note in plan.notes:
            self.book.say(note)
        write_groups(self.book.paths.groups, plan)
        self.book.say(f"{len(plan.groups)} group(s) of frames, in {self.book.paths.groups}")
        return plan


def _listed(tiles: list[MasterTile]) -> list[dict]:
    """Return the groups of a run for its report."""
    return [
        {
            "name": tile.group.name,
            "tile": tile.path.name,
            "frames": len(tile.frames),
            "canvas": asdict(tile.canvas),
        }
        for tile in tiles
    ]
