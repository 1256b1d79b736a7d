"""Refining the WCS of all frames: measured frames in, the same frames where their stars coincide out.

A frame whose WCS is off by more than a few pixels is found by its neighbours and left out. No pixel is read again:
positions of stars follow the corrected WCS, and coarse levels stay with their cells, which a shift of at most
`MAX_CORRECTION_PX` does not matter to (cells are 16 to 64 px apart, their medians as wide).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zemosaic_alignment import (
    MAX_CORRECTION_PX,
    MIN_STARS_SHIFT,
    MIN_STARS_SIMILARITY,
    Alignment,
    Offsets,
    Positions,
    align,
    displace,
    find_offsets,
    residual_px,
)
from zemosaic_detections import Detections
from zemosaic_fits_io import frame_wcs
from zemosaic_measure import MeasuredFrame
from zemosaic_pairs import partner_pairs
from zemosaic_reproject import Canvas, Placement, frame_to_canvas, place
from zemosaic_types import FrameError, FrameHeader, LeftOut, Tell, part_of, tell_nobody
from zemosaic_wcs_correction import corrected_header

#: A frame that overlaps more frames than this is compared with so many of them to see whether it is far off.
MAX_PARTNERS = 24
#: So many of a frame's stars, the brightest, tell where it lies.
MOST_STARS = 200
#: In `auto`, all frames are corrected if their stars coincide so much better (px along an axis, in quadrature),
#: otherwise only frames that stand out, and the others are held where they are.
MIN_GAIN_PX = 0.05

# Standard error of a centroid: so much of the FWHM over the signal to noise, and at least so many px of the frame.
# Measured on real frames, whose brightest stars agree to 0.07 px along an axis.
_CENTROID_OF_FWHM, _CENTROID_FLOOR_PX = 0.6, 0.07
_FAINTEST_SIGNAL_TO_NOISE = 3.0
_DEFAULT_FWHM_PX = 4.0
_MOST_NAMED = 4
# Shares of the work, roughly: frames far off are found, all are aligned, then moved.
_OFFSETS_FOUND, _ALIGNED = 0.05, 0.3


Each = Callable[[Callable, list], Iterable]


@dataclass(frozen=True)
class Refined:
    """The frames after the refinement, in frame order, and what it found.

    Attributes
    ----------
    measured : list of MeasuredFrame
    residual_px : list of float or None
        Alignment residual of each of them against its neighbours: root mean square distance of its stars from
        where the other frames see them; None without common stars.
    left_out : list of LeftOut
        Frames whose WCS is wrong.
    warnings : list of str
        What the user should know.
    before_px, after_px : float
        Root mean square of the residuals by the frames' own WCS and as they are now; NaN if nothing is known.
    n_moved : int
        Frames whose WCS was corrected.
    """

    measured: list[MeasuredFrame]
    residual_px: list[float | None]
    left_out: list[LeftOut]
    warnings: list[str]
    before_px: float
    after_px: float
    n_moved: int


def refine_frames(
    measured: list[MeasuredFrame],
    canvas: Canvas,
    *,
    method: str,
    tell: Tell = tell_nobody,
    each: Each = map,
) -> Refined:
    """Measure how well the frames are aligned, leave out those that are not, and correct the others.

    Parameters
    ----------
    measured : list of MeasuredFrame
        In frame order.
    canvas : Canvas
        Stays as it is; frames that are moved are placed on it again.
    method : str
        ``"on"`` corrects, ``"auto"`` only where it brings more than noise, ``"off"`` measures only.
    tell : callable
        Told the share that is done; may end the work.
    each : callable
        Applies a module-level function to a list, in order, as `map` does.

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    if method not in ("auto", "on", "off"):
        raise ValueError(f"unknown refine_wcs {method!r}; known: auto, on, off")
    tell(0.0)
    positions = star_positions(measured)
    offsets = find_offsets(positions, partner_pairs([m.placement for m in measured], MAX_PARTNERS))
    tell(_OFFSETS_FOUND)
    usable = offsets.trusted & ~offsets.wrong
    positions = positions.only(usable[positions.frame])
    shift = np.where(usable[:, None], offsets.shift, 0.0)
    found = first = align(positions, shift, tell=part_of(tell, _OFFSETS_FOUND, _ALIGNED))
    if method == "auto" and first.common_gain_px <= MIN_GAIN_PX and 0 < 2 * first.alone.sum() < len(measured):
        found = align(positions, shift, held=~first.alone, tell=lambda _: tell(_ALIGNED))
    off = np.maximum(found.moved_px, np.hypot(*offsets.shift.T))
    # A rotation needs the stars that show it.
    surely = offsets.wrong | (found.n_common >= MIN_STARS_SIMILARITY)
    wrong = (off > MAX_CORRECTION_PX) & surely
    left_out = [_left_out(measured[k], off[k], offsets.witnesses[k]) for k in np.flatnonzero(wrong)]
    chosen = _chosen(first, method) & ~wrong
    warnings = _contradictions(measured, offsets)
    frames = list(measured)
    moves = [_move_of(measured[k], canvas, found, positions, k) for k in np.flatnonzero(chosen)]
    for k, moved in zip(np.flatnonzero(chosen), each(_moved, moves), strict=True):
        tell(_ALIGNED + (1.0 - _ALIGNED) * k / len(measured))
        if isinstance(moved, FrameError):
            chosen[k] = False
            warnings.append(f"{measured[k].record.path}: {moved}")
        else:
            frames[k] = _with(measured[k], moved)
    # Those that are left out must not count as neighbours where they are.
    residual = residual_px(positions, found, found.correction * (chosen | wrong)[:, None])
    kept = np.flatnonzero(~wrong).tolist()
    return Refined(
        measured=[frames[k] for k in kept],
        residual_px=[float(residual[k]) if np.isfinite(residual[k]) else None for k in kept],
        left_out=left_out,
        warnings=warnings,
        before_px=first.rms(first.before),
        after_px=found.rms(residual),
        n_moved=int(chosen.sum()),
    )


