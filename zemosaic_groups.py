"""The groups of a Classic run: frames in, groups out, and the file ``groups.json`` that a user may edit between.

Frames are named by their ids: the paths below the plan's folder, or absolute paths of frames elsewhere.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from astropy.wcs import WCS

from zemosaic_config import Config
from zemosaic_fits_io import frame_wcs
from zemosaic_fits_products import write_text
from zemosaic_grouping import Grouping, GroupRules, group_pointings, position_angle_deg
from zemosaic_reproject import Canvas, Placement, canvas_around, centre_icrs, pixel_scale_deg, place
from zemosaic_sphere import mean_place
from zemosaic_types import FrameError, FrameRecord, LeftOut, PlanError

GROUPS_NAME = "groups.json"
GROUPS_VERSION = 1
NOT_IN_FILE = f"in no group of {GROUPS_NAME}"
#: The automatic threshold, and the least circle that a group must fit into, in short sides of the usual frame.
#: Within half a short side every frame of a group covers the group's centre, however it is turned.
REACH_SHORT_SIDES = 0.5

_MOST_TOLD = 3
_OFF_THE_SKY = "its WCS puts its centre nowhere on the sky"


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What a user can choose about groups.

    Attributes
    ----------
    threshold_deg : float
        Frames whose centres are no further apart are friends; 0 = `REACH_SHORT_SIDES` of the usual short side.
    target_groups : int
        Number of groups, before orientation splits them, that the threshold is chosen for; 0 = none.
    orientation_split_deg : float
        Position angles in a group differ by no more than this, modulo 180 deg; 0 = any may.
    by_filter, by_instrument : bool
        Whether frames of different filters or instruments are kept apart.
    """

    threshold_deg: float = 0.0
    target_groups: int = 0
    orientation_split_deg: float = 0.0
    by_filter: bool = False
    by_instrument: bool = False

    @classmethod
    def from_config(cls, config: Config) -> GroupSettings:
        """Return the settings that a resolved configuration asks for."""
        return cls(
            threshold_deg=config["cluster_panel_threshold"],
            target_groups=config["cluster_target_groups"],
            orientation_split_deg=config["cluster_orientation_split_deg"],
            by_filter=config["cluster_by_filter"],
            by_instrument=config["cluster_by_instrument"],
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Frames that become one master tile.

    Attributes
    ----------
    name : str
    frame_ids : tuple of str
        Sorted; at least one.
    centre_deg : tuple of float or None
        Right ascension and declination (ICRS) of the mean of the frames' centres; None if no frame has a WCS.
    reason : str
        What the frames have in common.
    """

    name: str
    frame_ids: tuple[str, ...]
    centre_deg: tuple[float, float] | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Which frames go together.

    Attributes
    ----------
    groups : tuple of Group
    ungrouped : dict of str to str
        Frames that are in no group, by id, and why.
    parameters : dict
        How the groups were found.
    notes : tuple of str
        What the user should know.
    """

    groups: tuple[Group, ...]
    ungrouped: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def left_out(self, records: Iterable[FrameRecord]) -> list[LeftOut]:
        """Return the frames that are in no group for the ledger, in the order of `records`."""
        return [
            LeftOut(record.path, self.ungrouped[record.frame_id], record.line)
            for record in records
            if record.frame_id in self.ungrouped
        ]


def canvas_of_group(
    frames: list[tuple[tuple[int, int], WCS]], group: Group, mosaic: Canvas
) -> tuple[Canvas, Placement]:
    """Return the canvas of the master tile of a group, and how it lies on the mosaic's.

    Parameters
    ----------
    frames : list of (shape, WCS)
        Of the group.
    group : Group
    mosaic : Canvas
        Whose pixel scale and orientation the tile has.

    Raises
    ------
    FrameError
        If the frames cannot be one tile.
    """
    canvas = canvas_around(frames, group.centre_deg, mosaic.scale_deg, mosaic.angle_deg)
    return canvas, place(canvas.wcs(), canvas.shape, mosaic)


# ---- finding groups -------------------------------------------------------------------------------------


def find_groups(records: Sequence[FrameRecord], settings: GroupSettings) -> GroupPlan:
    """Group frames by pointing and, if asked, by filter, instrument and orientation.

    Parameters
    ----------
    records : sequence of FrameRecord
        In any order; frames without a usable WCS are not grouped.
    settings : GroupSettings

    Returns
    -------
    GroupPlan
        Groups are numbered by the first of their frames, the frames being sorted by id.

    Raises
    ------
    PlanError
        If no frame has a usable WCS.
    """
    placed, ungrouped = _placed(records)
    if not placed:
        reasons = [f"{name}: {reason}" for name, reason in ungrouped.items()]
        raise PlanError(f"no frame can be grouped by its pointing: {_first_few(reasons)}")
    half = REACH_SHORT_SIDES * float(np.median([frame.short_deg for frame in placed]))
    threshold = settings.threshold_deg or half
    kinds = [_kind(frame.record, settings) for frame in placed]
    found = group_pointings(
        np.array([frame.centre_deg for frame in placed]),
        _angles_deg(placed),
        kinds,
        GroupRules(threshold, max(threshold, half), settings.target_groups, settings.orientation_split_deg),
    )
    parameters = asdict(settings) | {"used_threshold_deg": round(found.threshold_deg, 6)}
    notes = tuple(_notes(found, settings, half))
    return GroupPlan(tuple(_named_groups(found, placed, kinds)), ungrouped, parameters, notes)


def _named_groups(found: Grouping, placed: list[_Placed], kinds: list[tuple[str, ...]]) -> Iterator[Group]:
    order = np.argsort(found.number, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(found.number))[:-1])
    for g, (frames, (ra, dec)) in enumerate(zip(members, found.centre_deg, strict=True)):
        ids = tuple(placed[k].record.frame_id for k in frames)
        yield Group(f"group_{g + 1:03d}", ids, (float(ra), float(dec)), _reason(found, g, kinds[frames[0]]))


