"""Places by stars: a frame without a WCS gets one from the frames with which it shares stars.

Patterns of stars say which frames show the same sky. From the frames that have a WCS the search goes on, the
surest first; the stars that a frame shares with placed ones have a place on the sky, and a TAN is fitted to them.
Where no frame has a WCS one of them gets a provisional place, and the user is told. Pixels are read once, and no
file is written; `zemosaic_refine` makes the places better.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from zemosaic_astrometry import (
    FrameStars,
    SolveOptions,
    cards_of,
    frame_stars,
    hint_of,
    parity_of,
    pointing_icrs,
)
from zemosaic_events import CancelToken, tagged_logger
from zemosaic_fits_io import frame_wcs, pixel_scale_arcsec
from zemosaic_reproject import centre_icrs, frame_to_icrs
from zemosaic_runbook import RunBook
from zemosaic_solving import Verdict, count_instances
from zemosaic_sphere import unit_vectors
from zemosaic_star_patterns import (
    FEWEST_STARS,
    MOST_STARS,
    PatternMatch,
    common_shapes,
    fit_tan,
    match_patterns,
    star_pattern,
    tan_wcs,
)
from zemosaic_types import FrameError, FrameRecord

logger = tagged_logger("ZeMosaicWorker.placing")

#: If more frames than this have a WCS, a few of each pointing and a few near each lost frame are compared.
MOST_REFERENCES = 64
#: A frame is compared with so many others at most.
MOST_TRIES = 40
#: A provisional place has this scale where the header tells none.
PLAIN_SCALE_ARCSEC = 1.0

_NEAR_ON_SKY, _NEAR_IN_ORDER = 8, 2
# A few frames of each pointing are enough: those whose centres lie within so much of their short side.
_SAME_SPOT, _MOST_A_SPOT = 0.25, 3
_PARTNERS, _TRIES_A_ROUND = 4, 10
# Of the frames that could be placed next, those with so large a share of the surest's common stars are.
_AS_SURE = 0.5
_MIRROR_TRIES, _MOST_ROOTS = 3, 12

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Placing:
    """What became of lost frames, in their order, and what the user must know if their place is provisional."""

    verdicts: list[Verdict]
    caveat: str = ""


def place_unsolved(
    verdicts: list[Verdict], placed: Sequence[FrameRecord], options: SolveOptions, book: RunBook
) -> list[Verdict]:
    """Return the verdicts of a plate solver after the frames that it left without a place were aligned by stars.

    Parameters
    ----------
    verdicts : list of Verdict
    placed : sequence of FrameRecord
        Frames with a WCS that are not among the verdicts.
    options : SolveOptions
    book : RunBook
        Learns which frames were placed, and whether the place of the mosaic is provisional.

    Raises
    ------
    RunCancelled
    """
    lost = [v for v in verdicts if v.reason and v.record.unplaced]
    if not lost:
        return verdicts
    known = [*placed, *(v.record for v in verdicts if not v.record.unplaced)]
    how = {"options": options, "on_progress": book.progress("align"), "cancel": book.cancel}
    placing = place_by_stars([v.record for v in lost], known, **how)
    found = {v.record.path: v for v in placing.verdicts}
    n_found = sum(not v.reason for v in placing.verdicts)
    book.say(
        f"stars: {n_found} of {len(lost)} frame(s) without a WCS are placed by the stars they share with others"
    )
    if placing.caveat:
        book.say(placing.caveat, "WARNING")
        book.caveats.append(placing.caveat)
    for verdict in placing.verdicts:
        book.accept(verdict.record)
    return [_both(v, found[v.record.path]) if v.record.path in found else v for v in verdicts]


def _both(solver: Verdict, stars: Verdict) -> Verdict:
    """Return what the stars say, with the words of the solver before their own if they say nothing."""
    reasons = dict.fromkeys([solver.reason, stars.reason])
    return replace(stars, reason="; ".join(reasons)) if stars.reason else stars


def place_by_stars(
    lost: Sequence[FrameRecord],
    placed: Sequence[FrameRecord],
    *,
    options: SolveOptions = SolveOptions(),  # noqa: B008 - frozen
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Placing:
    """Find the places of frames by the stars that they share with others.

    The order of the frames leaves no trace.

    Parameters
    ----------
    lost : sequence of FrameRecord
        Frames without a WCS.
    placed : sequence of FrameRecord
        Frames with one; without any the places are provisional.
    options : SolveOptions
        Says how many frames are read at once.
    on_progress : callable, optional
        Called with ``(done, total)`` frames whose stars are found.
    cancel : CancelToken, optional

    Raises
    ------
    RunCancelled
    """
    cancel = cancel or CancelToken()
    everyone = _in_order([*lost, *_references(lost, placed)])
    stars = read_stars(everyone, count_instances(options, len(everyone)), on_progress, cancel)
    seen = [record for record in everyone if isinstance(stars[record.path], FrameStars)]
    growth = _Growth(seen, [stars[record.path] for record in seen], cancel)
    caveat = ""
    if placed:
        growth.grow([k for k, record in enumerate(seen) if not record.unplaced])
    else:
        growth, caveat = _largest_family(growth)
    mirrored = growth.mirror_images()
    index = {record.path: k for k, record in enumerate(seen)}
    n_placed = len(placed) + sum(index.get(record.path) in growth.placed for record in lost)
    verdicts = []
    for record in lost:
        k, found = index.get(record.path), stars[record.path]
        if k is None:
            verdicts.append(Verdict(record, str(found)))
        elif k in growth.placed:
            verdicts.append(Verdict(growth.records[k]))
        else:
            verdicts.append(Verdict(record, _why_lost(found.x.size, n_placed, mirrored.get(k))))
    return Placing(verdicts, caveat)


def _in_order(records: Iterable[FrameRecord]) -> list[FrameRecord]:
    return sorted(records, key=lambda record: (record.frame_id, record.path))


# ---- stars of many frames --------------------------------------------------------------------------------


def read_stars(
    records: Sequence[FrameRecord], n_threads: int, on_progress: Progress | None, cancel: CancelToken
) -> dict[str, FrameStars | FrameError]:
    """Return the stars of frames by their paths, or why a frame has none; raise `RunCancelled` if cancelled."""
    stars: dict[str, FrameStars | FrameError] = {}
    tell = on_progress or (lambda _done, _total: None)
    tell(0, len(records))
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="stars")
    try:
        tasks = {pool.submit(_read_one, record, cancel): record.path for record in records}
        for done, task in enumerate(as_completed(tasks), start=1):
            stars[tasks[task]] = task.result()
            tell(done, len(records))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return stars


def _read_one(record: FrameRecord, cancel: CancelToken) -> FrameStars | FrameError:
    cancel.check()
    try:
        return frame_stars(record)
    except FrameError as error:
        return error


# ---- whom to compare with --------------------------------------------------------------------------------


def _references(lost: Sequence[FrameRecord], placed: Sequence[FrameRecord]) -> list[FrameRecord]:
    """Return the placed frames that lost ones are compared with: all, or some of each pointing and those near."""
    placed = _in_order(placed)
    if len(placed) <= MOST_REFERENCES:
        return placed
    spots = _Spots()
    chosen = {k for k, record in enumerate(placed) if spots.take(record)}
    centres = np.array([_direction(_centre(record)) for record in placed])
    tree = KDTree(centres)
    for pointing in filter(None, (pointing_icrs(record.header) for record in lost)):
        chosen.update(tree.query(_direction(pointing), k=_NEAR_ON_SKY)[1].tolist())
    for key in (lambda record: record.header.date_obs, lambda record: record.frame_id):
        chosen.update(_neighbours([key(record) for record in lost], [key(record) for record in placed]))
    return [placed[k] for k in sorted(chosen)]


def _neighbours(keys: Iterable[str], placed: Sequence[str]) -> set[int]:
    """Return which of the placed frames come just before and after each key, in the order of the keys."""
    order = sorted(range(len(placed)), key=lambda k: (placed[k], k))
    ordered = [placed[k] for k in order]
    near = set()
    for key in filter(None, keys):
        at = bisect_left(ordered, key)
        near.update(order[max(0, at - _NEAR_IN_ORDER) : at + _NEAR_IN_ORDER])
    return near


class _Spots:
    """The pointings of the frames that others are compared with, so that there are a few of each and no more."""

    def __init__(self) -> None:
        self._taken = np.empty((0, 3))

    def take(self, record: FrameRecord) -> bool:
        """Whether a frame is wanted: fewer than a few lie within a quarter of its short side."""
        header = record.header
        here = _direction(_centre(record))
        reach = _SAME_SPOT * min(header.shape) * np.deg2rad(pixel_scale_arcsec(frame_wcs(header)) / 3600.0)
        wanted = int((np.linalg.norm(self._taken - here, axis=1) < reach).sum()) < _MOST_A_SPOT
        if wanted:
            self._taken = np.vstack([self._taken, here])
        return wanted


def _centre(record: FrameRecord) -> tuple[float, float]:
    return centre_icrs(frame_wcs(record.header), record.header.shape)


def _direction(sky_deg: tuple[float, float]) -> np.ndarray:
    """Return a place on the sky as a unit vector; one that is none as 0."""
    return np.nan_to_num(unit_vectors(np.array([sky_deg]))[0])


# ---- frame by frame --------------------------------------------------------------------------------------

#: The placed frames that show stars of a frame, and how it matches them.
Links = list[tuple[int, PatternMatch]]


class _Growth:
    """Frames that get their places from each other, the surest first.

    Parameters
    ----------
    records : list of FrameRecord
        In frame order, with and without a WCS.
    stars : list of FrameStars
    cancel : CancelToken

    Attributes
    ----------
    records : list of FrameRecord
        With the WCS that were found.
    placed : set of int
        Which of them are placed.
    """

    def __init__(self, records: Sequence[FrameRecord], stars: list[FrameStars], cancel: CancelToken) -> None:
        self.records = list(records)
        self.placed: set[int] = set()
        self.patterns = [star_pattern(s.x, s.y, s.shape) for s in stars]
        self._stars, self._cancel = stars, cancel
        self._tries: dict[int, int] = defaultdict(int)
        self._compared: list[int] = []
        self._sky: dict[int, np.ndarray] = {}

    def again(self, banned: set[int]) -> _Growth:
        """Return the same frames as they were given, of which some must not be placed."""
        other = copy(self)
        other.records, other.placed, other._sky = list(self.records), set(banned), {}
        other._tries, other._compared = defaultdict(int), []
        return other

    def grow(self, roots: Sequence[int]) -> None:
        """Place the frames that hang together with the roots.

        Each round compares those that wait with the frames placed in the round before, a few of each pointing, and
        places those that are nearly as sure as the surest.
        """
        spots, fresh = _Spots(), list(roots)
        links: dict[int, Links] = defaultdict(list)
        self.placed.update(roots)
        waiting = [k for k in range(len(self.records)) if k not in self.placed]
        while waiting:
            self._compare(waiting, fresh, links)
            sure = {k: max(match.first.size for _, match in links[k]) for k in waiting if links[k]}
            if not sure:
                return
            chosen = [k for k in sure if sure[k] >= _AS_SURE * max(sure.values())]
            for k in chosen:
                self._place(k, links[k])
            self.placed.update(chosen)
            waiting = [k for k in waiting if k not in self.placed]
            by_stars = sorted(chosen, key=lambda k: (-self.patterns[k].z.size, k))
            fresh = sorted(k for k in by_stars if spots.take(self.records[k]))

    def mirror_images(self) -> dict[int, FrameRecord]:
        """Return which frames that are not placed show, mirrored, the stars of one they were compared with."""
        lost = sorted(set(range(len(self.records))) - self.placed)
        others = self._compared
        mirrored = [self.patterns[k].mirrored() for k in lost]
        votes = common_shapes(mirrored, [self.patterns[k] for k in others])
        found = {}
        for row, k in enumerate(lost):
            for column in _by_votes(votes, row)[:_MIRROR_TRIES]:
                if match_patterns(mirrored[row], self.patterns[others[column]]) is not None:
                    found[k] = self.records[others[column]]
                    break
        return found

    def _compare(self, waiting: list[int], fresh: list[int], links: dict[int, Links]) -> None:
        """Add how waiting frames match fresh ones, where shapes of quads promise something."""
        self._compared += fresh
        votes = common_shapes([self.patterns[k] for k in waiting], [self.patterns[k] for k in fresh])
        for row, k in enumerate(waiting):
            self._cancel.check()
            n_found = 0
            for column in _by_votes(votes, row)[: min(_TRIES_A_ROUND, MOST_TRIES - self._tries[k])]:
                self._tries[k] += 1
                match = match_patterns(self.patterns[k], self.patterns[fresh[column]])
                if match is not None:
                    links[k].append((fresh[column], match))
                    n_found += 1
                if n_found == _PARTNERS:
                    break

    def _place(self, k: int, links: Links) -> None:
        """Place a frame by the stars that it shares with placed ones."""
        links = sorted(links, key=lambda link: (-link[1].first.size, link[0]))
        surest = self.records[links[0][0]]
        parity = parity_of(frame_wcs(surest.header))
        links = [link for link in links if parity_of(frame_wcs(self.records[link[0]].header)) == parity]
        links = links[:_PARTNERS]
        mine = np.concatenate([match.first for _, match in links])
        sky = np.concatenate([self._sky_of(other)[match.second] for other, match in links])
        theirs = np.concatenate([self._stars[other].sigma[match.second] for other, match in links])
        sigma = np.hypot(self._stars[k].sigma[mine], theirs)
        x, y = self._frame_pixels(k)
        record = self.records[k]
        wcs = fit_tan(x[mine], y[mine], sky, record.header.shape, parity, sigma)
        also = f" and those of {len(links) - 1} more" if len(links) > 1 else ""
        told = f"{links[0][1].first.size} stars of {surest.frame_id}{also}"
        logger.info("%s is placed by %s", record.path, told)
        self.records[k] = _with_wcs(record, wcs, told)

    def _frame_pixels(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the stars of a pattern in the pixels of its frame."""
        stars = self._stars[k]
        half = 0.5 * (stars.binning - 1)
        return tuple(stars.binning * axis[:MOST_STARS] + half for axis in (stars.x, stars.y))

    def _sky_of(self, k: int) -> np.ndarray:
        """Return where the stars of a placed frame are on the sky, (m, 2) in degrees."""
        if k not in self._sky:
            wcs = frame_wcs(self.records[k].header)
            self._sky[k] = np.column_stack(frame_to_icrs(wcs, *self._frame_pixels(k)))
        return self._sky[k]


