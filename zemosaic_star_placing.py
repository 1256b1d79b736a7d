"""Places by stars: a frame without a WCS gets one from the frames with which it shares stars.

Patterns of stars say which frames show the same sky. From the frames that have a WCS the search goes on frame by frame,
the surest first; the stars that a frame shares with placed ones have a place on the sky, and a TAN is fitted to
them. Where no frame has a WCS one of them gets a provisional place, and the user is told. Pixels are read once, no file
is written; `zemosaic_refine` makes the places better.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
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
from zemosaic_events import CancelToken
from zemosaic_fits_io import frame_wcs
from zemosaic_reproject import centre_icrs, frame_to_icrs
from zemosaic_runbook import RunBook
from zemosaic_solving import Verdict, count_instances
from zemosaic_star_patterns import (
    FEWEST_STARS,
    MOST_STARS,
    PatternMatch,
    StarPattern,
    common_shapes,
    fit_tan,
    match_patterns,
    star_pattern,
    tan_wcs,
)
from zemosaic_types import FrameError, FrameRecord

logger = logging.getLogger("ZeMosaicWorker.placing")

#: If more frames than this have a WCS, so many spread over the sky and a few near each lost frame are compared.
MOST_REFERENCES = 64
#: A frame is compared with so many others at most.
MOST_TRIES = 40
#: A provisional place has this scale where the header tells none.
PLAIN_SCALE_ARCSEC = 1.0

_NEAR_ON_SKY, _NEAR_IN_ORDER = 8, 2
_PARTNERS = 4
# Of the frames that could be placed next, those with so large a share of the surest's common stars are.
_AS_SURE = 0.5
_MIRROR_TRIES = 3

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
    lost_ids = {record.path for record in lost}
    everyone = sorted([*lost, *_references(lost, placed)], key=lambda record: (record.frame_id, record.path))
    stars = read_stars(everyone, count_instances(options, len(everyone)), on_progress, cancel)
    seen = [record for record in everyone if isinstance(stars[record.path], FrameStars)]
    search = _Search([_pattern(stars[record.path]) for record in seen], cancel)
    roots = [k for k, record in enumerate(seen) if record.path not in lost_ids]
    records, caveat = dict(enumerate(seen)), ""
    if placed:
        links = search.grow(roots)
    else:
        root, links = search.largest_family()
        if root is not None:
            records[root], caveat = _provisional(seen[root], search.patterns[root].z.size)
    places = _Places(seen, stars, records)
    for k, matches in links:
        places.add(k, matches)
    index = {record.path: k for k, record in enumerate(seen)}
    taken = {k for k in range(len(seen)) if not places.records[k].unplaced}
    mirrored = search.mirror_images(sorted(set(range(len(seen))) - taken), taken)
    verdicts = []
    for record in lost:
        k, found = index.get(record.path), stars[record.path]
        if k is None:
            verdicts.append(Verdict(record, str(found)))
        elif k in taken:
            verdicts.append(Verdict(places.records[k]))
        else:
            other = seen[mirrored[k]] if k in mirrored else None
            verdicts.append(Verdict(record, _why_lost(found.x.size, len(taken), other)))
    return Placing(verdicts, caveat)


# ---- stars of many frames --------------------------------------------------------------------------------


def read_stars(
    records: Sequence[FrameRecord], n_threads: int, on_progress: Progress | None, cancel: CancelToken
) -> dict[str, FrameStars | FrameError]:
    """Return the stars of frames by their paths, or why a frame has none; raise `RunCancelled` if `cancel` is set."""
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


def _pattern(stars: FrameStars) -> StarPattern:
    return star_pattern(stars.x, stars.y, stars.shape)


def _references(lost: Sequence[FrameRecord], placed: Sequence[FrameRecord]) -> list[FrameRecord]:
    """Return the placed frames that lost ones are compared with: all, or a net over the sky and those near by."""
    placed = sorted(placed, key=lambda record: (record.frame_id, record.path))
    if len(placed) <= MOST_REFERENCES:
        return placed
    centres = _directions([centre_icrs(frame_wcs(record.header), record.header.shape) for record in placed])
    chosen = set(_net(centres, MOST_REFERENCES))
    tree = KDTree(centres)
    for record in lost:
        pointing = pointing_icrs(record.header)
        if pointing is not None:
            chosen.update(tree.query(_directions([pointing])[0], k=_NEAR_ON_SKY)[1].tolist())
    for key in (lambda record: record.header.date_obs, lambda record: record.frame_id):
        chosen.update(_neighbours([key(record) for record in lost], [key(record) for record in placed]))
    return [placed[k] for k in sorted(chosen)]


def _directions(sky_deg: Sequence[tuple[float, float]]) -> np.ndarray:
    ra, dec = np.deg2rad(np.array(sky_deg, dtype=np.float64)).T
    return np.nan_to_num(np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)]))


def _net(points: np.ndarray, count: int) -> list[int]:
    """Return so many points, each the furthest from those before it."""
    chosen, distance = [0], np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def _neighbours(keys: Iterable[str], placed: Sequence[str]) -> set[int]:
    """Return which of the placed frames come just before and after each key, in the order of the keys."""
    order = sorted(range(len(placed)), key=lambda k: (placed[k], k))
    ordered = [placed[k] for k in order]
    near = set()
    for key in filter(None, keys):
        at = bisect_left(ordered, key)
        near.update(order[max(0, at - _NEAR_IN_ORDER) : at + _NEAR_IN_ORDER])
    return near


# ---- who shows the same stars ----------------------------------------------------------------------------

#: Frames in the order in which they are placed, each with the frames it is placed by.
Links = list[tuple[int, list[tuple[int, PatternMatch]]]]


class _Search:
    """Which frames show the same stars; frames are compared only where shapes of quads promise something.

    Parameters
    ----------
    patterns : list of StarPattern
        In frame order.
    cancel : CancelToken
    """

    def __init__(self, patterns: list[StarPattern], cancel: CancelToken) -> None:
        self.patterns = patterns
        self._cancel = cancel
        self._known: dict[tuple[int, int], PatternMatch | None] = {}
        self._tries: dict[int, int] = defaultdict(int)
        partners: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for (i, j), votes in common_shapes(patterns).items():
            partners[i].append((-votes, j))
            partners[j].append((-votes, i))
        self._partners = {k: [j for _, j in sorted(found)] for k, found in partners.items()}

    def grow(self, roots: Iterable[int], banned: Iterable[int] = ()) -> Links:
        """Return the frames that hang together with the roots, the surest first, each with those it is placed by."""
        placed, order = set(roots), []
        waiting = sorted(set(range(len(self.patterns))) - placed - set(banned))
        while True:
            self._cancel.check()
            found = {k: links for k in waiting if (links := self._links(k, placed))}
            if not found:
                return order
            sure = {k: max(match.first.size for _, match in links) for k, links in found.items()}
            least = _AS_SURE * max(sure.values())
            order += [(k, found[k]) for k in found if sure[k] >= least]
            placed.update(k for k in found if sure[k] >= least)
            waiting = [k for k in waiting if k not in placed]

    def largest_family(self) -> tuple[int | None, Links]:
        """Return the frame with the most stars among the frames that hang together most, and how they are placed.

        None if no two frames hang together, unless there is one frame only.
        """
        free = sorted(range(len(self.patterns)), key=lambda k: (-self.patterns[k].z.size, k))
        if len(free) == 1 and self.patterns[0].z.size >= FEWEST_STARS:
            return 0, []
        best: tuple[int | None, Links] = (None, [])
        taken: set[int] = set()
        for root in free:
            if root not in taken:
                links = self.grow([root], taken)
                taken |= {root, *(k for k, _ in links)}
                if len(links) > len(best[1]):
                    best = root, links
        return best

    def mirror_images(self, lost: list[int], placed: set[int]) -> dict[int, int]:
        """Return which lost frames show the stars of a placed one mirrored, and whose."""
        if not (lost and placed):
            return {}
        others = sorted(placed)
        patterns = [self.patterns[k].mirrored() for k in lost] + [self.patterns[k] for k in others]
        votes: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for (i, j), count in common_shapes(patterns).items():
            if i < len(lost) <= j:
                votes[i].append((-count, j))
        found = {}
        for i, partners in sorted(votes.items()):
            for _, j in sorted(partners)[:_MIRROR_TRIES]:
                if match_patterns(patterns[i], patterns[j]) is not None:
                    found[lost[i]] = others[j - len(lost)]
                    break
        return found

    def _links(self, k: int, placed: set[int]) -> list[tuple[int, PatternMatch]]:
        """Return the likeliest of the placed frames that show stars of frame k, and how they match it."""
        links = []
        for other in (other for other in self._partners.get(k, ()) if other in placed):
            pair = min(k, other), max(k, other)
            if pair not in self._known:
                if self._tries[k] >= MOST_TRIES:
                    continue
                self._tries[k] += 1
                self._known[pair] = match_patterns(self.patterns[pair[0]], self.patterns[pair[1]])
            match = self._known[pair]
            if match is not None:
                links.append(
                    (other, match if k < other else replace(match, first=match.second, second=match.first))
                )
            if len(links) == _PARTNERS:
                break
        return links


# ---- places on the sky -----------------------------------------------------------------------------------


class _Places:
    """Records of frames, placed one by one, and where their stars are on the sky."""

    def __init__(
        self, seen: list[FrameRecord], stars: dict[str, FrameStars | FrameError], records: dict[int, FrameRecord]
    ) -> None:
        self.records = records
        self._sky: dict[int, np.ndarray] = {}
        self._stars = [stars[record.path] for record in seen]

    def add(self, k: int, links: list[tuple[int, PatternMatch]]) -> None:
        """Place frame k by the stars that it shares with placed ones."""
        links = sorted(links, key=lambda link: (-link[1].first.size, link[0]))
        surest = self.records[links[0][0]]
        parity = parity_of(frame_wcs(surest.header))
        links = [link for link in links if parity_of(frame_wcs(self.records[link[0]].header)) == parity]
        mine = np.concatenate([match.first for _, match in links])
        sky = np.concatenate([self._sky_of(other)[match.second] for other, match in links])
        x, y = self._frame_pixels(k)
        record = self.records[k]
        wcs = fit_tan(x[mine], y[mine], sky, record.header.shape, parity)
        n_common = links[0][1].first.size
        also = f" and those of {len(links) - 1} more" if len(links) > 1 else ""
        header = replace(record.header, wcs_text=cards_of(wcs, 1, record.header.shape), wcs_path="")
        told = f"{n_common} stars of {surest.frame_id}{also}"
        logger.info("[GRID] %s is placed by %s", record.path, told)
        self.records[k] = replace(record, header=header, unplaced="", placed_by=told)

    def _frame_pixels(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        stars = self._stars[k]
        half = 0.5 * (stars.binning - 1)
        return tuple(stars.binning * axis[:MOST_STARS] + half for axis in (stars.x, stars.y))

    def _sky_of(self, k: int) -> np.ndarray:
        if k not in self._sky:
            wcs = frame_wcs(self.records[k].header)
            self._sky[k] = np.column_stack(frame_to_icrs(wcs, *self._frame_pixels(k)))
        return self._sky[k]


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
    header = replace(header, wcs_text=cards_of(wcs, 1, header.shape), wcs_path="")
    return replace(record, header=header, unplaced="", placed_by="a provisional place"), caveat


def _why_lost(n_stars: int, n_placed: int, mirror: FrameRecord | None) -> str:
    """Return why a frame whose stars were found has no place, and what to do."""
    if n_stars < FEWEST_STARS:
        return f"only {n_stars} stars are found in it, too few to align it by; plate-solve it beforehand"
    if mirror is not None:
        return f"its stars are those of {mirror.frame_id} mirrored; save it in the same order of rows"
    against = f"none of the {n_placed} frames that have a place" if n_placed else "no other frame"
    return f"its {n_stars} stars are those of {against}; add frames that overlap it, or plate-solve it beforehand"
