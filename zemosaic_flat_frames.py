"""Measured frames in, the same frames with their instruments' vignetting divided out.

Which frames share a detector, whether they tell enough of its flat, and what they measure without it; no pixel is
read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from zemosaic_detections import Detections
from zemosaic_flat import (
    MAX_MODE_ERROR,
    SharedSky,
    StarFlat,
    corner_loss,
    correction_at,
    flat_model,
    median_correction,
    sky_flat,
    stars_flat,
)
from zemosaic_measure import MeasuredFrame
from zemosaic_pairs import partner_pairs
from zemosaic_types import FlatModel, FrameHeader, Tell, part_of, tell_nobody

#: `auto` wants so many frames of an instrument, and so many detections of stars that several of them show.
MIN_FRAMES = 8
MIN_DETECTIONS = 300
#: `auto` wants a pattern of so many standard deviations, and of this rms over the detector.
MIN_SIGNIFICANCE = 6.0
MIN_RMS = 0.003

#: The sky is compared in at most so many frames, around so many places, each with so many others.
_SKY_FRAMES = 100
_SKY_PLACES = 10
_PARTNERS = 12
# Shares of the work, roughly: stars are recognised, their pattern is solved.
_STARS_KNOWN, _STARS_SOLVED = 0.1, 0.8


@dataclass(frozen=True)
class InstrumentFlat:
    """What became of the flat of one instrument.

    Attributes
    ----------
    instrument : str
        Its name, frame size and filter.
    n_frames : int
    flat : FlatModel or None
        None if nothing is divided out; `reason` says why.
    corners : tuple of float
        How much darker the corners are than the middle, a value a colour; empty without a flat.
    rms, significance : float
        Of the pattern by stars alone: over the detector, and in standard deviations.
    sky_agrees : bool
        Whether the sky sharpened what the stars say.
    """

    instrument: str
    n_frames: int
    flat: FlatModel | None = None
    reason: str = ""
    corners: tuple[float, ...] = ()
    rms: float = float("nan")
    significance: float = float("nan")
    sky_agrees: bool = False

    @property
    def sentence(self) -> str:
        """What the user is told."""
        frames = f"{self.n_frames} frame{'s' if self.n_frames != 1 else ''}"
        if self.flat is None:
            return f"no flat of {self.instrument} from {frames}: {self.reason}"
        corners = " / ".join(f"{100 * loss:+.1f}" for loss in self.corners)
        return f"flat of {self.instrument} from {frames}: {corners} % at the corners"


def flatten_frames(
    measured: list[MeasuredFrame], mode: str, *, tell: Tell = tell_nobody
) -> tuple[list[MeasuredFrame], list[InstrumentFlat]]:
    """Divide out the vignetting of every instrument whose frames tell enough of it.

    Parameters
    ----------
    measured : list of MeasuredFrame
        In frame order.
    mode : {"auto", "on", "off"}
        ``on`` divides out whatever can be told at all; ``auto`` only what is significant and makes the sky more
        level.
    tell : callable
        Told the share that is done; may end the work.

    Returns
    -------
    measured : list of MeasuredFrame
        In the same order; frames of an instrument without a flat are the ones handed in.
    flats : list of InstrumentFlat
        One an instrument, in the order of their first frames.

    Raises
    ------
    ValueError
        If the mode is unknown.
    """
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"unknown flat_from_frames {mode!r}; known: auto, on, off")
    if mode == "off":
        return measured, []
    members: dict[tuple, list[int]] = {}
    for k, m in enumerate(measured):
        members.setdefault(m.record.header.camera, []).append(k)
    out, flats = list(measured), []
    n_done = 0
    for indices in members.values():
        own = part_of(tell, n_done / len(measured), (n_done + len(indices)) / len(measured))
        found = _instrument_flat([measured[k] for k in indices], mode, own)
        n_done += len(indices)
        flats.append(found)
        if found.flat is not None:
            for k in indices:
                out[k] = flattened_frame(measured[k], found.flat)
    tell(1.0)
    return out, flats


def _named(header: FrameHeader) -> str:
    ny, nx = header.shape
    name = header.instrument or "an unnamed instrument"
    return f"{name} ({nx} x {ny} px{', ' + header.filter if header.filter else ''})"


def _instrument_flat(frames: list[MeasuredFrame], mode: str, tell: Tell) -> InstrumentFlat:
    header = frames[0].record.header
    result = InstrumentFlat(_named(header), len(frames))
    if mode == "auto" and len(frames) < MIN_FRAMES:
        return replace(result, reason=f"fewer than {MIN_FRAMES} frames")
    tell(0.0)
    detections = _detections(frames)
    tell(_STARS_KNOWN)
    star = stars_flat(detections, len(frames), header.shape, tell=part_of(tell, _STARS_KNOWN, _STARS_SOLVED))
    result = replace(result, rms=star.rms, significance=star.significance) if star.modes.size else result
    reason = _why_not(star, mode)
    if reason:
        return replace(result, reason=reason)
    tell(_STARS_SOLVED)
    sky = sky_flat(star, list(_shared_skies(frames)), header.shape)
    before, after = sky.unevenness
    if mode == "auto" and after > before:
        return replace(result, reason="the stars show one, but dividing it out would not make the sky more level")
    flat = flat_model(sky.terms, sky.pedestal, header.shape)
    if flat is None:
        return replace(result, reason="what the stars show is too dark for vignetting")
    return replace(result, flat=flat, corners=corner_loss(flat), sky_agrees=sky.agrees)


def _why_not(star: StarFlat, mode: str) -> str:
    """Return why the stars' pattern is not used, an empty text if it is."""
    if star.n_detections == 0:
        return "no star is seen by two frames"
    if not star.modes.size:
        return (
            "the frames show their stars at the same places of the detector, or too few of them: no shape is told "
            f"to {MAX_MODE_ERROR:.1%}"
        )
    if mode == "on":
        return ""
    if star.n_detections < MIN_DETECTIONS:
        return f"fewer than {MIN_DETECTIONS} detections of stars that several frames show"
    if star.significance < MIN_SIGNIFICANCE or star.rms < MIN_RMS:
        return f"the stars show none: {star.rms:.2%} rms at {max(0.0, star.significance):.1f} standard deviations"
    return ""