def star_positions(measured: list[MeasuredFrame]) -> Positions:
    """Return the brightest stars of all frames on the canvas with the errors of their positions."""
    stars = Detections.of([m.measure for m in measured], MOST_STARS)
    # A pixel of the frame in px of the canvas.
    scale = np.array([1.0 / np.sqrt(m.placement.area_ratio) for m in measured])
    diagonal = np.array([np.hypot(*m.record.header.shape) for m in measured])
    fwhm = np.array([m.measure.fwhm_px for m in measured])
    fwhm[~np.isfinite(fwhm)] = _DEFAULT_FWHM_PX
    positions = Positions(
        frame=stars.frame,
        x=stars.x,
        y=stars.y,
        sigma=scale[stars.frame] * _centroid_errors(stars, fwhm),
        centre=np.array([m.placement.centre for m in measured]),
        radius=scale * diagonal / np.sqrt(12.0),
    )
    return positions.only(np.isfinite(positions.x) & np.isfinite(positions.y))


def _centroid_errors(stars: Detections, fwhm: np.ndarray) -> np.ndarray:
    """Return the standard errors (m,) of centres, px of the frame; `fwhm` (n,) is the frames' own."""
    flux, error = stars.light()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(flux / error, nan=0.0, posinf=1e6)
    noise = _CENTROID_OF_FWHM * fwhm[stars.frame] / np.maximum(ratio, _FAINTEST_SIGNAL_TO_NOISE)
    return np.hypot(noise, _CENTROID_FLOOR_PX)


def _chosen(found: Alignment, method: str) -> np.ndarray:
    """Return which frames (n,) are to be corrected."""
    able = found.n_common >= MIN_STARS_SHIFT
    if method == "off":
        return np.zeros_like(able)
    if method == "on" or found.common_gain_px > MIN_GAIN_PX or 2 * found.alone.sum() >= found.alone.size:
        return able
    return able & found.alone


@dataclass(frozen=True)
class _Move:
    """What is needed to move one frame: see `displace` for the correction, and pixels of its stars."""

    header: FrameHeader
    canvas: Canvas
    correction: np.ndarray
    centre: np.ndarray
    radius: float
    star_x: np.ndarray
    star_y: np.ndarray


@dataclass(frozen=True)
class _Moved:
    """A frame's corrected header, and where it and its stars lie on the canvas by it."""

    header: FrameHeader
    placement: Placement
    star_x: np.ndarray
    star_y: np.ndarray


def _move_of(m: MeasuredFrame, canvas: Canvas, found: Alignment, positions: Positions, k: int) -> _Move:
    how = found.correction[k], positions.centre[k], float(positions.radius[k])
    return _Move(m.record.header, canvas, *how, m.measure.frame_x, m.measure.frame_y)


def _moved(move: _Move) -> _Moved | FrameError:
    """Return a frame with its corrected WCS, or why there is none."""

    def displaced(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return displace(x, y, move.correction, move.centre, move.radius)

    canvas = move.canvas
    try:
        header = corrected_header(move.header, canvas, displaced)
        wcs = frame_wcs(header)
        stars = frame_to_canvas(wcs, move.star_x.astype(float), move.star_y.astype(float), canvas)
        return _Moved(header, place(wcs, header.shape, canvas), *stars)
    except FrameError as error:
        return error


def _with(m: MeasuredFrame, moved: _Moved) -> MeasuredFrame:
    return replace(
        m,
        record=replace(m.record, header=moved.header),
        measure=replace(m.measure, star_x=moved.star_x, star_y=moved.star_y),
        placement=moved.placement,
    )


def _left_out(m: MeasuredFrame, off: float, n_witnesses: int) -> LeftOut:
    neighbours = f"{n_witnesses} neighbour{'' if n_witnesses == 1 else 's'}"
    reason = f"its WCS is {off:.1f} px off (its stars lie that far from the same stars of {neighbours})"
    return LeftOut(m.record.path, reason, m.record.line)


def _contradictions(measured: list[MeasuredFrame], offsets: Offsets) -> list[str]:
    """Say which frames contradict each other without telling who is wrong."""
    sentences = []
    for members, apart in offsets.undecided:
        names = [Path(measured[k].record.path).name for k in members[:_MOST_NAMED]]
        if len(members) > _MOST_NAMED:
            names.append(f"{len(members) - _MOST_NAMED} more")
        sentences.append(
            f"by their stars {', '.join(names[:-1])} and {names[-1]} lie {apart:.1f} px apart, and no majority "
            "tells which WCS is wrong; all stay as they are"
        )
    return sentences
