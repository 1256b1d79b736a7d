"""Small drawings for a page: colour maps, axes of time, and scatter plots as SVG text.

Everything follows the page's own colours through the classes ``axis``, ``dots``, ``culprit`` and ``line``, so
light and dark pages use one drawing. Text that comes in is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

import numpy as np

#: Anchors of colour maps whose lightness grows evenly (the first is matplotlib's viridis, in the public domain).
VIRIDIS = ((68, 1, 84), (62, 74, 137), (38, 130, 142), (53, 183, 121), (253, 231, 37))
ICE = ((10, 14, 36), (28, 62, 122), (66, 126, 184), (150, 196, 220), (246, 251, 252))

_NIGHT_GAP_S = 4 * 3600.0
_SHORTEST_NIGHT_S = 900.0
_NIGHT_MARGIN = 0.08  # of the mean night, between two nights
_MAX_LABELS = 5
_CROWD = 1500  # dots in a plot, that are drawn smaller
_MINUTES = (1, 2, 5, 10, 15, 30, 60, 120, 180, 240)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 140, 48, 6, 8, 20


def coloured(values: np.ndarray, limits: tuple[float, float], anchors: tuple) -> np.ndarray:
    """Return a map as a picture, (ny, nx, 4) uint8, first row on top, transparent where it is NaN.

    Parameters
    ----------
    values : ndarray, shape (ny, nx)
        First row at the bottom.
    limits : tuple of float
        Values of the first and the last colour; what lies beyond takes these.
    anchors : tuple
        Colours, evenly spaced.
    """
    low, high = limits
    share = np.clip((values - low) / max(high - low, np.finfo(float).tiny), 0.0, 1.0)
    steps = np.linspace(0.0, 1.0, len(anchors))
    known = np.isfinite(values)
    place = np.where(known, share, 0.0)
    channels = [np.rint(np.interp(place, steps, column)) for column in np.transpose(anchors)]
    return np.stack([*channels, np.where(known, 255.0, 0.0)], axis=-1).astype(np.uint8)[::-1]


def css_gradient(anchors: tuple) -> str:
    """Return a colour map as a CSS background."""
    return f"linear-gradient(to right, {', '.join('rgb({}, {}, {})'.format(*colour) for colour in anchors)})"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers within a range."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, never in powers of ten below a million."""
    if not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


# ---- time ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimeAxis:
    """Times along an axis from 0 to 1 on which the days between the nights take no room.

    Attributes
    ----------
    x : ndarray, shape (n,)
        Place of each frame; NaN where its time is not known.
    labels : list of (float, str)
    nights : list of float
        Where nights but the first begin.
    """

    x: np.ndarray
    labels: list[tuple[float, str]]
    nights: list[float]


def seconds_of(date_obs: str) -> float:
    """Return a date as seconds (Unix), NaN for a text that is none."""
    try:
        moment = datetime.fromisoformat(date_obs.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def time_axis(seconds: np.ndarray) -> TimeAxis:
    """Return the axis for some times: nights side by side, time running evenly within each."""
    known = np.unique(seconds[np.isfinite(seconds)])
    if known.size == 0:
        return TimeAxis(np.full(seconds.shape, np.nan), [], [])
    breaks = np.flatnonzero(np.diff(known) > _NIGHT_GAP_S) + 1
    begin, end = known[np.concatenate([[0], breaks])], known[np.concatenate([breaks - 1, [-1]])]
    length = np.maximum(end - begin, _SHORTEST_NIGHT_S)
    margin = _NIGHT_MARGIN * length.mean()
    origin = np.concatenate([[0.0], np.cumsum(length + margin)[:-1]])
    whole = origin[-1] + length[-1]
    night = np.clip(np.searchsorted(begin, np.nan_to_num(seconds), side="right") - 1, 0, None)
    x = (origin[night] + seconds - begin[night]) / whole
    if begin.size == 1:
        return TimeAxis(x, _clock_labels(begin[0], length[0]), [])
    every = -(-begin.size // _MAX_LABELS)
    labels = [(o / whole, _utc(b).strftime("%Y-%m-%d")) for o, b in zip(origin, begin, strict=True)][::every]
    return TimeAxis(x, labels, [float(o - margin / 2) / whole for o in origin[1:]])


def _clock_labels(begin: float, length: float) -> list[tuple[float, str]]:
    step = 60.0 * next((m for m in _MINUTES if 60.0 * m * _MAX_LABELS >= length), _MINUTES[-1])
    times = np.arange(math.ceil(begin / step) * step, begin + length, step)
    return [((t - begin) / length, _utc(t).strftime("%H:%M")) for t in times.tolist()]


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# ---- plots -----------------------------------------------------------------------------------------------


def scatter(
    axis: TimeAxis, values: np.ndarray, culprits: list[int], names: Callable[[int], str], label: str
) -> str:
    """Return a plot of one quantity over time as SVG; frames among `culprits` are drawn larger, with their names.

    Parameters
    ----------
    axis : TimeAxis
    values : ndarray, shape (n,)
        NaN is not drawn.
    culprits : list of int
    names : callable
        Name of a frame.
    label : str
        What the plot shows, for readers that cannot see it.
    """
    shown = np.isfinite(values) & np.isfinite(axis.x)
    low, high = _range(values[shown])
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    x = np.round(_LEFT + 4 + axis.x * (wide - 8), 1)
    y = np.round(_TOP + tall * (high - values) / (high - low), 1)
    floor = _TOP + tall
    parts = [f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in ticks(low, high):
        place = _TOP + tall * (high - tick) / (high - low)
        parts.append(f'<path class="line" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="axis" x="{_LEFT - 6}" y="{place + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for place in axis.nights:
        parts.append(f'<path class="line night" d="M{_LEFT + 4 + place * (wide - 8):.1f} {_TOP}V{floor}"/>')
    for place, text in axis.labels:
        at = _LEFT + 4 + place * (wide - 8)
        parts.append(f'<text class="axis" x="{at:.1f}" y="{_HEIGHT - 6}">{escape(text)}</text>')
    usual = shown.copy()
    usual[culprits] = False
    dots = dict.fromkeys(f"M{a:g} {b:g}h0" for a, b in zip(x[usual].tolist(), y[usual].tolist(), strict=True))
    crowded = usual.sum() > _CROWD
    parts.append(f'<path class="{"dots many" if crowded else "dots"}" d="{"".join(dots)}"/>')
    radius = 2.5 if crowded else 4
    for k in culprits:
        if shown[k]:
            title = f"{escape(names(k))}: {number(float(values[k]))}"
            parts.append(
                f'<circle class="culprit" cx="{x[k]:g}" cy="{y[k]:g}" r="{radius}"><title>{title}</title></circle>'
            )
    return "".join([*parts, "</svg>"])


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the limits of a plot, a little wider than its values and never without extent."""
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = max(0.08 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-12)
    return (low - room if low < 0 or low > room else 0.0), high + room