def _by_votes(votes: csr_array, row: int) -> list[int]:
    """Return the columns of a row that have votes, most votes first."""
    columns, count = (a[votes.indptr[row] : votes.indptr[row + 1]] for a in (votes.indices, votes.data))
    return columns[np.lexsort((columns, -count))].tolist()


def _with_wcs(record: FrameRecord, wcs: WCS, placed_by: str) -> FrameRecord:
    header = replace(record.header, wcs_text=cards_of(wcs, 1, record.header.shape), wcs_path="")
    return replace(record, header=header, unplaced="", placed_by=placed_by)


# ---- no place at all -------------------------------------------------------------------------------------


def _largest_family(start: _Growth) -> tuple[_Growth, str]:
    """Return the frames that hang together most, placed by a provisional place, and what the user must know.

    Of these the frame with the most stars is the root. Nothing is placed if no two frames hang together, unless
    there is one frame only.
    """
    order = sorted(range(len(start.records)), key=lambda k: (-start.patterns[k].z.size, k))
    best, caveat, taken = start, "", set()
    least = min(1, len(order) - 1)
    for root in order[:_MOST_ROOTS]:
        if root in taken or len(order) - len(taken) <= max(len(best.placed), least):
            continue
        growth = start.again(taken)
        growth.records[root], told = _provisional(start.records[root], start.patterns[root].z.size)
        growth.grow([root])
        growth.placed -= taken
        taken |= growth.placed
        if len(growth.placed) > max(len(best.placed), least):
            best, caveat = growth, told
    return best, caveat