@dataclass(frozen=True, slots=True)
class _Placed:
    """A frame on the sky: its centre, and a place one pixel further along its x axis (both ICRS)."""

    record: FrameRecord
    centre_deg: tuple[float, float]
    ahead_deg: tuple[float, float]
    short_deg: float


def _placed(records: Iterable[FrameRecord]) -> tuple[list[_Placed], dict[str, str]]:
    """Return the frames with a usable WCS, sorted by id, and why the others have none."""
    placed, ungrouped = [], {}
    for record in sorted(records, key=lambda record: record.frame_id):
        try:
            placed.append(_place(record))
        except FrameError as error:
            ungrouped[record.frame_id] = str(error)
    return placed, ungrouped


def _place(record: FrameRecord) -> _Placed:
    wcs, (ny, nx) = frame_wcs(record.header), record.header.shape
    # The centre of a frame that is two pixels wider lies one pixel further along x.
    centre, ahead = centre_icrs(wcs, (ny, nx)), centre_icrs(wcs, (ny, nx + 2))
    if not np.isfinite([centre, ahead]).all():
        raise FrameError(_OFF_THE_SKY)
    return _Placed(record, centre, ahead, min(ny, nx) * pixel_scale_deg(wcs))


def _angles_deg(placed: list[_Placed]) -> np.ndarray:
    centre, ahead = (np.array([getattr(frame, name) for frame in placed]) for name in ("centre_deg", "ahead_deg"))
    return position_angle_deg(centre, ahead)


def _kind(record: FrameRecord, settings: GroupSettings) -> tuple[str, ...]:
    """Return what must be the same in a group, in words; letters of either case count as one."""
    header = record.header
    kind = []
    if settings.by_filter:
        kind.append(f"filter {header.filter.strip().casefold() or 'not named'}")
    if settings.by_instrument:
        kind.append(f"instrument {(header.instrument or header.telescope).strip().casefold() or 'not named'}")
    return tuple(kind)


def _reason(found: Grouping, g: int, kind: tuple[str, ...]) -> str:
    radius = found.radius_deg[g]
    words = ["one pointing" if radius < 0.0005 else f"pointings within {radius:.3f} deg of the centre"]
    if found.cut[g]:
        words.append("part of a wider chain of pointings")
    if found.turned[g]:
        words.append(f"position angle near {found.angle_deg[g]:.1f} deg")
    return ", ".join(words + list(kind))


def _notes(found: Grouping, settings: GroupSettings, half: float) -> Iterator[str]:
    """Yield what the groups do not have in common with what was asked for."""
    target, n_groups = settings.target_groups, len(found.centre_deg)
    if target and found.n_linked != target:
        yield (
            f"cluster_target_groups = {target} cannot be met: the distances between the pointings allow "
            f"{found.n_linked} as the nearest number of groups"
        )
    if target and n_groups != found.n_linked:
        yield f"cluster_orientation_split_deg splits the {found.n_linked} groups into {n_groups}"
    n_wide = int((found.radius_deg > half).sum())
    if target and n_wide:
        yield f"{_count(n_wide)} so wide that not every frame covers the group's centre"
    n_alone = int((np.bincount(found.number) == 1).sum())
    if n_alone and found.number.size > 1:
        yield f"{_count(n_alone)} of one frame only, where nothing can be rejected"
    if found.cut.any():
        yield f"{int(found.cut.sum())} groups are parts of chains of pointings that were too wide for one group"


