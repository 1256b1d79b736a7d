"""The CUDA source of the stacker against the compiled loops: on the host, and on a GPU where there is one."""

from dataclasses import replace

import numpy as np
import pytest

import cuda_on_host
import zemosaic_stack_cuda
from cuda_on_host import HostKernels
from strict_device import StrictDevice, StrictDeviceError
from test_stack_core import ALGORITHMS, FIELDS, NX, NY, population, quiet, random_noise
from zemosaic_noise_model import NoiseModel
from zemosaic_stack_core import stack
from zemosaic_stack_cuda import MOST_FRAMES, PIXEL_BYTES, can_stack
from zemosaic_stack_kernels import MODELLED, WINSORIZED
from zemosaic_types import StackParams

HALO = (1, 0, 0, 2)
each_algorithm = pytest.mark.parametrize("params", ALGORITHMS, ids=lambda p: f"{p.reject}-{p.spread}")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A device with kernels made by the system's C++ compiler; tests are skipped, visibly, where there is none."""
    if cuda_on_host.COMPILER is None:
        pytest.skip("neither g++ nor clang++, or not on Linux")
    return HostKernels(tmp_path_factory.mktemp("kernels"))


def survey(n, holes):
    """Samples of two channels, weights of frames, and noise with photons and blur."""
    data = np.concatenate([population(n, holes, seed=40 + n), population(n, holes, seed=80 + n)], axis=1)
    rng = np.random.default_rng(n)
    return data, 10.0 ** rng.uniform(-4, 0, (n, 2)), random_noise(rng, n, channels=2)