def _provisional(record: FrameRecord, n_stars: int) -> tuple[FrameRecord, str]:
    """Return a frame with a provisional place, and what the user must know of it."""
    header = record.header
    pointing, scale = pointing_icrs(header), hint_of(header, 0.0).scale_arcsec
    where = "where its header points" if pointing is not None else "at right ascension 0, declination 0"
    how = "by its header" if scale is not None else "arbitrarily"
    arcsec = scale or PLAIN_SCALE_ARCSEC
    step = arcsec / 3600.0
    wcs = tan_wcs(pointing or (0.0, 0.0), np.diag([-step, step]), header.shape)
    caveat = (
        f"The place of this mosaic on the sky is provisional: no frame has a WCS. {Path(record.path).name}, which "
        f"shows {n_stars} stars, was put {where}, north up, {arcsec:.4g} arcsec a pixel {how}, the others by the "
        "stars they share with it. Plate-solve the mosaic, or one frame, to have its true place."
    )
    return _with_wcs(record, wcs, "a provisional place"), caveat


def _why_lost(n_stars: int, n_placed: int, mirror: FrameRecord | None) -> str:
    """Return why a frame whose stars were found has no place, and what to do."""
    if n_stars < FEWEST_STARS:
        return f"only {n_stars} stars are found in it, too few to align it by; plate-solve it beforehand"
    if mirror is not None:
        return f"its stars are those of {mirror.frame_id} mirrored; save it in the same order of rows"
    against = f"none of the {n_placed} frames that have a place" if n_placed else "no other frame"
    return f"its {n_stars} stars are those of {against}; add frames that overlap it, or plate-solve it beforehand"