def _own_channels(m: MeasuredFrame) -> int:
    """Return how many colours the frame itself has; a mono frame of a colour mosaic repeats its one."""
    return m.record.header.n_channels


def _detections(frames: list[MeasuredFrame]) -> Detections:
    every = Detections.of([m.measure for m in frames]).identified()
    own = slice(_own_channels(frames[0]))
    return replace(every, flux=every.flux[:, own], error=every.error[:, own]).chosen(every.star >= 0)


def _shared_skies(frames: list[MeasuredFrame]) -> Iterator[SharedSky]:
    """Yield the levels of boxes that pairs of frames share."""
    centres = np.array([m.placement.centre for m in frames])
    chosen = _some_frames(centres)
    pairs = chosen[partner_pairs([frames[k].placement for k in chosen], _PARTNERS)]
    c = _own_channels(frames[0])
    for i, j in pairs.tolist():
        both = frames[i].measure, frames[j].measure
        _, *at = np.intersect1d(both[0].cell, both[1].cell, assume_unique=True, return_indices=True)
        x, y = (
            np.stack([getattr(m, name)[k] for m, k in zip(both, at, strict=True)]) for name in ("cell_x", "cell_y")
        )
        level = np.stack([m.level[k, :c] for m, k in zip(both, at, strict=True)])
        there = np.isfinite(level).all(axis=(0, 2))
        if there.any():
            yield SharedSky((i, j), x[:, there], y[:, there], level[:, there].astype(float))


def _some_frames(centres: np.ndarray) -> np.ndarray:
    """Return all frames if they are few, else the nearest ones of some of them, which overlap; ascending."""
    n = len(centres)
    if n <= _SKY_FRAMES:
        return np.arange(n)
    places = centres[np.linspace(0, n - 1, _SKY_PLACES).astype(int)]
    return np.unique(cKDTree(centres).query(places, k=_SKY_FRAMES // _SKY_PLACES)[1])


def flattened_frame(m: MeasuredFrame, flat: FlatModel) -> MeasuredFrame:
    """Return the frame with the flat, and what it measures once the flat is divided out."""
    measure = m.measure
    repeat = measure.sky.size // len(flat.coefficients)
    at_stars = np.repeat(correction_at(flat, measure.frame_x, measure.frame_y), repeat, axis=1)
    at_cells = np.repeat(correction_at(flat, measure.cell_x, measure.cell_y), repeat, axis=1)
    usual = np.repeat(median_correction(flat), repeat)
    level = flat.pedestal + (measure.level - flat.pedestal) * at_cells
    measure = replace(
        measure,
        sky=flat.pedestal + (measure.sky - flat.pedestal) * usual,
        noise=measure.noise * usual,
        flux=(measure.flux * at_stars).astype(np.float32),
        flux_error=(measure.flux_error * at_stars).astype(np.float32),
        level=level.astype(np.float32),
    )
    return replace(m, measure=measure, flat=flat)
