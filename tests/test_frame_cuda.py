"""The CUDA source of a frame's kernels against the compiled loops: on the host, and on a GPU if there is one."""

import numpy as np
import pytest

import cuda_on_host
import zemosaic_frame_arrays as arrays
import zemosaic_frame_cuda
import zemosaic_preprocess as compiled
import zemosaic_resample_kernels as kernels
from cuda_on_host import HostKernels
from test_frame_arrays import (
    CASES,
    HOLES,
    LAYOUTS,
    MONO,
    NOISE,
    SHAPES,
    SKY,
    TABLE,
    frame_planes,
    raw_section,
    same,
    setup,
)
from zemosaic_frame_cuda import FrameKernels


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    if cuda_on_host.COMPILER is None:
        pytest.skip("neither g++ nor clang++, or not on Linux")
    return HostKernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["host", pytest.param("gpu_device", marks=pytest.mark.gpu)])
def device(request):
    """A pretended GPU whose kernels are made by the system's C++ compiler; or a real one."""
    return request.getfixturevalue(request.param)


def done(device, name, *given):
    """The result of a function of `FrameKernels`, arrays coming from the host and going back there."""
    there = [device.upload(a) if isinstance(a, np.ndarray) and a.size > 9 else a for a in given]
    return device.download(getattr(FrameKernels(device), name)(*there))


