"""The ledger of a finished run, read back and judged: which frames spoiled the mosaic, and why, in words.

What harm is, is `zemosaic_harm`'s business. A frame is suggested only if leaving it out gains more than it
costs and something about it is so unusual that it can be named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from zemosaic_harm import MAX_SHARE, Harm, Levels, Prediction, Quality, Stack, places_of, predict, suggest
from zemosaic_outputs import COLOURED, COLOURS, LedgerRow
from zemosaic_types import PlanError


def as_suggested(reason: str) -> str:
    """Return the reason in the ledger of a frame that is left out because that was suggested."""
    return f"left out as suggested: {reason}"


#: How it begins; so the next run remembers it.
AS_SUGGESTED = as_suggested("")
#: The reason in the ledger of a frame that the user named.
EXCLUDED = "left out by the user"

#: A camera of fewer frames has no usual frame of its own.
_FEW = 3
#: A frame of so many stars that shares none is unusual where so large a share of the frames does.
_MANY_STARS, _MOST_HAVE = 10, 0.8
_TEXTS = frozenset({"path", "reason", "frame_id", "date_obs", "filter", "camera", "outline", "placed_by"})
_WHOLE = frozenset({"line", "n_stars", "group", "gain_group", "n_tiles", "n_samples", "n_rejected_low"})
_COUNTS = frozenset({"n_tiles", "n_samples", "n_rejected_low", "n_rejected_high"})
_MAX_REASONS = 3
#: A match this good, in noises of a frame's pixel, is never called bad.
_TRIFLING_RESIDUAL = 0.05
#: A slope this small, in noises of a frame's pixel for a pixel, is never called steep.
_TRIFLING_SLOPE = 0.001
_BLUR_OF_SHIFT = 4.0 * np.log(2.0)  # FWHM^2 that a shift of 1 px, half of it along each axis, adds to a Gaussian


# ---- reading ---------------------------------------------------------------------------------------------


_ROWS_BETWEEN = 8


def read_ledger(path: Path, *, between: Callable[[], None] = lambda: None) -> tuple[list[LedgerRow], int]:
    """Read a ledger.

    Columns that are not there leave their quantity empty, so ledgers of earlier versions can be read.

    Parameters
    ----------
    path : Path
    between : callable
        Called every few rows, for who reads beside something that must not wait.

    Returns
    -------
    rows : list of LedgerRow
        In the order of the file.
    n_channels : int
        1 or 3.

    Raises
    ------
    PlanError
        If there is no ledger, or it is not one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PlanError(f"no earlier run to look at: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not a ledger: it is not UTF-8 text") from error
    try:
        table = []
        for cells in csv.DictReader(io.StringIO(text, newline="")):
            table.append(cells)
            if len(table) % _ROWS_BETWEEN == 0:
                between()
    except csv.Error as error:
        raise PlanError(f"{path} is not a ledger: {error}") from error
    if not table or not {"path", "used"} <= table[0].keys():
        raise PlanError(f"{path} is not a ledger: it has no rows, or no columns 'path' and 'used'")
    n_channels = 3 if any(f"weight_{c}" in table[0] for c in COLOURS) else 1
    rows = []
    for line, cells in enumerate(table, start=2):
        rows.append(_row(path, line, cells, n_channels))
        if line % _ROWS_BETWEEN == 0:
            between()
    return rows, n_channels


def _row(path: Path, line: int, cells: dict[str, str], n_channels: int) -> LedgerRow:
    values = {}
    for name in (f.name for f in fields(LedgerRow)):
        try:
            values[name] = _value(name, cells, n_channels)
        except ValueError as error:
            raise PlanError(f"{path}, row {line}, {name}: {error}") from error
    return LedgerRow(**values)


def _value(name: str, cells: dict[str, str], n_channels: int) -> object:
    """Return a quantity of a row as `LedgerRow` has it."""
    if name in COLOURED:
        names = [f"{name}_{c}" for c in COLOURS] if n_channels == 3 else [name]
        numbers = tuple(float(cells.get(key) or "nan") for key in names)
        return numbers if np.isfinite(numbers).any() else ()
    text = cells.get(name) or ""
    if name in _TEXTS:
        return text
    if name == "used":
        return text == "yes"
    if not text:
        return 0 if name in _COUNTS else None
    return int(text) if name in _WHOLE | _COUNTS else float(text)