def compare(device, data, weight, noise, params, **more):
    """Both routes give the same arrays to the last bit; returns the result of the compiled loops."""
    compiled = stack(data, weight, noise, params, **more)
    kernels = stack(device.upload(data), weight, noise, params, device=device, **more)
    for name in FIELDS:
        ours, theirs = device.download(getattr(kernels, name)), getattr(compiled, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    return compiled


@each_algorithm
@pytest.mark.parametrize("holes", ["none", "scattered", "border"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 30, 61, 200])
def test_the_kernels_give_what_the_compiled_loops_give_to_the_last_bit(params, n, holes, host):
    launches = len(host.launches)
    compare(host, *survey(n, holes), params, halo=HALO)
    bounds = [] if params.reject == "none" or n < 3 else ["bounds"]
    assert [name for name, _ in host.launches[launches:]] == [*bounds, "combine"]


@each_algorithm
@pytest.mark.parametrize("n", [9, 16, 64, 65, 129, 700])
def test_divisions_of_the_samples_among_threads_sort_them(params, n, host):
    data, weight, noise = survey(n, "scattered")
    compare(host, np.ascontiguousarray(data[:, :, :3, :5]), weight, noise, params)


def test_the_deepest_stack_uses_a_whole_warp_for_a_pixel(host):
    data, weight, noise = survey(MOST_FRAMES, "scattered")
    few = np.ascontiguousarray(data[:, :1, :2, :3])
    compare(host, few, weight[:, :1], NoiseModel(noise.sky[:, :1]), StackParams())
    assert host.launches[-2] == ("bounds", (2, 1))


@each_algorithm
def test_a_block_that_takes_pixels_in_turn_counts_all_of_them(params, host, monkeypatch):
    monkeypatch.setattr(zemosaic_stack_cuda, "_MOST_BLOCKS", 2)
    rng = np.random.default_rng(12)
    data = rng.normal(0, 1, (5, 2, 7, 150)).astype(np.float32)
    data[rng.random(data.shape) < 0.05] += 40
    data[:, :, :, ::7] = np.nan
    result = compare(host, data, rng.uniform(0.5, 2, (5, 2)), quiet(5, 1.0, channels=2), params)
    assert result.tally.sum() == np.isfinite(data).sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("halo", [(0, 0, 0, 0), (0, 1, 1, 0)])
def test_borders_of_narrow_rectangles_continue_themselves(shape, halo, host):
    if min(np.subtract(shape, [halo[0] + halo[1], halo[2] + halo[3]])) < 1:
        halo = (0, 0, 0, 0)
    data = np.random.default_rng(3).normal(500.0, 200.0, (6, 1, *shape)).astype(np.float32)
    compare(host, data, np.ones((6, 1)), random_noise(np.random.default_rng(4), 6), StackParams(), halo=halo)


@each_algorithm
def test_pixels_without_any_data_are_empty(params, host):
    data = np.full((4, 1, 3, 5), np.nan, dtype=np.float32)
    data[:2, :, 1, 1] = 7.0
    result = compare(host, data, np.ones((4, 1)), random_noise(np.random.default_rng(5), 4), params)
    assert result.coverage.sum() == 2


@each_algorithm
@pytest.mark.parametrize("change", [{"max_iterations": 0}, {"max_iterations": 1}, {"kappa_low": 0.5}])
def test_kappas_and_iterations_reach_the_kernels(params, change, host):
    compare(host, *survey(30, "scattered"), replace(params, **change))


def test_ties_and_zeros_of_both_signs_are_sorted(host):
    rng = np.random.default_rng(8)
    data = rng.choice(np.float32([-1.0, -0.0, 0.0, 1.0, 9.0]), (64, 1, 4, 9))
    for params in ALGORITHMS:
        compare(host, data, np.ones((64, 1)), quiet(64, 0.5), params)


def weights_of_pixels(n, seed=3):
    """Weights between 0 and 1, some of them none, negative or no number."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.0, 1.0, (n, NY, NX)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.1] = 0.0
    weights[0, 0, :3] = np.float32([-1.0, np.nan, 1.0])
    return weights


def compare_weighed(device, params, n, pixel_weight):
    """Both routes give the same arrays to the last bit with weights of pixels."""
    data, weight, noise = survey(n, "scattered")
    compiled = stack(data, weight, noise, params, pixel_weight=pixel_weight, halo=HALO)
    there = device.upload(data), weight, noise, params
    kernels = stack(*there, pixel_weight=device.upload(pixel_weight), halo=HALO, device=device)
    for name in FIELDS:
        np.testing.assert_array_equal(
            device.download(getattr(kernels, name)), getattr(compiled, name), err_msg=name
        )


@each_algorithm
@pytest.mark.parametrize("n", [2, 5, 30, 61])
def test_weights_of_pixels_reach_the_kernels(params, n, host):
    launches = len(host.launches)
    compare_weighed(host, params, n, weights_of_pixels(n))
    compare_weighed(host, params, n, 0.1 + np.abs(np.nan_to_num(weights_of_pixels(n))))
    assert len(host.launches) > launches


@pytest.mark.parametrize("quantity", ["sky", "photon", "blur"])
def test_frames_of_very_different_noise_stay_with_array_operations(quantity, host):
    """The kernels cannot sum it exactly."""
    data, weight, noise = survey(30, "scattered")
    getattr(noise, quantity)[7] *= 1e6
    launches = len(host.launches)
    compare(host, data, weight, noise, StackParams(), halo=HALO)
    assert len(host.launches) == launches
    compare(host, data, weight, noise, StackParams(spread="sample"), halo=HALO)
    assert len(host.launches) > launches


@pytest.mark.parametrize("quantity", ["sky", "photon", "level", "blur"])
def test_frames_of_moderately_different_noise_do_not(quantity, host):
    data, weight, noise = survey(30, "scattered")
    getattr(noise, quantity)[7] *= 20.0
    launches = len(host.launches)
    compare(host, data, weight, noise, StackParams(), halo=HALO)
    assert len(host.launches) > launches


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_the_unit_of_the_samples_does_not_matter(scale, host):
    data, weight, noise = survey(30, "scattered")
    scaled = NoiseModel(noise.sky * scale, noise.photon * scale, noise.level * scale, noise.blur)
    launches = len(host.launches)
    compare(host, data * np.float32(scale), weight, scaled, StackParams(), halo=HALO)
    assert len(host.launches) > launches


#: The most frames of each division up to 256 frames, and of every kind beyond.
DIVISIONS = [*range(8, 65, 8), 80, 96, 112, 128, 160, 224, 384, 1024, 1280]


@pytest.mark.parametrize("n", DIVISIONS)
def test_every_kernel_takes_as_many_frames_as_it_is_compiled_for(n, host):
    assert zemosaic_stack_cuda.compiled_for(n) == n
    data, weight, noise = survey(n, "scattered")
    noise.photon[:] = np.maximum(noise.photon, 0.1)
    compare(host, np.ascontiguousarray(data[:, :1, :2, :3]), weight[:, :1], first_channel(noise), StackParams())


def first_channel(noise):
    return NoiseModel(*(getattr(noise, name)[:, :1] for name in ("sky", "photon", "level", "blur")))


def test_the_median_stays_with_array_operations(host):
    data, weight, noise = survey(5, "none")
    there, launches = host.upload(data), len(host.launches)
    median = stack(there, weight, noise, StackParams(combine="median"), device=host)
    assert len(host.launches) == launches
    assert (median.coverage.get() == stack(data, weight, noise, StackParams(combine="median")).coverage).all()


@pytest.mark.parametrize(
    ("shape", "halo", "expected"),
    [
        ((1, 1, 1, 1), (0, 0, 0, 0), True),
        ((MOST_FRAMES, 3, 9, 9), (1, 1, 1, 1), True),
        ((MOST_FRAMES + 1, 3, 9, 9), (1, 1, 1, 1), False),
        ((0, 3, 9, 9), (0, 0, 0, 0), False),
        ((3, 3, 2, 9), (1, 1, 0, 0), False),
        ((3, 3, 9, 2), (0, 0, 1, 1), False),
        ((1, 1, 2**16, 2**16), (0, 0, 0, 0), False),
    ],
)
def test_what_is_too_deep_or_empty_is_not_for_the_kernels(shape, halo, expected):
    assert can_stack(shape, halo) is expected


def test_an_empty_rectangle_comes_back_empty(host):
    data, weight, noise = survey(3, "none")
    result = stack(host.upload(data), weight, noise, StackParams(), halo=(2, 3, 0, 0), device=host)
    assert result.image.shape == (2, 0, NX)


@each_algorithm
@pytest.mark.parametrize("n", [2, 30])
def test_no_more_memory_is_taken_than_was_promised(params, n, host):
    rng = np.random.default_rng(n)
    there = host.upload(rng.normal(500.0, 20.0, (n, 3, 40, 50)).astype(np.float32))
    before = host.xp.live_bytes
    host.xp.peak_bytes = 0
    stack(there, np.ones((n, 3)), quiet(n, 20.0, channels=3), params, device=host)
    assert 0 <= (host.xp.peak_bytes - before) / (3 * 40 * 50) <= PIXEL_BYTES + 2  # two for the tables of frames


def test_kernels_that_cannot_be_compiled_are_an_error_of_the_device():
    data, weight, noise = survey(3, "none")
    device = StrictDevice()
    with pytest.raises(StrictDeviceError, match="no CUDA compiler"):
        stack(device.upload(data), weight, noise, StackParams(), device=device)


def test_unknown_methods_are_named_before_the_kernels_are(host):
    there = host.upload(np.zeros((3, 1, 1, 1), np.float32))
    with pytest.raises(ValueError, match="unknown rejection 'sigma'"):
        stack(there, np.ones((3, 1)), quiet(3, 1.0), StackParams(reject="sigma"), device=host)


@pytest.mark.parametrize("method", [MODELLED, WINSORIZED])
@pytest.mark.parametrize("n", [30, 200])
def test_nvcc_keeps_samples_in_registers_and_fuses_nothing(n, method, tmp_path):
    told, ptx = cuda_on_host.compiled_by_nvcc(
        zemosaic_stack_cuda._source(*zemosaic_stack_cuda._division(n), method), tmp_path
    )
    assert told.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 2
    assert "fma" not in ptx


# --- on a real GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@each_algorithm
@pytest.mark.parametrize("holes", ["none", "scattered", "border"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 20, 30, 61, 65, 100, 129, 200, 300, 700])
def test_a_real_gpu_gives_what_the_compiled_loops_give_to_the_last_bit(params, n, holes, gpu_device):
    compare(gpu_device, *survey(n, holes), params, halo=HALO)


@pytest.mark.gpu
@each_algorithm
@pytest.mark.parametrize("n", [5, 30, 200])
def test_a_real_gpu_weighs_pixels_like_the_compiled_loops(params, n, gpu_device):
    compare_weighed(gpu_device, params, n, weights_of_pixels(n))


@pytest.mark.gpu
@each_algorithm
def test_a_real_gpu_stacks_a_wide_rectangle_like_the_compiled_loops(params, gpu_device):
    rng = np.random.default_rng(31)
    data = rng.normal(500.0, 20.0, (200, 3, 90, 701)).astype(np.float32)
    data[rng.random(data.shape) < 0.01] += 300
    data[:90, :, :, 250:] = np.nan
    weight = rng.uniform(0.5, 2, (200, 3))
    compare(gpu_device, data, weight, random_noise(rng, 200, channels=3), params, halo=(1, 1, 1, 1))


@pytest.mark.gpu
def test_a_real_gpu_stacks_as_many_frames_as_the_kernels_take(gpu_device):
    data, weight, noise = survey(MOST_FRAMES, "scattered")
    compare(gpu_device, data, weight, noise, StackParams())
