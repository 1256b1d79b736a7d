"""The stacker against slow float64 loops written from the published definitions."""

from dataclasses import replace

import numpy as np
import pytest

import references
from strict_namespace import StrictNamespace
from zemosaic_noise_model import NoiseModel
from zemosaic_stack_core import (
    STEEPNESS_SHARE,
    normalise,
    radial_weight,
    rejection_bounds,
    stack,
    stack_arrays,
)
from zemosaic_types import StackParams

NY, NX = 5, 23


def quiet(n, sigma, channels=1):
    """The noise model of frames without photon noise."""
    return NoiseModel(np.full((n, channels), sigma))


@pytest.mark.parametrize("factor", [1.0, 3.0, 300.0, 1e6])
def test_a_frame_that_has_nothing_here_leaves_no_trace_whatever_its_noise(factor):
    """Which frames reach a slab depends on how the canvas is cut."""
    rng = np.random.default_rng(17)
    data = rng.normal(500.0, 20.0, (13, 2, 30, 40)).astype(np.float32)
    data[rng.random(data.shape) < 0.02] += 75.0
    data[12] = np.nan
    noise = random_noise(rng, 13, channels=2)
    for quantity in (noise.sky, noise.photon, noise.level, noise.blur):
        quantity[12] *= factor
    weight = np.ones((13, 2))
    fewer = NoiseModel(noise.sky[:12], noise.photon[:12], noise.level[:12], noise.blur[:12])
    bounds = (rejection_bounds(*given, StackParams()) for given in ((data, noise), (data[:12], fewer)))
    np.testing.assert_array_equal(*bounds)
    with_it = stack(data, weight, noise, StackParams())
    without = stack(data[:12], weight[:12], fewer, StackParams())
    for name in FIELDS[:-1]:
        np.testing.assert_array_equal(getattr(with_it, name), getattr(without, name))
    np.testing.assert_array_equal(with_it.tally[:12], without.tally)


@pytest.mark.parametrize(("factor", "photon"), [(1.0, 1.0), (300.0, 1.0), (1e6, 1.0), (1.0, 2.0**55)])
def test_where_strips_begin_leaves_no_trace_whatever_the_noise(factor, photon):
    """Frames that cover a whole strip are added once for all its columns, if their noise allows it.

    Where one frame's photon noise is huge and the signal none, the order of the sums would show.
    """
    rng = np.random.default_rng(19)
    data = np.full((11, 1, 6, 900), 500.0, dtype=np.float32)
    data[rng.random(data.shape) < 0.02] += 75.0
    for f, edge in enumerate(rng.integers(0, 900, 11)):
        gone = slice(None, edge) if f % 2 else slice(edge, None)
        data[f, ..., gone] = data[f, ..., gone] if f == 4 else np.nan
    noise, weight = random_noise(rng, 11), rng.uniform(0.5, 2.0, (11, 1))
    for quantity in (noise.sky, noise.photon, noise.level, noise.blur):
        quantity[4] *= factor
    if photon > 1.0:
        noise.photon[4], noise.level[4] = photon, 500.0
    whole = stack(data, weight, noise, StackParams(), halo=(1, 1, 1, 1))
    assert factor > 1.0 or whole.rejected_high.any()
    for x in (1, 57, 256, 391):
        part = stack(data[..., x:], weight, noise, StackParams(), halo=(1, 1, 1, 1))
        for name in FIELDS[:-1]:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[..., x:])


def test_a_sample_without_bounds_is_not_kept_wherever_its_strip_ends():
    """Samples near the end of float32 have a curvature whose square is infinite, and bounds that are NaN."""
    data = np.full((4, 1, 3, 300), 10.0, dtype=np.float32)
    data[:, 0, 1, 2], data[:, 0, 1, 100] = 3e19, np.nan
    noise = NoiseModel(np.full((4, 1), 2.0), blur=np.array([[0.1], [0.2], [0.15], [-0.3]]))
    for width in (300, 50):
        given = data[..., :width], np.ones((4, 1)), noise, StackParams()
        with np.errstate(over="ignore", invalid="ignore"):
            compiled, plain = stack(*given), stack_arrays(*given)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(compiled, name), getattr(plain, name))
        assert compiled.coverage[0, 1, 2] == 0
        assert compiled.coverage[0, 1, 4] == 4