# ---- judging ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What a ledger says about its frames.

    Attributes
    ----------
    rows : list of LedgerRow
        The frames in the mosaic, in frame order.
    columns : FrameColumns
        Their quantities as arrays.
    harm : Harm
        Of each of them.
    levels : Levels
        Of the whole mosaic as it is.
    remarks : list of str
        What is unusual about each of them; empty texts for ordinary frames.
    suggested : list of int
        Those that the mosaic would be better without, worst first.
    prediction : Prediction or None
        What leaving them out does; None if none is suggested.
    remembered : dict of str
        Reason by frame id of those that were left out as suggested already.
    placed : int
        Number of frames in the mosaic whose place the ledger tells.
    """

    rows: list[LedgerRow]
    columns: FrameColumns
    harm: Harm
    levels: Levels
    remarks: list[str]
    suggested: list[int]
    prediction: Prediction | None
    remembered: dict[str, str]
    placed: int

    def unusual(self) -> list[int]:
        """Return the frames that are remarked upon but not suggested, worst first."""
        harm = np.nan_to_num(self.harm.total, nan=-np.inf)
        order = np.argsort(-harm, kind="stable").tolist()
        suggested = set(self.suggested)
        return [k for k in order if self.remarks[k] and k not in suggested]

    def to_drop(self) -> dict[str, str]:
        """Return what a run with ``--drop-suggested`` leaves out: reasons by frame id."""
        new = {self.rows[k].frame_id: self.remarks[k] for k in self.suggested}
        return self.remembered | new


def judge(rows: list[LedgerRow], n_channels: int) -> Judgement:
    """Judge the frames of a ledger; the order of its rows does not matter.

    Parameters
    ----------
    rows : list of LedgerRow
    n_channels : int
        Colours of the ledger, 1 or 3.
    """
    used = sorted((row for row in rows if row.used), key=lambda row: (row.frame_id, row.path))
    remembered = {
        row.frame_id: row.reason.removeprefix(AS_SUGGESTED)
        for row in sorted(rows, key=lambda row: row.frame_id)
        if not row.used and row.reason.startswith(AS_SUGGESTED)
    }
    columns = FrameColumns(used, n_channels)
    places, quality = places_of(columns.outlines()), columns.quality()
    stack = Stack(places, quality)
    harm, levels = stack.harm(np.arange(len(used))), stack.levels(np.flatnonzero(stack.covered()))
    remarks = _remarks(columns)
    limit = max(1, int(MAX_SHARE * (len(used) + len(remembered)))) - len(remembered)
    suspects = np.array([bool(text) for text in remarks], dtype=bool)
    suggested = suggest(places, quality, suspects, limit)
    prediction = predict(places, quality, suggested) if suggested else None
    placed = int((np.diff(places.start) > 0).sum())
    return Judgement(used, columns, harm, levels, remarks, suggested, prediction, remembered, placed)


def frames_to_drop(path: Path) -> dict[str, str]:
    """Return the frames that a ledger suggests to leave out, and those that were left out so: reasons by frame id.

    Raises
    ------
    PlanError
        If there is no ledger, or it is not one.
    """
    return judge(*read_ledger(path)).to_drop()


class FrameColumns:
    """The ledger's quantities as arrays, NaN where a frame lacks one."""

    def __init__(self, rows: list[LedgerRow], n_channels: int) -> None:
        self.rows = rows
        self.n_channels = n_channels

    def single(self, name: str) -> np.ndarray:
        """Return a quantity with one value a frame, shape (n,)."""
        values = [getattr(row, name) for row in self.rows]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def coloured(self, name: str) -> np.ndarray:
        """Return a quantity with a value a colour, shape (n, c)."""
        nothing = (np.nan,) * self.n_channels
        return np.array([getattr(row, name) or nothing for row in self.rows]).reshape(-1, self.n_channels)

    def outlines(self) -> np.ndarray:
        """Return the corners of the frames, shape (n, 4, 2)."""
        corners = np.full((len(self.rows), 4, 2), np.nan)
        for k, row in enumerate(self.rows):
            numbers = row.outline.split()
            if len(numbers) == 8:
                corners[k] = np.array([_number(text) for text in numbers]).reshape(4, 2)
        return corners

    def usual(self, values: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
        """Return the median (n,) of the known `values` over the frames of each frame's camera.

        A camera of fewer than `_FEW` frames has no usual one: it is that of all.
        """
        usual = np.full(len(self.rows), _usual(values, otherwise))
        cameras = np.array([f"{row.camera}|{row.filter}" for row in self.rows])
        for camera in np.unique(cameras):
            members = cameras == camera
            if members.sum() >= _FEW:
                usual[members] = _usual(values[members], otherwise)
        return usual

    def noise(self) -> np.ndarray:
        """Return the noise of a frame's pixel in units of the mosaic, (n, c)."""
        return np.abs(self.coloured("gain")) * self.coloured("noise")

    def width(self) -> np.ndarray:
        """Return the FWHM in pixels of the mosaic, (n,)."""
        ratio = self.single("area_ratio")
        return self.single("fwhm_px") / np.sqrt(np.where(ratio > 0, ratio, 1.0))

    def quality(self) -> Quality:
        """Return what decides each frame's part in the mosaic; what is not known is taken as usual, or as none."""
        weight, noise = self.coloured("weight"), self.noise()
        weight = weight * (1.0 - np.nan_to_num(self.single("rejected_fraction")))[:, None]
        weight = np.where(np.isfinite(weight) & np.isfinite(noise), weight, 0.0)
        elongation = np.maximum(np.nan_to_num(self.single("elongation"), nan=1.0), 1.0)
        width = self.width()
        width = np.where(np.isfinite(width), width, _usual(width, 1.0))
        shift = np.nan_to_num(self.single("align_residual_px"))
        # The second moment of an elongated star is that of a round one times the mean of its axes' ratios.
        width2 = width**2 * (elongation + 1.0 / elongation) / 2.0 + _BLUR_OF_SHIFT * shift**2
        residual = np.nan_to_num(np.abs(self.coloured("match_residual")))
        # Samples of one large pixel share its noise.
        ratio = self.single("area_ratio")
        noise = noise / np.sqrt(np.where((ratio > 0) & (ratio < 1), ratio, 1.0))[:, None]
        return Quality(weight, np.nan_to_num(noise), residual, width2)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _usual(values: np.ndarray, otherwise: float = np.nan) -> float:
    """Return the median of the known values."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else otherwise


def root_mean_square(values: np.ndarray) -> np.ndarray:
    """Return it over the colours a frame has, (n,); NaN where it has none."""
    known = np.isfinite(values)
    total = np.where(known, np.square(values), 0.0).sum(axis=1)
    count = known.sum(axis=1)
    return np.where(count > 0, np.sqrt(total / np.maximum(count, 1)), np.nan)


@dataclass(frozen=True)
class _Symptom:
    """A quantity that can be unusual: how far beyond its limit each frame is (1 = at it), and the words for it."""

    excess: np.ndarray
    words: Callable[[int], str]


def _symptoms(columns: FrameColumns) -> Iterator[_Symptom]:
    """Yield what can be wrong with a frame."""
    width, elongation = columns.width(), columns.single("elongation")
    light, shift = columns.single("transparency"), columns.single("align_residual_px")
    rejected = columns.single("rejected_fraction")
    noise = root_mean_square(columns.noise())
    left = root_mean_square(columns.coloured("match_residual"))
    slope = np.hypot(
        root_mean_square(columns.coloured("gradient_x")), root_mean_square(columns.coloured("gradient_y"))
    )
    wide = width / columns.usual(width)
    yield _Symptom(wide / 1.25, lambda k: f"its stars are {_times(wide[k])} as wide as usual")
    long_limit = np.maximum(1.4, 1.3 * columns.usual(elongation, 1.0))
    yield _Symptom(elongation / long_limit, lambda k: f"its stars are drawn out, {elongation[k]:.1f} : 1")
    dim = np.where(light > 0, 0.75 / np.where(light > 0, light, 1.0), np.where(light <= 0, np.inf, np.nan))
    yield _Symptom(dim, lambda k: f"clouds: {100 * (1 - light[k]):.0f} % of the light lost")
    usual_noise = np.maximum(columns.usual(noise, 0.0), np.finfo(float).tiny)
    rest = left / np.maximum(columns.usual(left, 0.0), _TRIFLING_RESIDUAL * usual_noise)
    yield _Symptom(rest / 3.0, lambda k: f"what is left after the match is {_times(rest[k])} the usual")
    shift_limit = np.maximum(0.7, 2.0 * columns.usual(shift, 0.0))
    yield _Symptom(shift / shift_limit, lambda k: f"it lies {shift[k]:.1f} px beside its neighbours")
    # A WCS that is very wrong: further off, or turned more, than common stars are looked for.
    stars = columns.single("n_stars")
    alone = np.isnan(shift) & (stars >= _MANY_STARS) & (np.isfinite(shift).sum() > _MOST_HAVE * shift.size)
    yield _Symptom(
        np.where(alone, 2.0, 0.0), lambda k: f"none of its {stars[k]:.0f} stars is where its neighbours see them"
    )
    rejected_limit = np.maximum(0.05, 3.0 * columns.usual(rejected, 0.0))
    yield _Symptom(rejected / rejected_limit, lambda k: f"{100 * rejected[k]:.0f} % of its pixels were rejected")
    loud = noise / usual_noise
    yield _Symptom(loud / 2.0, lambda k: f"its noise is {_times(loud[k])} the usual")
    steep = slope / np.maximum(columns.usual(slope, 0.0), _TRIFLING_SLOPE * usual_noise)
    yield _Symptom(steep / 5.0, lambda k: f"its sky gradient is {_times(steep[k])} as steep as usual")


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"


def _remarks(columns: FrameColumns) -> list[str]:
    """Return what is unusual about each frame in words, the worst first."""
    symptoms = list(_symptoms(columns))
    excess = np.nan_to_num(np.array([symptom.excess for symptom in symptoms]), nan=0.0, posinf=np.inf)
    order = np.argsort(-excess, axis=0, kind="stable")[:_MAX_REASONS]
    return [
        "; ".join(symptoms[i].words(k) for i in order[:, k] if excess[i, k] >= 1.0)
        for k in range(len(columns.rows))
    ]