@pytest.mark.parametrize("holes", [*HOLES, "infinite"])
@pytest.mark.parametrize("layout", ["mono", "GRBG", "RGGB"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_raw_frame_is_prepared_as_by_the_compiled_loops_to_the_last_bit(shape, layout, holes, device):
    raw, colours = raw_section(shape, LAYOUTS[layout], holes), LAYOUTS[layout]
    there = device.upload(raw)
    forms = FrameKernels(device)
    clean = forms.replace_isolated(there, colours, SKY, NOISE, 8.0)
    expected = compiled.replace_isolated(raw, colours, SKY, NOISE, 8.0)
    same(device.download(clean), expected)
    same(device.download(there), raw)
    if layout != "mono":
        same(device.download(forms.demosaic(clean, colours)), compiled.demosaic(expected, colours))


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_an_unknown_sky_or_noise_changes_what_the_compiled_loops_change(value, device):
    colours = LAYOUTS["GRBG"]
    raw = raw_section((20, 20), colours, "some")
    for sky, noise in ((np.array([900, value, 850.0]), NOISE), (SKY, np.array([30, value, 28.0]))):
        result = done(device, "replace_isolated", raw, colours, sky, noise, 8.0)
        same(result, compiled.replace_isolated(raw, colours, sky, noise, 8.0))


def test_a_mono_frame_has_one_sky(device):
    raw = raw_section((20, 31), MONO, "some")
    result = done(device, "replace_isolated", raw, MONO, SKY[:1], NOISE[:1], 8.0)
    same(result, compiled.replace_isolated(raw, MONO, SKY[:1], NOISE[:1], 8.0))


@pytest.mark.parametrize("layout", ["mono", "RGGB"])
@pytest.mark.parametrize("shape", [(40, 61), (13, 200), (1, 12)])
def test_vignetting_is_undone_as_by_the_compiled_loops(shape, layout, device):
    rng = np.random.default_rng(3)
    raw, colours = raw_section(shape, LAYOUTS[layout], "some"), LAYOUTS[layout]
    rows, columns = rng.normal(1.0, 0.1, (colours.max() + 1, 5, shape[0])), rng.uniform(-1, 1, shape[1])
    there = device.upload(raw), colours, device.upload(rows), device.upload(columns), 100.5
    result = device.download(FrameKernels(device).flattened(*there))
    same(result, compiled.flattened(raw, colours, rows, columns, 100.5))


def resampled(device, planes, section, shape, nodes, *where, kernel):
    there = device.upload(planes), section, shape, device.upload(nodes)
    return device.download(FrameKernels(device).resample(*there, *where, kernel, device.upload(TABLE)))


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
@pytest.mark.parametrize("case", CASES)
def test_resampling_gives_the_bits_of_the_compiled_loops_also_where_taps_are_missing(case, kernel, device):
    planes, *where, out_shape = setup(case, kernel)
    expected = np.empty((planes.shape[0], *out_shape), dtype=np.float32)
    table = (TABLE,) if kernel == "lanczos3" else ()
    getattr(kernels, kernel)(planes, *where, *table, expected)
    same(resampled(device, planes, *where, out_shape, kernel=kernel), expected)


def test_infinite_pixels_do_what_they_do_on_the_cpu(device):
    planes, *where, out_shape = setup("inner part")
    planes[0, 20:24, 15:40:7] = np.inf
    planes[1, 10, 30] = -np.inf
    expected = np.empty((planes.shape[0], *out_shape), dtype=np.float32)
    kernels.lanczos3(planes, *where, TABLE, expected)
    same(resampled(device, planes, *where, out_shape, kernel="lanczos3"), expected)


def test_positions_off_the_sky_give_no_data(device):
    planes, section, shape, nodes, origin, corner, out_shape = setup("whole frame")
    nodes = nodes.copy()
    nodes[:, nodes.shape[1] // 2 :] = np.nan
    x, _ = arrays.pixel_map(nodes, origin, corner, out_shape)
    for kernel in ("lanczos3", "bilinear"):
        result = resampled(device, planes, section, shape, nodes, origin, corner, out_shape, kernel=kernel)
        assert np.isnan(result[:, np.isnan(x)]).all()
        assert np.isfinite(result).any()


def test_a_section_that_is_too_small_gives_no_data_where_its_pixels_are_missing(device):
    planes, _, shape, nodes, origin, corner, out_shape = setup("whole frame")
    part = np.ascontiguousarray(planes[:, 10:20, 5:15])
    x, y = arrays.pixel_map(nodes, origin, corner, out_shape)
    covered = (x > 4.5) & (x < 14.5) & (y > 9.5) & (y < 19.5)
    bilinear = resampled(device, part, (10, 5), shape, nodes, origin, corner, out_shape, kernel="bilinear")
    same(np.isfinite(bilinear), np.broadcast_to(covered, bilinear.shape))


@pytest.mark.parametrize("case", ["whole frame", "an edge", "frame of one column"])
@pytest.mark.parametrize("width", [0.5, 6.0, 100.0])
def test_the_feather_is_that_of_the_compiled_loops(case, width, device):
    _, _, size, nodes, origin, corner, shape = setup(case)
    weight = np.random.default_rng(1).uniform(0.1, 1.0, shape).astype(np.float32)
    expected = weight.copy()
    kernels.feather(nodes, origin, corner, *size, width, 0.01, expected)
    there = device.upload(nodes), origin, corner, size, width, 0.01, device.upload(weight)
    result = device.download(FrameKernels(device).feather(*there))
    x, y = arrays.pixel_map(nodes, origin, corner, shape)
    inside = (x > -0.5) & (x < size[1] - 0.5) & (y > -0.5) & (y < size[0] - 0.5)
    same(result[inside], expected[inside])


def test_blocks_take_rows_in_turn(device, monkeypatch):
    monkeypatch.setattr(zemosaic_frame_cuda, "_MOST_ROWS", 3)
    raw = raw_section((40, 200), MONO, "some")
    result = done(device, "replace_isolated", raw, MONO, SKY[:1], NOISE[:1], 8.0)
    same(result, compiled.replace_isolated(raw, MONO, SKY[:1], NOISE[:1], 8.0))


def test_unknown_kernels_are_named_and_lanczos_asks_for_its_table(host):
    arguments = setup("whole frame")
    with pytest.raises(ValueError, match="nearest"):
        FrameKernels(host).resample(*arguments, "nearest", TABLE)
    with pytest.raises(ValueError, match="table"):
        FrameKernels(host).resample(*arguments, "lanczos3")


def test_no_more_memory_is_taken_than_was_promised(host):
    forms, colours = FrameKernels(host), LAYOUTS["GRBG"]
    rng = np.random.default_rng(0)
    before, host.xp.peak_bytes = host.xp.live_bytes, 0
    raw = host.upload(rng.uniform(0, 999, (60, 90)).astype(np.float32))
    rows, columns = host.upload(np.ones((3, 2, 60))), host.upload(np.zeros(90))
    flat = forms.flattened(raw, colours, rows, columns, 0.0)
    forms.demosaic(forms.replace_isolated(flat, colours, SKY, NOISE, 8.0), colours)
    assert host.xp.peak_bytes - before <= 60 * 90 * FrameKernels.PREPARE_BYTES_PER_PX
    planes, *where, out_shape = setup("inner part")
    nodes, table = host.upload(where[2]), host.upload(TABLE)
    planes = host.upload(frame_planes((60, 70), 3, "none"))
    before, host.xp.peak_bytes = host.xp.live_bytes, 0
    forms.resample(planes, *where[:2], nodes, *where[3:], out_shape, "lanczos3", table)
    assert host.xp.peak_bytes - before <= np.prod(out_shape) * FrameKernels.RESAMPLE_BYTES_PER_PX


def test_nvcc_keeps_taps_in_registers_and_fuses_nothing(tmp_path):
    told, ptx = cuda_on_host.compiled_by_nvcc(zemosaic_frame_cuda._source(), tmp_path)
    assert told.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == 6
    assert "fma." not in ptx