@pytest.mark.parametrize("shape", [(0, 1, 3, 5), (4, 0, 3, 5)])
def test_no_frames_and_no_channels_are_stacked_to_nothing(shape):
    result = stack(np.zeros(shape, np.float32), np.ones(shape[:2]), quiet(shape[0], 2.0, shape[1]), StackParams())
    assert result.coverage.sum() == 0
    assert np.isnan(result.image).all()


def random_noise(rng, n, channels=1):
    ranges = (15, 25), (0.01, 2), (450, 500), (-0.5, 0.5)  # of sky, photon, level and blur
    return NoiseModel(*(rng.uniform(*ends, (n, channels)) for ends in ranges))


def on_a_device(data, weight, noise, params, *, pixel_weight=None, **more):
    """`stack` on the strict stand-in of a device, its result brought back."""
    xp = StrictNamespace()
    there = None if pixel_weight is None else xp.asarray(pixel_weight)
    result = stack(xp.asarray(data), weight, noise, params, pixel_weight=there, **more)
    return replace(result, **{name: getattr(result, name).get() for name in vars(result)})


ROUTES = [stack, stack_arrays, on_a_device]


def population(n, holes, seed):
    """Samples with outliers on both sides; `holes` none, scattered or a border of missing frames."""
    rng = np.random.default_rng(seed)
    data = rng.normal(500.0, 20.0, (n, 1, NY, NX)).astype(np.float32)
    outliers = rng.random(data.shape) < 0.05
    data[outliers] += rng.choice([-1, 1], outliers.sum()).astype(np.float32) * 400
    if holes == "scattered":
        data[rng.random(data.shape) < 0.2] = np.nan
    elif holes == "border":
        data[: max(1, n // 2), :, :, : NX // 2] = np.nan
        data[:, :, 0, 0] = np.nan
    return data


def survivors_of(pixel, params, frames, step, bend):
    kinds = {
        "kappa_sigma": lambda: references.kappa_survivors(pixel, params.kappa_low, params.kappa_high, 5),
        "winsorized_sigma_clip": lambda: references.winsorized_survivors(
            pixel, params.kappa_low, params.kappa_high, 5, params.winsor_limits
        ),
        "linear_fit_clip": lambda: references.linear_fit_survivors(pixel, params.kappa_low, params.kappa_high, 5),
        "none": lambda: list(pixel),
    }
    if params.reject == "kappa_sigma" and params.spread != "sample":
        kappas, robust = (params.kappa_low, params.kappa_high), params.spread == "auto"
        return references.modelled_survivors(pixel, *kappas, frames, step, bend, STEEPNESS_SHARE, robust=robust)
    return kinds[params.reject]() if len(pixel) >= 3 else list(pixel)


def slopes(data):
    """Largest step of each pixel's median to its neighbours', and half its Laplacian; 0 for NaN neighbours."""
    with np.errstate(invalid="ignore"):
        median = np.full(data.shape[2:], np.nan)
        for y, x in np.ndindex(NY, NX):
            values = data[:, 0, y, x].astype(float)
            values = values[np.isfinite(values)]
            if values.size:
                median[y, x] = np.median(values)
        padded = np.pad(median, 1, constant_values=np.nan)
        steps = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
        step = np.nan_to_num(np.max(np.nan_to_num([np.abs(s - median) for s in steps]), axis=0))
        rows, columns = np.pad(median, ((1, 1), (0, 0)), mode="edge"), steps[0] + steps[1] - 2 * median
        columns[:, [0, -1]] = 0  # beyond the border the image continues flat
        return step, np.nan_to_num(0.5 * (columns + rows[:-2] + rows[2:] - 2 * median))


ALGORITHMS = [
    StackParams(reject="none"),
    StackParams(reject="kappa_sigma", spread="sample", kappa_low=2.0, kappa_high=2.5),
    StackParams(reject="kappa_sigma", spread="auto"),
    StackParams(reject="kappa_sigma", spread="noise_model", kappa_high=4.0),
    StackParams(reject="winsorized_sigma_clip", kappa_low=2.5, kappa_high=2.0),
    StackParams(reject="linear_fit_clip", kappa_low=3.0, kappa_high=2.5),
]


@pytest.mark.parametrize("holes", ["none", "scattered", "border"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 30, 300])
@pytest.mark.parametrize("params", ALGORITHMS, ids=lambda p: f"{p.reject}-{p.spread}")
def test_every_rejection_agrees_with_a_slow_loop(params, n, holes):
    data = population(n, holes, seed=n)
    rng = np.random.default_rng(n + 1)
    weight = 10.0 ** rng.uniform(-4, 0, (n, 1))
    noise = random_noise(rng, n)
    result = stack(data, weight, noise, params)
    steps, bends = slopes(data)
    flipped = 0
    for y, x in np.ndindex(NY, NX):
        present = np.isfinite(data[:, 0, y, x])
        pixel = data[present, 0, y, x].astype(float)
        columns = noise.sky**2, noise.photon, noise.level, noise.blur
        frames = list(zip(*(v[present, 0] for v in columns), strict=True))
        kept = survivors_of(pixel.tolist(), params, frames, steps[y, x], bends[y, x])
        if len(kept) != result.coverage[0, y, x]:
            flipped += 1
            continue
        inside = present & np.isin(data[:, 0, y, x].astype(float), kept)
        if not kept:
            assert np.isnan(result.image[0, y, x])
            assert result.weight[0, y, x] == 0
            continue
        w = weight[inside, 0]
        expected = (w * data[inside, 0, y, x].astype(float)).sum() / w.sum()
        assert result.image[0, y, x] == pytest.approx(expected, rel=1e-6)
        assert result.weight[0, y, x] == pytest.approx(w.sum(), rel=1e-6)
    assert flipped == 0


FIELDS = ("image", "weight", "coverage", "rejected_low", "rejected_high", "tally")


@pytest.mark.parametrize("route", [stack_arrays, on_a_device], ids=["arrays", "device"])
@pytest.mark.parametrize("holes", ["none", "scattered", "border"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 17, 30])
@pytest.mark.parametrize("params", ALGORITHMS, ids=lambda p: f"{p.reject}-{p.spread}")
def test_array_operations_reject_the_same_samples_as_the_compiled_loops(params, n, holes, route):
    """No rejection may flip; the values agree to the rounding of float32."""
    data = np.concatenate([population(n, holes, seed=40 + n), population(n, holes, seed=80 + n)], axis=1)
    rng = np.random.default_rng(n)
    weight = 10.0 ** rng.uniform(-4, 0, (n, 2))
    noise = random_noise(rng, n, channels=2)
    pixel_weight = rng.choice(np.float32([0, 0.5, 1]), (n, NY, NX))
    for combine, pixels in (("mean", None), ("mean", pixel_weight), ("median", None), ("median", pixel_weight)):
        more = {"pixel_weight": pixels, "halo": (1, 0, 0, 2)}
        compiled = stack(data, weight, noise, replace(params, combine=combine), threads=2, **more)
        plain = route(data, weight, noise, replace(params, combine=combine), **more)
        for name in FIELDS[2:]:
            np.testing.assert_array_equal(getattr(plain, name), getattr(compiled, name))
        for name in FIELDS[:2]:
            np.testing.assert_allclose(getattr(plain, name), getattr(compiled, name), rtol=1e-6)
        for name in FIELDS:
            assert getattr(plain, name).dtype == getattr(compiled, name).dtype


def test_two_hundred_frames_on_a_wide_strip_lose_the_same_samples_on_both_routes():
    rng = np.random.default_rng(31)
    data = rng.normal(500.0, 20.0, (200, 1, 3, 700)).astype(np.float32)
    data[rng.random(data.shape) < 0.01] += 300
    data[:90, :, :, 250:] = np.nan
    weight, noise = rng.uniform(0.5, 2, (200, 1)), quiet(200, 20.0)
    for params in ALGORITHMS:
        compiled, plain = stack(data, weight, noise, params), stack_arrays(data, weight, noise, params)
        np.testing.assert_array_equal(plain.coverage, compiled.coverage)
        np.testing.assert_array_equal(plain.tally, compiled.tally)
        np.testing.assert_allclose(plain.image, compiled.image, rtol=1e-6)


@pytest.mark.parametrize("threads", [2, 3, 50])
def test_threads_leave_no_trace(threads):
    data = population(9, "scattered", seed=5)
    for params in ALGORITHMS:
        one = stack(data, np.ones((9, 1)), quiet(9, 20.0), params)
        many = stack(data, np.ones((9, 1)), quiet(9, 20.0), params, threads=threads)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(many, name), getattr(one, name))


def test_a_device_gets_no_copy_and_brings_back_one_number_for_each_iteration_at_most():
    data = population(30, "scattered", seed=6)
    xp = StrictNamespace()
    there = xp.asarray(data)
    for params in ALGORITHMS:
        downloads, uploaded = xp.downloads, xp.uploaded_bytes
        stack(there, np.ones((30, 1)), quiet(30, 20.0), params)
        iterations = {"winsorized_sigma_clip": 5 * 51, "none": 0}.get(
            params.reject, 5 if params.spread == "sample" else 0
        )
        assert xp.downloads - downloads <= iterations + 5
        assert xp.uploaded_bytes - uploaded < 1000 + 30 * 8 * 30  # the weights of frames, no pixels


def test_photon_noise_of_bright_pixels_is_expected():
    rng = np.random.default_rng(32)
    level = np.where(np.arange(900) % 30 < 15, 100.0, 1100.0)  # flat places of 15 px
    data = rng.normal(level, np.sqrt(level), (6, 1, 40, 900)).astype(np.float32)
    sky = np.full((6, 1), 10.0)
    model = NoiseModel(sky, np.ones((6, 1)), np.full((6, 1), 100.0))
    flat = (np.arange(900) % 15 > 1) & (np.arange(900) % 15 < 13) & (level > 500)
    lost = {}
    for name, noise in (("sky", NoiseModel(sky)), ("photons", model)):
        result = stack(data, np.ones((6, 1)), noise, StackParams(spread="noise_model"))
        lost[name] = 1.0 - result.coverage[0][:, flat].mean() / 6.0
    assert lost["sky"] > 0.1
    assert lost["photons"] < 0.005


def test_counts_of_every_pixel_and_frame_add_up():
    data = population(30, "scattered", seed=3)
    result = stack(data, np.ones((30, 1)), quiet(30, 20.0), StackParams())
    present = np.isfinite(data)
    total = result.coverage + result.rejected_low + result.rejected_high
    assert np.array_equal(total, present.sum(axis=0))
    assert np.array_equal(result.tally.sum(axis=1), present.sum(axis=(1, 2, 3)))
    assert result.rejected_low.sum() > 0
    assert result.rejected_high.sum() > 0


@pytest.mark.parametrize("params", ALGORITHMS, ids=lambda p: f"{p.reject}-{p.spread}")
def test_constant_pixels_and_ties_lose_nothing(params):
    constant = np.full((12, 1, 3, 4), 7.0, dtype=np.float32)
    result = stack(constant, np.ones((12, 1)), quiet(12, 1.0), params)
    assert (result.coverage == 12).all()
    assert (result.image == 7.0).all()
    tied = np.repeat(np.float32([1, 1, 1, 2, 2, 2]), 2).reshape(12, 1, 1, 1)
    result = stack(tied, np.ones((12, 1)), quiet(12, 1.0), params)
    assert result.coverage[0, 0, 0] == 12


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("params", ALGORITHMS, ids=lambda p: f"{p.reject}-{p.spread}")
def test_under_three_samples_nothing_is_rejected(params, n):
    data = np.array([0.0, 1e6][:n], dtype=np.float32).reshape(n, 1, 1, 1)
    result = stack(data, np.ones((n, 1)), quiet(n, 1.0), params)
    assert result.coverage[0, 0, 0] == n


def test_zero_and_negative_values_are_data():
    data = np.array([-3.0, 0.0, 3.0], dtype=np.float32).reshape(3, 1, 1, 1)
    result = stack(data, np.ones((3, 1)), quiet(3, 3.0), StackParams())
    assert result.coverage[0, 0, 0] == 3
    assert result.image[0, 0, 0] == 0.0


def test_tiny_weights_do_not_darken_the_image():
    data = np.full((4, 1, 2, 2), 1000.0, dtype=np.float32)
    result = stack(data, np.full((4, 1), 1e-12), quiet(4, 1.0), StackParams())
    assert (result.image == 1000.0).all()


def test_one_bad_sample_in_six_is_found_by_the_modelled_spread_only():
    rng = np.random.default_rng(4)
    data = rng.normal(100.0, 5.0, (6, 1, 40, 40)).astype(np.float32)
    data[2, 0, 20] += 60.0
    noise = quiet(6, 5.0)
    auto = stack(data, np.ones((6, 1)), noise, StackParams(spread="auto"))
    sample = stack(data, np.ones((6, 1)), noise, StackParams(spread="sample"))
    assert (auto.rejected_high[0, 20] == 1).all()
    assert (sample.rejected_high[0, 20] == 0).all()
    others = np.delete(auto.coverage[0], 20, axis=0)
    assert (others == 6).mean() > 0.95


def test_a_star_that_seeing_spreads_keeps_its_core():
    y, x = np.mgrid[-10:11, -10:11]
    rng = np.random.default_rng(5)
    fwhm = np.array([2.6, 2.7, 2.7, 2.8, 3.5, 3.6])
    sigma = fwhm[:, None, None] / 2.3548
    stars = 4000.0 / (2 * np.pi * sigma**2) * np.exp(-(x**2 + y**2) / (2 * sigma**2))
    data = (stars + rng.normal(0, 3.0, stars.shape))[:, None].astype(np.float32)
    variance = (fwhm[:, None] / 2.3548) ** 2
    usual = np.median(variance)
    noise = NoiseModel(np.full((6, 1), 3.0), blur=usual * (1 - usual / variance))
    result = stack(data, np.ones((6, 1)), noise, StackParams())
    core = np.hypot(x, y) < 3
    assert result.image[0][core].sum() == pytest.approx(stars.mean(axis=0)[core].sum(), rel=0.005)


def test_the_halo_makes_a_part_equal_the_same_part_of_the_whole():
    data = population(9, "scattered", seed=8)
    weight, noise = np.ones((9, 1)), quiet(9, 20.0)
    whole = stack(data, weight, noise, StackParams())
    part = np.ascontiguousarray(data[:, :, 1:5, 2:12])
    result = stack(part, weight, noise, StackParams(), halo=(1, 1, 1, 1))
    np.testing.assert_array_equal(result.image, whole.image[:, 2:4, 3:11])
    np.testing.assert_array_equal(result.coverage, whole.coverage[:, 2:4, 3:11])


@pytest.mark.parametrize("equal", [True, False])
def test_the_median_is_the_weighted_median_of_the_survivors(equal):
    data = population(7, "scattered", seed=9)
    rng = np.random.default_rng(10)
    weight = np.ones((7, 1)) if equal else rng.uniform(0.1, 3.0, (7, 1))
    result = stack(data, weight, quiet(7, 20.0), StackParams(reject="none", combine="median"))
    for y, x in np.ndindex(NY, NX):
        present = np.isfinite(data[:, 0, y, x])
        values = data[present, 0, y, x].astype(float)
        expected = np.median(values) if equal else references.weighted_median(values, weight[present, 0])
        assert result.image[0, y, x] == pytest.approx(expected, rel=1e-6)


def test_weights_of_pixels_multiply_those_of_frames_and_zero_is_no_data():
    data = np.array([10.0, 20.0, 60.0], dtype=np.float32).reshape(3, 1, 1, 1) * np.ones((1, 1, 2, 2), np.float32)
    pixel_weight = np.ones((3, 2, 2), dtype=np.float32)
    pixel_weight[2] = 0.0
    pixel_weight[1, 0, 0] = 0.5
    weight = np.array([[1.0], [2.0], [5.0]])
    result = stack(data, weight, quiet(3, 30.0), StackParams(), pixel_weight=pixel_weight)
    assert result.image[0, 0, 0] == pytest.approx((10 + 20) / 2)
    assert result.image[0, 1, 1] == pytest.approx((10 + 40) / 3)
    assert (result.coverage == 2).all()
    assert result.weight[0, 0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize("params", ALGORITHMS, ids=str)
def test_pixel_weights_of_one_change_no_bit(params):
    """The driver leaves them out where all are one: a pixel must not depend on what else is in its slab."""
    data = population(12, "scattered", seed=11)
    weight, noise = np.random.default_rng(1).uniform(0.5, 2, (12, 1)), quiet(12, 20.0)
    for combine in ("mean", "median"):
        params = replace(params, combine=combine)
        plain = stack(data, weight, noise, params)
        weighted = stack(data, weight, noise, params, pixel_weight=np.ones((12, NY, NX), np.float32))
        for name in ("image", "weight", "coverage", "rejected_low", "rejected_high", "tally"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(weighted, name))


def test_blocks_wider_than_one_strip_and_several_channels_agree_with_single_pixels():
    rng = np.random.default_rng(12)
    data = rng.normal(0, 1, (5, 3, 2, 800)).astype(np.float32)
    data[:, :, :, ::7] = np.nan
    weight, noise = np.ones((5, 3)), quiet(5, 1.0, channels=3)
    for params in ALGORITHMS:
        whole = stack(data, weight, noise, params, halo=(0, 0, 1, 1))
        for x in (0, 382, 383, 384, 797):
            alone = stack(np.ascontiguousarray(data[..., x : x + 3]), weight, noise, params, halo=(0, 0, 1, 1))
            np.testing.assert_array_equal(whole.image[..., x], alone.image[..., 0])


def test_normalise_applies_gain_offset_and_slopes_of_each_channel():
    data = np.ones((2, 2, 3), dtype=np.float32)
    rows, columns = np.float32([[0.5, 1.5], [0.0, -1.0]]), np.float32([[0.0, 10.0, 20.0], [0.0, 0.0, 4.0]])
    normalise(data, np.array([2.0, 3.0]), rows, columns)
    assert data[0].tolist() == [[2.5, 12.5, 22.5], [3.5, 13.5, 23.5]]
    assert data[1].tolist() == [[3.0, 3.0, 7.0], [2.0, 2.0, 6.0]]


def test_normalise_without_slopes_adds_the_offset_alone():
    data = np.full((1, 1, 2), 2.0, dtype=np.float32)
    normalise(data, np.array([3.0]), np.float32([[-1.0]]), None)
    assert data.ravel().tolist() == [5.0, 5.0]


def test_the_radial_weight_falls_to_its_floor():
    weight = radial_weight(np.array([0.0, 0.4, 0.8, 1.0]), feather=0.8, power=2.0, floor=0.05)
    assert weight == pytest.approx([1.0, np.cos(np.pi / 4) ** 2, 0.05, 0.05])


@pytest.mark.parametrize("change", [{"reject": "sigma"}, {"combine": "sum"}, {"spread": "model"}])
def test_unknown_methods_are_named(change):
    data = np.zeros((3, 1, 1, 1), dtype=np.float32)
    with pytest.raises(ValueError, match=next(iter(change.values()))):
        stack(data, np.ones((3, 1)), quiet(3, 1.0), StackParams(**change))


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="disagree"):
        stack(np.zeros((3, 1, 1, 1), np.float32), np.ones((2, 1)), quiet(3, 1.0), StackParams())
