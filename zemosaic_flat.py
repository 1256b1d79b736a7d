"""The flat field of a detector, estimated from the stars and the sky of its own frames, and how it is divided out.

Vignetting multiplies light by a smooth pattern ``F(x, y)`` that stays on the detector while the sky moves over it.
``log F`` is a polynomial of total degree `DEGREE` with mean 0 over the detector, one a colour. Stars decide: one
star seen at two places of the detector by two frames differs by the pattern and the frames' gains alone, whatever
the sky and the nebulae do (a ubercalibration: N. Padmanabhan et al., ApJ 674, 1217, 2008). Shapes of the pattern
that the stars cannot tell, because the sky did not move that way, are left out.

The sky tells the same far more precisely, but cannot tell light from a pedestal or a glow of the camera. So it may
sharpen what the stars say, and the pedestal with it, as long as it stays within their errors; else it only finds
the pedestal. What a plane for each pair of frames could do to a sky takes no part.

Kernels over arrays: no header, no file. The cost is linear in the number of detections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import numpy as np
from scipy.linalg import block_diag, eigh
from scipy.sparse import csr_array

from zemosaic_detections import Detections
from zemosaic_links import tied_groups
from zemosaic_two_levels import Boxes, CoarseLevel, conjugate_gradients, without_means
from zemosaic_types import MAD_TO_SIGMA, FlatModel, Rect, Tell, part_of, tell_nobody

#: Total degree of the logarithm of the pattern.
DEGREE = 4
#: A shape of the pattern that the stars tell with a larger error than this, rms over the detector, is left out.
MAX_MODE_ERROR = 0.005
#: A detection counts if its star's signal to noise is usually above this; never by its own, or the darker places
#: would keep only those that noise has lifted.
MIN_SIGNAL_TO_NOISE = 15.0
#: By what share the pattern of a colour is usually stronger or weaker than that of all light, and by what share of
#: its rms it may differ in any other shape, if the sky says so.
COLOUR_STRENGTH, COLOUR_SPREAD = 0.15, 0.03
#: So many detections at most are used, of the brightest stars of every frame.
MAX_DETECTIONS = 400_000

_POWERS = tuple((i, total - i) for total in range(1, DEGREE + 1) for i in range(total, -1, -1))
_INVERSE_DEGREE = 6  # of 1 / F as it is applied; 30 % at the corners are met to 2e-4
_DARKEST = 0.3  # a pattern below this is no vignetting

_FLUX_FLOOR = 0.01  # relative: crowding, undersampling
_STAR_FREEDOM = 4.0
_HUBER = 1.5
_LEAST_VARIANCE = 0.1  # of residuals, in units of what their errors say
_ROUNDS = 8
_SKY_ROUNDS = 5
_MIN_CELLS = 12
_DISAGREEMENT_SIGMA = 5.0
_CG_TOLERANCE = 1e-11
_CG_STEPS = 2000
_GRID = 33
_BLOCK = 1024  # rows


@dataclass(frozen=True)
class SharedSky:
    """Sky levels of the same k boxes of the canvas in two frames.

    `frames` are their numbers, `x` and `y` (2, k) the boxes' places on the detector, `level` is (2, k, c), frame
    units, without gaps.
    """

    frames: tuple[int, int]
    x: np.ndarray
    y: np.ndarray
    level: np.ndarray


@dataclass(frozen=True)
class StarFlat:
    """What the stars say of the pattern, c colours.

    Attributes
    ----------
    terms : ndarray, shape (c, k)
        Coefficients of ``log F`` on the basis of `basis`.
    modes : ndarray, shape (k, q)
        Shapes of the pattern that the stars can tell, as coefficients; each is 1 rms over the detector, and they
        are told independently of each other.
    amplitudes : ndarray, shape (c, q)
        How much of each mode: ``terms = amplitudes @ modes.T``.
    information : ndarray, shape (c, q, q)
        Inverse covariance of `amplitudes`.
    log_gain : ndarray, shape (n,)
        Logarithm of what the frames' fluxes are to be multiplied by; NaN for a frame without stars.
    group : ndarray, shape (n,)
        Frames tied by stars; their gains can be compared.
    n_detections : int
        How many were used.
    significance, rms : float
        Of the pattern in the light of all colours: by how many standard deviations chi squared exceeds that of no
        pattern at all, and the rms of ``log F`` over the detector less what its errors add.
    """

    terms: np.ndarray
    modes: np.ndarray
    amplitudes: np.ndarray
    information: np.ndarray
    log_gain: np.ndarray
    group: np.ndarray
    n_detections: int
    significance: float
    rms: float


@dataclass(frozen=True)
class SkyFlat:
    """The pattern as stars and sky tell it together.

    `terms` are those of `StarFlat`; `agrees` tells whether the sky was let in on them, or only found the
    `pedestal` (frame units). `unevenness` are residuals of the sky that planes cannot take away, without and with
    the pattern divided out, relative to the sky.
    """

    terms: np.ndarray
    pedestal: float
    agrees: bool
    unevenness: tuple[float, float]


def detector_coordinates(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return distances ``(u, v)`` from the detector's middle in units of half its diagonal, float64."""
    ny, nx = shape
    half = 0.5 * float(np.hypot(ny, nx))
    return (np.asarray(x, float) - 0.5 * (nx - 1)) / half, (np.asarray(y, float) - 0.5 * (ny - 1)) / half


