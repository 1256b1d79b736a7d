"""How far a finished mosaic is from the truth of a simulated survey.

Nothing here knows how ZeMosaic makes a mosaic: the ideal comes from the truth of the frames and from exact WCS
positions only, so a mosaic of any program can be scored. The ideal mosaic is the mean of the samples of the
frames that cover a pixel, each divided by its transparency and weighted by the inverse of its variance.

Brightness is compared in the truth's units, ADU a frame pixel at transparency 1; the mosaic's own scale is
measured from its stars and divided out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import sep
from astropy.wcs import WCS
from scipy.optimize import brentq
from scipy.spatial import cKDTree
from scipy.special import erf, erfinv

from zemosaic_synthetic import (
    SIGMA_PER_FWHM,
    FrameTruth,
    Survey,
    frame_wcs,
    render_nebula,
    star_positions,
    world_to_pixel,
)
from zemosaic_truth_ideal import SATURATED_ADU, ideal_noise, in_image, pixel_area, sampled_fraction
from zemosaic_truth_rejection import MIN_DEPTH, rejection_scores
from zemosaic_types import MAD_TO_SIGMA, ZeMosaicError

NOISE_BOX_PX = 8
LEVEL_BOX_PX = 32
MIN_SNR = 30.0  # stars of the faint half of the flux comparison start here
BRIGHT_SNR = 100.0  # stars whose flux scatter is scored
POSITION_SNR = 250.0  # stars whose photon noise of position is below 0.006 px
SCATTER_QUANTILE = 0.9  # of the deviations: forgives a few odd stars, but not one panel of six
MIN_STARS = 5  # fewer give no figure

_APERTURE_FWHM = 2.5
#: Side of the fields whose mean star fluxes are compared, and the stars that a mean needs.
SLOW_BOX_PX, MIN_SLOW_STARS = 512, 5
_QUANTILE_SIGMAS = float(np.sqrt(2.0) * erfinv(SCATTER_QUANTILE))


@dataclass(frozen=True)
class MosaicScore:
    """Distances of a mosaic from the truth; NaN where there was too little to measure.

    Tuples have one value a channel.

    Attributes
    ----------
    position_rms_px : float
        Root mean square of the distances of star centroids from the truth along x and y, all channels.
    position_offset_px : tuple of float
        Mean distance along x and y: 0 unless the whole mosaic is shifted.
    flux_ratio : tuple of float
        Mosaic's brightness over the truth's (its scale; not an error).
    flux_scatter, flux_photon, flux_excess : tuple of float
        Relative scatter of star fluxes (from the 90 % quantile of the deviations), the part that photon noise
        explains, and the rest (in quadrature), for stars above `BRIGHT_SNR`.
    flux_slow : tuple of float
        Slow variation of the fluxes over the field: root mean square of the mean deviations of fields of
        `SLOW_BOX_PX` a side that hold at least `MIN_SLOW_STARS` of those stars.
    flux_bias, flux_bias_error : tuple of float
        Bright against faint: the median of flux over true flux of those stars, over the median of the stars of
        signal to noise `MIN_SNR` to `BRIGHT_SNR`, less 1; and its standard error from photon noise. The signal
        to noise is that of the true flux in the ideal mosaic, so noise lifts no star into a class; fluxes are
        sums within 2.5 times the widest FWHM less the mean of a starless ring, of stars that stand alone.
    noise_ratio : tuple of float
        Background noise of means of 8 x 8 px over that of the ideal mosaic. Resampling that smooths carries
        noise across the boxes' edges, which brings it below 1 without any gain: to about 0.96 for bilinear,
        and 0.92 for demosaiced red and blue.
    trail_residue : float
        Mean excess along the satellite trails of the frames, in sigma of a pixel of the ideal mosaic, where at
        least `zemosaic_truth_rejection.MIN_DEPTH` frames overlap.
    level_rms, level_max : tuple of float
        Medians of 32 x 32 px of mosaic less nebula less a constant, in sigma of a pixel of the ideal mosaic.
    level_step : tuple of float
        Root mean square of the difference of such a box from the next, in the same unit; noise alone makes 0.066.
    colour_step : tuple of float
        The same of red less green and blue less green, in sigma of such a difference; empty for one channel.
    coverage_error : float
        Pixels where the coverage is above zero and no frame is, or the reverse, over the pixels that the frames
        cover.
    outlier_ppm, n_outlier_pixels : tuple
        Pixels off from the noiseless ideal mosaic by more than 6 sigma, in parts per million of the pixels looked
        at, and the number of those: where at least `MIN_DEPTH` frames overlap, saturated stars left out. Sigma
        is the noise of the ideal mean there, starlight's photons included and resampling not (it makes sigma
        smaller), with 2 % (colour: 5 %) of the largest step of its stars to a pixel around in quadrature, since
        a flank depends on which frames' seeing enters; medians of 32 x 32 px of the difference are taken away.
        A resampling that smooths stars, as bilinear does, shows here.
    false_rejections, n_clean_samples : tuple
        Share of samples that the coverage lacks, less the 0.27 % that a 3 sigma clip takes of normal samples,
        and the number of samples there: where at least `MIN_DEPTH` frames overlap and no frame has a trail, a
        cosmic ray, a hot pixel or a saturated star within reach of the kernels. NaN for a coverage in weights.
    false_rejections_sky, n_sky_samples, false_rejections_steep, n_steep_samples : tuple
        The same where there is no starlight, and where the ideal mosaic's step to a pixel around is larger than
        the noise of a sample.
    false_rejections_peaks, n_peak_samples : tuple
        The same at the central pixels of stars that stand 5 sigma of a sample high: the frame of the best seeing
        is the one that is easily taken for an outlier there.
    """

    channels: tuple[str, ...]
    position_rms_px: float
    position_offset_px: tuple[float, float]
    n_position_stars: int
    flux_ratio: tuple[float, ...]
    flux_scatter: tuple[float, ...]
    flux_photon: tuple[float, ...]
    flux_excess: tuple[float, ...]
    flux_slow: tuple[float, ...]
    flux_bias: tuple[float, ...]
    flux_bias_error: tuple[float, ...]
    n_flux_stars: tuple[int, ...]
    noise_ratio: tuple[float, ...]
    n_noise_boxes: tuple[int, ...]
    trail_residue: float
    n_trail_points: int
    level_rms: tuple[float, ...]
    level_max: tuple[float, ...]
    level_step: tuple[float, ...]
    colour_step: tuple[float, ...]
    coverage_error: float
    outlier_ppm: tuple[float, ...]
    n_outlier_pixels: tuple[int, ...]
    false_rejections: tuple[float, ...]
    n_clean_samples: tuple[int, ...]
    false_rejections_sky: tuple[float, ...]
    n_sky_samples: tuple[int, ...]
    false_rejections_steep: tuple[float, ...]
    n_steep_samples: tuple[int, ...]
    false_rejections_peaks: tuple[float, ...]
    n_peak_samples: tuple[int, ...]


def score_mosaic(mosaic: np.ndarray, coverage: np.ndarray, mosaic_wcs: WCS, survey: Survey) -> MosaicScore:
    """Compare a mosaic with the truth of the survey it was made from.

    Parameters
    ----------
    mosaic : ndarray
        ``(c, ny, nx)`` or ``(ny, nx)`` float, any linear scale, NaN where there is no data; as many channels as
        the survey.
    coverage : ndarray
        ``(ny, nx)`` or ``(c, ny, nx)``, above 0 where the mosaic has data; of an integer type if it is the
        number of samples that survived, which the figures of false rejections need.
    mosaic_wcs : WCS
        Of the mosaic; axes that are not celestial are ignored.
    survey : Survey
        The truth.

    Raises
    ------
    ZeMosaicError
        If the arrays do not belong together, or the mosaic shows none of the survey's frames.
    """
    planes, coverage = _checked(mosaic, coverage, survey)
    wcs = mosaic_wcs.celestial
    nebula = render_nebula(survey, wcs, planes.shape[1:]).astype(np.float32)
    sigma, depth = ideal_noise(survey, wcs, planes.shape[1:], nebula=nebula)
    if not depth.any():
        raise ZeMosaicError("the mosaic shows none of the survey's frames: is its WCS right?")
    field = _look(survey, wcs, planes, sigma, depth)
    rough = _flux_scores([_measure(field, c) for c in range(len(planes))])["flux_ratio"]
    # In the truth's units and without the nebula, whose curvature would pass for star light or noise.
    scale = np.array(rough, dtype=np.float32)[:, None, None]
    field = replace(field, planes=planes / scale - nebula)
    stars = [_measure(field, c) for c in range(len(planes))]
    scores = _flux_scores(stars) | _position_scores(field, stars)
    scores["flux_ratio"] = tuple(a * b for a, b in zip(rough, scores["flux_ratio"], strict=True))
    scores |= _noise_scores(field) | _level_scores(field) | _trail_scores(field)
    scores |= rejection_scores(
        survey, wcs, field.planes, coverage, depth=depth, nebula=nebula, star_mask=field.star_mask
    )
    wrong = np.count_nonzero((coverage > 0) != (depth > 0)) / len(coverage)
    names = ("R", "G", "B") if survey.spec.color else ("L",)
    return MosaicScore(channels=names, coverage_error=float(wrong / np.count_nonzero(depth)), **scores)


def format_score(score: MosaicScore) -> str:
    """Return the score as lines for a user."""
    dx, dy = score.position_offset_px
    places = f"{score.position_rms_px:.4f} px rms, mean offset ({dx:+.4f}, {dy:+.4f}) px"
    fluxes = f"scatter {_listed(score, 'flux_scatter', '.2%')}"
    fluxes += f"; photon noise explains {_listed(score, 'flux_photon', '.2%')}"
    beyond = f"beyond photon noise {_listed(score, 'flux_excess', '.2%')}"
    bias = f"bright against faint {_listed(score, 'flux_bias', '+.2%')}"
    level = f"{_listed(score, 'level_rms', '.3f')} sigma rms, {_listed(score, 'level_max', '.2f')} at most"
    level += f", {_listed(score, 'level_step', '.3f')} from one to the next"
    slow = f"{_listed(score, 'flux_slow', '.2%')} slowly over the field"
    trails = f"{score.trail_residue:+.3f} sigma of a pixel, {score.n_trail_points} points along trails"
    if score.colour_step:
        level += f"; in colour {', '.join(f'{value:.3f}' for value in score.colour_step)}"
    lost = f"{_listed(score, 'false_rejections', '+.2%')} of the good samples beyond what noise alone loses"
    flanks, peaks = (_listed(score, f"false_rejections_{place}", "+.2%") for place in ("steep", "peaks"))
    lost += f"; flanks of stars {flanks}; their peaks {peaks}"
    lines = [
        ("star positions", score.position_rms_px, f"{places}, {score.n_position_stars} stars"),
        ("star fluxes", score.flux_scatter, fluxes),
        ("", score.flux_scatter, f"{beyond}; {slow}; {bias}; {_listed(score, 'n_flux_stars', 'd')} stars"),
        (
            "background noise",
            score.noise_ratio,
            f"{_listed(score, 'noise_ratio', '.3f')} x the ideal (8 px boxes)",
        ),
        ("trail residue", score.trail_residue, trails),
        (
            "outliers",
            score.outlier_ppm,
            f"{_listed(score, 'outlier_ppm', '.1f')} ppm of the pixels beyond 6 sigma",
        ),
        ("false rejections", score.false_rejections, lost),
        ("level", score.level_rms, f"{level} (32 px boxes)"),
        ("coverage", score.coverage_error, f"{score.coverage_error:.2e} of the covered pixels wrong"),
    ]
    measured = [(label, text if np.isfinite(value).any() else "not measured") for label, value, text in lines]
    return "\n".join(f"{label:<18}{text}" for label, text in measured)


def _listed(score: MosaicScore, name: str, pattern: str) -> str:
    """Return one value a channel as text, with the channels' names where there are several."""
    values = getattr(score, name)
    texts = [format(v, pattern) if np.isfinite(v) else "not measured" for v in values]
    named = [f"{channel} {text}" for channel, text in zip(score.channels, texts, strict=True)]
    return ", ".join(named if len(values) > 1 else texts)