def _count(n: int) -> str:
    return f"{n} group is" if n == 1 else f"{n} groups are"


def _first_few(problems: Sequence[str]) -> str:
    more = [f"and {len(problems) - _MOST_TOLD} more"] if len(problems) > _MOST_TOLD else []
    return "; ".join([*problems[:_MOST_TOLD], *more])


# ---- the file -------------------------------------------------------------------------------------------


def write_groups(path: Path, plan: GroupPlan) -> None:
    """Write a plan of groups, in one step.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    content = {
        "version": GROUPS_VERSION,
        "parameters": plan.parameters,
        "notes": list(plan.notes),
        "groups": [
            {
                "name": group.name,
                "centre_deg": None
                if group.centre_deg is None
                else [round(value, 6) for value in group.centre_deg],
                "reason": group.reason,
                "frames": list(group.frame_ids),
            }
            for group in plan.groups
        ],
        "ungrouped": [{"frame": name, "reason": reason} for name, reason in sorted(plan.ungrouped.items())],
    }
    # File names that are not UTF-8 need the escapes of JSON.
    plain = all(_is_utf8(name) for name in _all_ids(plan))
    write_text(path, json.dumps(content, indent=2, ensure_ascii=not plain) + "\n")


def _all_ids(plan: GroupPlan) -> Iterator[str]:
    yield from plan.ungrouped
    for group in plan.groups:
        yield from group.frame_ids


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_groups(path: Path, records: Iterable[FrameRecord], *, left_out: Collection[str] = ()) -> GroupPlan:
    """Read a plan of groups that was written, and perhaps edited.

    Groups keep their order and names; their frames are sorted and their centres found again, since frames may have
    been moved. Only ``version`` and ``groups`` with ``name`` and ``frames`` must be there.

    Parameters
    ----------
    path : Path
    records : iterable of FrameRecord
        The frames of the run. Those that the file does not name are left out, with `NOT_IN_FILE` as the reason.
    left_out : collection of str
        Ids of frames that the run had and has lost; the file may name them, and a group of none but them goes.

    Raises
    ------
    PlanError
        If the file cannot be read, is no JSON, is of another version or form, has no group or an empty one, or
        names a frame twice or one that the run does not have; with the file, the place in it and the reason.
    """
    by_id = {record.frame_id: record for record in records}
    content = _without(_Reader(path, {*by_id, *left_out}).content(), set(left_out) - by_id.keys())
    claimed = {name for group in content["groups"] for name in group["frames"]} | set(content["ungrouped"])
    ungrouped = content["ungrouped"] | {name: NOT_IN_FILE for name in by_id if name not in claimed}
    groups = tuple(
        Group(
            name=group["name"],
            frame_ids=tuple(sorted(group["frames"])),
            centre_deg=_centre(by_id[name] for name in group["frames"]),
            reason=group["reason"],
        )
        for group in content["groups"]
    )
    return GroupPlan(groups, dict(sorted(ungrouped.items())), content["parameters"], tuple(content["notes"]))


def _without(content: dict, lost: set[str]) -> dict:
    """Return the content of a file without some frames, and without the groups that lose all of theirs."""
    groups = [
        group | {"frames": [name for name in group["frames"] if name not in lost]} for group in content["groups"]
    ]
    ungrouped = {name: reason for name, reason in content["ungrouped"].items() if name not in lost}
    return content | {"groups": [group for group in groups if group["frames"]], "ungrouped": ungrouped}


def _centre(records: Iterable[FrameRecord]) -> tuple[float, float] | None:
    placed, _ = _placed(records)
    return mean_place(np.array([frame.centre_deg for frame in placed])) if placed else None


class _Reader:
    """Checks a file part by part; what is wrong is told with its place, and the first few faults together."""

    def __init__(self, path: Path, known: Iterable[str]) -> None:
        self.path = path
        self.known = set(known)
        self.first_place: dict[str, str] = {}
        self.problems: list[str] = []

    def content(self) -> dict:
        """Return the checked content, or raise `PlanError`."""
        raw = self._object(self._parsed(), "", {"version", "groups"}, {"parameters", "notes", "ungrouped"})
        version = raw["version"]
        if type(version) is not int or version != GROUPS_VERSION:
            self._fail(f"version: is {version!r}; this ZeMosaic reads {GROUPS_VERSION}")
        groups = [self._group(group, f"groups[{k}]") for k, group in enumerate(self._list(raw, "groups"))]
        content = {
            "groups": groups,
            "ungrouped": dict(
                self._ungrouped(entry, f"ungrouped[{k}]") for k, entry in enumerate(self._list(raw, "ungrouped"))
            ),
            "notes": [self._text(note, f"notes[{k}]") for k, note in enumerate(self._list(raw, "notes"))],
            "parameters": self._typed(raw.get("parameters", {}), dict, "parameters", "an object, {...}"),
        }
        twice = [name for name, n in Counter(group["name"] for group in groups).items() if n > 1]
        self.problems += [f"groups: the name {name!r} is used more than once" for name in twice]
        if not groups:
            self.problems.append("groups: there is no group")
        if self.problems:
            self._fail(_first_few(self.problems))
        return content

    def _fail(self, what: str, place: str = "") -> NoReturn:
        raise PlanError(": ".join(filter(None, (str(self.path), place, what))))

    def _parsed(self) -> object:
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
            return json.loads(text, object_pairs_hook=self._once, parse_constant=self._no_number)
        except OSError as err:
            raise PlanError(f"{self.path} cannot be read: {err.strerror or err}") from err
        except json.JSONDecodeError as err:
            raise PlanError(f"{self.path}, line {err.lineno}, column {err.colno}: not JSON: {err.msg}") from err
        except (ValueError, RecursionError) as err:  # not UTF-8, a number of thousands of digits, endless nesting
            raise PlanError(f"{self.path} cannot be understood: {err}") from err

    def _once(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        if twice:
            self._fail(f"the key {twice[0]!r} stands twice in one object")
        return dict(pairs)

    def _no_number(self, word: str) -> NoReturn:
        self._fail(f"{word} is no number of JSON")

    def _object(self, value: object, place: str, needed: set[str], allowed: set[str]) -> dict:
        content = self._typed(value, dict, place or "the file", "an object, {...}")
        for key in sorted(needed - content.keys()):
            self._fail(f"{key!r} is missing", place)
        for key in content.keys() - needed - allowed:
            self._fail(f"unknown key {key!r}; known: {', '.join(sorted(needed | allowed))}", place)
        return content

    def _typed(self, value: object, kind: type, place: str, wanted: str):
        if not isinstance(value, kind):
            self._fail(f"{place}: must be {wanted}, not {json.dumps(value)[:40]}")
        return value

    def _list(self, content: dict, key: str, place: str = "") -> list:
        return self._typed(content.get(key, []), list, f"{place}{key}", "a list, [...]")

    def _text(self, value: object, place: str) -> str:
        return self._typed(value, str, place, "text")

    def _group(self, value: object, place: str) -> dict:
        raw = self._object(value, place, {"name", "frames"}, {"centre_deg", "reason"})
        name = self._text(raw["name"], f"{place}.name")
        if not (name.strip() and name.isprintable()):
            self.problems.append(f"{place}.name: {name!r} cannot be read in a log")
        frames = self._list(raw, "frames", f"{place}.")
        if not frames:
            self.problems.append(f"{place}.frames: {name!r} is empty; remove the group or give it a frame")
        return {
            "name": name,
            "reason": self._text(raw.get("reason", ""), f"{place}.reason"),
            "frames": [self._frame(frame, f"{place}.frames[{k}]") for k, frame in enumerate(frames)],
        }

    def _ungrouped(self, value: object, place: str) -> tuple[str, str]:
        raw = self._object(value, place, {"frame"}, {"reason"})
        reason = self._text(raw.get("reason", ""), f"{place}.reason")
        return self._frame(raw["frame"], f"{place}.frame"), reason or f"ungrouped in {self.path.name}"

    def _frame(self, value: object, place: str) -> str:
        frame = self._text(value, place)
        if frame not in self.known:
            near = difflib.get_close_matches(frame, self.known, n=1) if len(self.problems) < _MOST_TOLD else []
            unknown = f"the run has no frame {frame!r}"
            if near:
                unknown = f"{unknown}, did you mean {near[0]!r}?"
            self.problems.append(f"{place}: {unknown}")
        elif frame in self.first_place:
            self.problems.append(f"{place}: {frame!r} stands in {self.first_place[frame]} already")
        self.first_place.setdefault(frame, place)
        return frame