def basis(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the polynomials that ``log F`` is made of at pixels (m,), mean 0 over the detector, (m, k)."""
    return _powers(*detector_coordinates(x, y, shape)) - _mean_powers(shape)


def _powers(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    of_u, of_v = ([np.ones_like(w), *accumulate([w] * DEGREE, np.multiply)] for w in (u, v))
    return np.stack([of_u[i] * of_v[j] for i, j in _POWERS], axis=-1)


@lru_cache(maxsize=16)
def _mean_powers(shape: tuple[int, int]) -> np.ndarray:
    """Return the means of the powers over the detector, the same for all places and frames."""
    means = _powers(*_detector_grid(shape)).mean(axis=0)
    means.flags.writeable = False
    return means


def _detector_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (u, v) of places that stand for equal areas of the detector."""
    ny, nx = shape
    middle = (np.arange(_GRID) + 0.5) / _GRID
    x, y = np.meshgrid(middle * nx - 0.5, middle * ny - 0.5)
    return detector_coordinates(x.ravel(), y.ravel(), shape)


def _gram(shape: tuple[int, int]) -> np.ndarray:
    design = _powers(*_detector_grid(shape)) - _mean_powers(shape)
    return design.T @ design / len(design)


# ---------------------------------------------------------------------------------------------------- the stars


def stars_flat(stars: Detections, n_frames: int, shape: tuple[int, int], *, tell: Tell = tell_nobody) -> StarFlat:
    """Solve the pattern from stars alone: robust weighted least squares without brightnesses and gains.

    Parameters
    ----------
    stars : Detections
        Of one instrument's frames; their places on the canvas take no part.
    n_frames : int
        Their frames are numbered below this.
    shape : tuple of int
        ``(ny, nx)`` of the detector.
    tell : callable
        Told the share that is done; may end the work.

    Returns
    -------
    StarFlat
        Without modes if the stars tell nothing.
    """
    light = stars.light()
    colours = stars.flux.shape[1] if stars.flux.shape[1] > 1 else 0
    first = 1.0 / (1 + colours)
    white = _solve_channel(_usable(stars, *light, n_frames), n_frames, shape, part_of(tell, 0.0, first))
    strength, modes = eigh(white.information, _gram(shape))
    modes = modes[:, strength > 1.0 / MAX_MODE_ERROR**2][:, ::-1]
    information, pull = modes.T @ white.information @ modes, modes.T @ white.pull
    amplitudes = np.linalg.solve(information, pull)
    alone = StarFlat(
        terms=(modes @ amplitudes)[None],
        modes=modes,
        amplitudes=amplitudes[None],
        information=information[None],
        log_gain=white.log_gain(modes @ amplitudes),
        group=white.group,
        n_detections=white.n_detections,
        significance=_excess_sigma(float(amplitudes @ pull), amplitudes.size),
        rms=float(np.sqrt(max(0.0, np.square(amplitudes).sum() - np.trace(np.linalg.inv(information))))),
    )
    if not colours or not modes.size:
        return alone
    return _in_colours(alone, stars, n_frames, shape, part_of(tell, first, 1.0))


def _in_colours(white: StarFlat, stars: Detections, n_frames: int, shape: tuple[int, int], tell: Tell) -> StarFlat:
    """Return the pattern of every colour: that of all light, as strong as the colour's own stars say.

    They are too faint to be asked more; a wrong slope of one colour against another would show as coloured fans.
    """
    usual = white.amplitudes[0]
    variance = np.linalg.inv(white.information[0]) + (COLOUR_SPREAD * white.rms) ** 2 * np.eye(usual.size)
    amplitudes, information = [], []
    colours = stars.flux.shape[1]
    for c, (flux, error) in enumerate(zip(stars.flux.T, stars.error.T, strict=True)):
        part = part_of(tell, c / colours, (c + 1) / colours)
        own = _solve_channel(_usable(stars, flux, error, n_frames), n_frames, shape, part)
        pattern = white.modes @ usual
        certainty = pattern @ own.information @ pattern + 1.0 / COLOUR_STRENGTH**2
        stronger = pattern @ (own.pull - own.information @ pattern) / certainty
        amplitudes.append((1.0 + stronger) * usual)
        information.append(np.linalg.inv(variance + np.outer(usual, usual) / certainty))
    amplitudes, information = np.stack(amplitudes), np.stack(information)
    return replace(white, terms=amplitudes @ white.modes.T, amplitudes=amplitudes, information=information)


@dataclass(frozen=True)
class _Channel:
    """Normal equations of one colour, ``information @ terms = pull``, and how frames' gains follow from terms."""

    information: np.ndarray
    pull: np.ndarray
    effects: np.ndarray
    group: np.ndarray
    n_detections: int

    def log_gain(self, terms: np.ndarray) -> np.ndarray:
        """Return (n,); `effects` (n, 1 + k) are the frames' parts in the logarithm of flux and in the basis."""
        return self.effects[:, 1:] @ terms - self.effects[:, 0]


def _usable(stars: Detections, flux: np.ndarray, error: np.ndarray, n_frames: int) -> Detections:
    """Return the detections, with fluxes (m,), of stars that are bright enough and seen more than once."""
    flux, error = flux.astype(float), error.astype(float)
    one = replace(stars, flux=flux, error=error).chosen((flux > 0) & (error > 0))
    one = one.chosen(_group_median(one.star, one.flux / one.error) >= MIN_SIGNAL_TO_NOISE)
    one = one.chosen(_brightest(one.frame, one.flux, max(10, MAX_DETECTIONS // max(1, n_frames))))
    count = np.bincount(one.star)
    return one.chosen(count[one.star] > 1)


def _group_median(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return for each value the median of its group (the lower one of two middle values)."""
    order = np.lexsort((values, group))
    _, start, inverse, count = np.unique(group[order], return_index=True, return_inverse=True, return_counts=True)
    out = np.empty(values.size)
    out[order] = values[order][start + (count - 1) // 2][inverse]
    return out


def _brightest(frame: np.ndarray, flux: np.ndarray, most: int) -> np.ndarray:
    """Return which detections are among the `most` brightest of their frame, as ascending indices."""
    order = np.lexsort((-flux, frame))
    _, start, inverse = np.unique(frame[order], return_index=True, return_inverse=True)
    rank = np.arange(order.size) - start[inverse]
    return np.sort(order[rank < most])


def _solve_channel(one: Detections, n_frames: int, shape: tuple[int, int], tell: Tell) -> _Channel:
    k, m = len(_POWERS), one.flux.size
    if m == 0:
        nothing = np.full((n_frames, 1 + k), np.nan)
        return _Channel(np.zeros((k, k)), np.zeros(k), nothing, np.arange(n_frames), 0)
    columns = np.column_stack([np.log(one.flux), basis(one.frame_x, one.frame_y, shape)])
    columns[:, 0] -= columns[:, 0].mean()
    given = base = 1.0 / (np.square(one.error / one.flux) + _FLUX_FLOOR**2)
    number = np.unique(one.star, return_inverse=True)[1]
    group = tied_groups(one.frame, number, n_frames)
    ties = np.unique(group[one.frame]).size
    free = max(1, m - (number.max() + 1) - (np.unique(one.frame).size - ties) - k)
    weight, terms, scale = base, None, 1.0
    frames = _Frames(one, number, group)
    effects = np.zeros((n_frames, 1 + k))
    for turn in range(_ROUNDS):
        tell(turn / _ROUNDS)
        rest, effects = frames.without_effects(columns, weight, effects)
        products = _weighted_products(rest, weight)
        normal, pull = products[1:, 1:], products[1:, 0]
        before, terms = terms, np.linalg.lstsq(normal, pull, rcond=1e-12)[0]
        left = rest[:, 0] - _combined(rest[:, 1:], terms)
        standard = left * np.sqrt(base)
        scale = MAD_TO_SIGMA * float(np.median(np.abs(standard))) * np.sqrt(m / free)
        if scale == 0.0 or (before is not None and np.abs(_combined(rest[:, 1:], terms - before)).max() < 1e-6):
            break
        base = given / np.maximum(1.0, _own_scatter(left * np.sqrt(given) / scale, number))
        standard = left * np.sqrt(base)
        weight = base * np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(standard), 1e-12))
    effects[np.bincount(one.frame, minlength=n_frames) == 0] = np.nan
    spread = _influence(standard, max(scale, 1e-9)) * np.sqrt(m / free)
    # Residuals far below their errors are those of detections too few to contradict each other.
    trust = max(weight.sum() / base.sum() * spread**2, _LEAST_VARIANCE)
    return _Channel(normal / trust, pull / trust, effects, group, m)


def _combined(columns: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Return ``columns @ terms`` without waking a library's threads, whose waiting costs more than they save."""
    return np.einsum("mq,q->m", columns, terms)


def _weighted_products(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the products (q, q) of columns (m, q), weighted, in blocks too small for threads."""
    total = np.zeros((columns.shape[1],) * 2)
    for first in range(0, len(columns), _BLOCK):
        part = columns[first : first + _BLOCK]
        total += (part.T * weight[first : first + _BLOCK]) @ part
    return total


def _own_scatter(standard: np.ndarray, star: np.ndarray) -> np.ndarray:
    """Return for each detection the variance of its star's standardised residuals; near 1 for rare stars."""
    freedom = np.bincount(star) - 1.0 + _STAR_FREEDOM
    return ((np.bincount(star, standard**2) + _STAR_FREEDOM) / freedom)[star]


def _influence(standard: np.ndarray, scale: float) -> float:
    """Return the standard error of a Huber estimate of one value of error 1 (asymptotic; P. J. Huber, 1964)."""
    inside = np.abs(standard) <= _HUBER * scale
    psi = np.clip(standard, -_HUBER * scale, _HUBER * scale)
    return float(np.sqrt(np.mean(psi**2)) / max(0.1, inside.mean()))


class _Frames:
    """Takes the stars' and the frames' parts out of what detections of stars, by number, say.

    Stars are eliminated exactly; what is left, a sparse system of the frames, is solved by conjugate gradients.
    It lacks a constant a group of frames, which takes no part in the result.
    """

    def __init__(self, one: Detections, star: np.ndarray, group: np.ndarray) -> None:
        self.frame, self.star, self.group, n = one.frame, star, group, group.size
        count = np.bincount(one.frame, minlength=n)
        self.start = np.concatenate([[0], np.cumsum(count)])
        middle, square = np.empty((2, n)), np.zeros(n)
        for axis, at in enumerate((one.x, one.y)):
            middle[axis] = np.bincount(one.frame, at, minlength=n) / np.maximum(count, 1)
            square += np.bincount(one.frame, np.square(at - middle[axis][one.frame]), minlength=n)
        self.boxes = Boxes.of(middle.T, np.sqrt(square / np.maximum(count, 1)))
        self.coarse: CoarseLevel | None = None

    def without_effects(
        self, columns: np.ndarray, weight: np.ndarray, guess: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return columns (m, q) less the stars' and frames' parts in them, and the latter (n, q), near a guess."""
        frame, star, m, n = self.frame, self.star, weight.size, self.group.size
        of_star, of_frame = np.bincount(star, weight), np.bincount(frame, weight, minlength=n)[:, None]
        share = weight / of_star[star]
        means = csr_array((share, star, np.arange(m + 1)), shape=(m, of_star.size)).T
        frames_to_stars = csr_array((share, star, self.start), shape=(n, of_star.size)).T
        stars_to_frames = csr_array((weight, star, self.start), shape=(n, of_star.size))
        sums = csr_array((weight, np.arange(m), self.start), shape=(n, m))
        precondition = self._preconditioner(weight, of_star, of_frame)
        at_stars = means @ columns
        right = sums @ columns - stars_to_frames @ at_stars
        goal = _CG_TOLERANCE**2 * np.einsum("nq,nq->q", right, precondition(right))
        effects, _ = conjugate_gradients(
            lambda g: of_frame * g - stars_to_frames @ (frames_to_stars @ g),
            precondition,
            right,
            guess,
            lambda _, norm: norm <= goal,
            most=_CG_STEPS,
        )
        rest = columns - np.repeat(effects, np.diff(self.start), axis=0)
        rest -= (at_stars - frames_to_stars @ effects)[star]
        return rest, effects

    def _preconditioner(
        self, weight: np.ndarray, of_star: np.ndarray, of_frame: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return what is about the inverse of the frames' system; the boxes are those of the first weights."""
        if self.coarse is None:
            n = self.group.size
            equations = self.frame, self.star, weight, of_star
            self.coarse = CoarseLevel(
                self.boxes, np.ones((n, 1, 1)), *equations, lambda at, _: np.ones((at.size, 1)), np.zeros((n, 1))
            )
        coarse, own, group = self.coarse, 1.0 / np.where(of_frame > 0.0, of_frame, 1.0), self.group

        def precondition(right: np.ndarray) -> np.ndarray:
            level = without_means(right, group)
            return without_means(own * level + coarse(level), group)

        return precondition


def _excess_sigma(chi_squared: float, freedom: int) -> float:
    return (chi_squared - freedom) / np.sqrt(2.0 * freedom) if freedom else 0.0


# ------------------------------------------------------------------------------------------------------ the sky


def sky_flat(star: StarFlat, skies: list[SharedSky], shape: tuple[int, int]) -> SkyFlat:
    """Sharpen the stars' pattern with the sky, and find the pedestal that no light has part in.

    The levels of two frames at one place of the canvas, scaled by the frames' gains, may differ by a plane, by the
    error of the pattern times the sky, and by the pedestal divided by the pattern: a linear problem, which is
    solved together with what the stars say, from one linearisation to the next. The pedestal is held between 0
    and the lowest level.

    Parameters
    ----------
    star : StarFlat
    skies : list of SharedSky
        Those of frames that no stars tie are passed over. Without any the pedestal is 0.
    shape : tuple of int
        ``(ny, nx)`` of the detector.
    """
    tied = [sky for sky in skies if _is_tied(sky, star)]
    if not tied:
        return SkyFlat(star.terms, 0.0, False, (np.nan, np.nan))
    lowest = max(0.0, min(float(sky.level.min()) for sky in tied))
    pairs = [_prepare(sky, star, shape) for sky in tied]
    for agrees in (True, False):
        amplitudes, pedestal = _with_sky(star, pairs, lowest, free=agrees)
        shift = amplitudes - star.amplitudes
        chi_squared = float(np.einsum("cq,cqp,cp->", shift, star.information, shift))
        if _excess_sigma(chi_squared, shift.size) < _DISAGREEMENT_SIGMA:
            break
    unevenness = _unevenness(pairs, np.zeros_like(amplitudes), pedestal), _unevenness(pairs, amplitudes, pedestal)
    return SkyFlat(amplitudes @ star.modes.T, pedestal, agrees, unevenness)


def _is_tied(sky: SharedSky, star: StarFlat) -> bool:
    i, j = sky.frames
    known = np.isfinite(star.log_gain[i]) and np.isfinite(star.log_gain[j])
    return bool(known and star.group[i] == star.group[j] and sky.x.shape[1] >= _MIN_CELLS)


@dataclass(frozen=True)
class _SkyPair:
    """Sky that two frames share.

    Levels (2, k, c) and gains (2,), the stars' modes (2, k, q) at the boxes' places on the detector, and an
    orthonormal basis (k, 3) of the planes that are taken out of differences.
    """

    frames: tuple[int, int]
    level: np.ndarray
    gain: np.ndarray
    modes: np.ndarray
    plane: np.ndarray

    def difference(self, amplitudes: np.ndarray, pedestal: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the differences (c, k) without pattern and pedestal, and how they fall with more of them.

        The second is (c, k, q + 1): modes, pedestal. What a plane could do is taken out of both.
        """
        channels, q = amplitudes.shape
        scale = np.moveaxis(self.gain[:, None, None] * np.exp(-self.modes @ amplitudes.T), 2, 1)
        light = scale * (np.moveaxis(self.level, 2, 1) - pedestal)
        columns = np.empty((channels, light.shape[2], q + 2))
        columns[:, :, 0] = light[0] - light[1]
        columns[:, :, 1:-1] = light[0, :, :, None] * self.modes[0] - light[1, :, :, None] * self.modes[1]
        columns[:, :, -1] = scale[0] - scale[1]
        columns -= self.plane @ (self.plane.T @ columns)
        return columns[:, :, 0], columns[:, :, 1:]


def _prepare(sky: SharedSky, star: StarFlat, shape: tuple[int, int]) -> _SkyPair:
    u, v = detector_coordinates(sky.x[0], sky.y[0], shape)
    plane = np.linalg.qr(np.column_stack([np.ones(u.size), u, v]))[0]
    modes = np.stack([basis(x, y, shape) @ star.modes for x, y in zip(sky.x, sky.y, strict=True)])
    return _SkyPair(sky.frames, sky.level, np.exp(star.log_gain[list(sky.frames)]), modes, plane)


def _with_sky(star: StarFlat, pairs: list[_SkyPair], lowest: float, *, free: bool) -> tuple[np.ndarray, float]:
    """Return amplitudes (c, q) and pedestal; with `free` false the amplitudes stay those of the stars."""
    channels, q = star.amplitudes.shape
    inner = np.arange(channels * q)
    amplitudes, pedestal = star.amplitudes, 0.5 * lowest
    doubt = 0.5 * max(lowest, 1.0)
    frames = len({k for pair in pairs for k in pair.frames})
    reuse = max(1.0, len(pairs) / frames)  # pairs that share a frame share its errors
    for _ in range(_SKY_ROUNDS):
        normal, pull = _sky_equations(pairs, amplitudes, pedestal)
        normal, pull = normal / reuse, pull / reuse
        normal[np.ix_(inner, inner)] += block_diag(*star.information)
        pull[inner] += np.einsum("cqp,cp->cq", star.information, star.amplitudes - amplitudes).ravel()
        normal[-1, -1] += 1.0 / doubt**2
        pull[-1] += (0.5 * lowest - pedestal) / doubt**2
        change = np.linalg.solve(normal, pull)[-1] if free else pull[-1] / normal[-1, -1]
        change = float(np.clip(pedestal + change, 0.0, lowest)) - pedestal
        if free:
            rest = pull[inner] - normal[inner, -1] * change
            amplitudes = amplitudes + np.linalg.solve(normal[np.ix_(inner, inner)], rest).reshape(channels, q)
        pedestal += change
    return amplitudes, pedestal


def _sky_equations(
    pairs: list[_SkyPair], amplitudes: np.ndarray, pedestal: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the normal equations of steps of amplitudes and pedestal, robust in every pair and colour."""
    channels, q = amplitudes.shape
    total, towards = np.zeros((channels, q + 1, q + 1)), np.zeros((channels, q + 1))
    for pair in pairs:
        y, design = pair.difference(amplitudes, pedestal)
        away = np.abs(y)
        spread = np.maximum(MAD_TO_SIGMA * np.median(away, axis=1, keepdims=True), 1e-9)
        weight = np.minimum(1.0, _HUBER * spread / np.maximum(away, 1e-12)) / spread**2
        weighted = np.moveaxis(design, 2, 1) * weight[:, None, :]
        total += weighted @ design
        towards += (weighted @ y[:, :, None])[:, :, 0]
    normal, pull = np.zeros((channels * q + 1,) * 2), np.zeros(channels * q + 1)
    for c in range(channels):
        at = np.append(np.arange(c * q, (c + 1) * q), channels * q)
        normal[np.ix_(at, at)] += total[c]
        pull[at] += towards[c]
    return normal, pull


def _unevenness(pairs: list[_SkyPair], amplitudes: np.ndarray, pedestal: float) -> float:
    """Return the rms difference of two frames' levels that a plane leaves, over their level; median of pairs."""
    found = []
    for pair in pairs:
        y, _ = pair.difference(amplitudes, pedestal)
        sky = pair.gain[0] * np.median(pair.level[0], axis=0)
        found.append(np.sqrt(np.square(y).mean(axis=1)) / np.maximum(sky, 1e-9))
    return float(np.median(found))


# ------------------------------------------------------------------------------------------------ dividing it out


def flat_model(terms: np.ndarray, pedestal: float, shape: tuple[int, int]) -> FlatModel | None:
    """Return what undoes the pattern ``exp(basis @ terms[c]) / mean``; None if it is too dark to be vignetting.

    The inverse of the pattern is put into a polynomial, which every kind of processor evaluates alike.
    """
    edges = np.linspace(-1.02, 1.02, _GRID)
    ny, nx = shape
    of_u, of_v = edges * nx / np.hypot(nx, ny), edges * ny / np.hypot(nx, ny)
    at_edges = _powers(*(w.ravel() for w in np.meshgrid(of_u, of_v))) - _mean_powers(shape)
    inside = _powers(*_detector_grid(shape)) - _mean_powers(shape)
    planes = []
    for term in terms:
        pattern = np.exp(_combined(at_edges, term)) / np.exp(_combined(inside, term)).mean()
        if not (pattern.min() > _DARKEST and pattern.max() < 1.0 / _DARKEST):
            return None
        table = _polynomial(of_u, of_v, 1.0 / pattern.reshape(_GRID, _GRID))
        planes.append(tuple(map(tuple, table.tolist())))
    return FlatModel(shape, tuple(planes), float(pedestal))


def _polynomial(u: np.ndarray, v: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the coefficients [j, i] of ``v**j * u**i``, ``i + j`` up to the degree, that fit values (v, u) best.

    Products of polynomials that are orthonormal over u and over v are orthonormal over the grid.
    """
    n = _INVERSE_DEGREE + 1
    (q_u, r_u), (q_v, r_v) = (np.linalg.qr(np.vander(w, n, increasing=True)) for w in (u, v))
    fitted = np.where(np.add.outer(np.arange(n), np.arange(n)) < n, q_v.T @ values @ q_u, 0.0)
    return np.linalg.solve(r_v, np.linalg.solve(r_u, fitted.T).T) + 0.0  # no zero is negative


def section_polynomials(flat: FlatModel, section: Rect) -> tuple[np.ndarray, np.ndarray]:
    """Return what evaluates ``Q`` over a section of the frame, by Horner's rule along the rows.

    Returns
    -------
    rows : ndarray, shape (c, d + 1, h), float64
        Coefficients of the powers of u in each row.
    columns : ndarray, shape (w,), float64
        u of each column. Both depend on the pixel's place in the frame alone, so that every section gives a pixel
        the same value.
    """
    u, v = detector_coordinates(np.arange(section.x0, section.x1), np.arange(section.y0, section.y1), flat.shape)
    table = np.array(flat.coefficients)
    rows = np.empty((table.shape[0], table.shape[2], v.size))
    rows[...] = table[:, -1, :, None]
    for j in range(table.shape[1] - 2, -1, -1):
        rows *= v
        rows += table[:, j, :, None]
    return rows, u


def correction_at(flat: FlatModel, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``Q`` at pixels (m,) of the frame, (m, c) float64: what light there is to be multiplied by."""
    u, v = detector_coordinates(x, y, flat.shape)
    return np.stack(
        [np.polynomial.polynomial.polyval2d(v, u, np.array(table)) for table in flat.coefficients], axis=-1
    )


def corner_loss(flat: FlatModel) -> tuple[float, ...]:
    """Return by which share the corners, their mean, are darker than the middle, a value a colour (negative)."""
    ny, nx = flat.shape
    x, y = np.array([0, nx - 1, 0, nx - 1, 0.5 * (nx - 1)]), np.array([0, 0, ny - 1, ny - 1, 0.5 * (ny - 1)])
    pattern = 1.0 / correction_at(flat, x, y)
    return tuple((pattern[:4].mean(axis=0) / pattern[4] - 1.0).tolist())


@lru_cache(maxsize=16)
def median_correction(flat: FlatModel) -> np.ndarray:
    """Return the median of ``Q`` over the detector, (c,): what the sky and the noise of a whole frame see.

    It is the same for all frames, and made once.
    """
    ny, nx = flat.shape
    middle = (np.arange(_GRID) + 0.5) / _GRID
    x, y = np.meshgrid(middle * nx - 0.5, middle * ny - 0.5)
    median = np.median(correction_at(flat, x.ravel(), y.ravel()), axis=0)
    median.flags.writeable = False
    return median