@dataclass(frozen=True, eq=False)
class _Field:
    """What the measurements share: the mosaic, its ideal noise and where the stars are on it."""

    survey: Survey
    wcs: WCS
    planes: np.ndarray
    sigma: np.ndarray
    depth: np.ndarray
    star_mask: np.ndarray
    area: float
    star_ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    source_noise: np.ndarray
    alone: np.ndarray | None = None

    @property
    def fwhm(self) -> float:
        """The survey's widest seeing, in mosaic pixels."""
        return self.survey.spec.fwhm_px[1] / np.sqrt(self.area)


@dataclass(frozen=True, eq=False)
class _Stars:
    """Aperture photometry of isolated stars in one channel: all arrays ``(n,)``."""

    x: np.ndarray
    y: np.ndarray
    background: np.ndarray
    ratio: np.ndarray
    photon: np.ndarray


def _checked(mosaic: np.ndarray, coverage: np.ndarray, survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    planes, coverage = (a[None] if a.ndim == 2 else a for a in (np.asarray(mosaic), np.asarray(coverage)))
    if planes.ndim != 3 or len(planes) != survey.spec.n_channels:
        raise ZeMosaicError(f"a mosaic of shape {mosaic.shape} is not one of {survey.spec.n_channels} channels")
    if coverage.shape not in (planes.shape, (1, *planes.shape[1:])):
        raise ZeMosaicError(f"coverage {coverage.shape} does not fit a mosaic of shape {mosaic.shape}")
    return np.array(planes, dtype=np.float32, order="C"), coverage


def _look(survey: Survey, wcs: WCS, planes: np.ndarray, sigma: np.ndarray, depth: np.ndarray) -> _Field:
    """Place the stars on the mosaic and mask them."""
    ids, x, y = star_positions(survey, wcs, depth.shape, margin_px=40.0)
    area = pixel_area(survey, wcs)
    width = survey.spec.fwhm_px[1] * SIGMA_PER_FWHM
    peak = survey.stars.flux_adu[ids].max(axis=1) / (2.0 * np.pi * width**2)
    # Out to where the widest profile falls to 2 % of the lowest noise, and 3 px for the resampling kernel.
    reach = np.sqrt(2.0 * np.log(np.maximum(peak / (0.02 * sigma.min()), 1.0))) * width / np.sqrt(area) + 3.0
    mask = np.zeros(depth.shape, dtype=bool)
    for star_x, star_y, radius in zip(x, y, reach, strict=True):
        y0, x0 = (max(0, int(p - radius)) for p in (star_y, star_x))
        part = mask[y0 : max(0, int(star_y + radius) + 2), x0 : max(0, int(star_x + radius) + 2)]
        dy, dx = np.ogrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
        part |= (dx - star_x) ** 2 + (dy - star_y) ** 2 <= radius**2
    field = _Field(survey, wcs, planes, sigma, depth, mask, area, ids, x, y, _source_noise(survey)[ids])
    return replace(field, alone=_stand_alone(field))


def _source_noise(survey: Survey) -> np.ndarray:
    """Return the relative variance of the stars' own photons in the ideal mosaic, ``(n, c)``; NaN unseen."""
    spec, flux = survey.spec, survey.stars.flux_adu
    sums = np.zeros((2, *flux.shape))
    for frame in survey.frames:
        seen = star_positions(survey, frame_wcs(frame), spec.frame_shape)[0]
        weight = frame.transparency**2 / np.square(frame.noise_adu)
        sums[0, seen] += weight
        sums[1, seen] += weight**2 / frame.transparency
    with np.errstate(invalid="ignore"):
        return sums[1] / sums[0] ** 2 / (spec.electrons_per_adu * sampled_fraction(survey) * flux)


def _stand_alone(field: _Field) -> np.ndarray:
    """Return which stars stand alone and are not saturated in any frame."""
    spec = field.survey.spec
    flux = field.survey.stars.flux_adu[field.star_ids]
    brightest = flux.max(axis=1)
    peak = brightest * spec.transparency[1] / (2.0 * np.pi * (spec.fwhm_px[0] * SIGMA_PER_FWHM) ** 2)
    alone = peak + spec.pedestal_adu + spec.sky_adu[1] + spec.gradient_adu < SATURATED_ADU
    tree = cKDTree(np.stack([field.x, field.y], axis=1))
    reach = (_APERTURE_FWHM + 2.0) * field.fwhm
    for i, neighbours in enumerate(tree.query_ball_point(tree.data, reach)):
        others = [j for j in neighbours if j != i]
        alone[i] &= not np.any(brightest[others] > 0.002 * flux[i].min())
    return alone


def _measure(field: _Field, channel: int) -> _Stars:
    """Measure the isolated stars of a channel that are bright enough and wholly inside the mosaic's data."""
    plane = field.planes[channel]
    radius = _APERTURE_FWHM * field.fwhm
    inner, outer = radius + 2.0, 2.5 * radius
    ny, nx = plane.shape
    keep = (field.x > outer) & (field.x < nx - 1 - outer) & (field.y > outer) & (field.y < ny - 1 - outer)
    keep &= field.alone
    ids, x, y = field.star_ids[keep], field.x[keep], field.y[keep]
    finite = np.isfinite(plane)
    data, good = np.where(finite, plane, 0.0), (finite & ~field.star_mask).astype(np.float32)
    ring = sep.sum_circann(good, x, y, inner, outer, subpix=1)[0]
    holes = sep.sum_circle((~finite).astype(np.float32), x, y, outer, subpix=1)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        background = sep.sum_circann(data * good, x, y, inner, outer, subpix=1)[0] / ring
    disk = np.pi * radius**2
    flux = sep.sum_circle(data, x, y, radius, subpix=0)[0] - background * disk
    truth = field.survey.stars.flux_adu[ids, channel] / field.area
    noise = field.sigma[channel, np.rint(y).astype(int), np.rint(x).astype(int)]
    with np.errstate(divide="ignore"):
        sky = noise**2 * disk * (1.0 + disk / ring) / truth**2
    photon = np.sqrt(sky + field.source_noise[keep, channel])
    use = (holes == 0) & (ring > 0.4 * np.pi * (outer**2 - inner**2)) & (photon < 1.0 / MIN_SNR)
    return _Stars(x[use], y[use], background[use], (flux / truth)[use], photon[use])


def _flux_scores(stars: list[_Stars]) -> dict:
    rows = [_flux_row(s) for s in stars]
    names = ("flux_ratio", "flux_scatter", "flux_photon", "flux_excess", "flux_slow", "flux_bias")
    names += ("flux_bias_error", "n_flux_stars")
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _flux_row(stars: _Stars) -> tuple[float, float, float, float, float, float, float, int]:
    bright = stars.photon < 1.0 / BRIGHT_SNR
    count = int(np.count_nonzero(bright))
    if count < MIN_STARS:
        return (np.nan,) * 7 + (count,)
    ratio = float(np.median(stars.ratio[bright]))
    deviation = np.abs(stars.ratio[bright] / ratio - 1.0)
    scatter = float(np.quantile(deviation, SCATTER_QUANTILE)) / _QUANTILE_SIGMAS
    photon = _expected_deviation(stars.photon[bright]) / _QUANTILE_SIGMAS
    excess = float(np.sqrt(max(0.0, scatter**2 - photon**2)))
    return ratio, scatter, photon, excess, _flux_slow(stars, bright, ratio), *_flux_bias(stars, bright), count


def _flux_slow(stars: _Stars, bright: np.ndarray, ratio: float) -> float:
    """Return the scatter of the stars' mean deviations in large boxes; NaN where no box has stars enough."""
    box = (stars.y[bright] // SLOW_BOX_PX).astype(int) * 100_000 + (stars.x[bright] // SLOW_BOX_PX).astype(int)
    _, box, count = np.unique(box, return_inverse=True, return_counts=True)
    means = np.bincount(box, stars.ratio[bright] / ratio - 1.0) / count
    enough = count >= MIN_SLOW_STARS
    return float(np.sqrt(np.mean(np.square(means[enough])))) if enough.any() else np.nan


def _flux_bias(stars: _Stars, bright: np.ndarray) -> tuple[float, float]:
    """Return the ratio of two medians less 1, and its error; NaN without faint stars."""
    if np.count_nonzero(~bright) < MIN_STARS:
        return np.nan, np.nan
    halves = (bright, ~bright)
    medians = [float(np.median(stars.ratio[half])) for half in halves]
    # 1 / (2 f sqrt n), where f, the density of n normal values at their median, is the mean of all of them.
    errors = [np.sqrt(0.5 * np.pi / half.sum()) / np.mean(1.0 / stars.photon[half]) for half in halves]
    return medians[0] / medians[1] - 1.0, float(np.hypot(*errors))


def _expected_deviation(sigmas: np.ndarray) -> float:
    """Return the same quantile of the deviations for one draw from each of several normal distributions."""
    scaled = np.sqrt(2.0) * sigmas
    return brentq(lambda d: np.mean(erf(d / scaled)) - SCATTER_QUANTILE, 0.0, 4.0 * sigmas.max())


def _position_scores(field: _Field, stars: list[_Stars]) -> dict:
    """Compare windowed centroids with the truth, each on its own cut-out less the local background."""
    half = int(np.ceil(6.0 * field.fwhm * SIGMA_PER_FWHM)) + 2
    offsets = []
    for plane, table in zip(field.planes, stars, strict=True):
        for i in np.flatnonzero(table.photon < 1.0 / POSITION_SNR):
            x0, y0 = round(table.x[i]) - half, round(table.y[i]) - half
            cut = plane[y0 : y0 + 2 * half + 1, x0 : x0 + 2 * half + 1] - np.float32(table.background[i])
            start = table.x[i] - x0, table.y[i] - y0
            x, y, _ = sep.winpos(np.ascontiguousarray(cut), *start, field.fwhm * SIGMA_PER_FWHM, subpix=0)
            offsets.append((float(x) - start[0], float(y) - start[1]))
    found = np.array(offsets) if len(offsets) >= MIN_STARS else np.full((1, 2), np.nan)
    dx, dy = found.mean(axis=0)
    rms = float(np.sqrt(np.mean(found**2)))
    return {
        "position_rms_px": rms,
        "position_offset_px": (float(dx), float(dy)),
        "n_position_stars": len(offsets),
    }


def _boxes(image: np.ndarray, size: int) -> np.ndarray:
    """Return an image as ``(rows, columns, size * size)`` boxes; a rest at the far edges is dropped."""
    rows, cols = (n // size for n in image.shape)
    cut = image[: rows * size, : cols * size].reshape(rows, size, cols, size)
    return cut.swapaxes(1, 2).reshape(rows, cols, size * size)


def _noise_scores(field: _Field) -> dict:
    ratios, counts = zip(*(_noise_row(field, c) for c in range(len(field.planes))), strict=True)
    return {"noise_ratio": ratios, "n_noise_boxes": counts}


def _noise_row(field: _Field, channel: int) -> tuple[float, int]:
    """Measure box means by second differences, which no gradient enters.

    The boxes of a difference do not touch: a resampling kernel makes neighbours alike.
    """
    plane = np.where(field.star_mask | (field.depth == 0), np.nan, field.planes[channel])
    means = _boxes(plane, NOISE_BOX_PX).mean(axis=2)
    variance = np.square(_boxes(field.sigma[channel], NOISE_BOX_PX)).mean(axis=2) / NOISE_BOX_PX**2
    parts = []
    for m, v in ((means, variance), (means.T, variance.T)):
        expected = v[:-4] + 4.0 * v[2:-2] + v[4:]
        parts.append(((m[:-4] - 2.0 * m[2:-2] + m[4:]) / np.sqrt(expected)).ravel())
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if values.size < 50:
        return np.nan, values.size
    limit = 4.0 * MAD_TO_SIGMA * np.median(np.abs(values))
    return float(np.sqrt(np.mean(np.square(values[np.abs(values) < limit])))), values.size


def _level_scores(field: _Field) -> dict:
    levels, sigmas = zip(*(_box_levels(field, c) for c in range(len(field.planes))), strict=True)
    rows = [_level_row(level, sigma) for level, sigma in zip(levels, sigmas, strict=True)]
    scores = dict(zip(("level_rms", "level_max", "level_step"), zip(*rows, strict=True), strict=True))
    pairs = ((0, 1), (2, 1)) if len(levels) == 3 else ()
    scores["colour_step"] = tuple(_step(levels[a] - levels[b], np.hypot(sigmas[a], sigmas[b])) for a, b in pairs)
    return scores


def _box_levels(field: _Field, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the medians of a channel's boxes and the noise of a pixel there; NaN where half a box is missing."""
    plane = np.where(field.star_mask | (field.depth == 0), np.nan, field.planes[channel])
    boxes, noise = (_boxes(a, LEVEL_BOX_PX) for a in (plane, field.sigma[channel]))
    valid = np.isfinite(boxes)
    full = valid.sum(axis=2) >= LEVEL_BOX_PX**2 // 2
    level, sigma = np.full(full.shape, np.nan), np.full(full.shape, np.nan)
    level[full] = np.nanmedian(boxes[full], axis=1)
    sigma[full] = np.nanmedian(np.where(valid, noise, np.nan)[full], axis=1)
    return level, sigma


def _level_row(level: np.ndarray, sigma: np.ndarray) -> tuple[float, float, float]:
    if not np.isfinite(level).any():
        return np.nan, np.nan, np.nan
    distance = (level - np.nanmedian(level)) / sigma
    return float(np.sqrt(np.nanmean(distance**2))), float(np.nanmax(np.abs(distance))), _step(level, sigma)


def _step(level: np.ndarray, sigma: np.ndarray) -> float:
    """Return the root mean square difference of a box from the next, along both axes, in sigma of a pixel."""
    both = ((level, sigma), (level.T, sigma.T))
    steps = [np.diff(a, axis=0) / np.sqrt(0.5 * (s[1:] ** 2 + s[:-1] ** 2)) for a, s in both]
    steps = np.concatenate([step[np.isfinite(step)] for step in steps])
    return float(np.sqrt(np.mean(steps**2))) if steps.size else np.nan


def _trail_scores(field: _Field) -> dict:
    found = [_trail_excess(field, frame) for frame in field.survey.frames if frame.trail is not None]
    values = np.concatenate([np.empty(0), *found])
    return {"trail_residue": float(values.mean()) if values.size else np.nan, "n_trail_points": values.size}


def _trail_excess(field: _Field, frame: FrameTruth) -> np.ndarray:
    """Return the excess of the middle of a trail over strips on both sides, point by point, all channels."""
    trail, (ny, nx) = frame.trail, field.survey.spec.frame_shape
    cos, sin = np.cos(trail.angle_rad), np.sin(trail.angle_rad)
    along = np.arange(-np.hypot(ny, nx), np.hypot(ny, nx))
    beside = np.array([0.0, -1.0, 1.0, -11.0, -10.0, -9.0, -8.0, 8.0, 9.0, 10.0, 11.0])[:, None]
    x, y = trail.x0 + along * cos - beside * sin, trail.y0 + along * sin + beside * cos
    column = in_image(x, y, (ny, nx)).all(axis=0)
    if not column.any():
        return np.empty(0)
    x, y = world_to_pixel(field.wcs, *frame_wcs(frame).all_pix2world(x[:, column], y[:, column], 0))
    column = in_image(x, y, field.depth.shape).all(axis=0)
    cols, rows = (np.rint(p[:, column]).astype(int) for p in (x, y))
    sky = ~field.star_mask[rows, cols] & (field.depth[rows, cols] >= MIN_DEPTH)
    rows, cols = rows[:, sky.all(axis=0)], cols[:, sky.all(axis=0)]
    values = field.planes[:, rows, cols]
    excess = values[:, :3].mean(axis=1) - values[:, 3:].mean(axis=1)
    excess /= field.sigma[:, rows[:3], cols[:3]].mean(axis=1)
    return excess[np.isfinite(excess)]
