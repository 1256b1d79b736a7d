"""The array forms of what prepares and resamples a frame, against the compiled forms and slow loops."""

import math

import numpy as np
import pytest

import references
import zemosaic_frame_arrays as arrays
import zemosaic_preprocess as compiled
import zemosaic_resample_kernels as kernels
from strict_namespace import StrictNamespace
from zemosaic_reproject import KERNEL_REACH_PX, Lattice, section_for
from zemosaic_types import Rect

MONO = np.zeros((2, 2), dtype=np.int64)
LAYOUTS = {"mono": MONO, **{bayer: compiled.bayer_colours(bayer) for bayer in ("GRBG", "RGGB", "BGGR")}}
SKY = np.array([900.3, 1000.7, 850.1])
NOISE = np.array([30.2, 32.9, 28.4])
SHAPES = [(40, 61), (13, 10), (2, 9), (9, 2), (1, 12), (12, 1), (1, 1), (3, 3)]


def same(result, expected):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


def raw_section(shape, colours, holes):
    """Noise about each colour's sky with hot, dead and hit pixels, a star, and pixels without data."""
    rng = np.random.default_rng(sum(shape))
    y, x = np.indices(shape)
    colour = colours[y % 2, x % 2]
    raw = rng.normal(SKY[colour], NOISE[colour])
    raw += 9000 * np.exp(-((y - 0.3 * shape[0]) ** 2 + (x - 0.7 * shape[1]) ** 2) / 2.4)
    wild = rng.random(shape)
    raw[wild < 0.04] = 20000
    raw[wild > 0.97] = 0
    if holes == "some":
        raw[rng.random(shape) < 0.3] = np.nan
    elif holes == "border":
        raw[[0, -1]] = np.nan
        raw[:, :3] = np.nan
    elif holes == "all":
        raw[:] = np.nan
    elif holes == "infinite":
        raw[rng.random(shape) < 0.1] = np.inf
    return raw.astype(np.float32)


HOLES = ["none", "some", "border", "all"]


def test_native_integers_become_floats_and_floats_stay():
    raw = np.array([[0, 65535, 32768]], dtype=np.uint16)
    same(arrays.to_float(raw), np.array([[0, 65535, 32768]], dtype=np.float32))
    floats = raw.astype(np.float32)
    assert arrays.to_float(floats) is floats


@pytest.mark.parametrize("holes", [*HOLES, "infinite"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_isolated_pixels_are_replaced_as_by_the_compiled_form(shape, layout, holes):
    raw, colours = raw_section(shape, LAYOUTS[layout], holes), LAYOUTS[layout]
    before = raw.copy()
    result = arrays.replace_isolated(raw, colours, SKY, NOISE, compiled.ISOLATED_SIGMA)
    same(result, compiled.replace_isolated(raw, colours, SKY, NOISE, compiled.ISOLATED_SIGMA))
    same(raw, before)
    if shape == SHAPES[0] and holes != "all":
        assert (result[np.isfinite(raw)] != raw[np.isfinite(raw)]).sum() > 20


def slowly_replaced(raw, colours, sky, noise, threshold):
    """The definition of `replace_isolated`, pixel by pixel."""
    out, step = raw.copy(), 1 if len(set(colours.ravel())) == 1 else 2

    def excess(y, x):
        return float(raw[y, x]) - sky[colours[y % 2, x % 2]]

    def found(y, x, shifts):
        there = [(y + dy, x + dx) for dy, dx in shifts]
        there = [(j, i) for j, i in there if 0 <= j < raw.shape[0] and 0 <= i < raw.shape[1]]
        return [(j, i) for j, i in there if math.isfinite(raw[j, i])]

    for y, x in np.ndindex(raw.shape):
        own = excess(y, x)
        if not abs(own) > threshold * noise[colours[y % 2, x % 2]]:
            continue
        direct = [excess(j, i) for j, i in found(y, x, [(-1, 0), (1, 0), (0, -1), (0, 1)])]
        if own > 0 and (not direct or sum(direct) / len(direct) > 0.15 * own):
            continue
        around = [(a * step, b * step) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
        values = [raw[j, i] for j, i in found(y, x, around)]
        out[y, x] = np.median(values) if values else raw[y, x]
    return out


@pytest.mark.parametrize("holes", HOLES)
@pytest.mark.parametrize("layout", ["mono", "GRBG"])
def test_isolated_pixels_are_replaced_as_by_a_slow_loop(layout, holes):
    colours = LAYOUTS[layout]
    raw = raw_section((15, 18), colours, holes)
    result = arrays.replace_isolated(raw, colours, SKY, NOISE, 8.0)
    same(result, slowly_replaced(raw, colours, SKY, NOISE, 8.0))


@pytest.mark.parametrize("left", range(9))
def test_the_median_is_that_of_however_many_neighbours_there_are(left):
    rng = np.random.default_rng(left)
    raw = np.full((3, 3), 1000.0, dtype=np.float32)
    around = np.delete(np.arange(9), 4)
    raw.flat[around] = rng.permutation(np.float32(1000.1) + np.arange(8, dtype=np.float32) ** 2)
    raw.flat[rng.permutation(around)[left:]] = np.nan
    raw[1, 1] = 0
    expected = np.median(raw.flat[around][np.isfinite(raw.flat[around])]) if left else 0
    result = arrays.replace_isolated(raw, MONO, SKY[1:2], NOISE[:1], 8.0)
    assert result[1, 1] == np.float32(expected)


@pytest.mark.parametrize(("share", "replaced"), [(0.1499, True), (0.1501, False)])
def test_a_pixel_is_isolated_if_its_neighbours_hold_less_than_a_share_of_its_excess(share, replaced):
    raw = np.full((6, 6), 1000.0, dtype=np.float32)
    raw[3, 3] += 4000.0
    raw[2, 3] += 4 * share * 4000.0
    result = arrays.replace_isolated(raw, MONO, np.array([1000.0]), np.array([30.0]), 8.0)
    assert (result[3, 3] != 5000.0) == replaced


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_an_unknown_sky_or_noise_changes_what_the_compiled_form_changes(value):
    colours = LAYOUTS["GRBG"]
    raw = raw_section((20, 20), colours, "some")
    for sky, noise in ((np.array([900, value, 850.0]), NOISE), (SKY, np.array([30, value, 28.0]))):
        result = arrays.replace_isolated(raw, colours, sky, noise, 8.0)
        same(result, compiled.replace_isolated(raw, colours, sky, noise, 8.0))


@pytest.mark.parametrize("holes", HOLES)
@pytest.mark.parametrize("layout", ["GRBG", "RGGB", "BGGR"])
@pytest.mark.parametrize("shape", SHAPES)
def test_demosaicing_gives_the_bits_of_the_compiled_form(shape, layout, holes):
    raw, colours = raw_section(shape, LAYOUTS[layout], holes), LAYOUTS[layout]
    same(arrays.demosaic(raw, colours), compiled.demosaic(raw, colours))


@pytest.mark.parametrize("layout", ["GRBG", "RGGB"])
def test_demosaicing_agrees_with_the_published_filters(layout):
    raw = raw_section((12, 15), LAYOUTS[layout], "none")
    result = arrays.demosaic(raw, LAYOUTS[layout])
    np.testing.assert_allclose(result, references.malvar(raw, layout), rtol=2e-5, atol=1e-3)


TABLE = kernels.lanczos3_table()


def test_the_table_holds_the_kernel_at_every_fraction():
    for k in (0, 1, 777, 2048, 4095):
        distance = k / 4096 - np.arange(-2, 4)
        weights = np.sinc(distance) * np.sinc(distance / 3.0)
        np.testing.assert_allclose(TABLE[k, :6], weights / weights.sum(), atol=1e-7)
        assert (TABLE[k, 6:] == 0).all()


def warped_lattice(shape, angle, *, shift=(0.0, 0.0), step=8, bend=2e-4):
    """A lattice whose canvas pixel (0, 0) lies near the frame's centre, turned and a little bent."""
    size = 2 * step * (max(shape) // step + 2)
    y, x = np.mgrid[-size : size + 1 : step, -size : size + 1 : step].astype(float)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    fx = 0.5 * (shape[1] - 1) + shift[1] + c * x + s * y + bend * x * y
    fy = 0.5 * (shape[0] - 1) + shift[0] - s * x + c * y - bend * y * y
    return Lattice(np.stack([fx, fy]), -size, -size, step)


def frame_planes(shape, channels, holes, seed=5):
    rng = np.random.default_rng(seed)
    planes = rng.normal(20, 10, (channels, *shape))
    planes[rng.random(planes.shape) < 0.02] += 5000
    if holes == "some":
        planes[rng.random(planes.shape) < 0.1] = np.nan
    elif holes == "border":
        planes[:, :2] = np.nan
        planes[:, :, -3:] = np.nan
    elif holes == "blocks":
        planes[0, 5:14, 8:20] = np.nan
        planes[-1, 18:, 11:19] = np.nan
    elif holes == "all":
        planes[:] = np.nan
    return planes.astype(np.float32)


#: Frame shape, channels, holes, rotation, rectangle of the canvas, other arguments of the lattice.
CASES = {
    "whole frame": ((33, 27), 3, "none", 20.0, Rect(-25, 25, -25, 25), {}),
    "holes": ((33, 27), 3, "some", 200.0, Rect(-25, 25, -25, 25), {}),
    "blocks": ((33, 27), 3, "blocks", 75.0, Rect(-25, 25, -25, 25), {}),
    "missing border": ((33, 27), 1, "border", 3.0, Rect(-25, 25, -25, 25), {}),
    "no data": ((20, 20), 1, "all", 45.0, Rect(-12, 12, -12, 12), {}),
    "inner part": ((60, 70), 3, "none", 33.0, Rect(-9, 8, -5, 12), {}),
    "inner part with holes": ((60, 70), 1, "some", 33.0, Rect(-9, 8, 3, 12), {}),
    "an edge": ((60, 70), 1, "some", 0.0, Rect(-9, 8, 20, 44), {"bend": 0.0}),
    "one row of pixels": ((33, 27), 1, "none", 0.0, Rect(4, 5, -20, 20), {}),
    "frame of one row": ((1, 30), 1, "none", 5.0, Rect(-4, 4, -20, 20), {}),
    "frame of one column": ((30, 1), 3, "some", 5.0, Rect(-20, 20, -4, 4), {}),
    "frame of three rows": ((3, 30), 1, "none", 3.0, Rect(-4, 4, -20, 20), {}),
    "frame of four rows": ((4, 9), 3, "some", 3.0, Rect(-5, 5, -9, 9), {}),
    "frame of five columns": ((30, 5), 1, "none", 3.0, Rect(-20, 20, -5, 5), {}),
    "frame of six columns": ((7, 6), 1, "none", 8.0, Rect(-6, 7, -5, 5), {}),
    "frame of one pixel": ((1, 1), 1, "none", 0.0, Rect(-2, 3, -2, 3), {"shift": (0.3, -0.2)}),
    "on pixels": ((21, 21), 1, "some", 0.0, Rect(-13, 13, -13, 13), {"bend": 0.0}),
    "between pixels": ((20, 20), 1, "some", 0.0, Rect(-13, 13, -13, 13), {"bend": 0.0}),
    "upside down": ((20, 21), 1, "some", 180.0, Rect(-13, 13, -13, 13), {"bend": 0.0}),
    "coarse lattice": ((33, 27), 1, "some", 33.0, Rect(-21, 22, -23, 20), {"step": 64}),
}


def setup(case, kernel="lanczos3"):
    """Return the planes and the other arguments of a resampling, the section cut to what is needed."""
    shape, channels, holes, angle, rect, more = CASES[case]
    grid = warped_lattice(shape, angle, **more)
    section = section_for(grid, rect, shape, KERNEL_REACH_PX[kernel])
    planes = np.ascontiguousarray(frame_planes(shape, channels, holes)[(slice(None), *section.slices)])
    return planes, (section.y0, section.x0), shape, grid.nodes, grid.origin, (rect.y0, rect.x0), rect.shape


@pytest.mark.parametrize("case", CASES)
def test_the_pixel_map_gives_the_bits_of_the_compiled_form(case):
    _, _, _, nodes, origin, corner, shape = setup(case)
    nodes = nodes.copy()
    nodes[:, -3:, -4:] = np.nan
    x, y = np.empty(shape), np.empty(shape)
    kernels.positions(nodes, origin, corner, x, y)
    result = arrays.pixel_map(nodes, origin, corner, shape)
    same(result[0], x)
    same(result[1], y)


def test_positions_off_the_sky_are_nan_and_give_no_data():
    planes, section, shape, nodes, origin, corner, out_shape = setup("whole frame")
    nodes = nodes.copy()
    nodes[:, nodes.shape[1] // 2 :] = np.nan
    x, _ = arrays.pixel_map(nodes, origin, corner, out_shape)
    assert 0 < np.isnan(x).sum() < x.size
    for kernel in KERNEL_REACH_PX:
        result = arrays.resample(planes, section, shape, nodes, origin, corner, out_shape, kernel, TABLE)
        assert np.isnan(result[:, np.isnan(x)]).all()
        assert np.isfinite(result).any()


@pytest.mark.parametrize("case", CASES)
def test_bilinear_gives_the_bits_of_the_compiled_form(case):
    planes, *where, out_shape = setup(case, "bilinear")
    expected = np.empty((planes.shape[0], *out_shape), dtype=np.float32)
    kernels.bilinear(planes, *where, expected)
    same(arrays.resample(planes, *where, out_shape, "bilinear"), expected)


@pytest.mark.parametrize("case", CASES)
def test_lanczos_gives_the_bits_of_the_compiled_form_where_no_tap_is_missing(case):
    planes, *where, out_shape = setup(case)
    expected = np.empty((planes.shape[0], *out_shape), dtype=np.float32)
    kernels.lanczos3(planes, *where, TABLE, expected)
    result = arrays.resample(planes, *where, out_shape, "lanczos3", TABLE)
    same(np.isnan(result), np.isnan(expected))
    # Where taps are missing the order of the float64 sums differs, which cancellation may bring into sight.
    np.testing.assert_array_max_ulp(result[np.isfinite(result)], expected[np.isfinite(expected)], maxulp=2)
    if case == "inner part":
        same(result, expected)


def slow_lanczos3(plane, x, y):
    """Lanczos-3 at a position rounded to 1 / 4096 px, by its definition; `plane` is the whole frame."""
    ny, nx = plane.shape
    if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5):
        return math.nan
    (i, kx), (j, ky) = (divmod(math.floor(v * 4096 + 0.5), 4096) for v in (x, y))

    def value(row, column):
        inside = 0 <= row < ny and 0 <= column < nx
        return float(plane[row, column]) if inside else math.nan

    # A position is inside the frame before it is rounded, so the nearest pixel is one of the frame's.
    near = value(min(max(j + (ky > 2048), 0), ny - 1), min(max(i + (kx > 2048), 0), nx - 1))
    if math.isnan(near):
        return math.nan
    taps = [(a, b) for a in range(6) for b in range(6) if not math.isnan(value(j - 2 + a, i - 2 + b))]
    weights = [float(TABLE[ky, a]) * float(TABLE[kx, b]) for a, b in taps]
    values = [value(j - 2 + a, i - 2 + b) for a, b in taps]
    total = math.fsum(w * v for w, v in zip(weights, values, strict=True))
    smallest = min(v for (a, b), v in zip(taps, values, strict=True) if 1 <= a <= 4 and 1 <= b <= 4)
    if len(taps) == 36:
        return max(total, smallest)
    weight = math.fsum(weights)
    return near if weight < 0.3 else max(total / weight, smallest)


@pytest.mark.parametrize("case", CASES)
def test_lanczos_agrees_with_a_slow_loop(case):
    planes, *where, out_shape = setup(case)
    result = arrays.resample(planes, *where, out_shape, "lanczos3", TABLE)
    shape, channels, holes = CASES[case][:3]
    whole = frame_planes(shape, channels, holes)
    x, y = arrays.pixel_map(*where[2:], out_shape)
    expected = np.array(
        [[slow_lanczos3(plane, *at) for at in zip(x.ravel(), y.ravel(), strict=True)] for plane in whole]
    ).astype(np.float32)
    expected = expected.reshape(result.shape)
    same(np.isnan(result), np.isnan(expected))
    assert np.isfinite(result).any() == (holes != "all")
    np.testing.assert_array_max_ulp(result[np.isfinite(result)], expected[np.isfinite(expected)], maxulp=1)


def test_lanczos_agrees_with_the_exact_kernel():
    shape, _, holes, *_ = CASES["inner part"]
    planes, *where, out_shape = setup("inner part")
    result = arrays.resample(planes, *where, out_shape, "lanczos3", TABLE)
    whole = frame_planes(shape, 3, holes)
    x, y = arrays.pixel_map(*where[2:], out_shape)
    for c, j, i in np.ndindex(result.shape):
        # Half a step of 1 / 4096 px on flanks of 5000 units.
        expected = references.lanczos3(whole[c], x[j, i], y[j, i])
        assert result[c, j, i] == pytest.approx(expected, abs=3.0)


def test_little_weight_gives_the_nearest_pixel():
    planes = np.full((1, 9, 9), np.nan, dtype=np.float32)
    planes[0, 4, 4] = 7.0
    for j, i in ((3, 4), (4, 3), (6, 4), (4, 6)):  # of negative weight
        planes[0, j, i] = 100.0
    grid = warped_lattice((9, 9), 0.0, shift=(0.45, 0.45), bend=0.0)
    result = arrays.resample(planes, (0, 0), (9, 9), grid.nodes, grid.origin, (0, 0), (1, 1), "lanczos3", TABLE)
    near, *beside = (float(TABLE[round(0.45 * 4096), tap]) for tap in (2, 1, 4))
    assert 0 < near**2 + 2 * near * sum(beside) < 0.3
    assert result[0, 0, 0] == 7.0


def test_a_section_that_is_too_small_gives_no_data_where_its_pixels_are_missing():
    planes, _, shape, nodes, origin, corner, out_shape = setup("whole frame")
    part = np.ascontiguousarray(planes[:, 10:20, 5:15])
    for kernel in KERNEL_REACH_PX:
        result = arrays.resample(part, (10, 5), shape, nodes, origin, corner, out_shape, kernel, TABLE)
        x, y = arrays.pixel_map(nodes, origin, corner, out_shape)
        covered = (x > 4.5) & (x < 14.5) & (y > 9.5) & (y < 19.5)
        same(np.isfinite(result), np.broadcast_to(covered, result.shape))


def test_unknown_kernels_are_named_and_lanczos_asks_for_its_table():
    arguments = setup("whole frame")
    with pytest.raises(ValueError, match="nearest"):
        arrays.resample(*arguments, "nearest", TABLE)
    with pytest.raises(ValueError, match="table"):
        arrays.resample(*arguments, "lanczos3")


def sent(*on_host):
    """Return a fresh stand-in device and arrays on it; its count of copies starts after that."""
    xp = StrictNamespace()
    on_device = [xp.asarray(array) for array in on_host]
    xp.uploads = 0
    return xp, *on_device


def fetched(xp, array):
    """Return the host's copy of a result; nothing may have been copied since the arrays were sent."""
    assert (xp.uploads, xp.downloads) == (0, 0)
    return array.get()


@pytest.mark.parametrize("holes", HOLES)
@pytest.mark.parametrize("layout", ["mono", "GRBG", "RGGB"])
@pytest.mark.parametrize("shape", SHAPES)
def test_preparing_on_a_device_gives_the_same_bits(shape, layout, holes):
    colours = LAYOUTS[layout]
    raw = raw_section(shape, colours, holes)
    clean = arrays.replace_isolated(raw, colours, SKY, NOISE, 8.0)
    xp, on_device = sent(raw)
    same(fetched(xp, arrays.replace_isolated(on_device, colours, SKY, NOISE, 8.0)), clean)
    if layout != "mono":
        xp, on_device = sent(clean)
        same(fetched(xp, arrays.demosaic(on_device, colours)), arrays.demosaic(clean, colours))


def test_integers_become_floats_on_a_device():
    raw = np.array([[0, 65535, 32768]], dtype=np.uint16)
    xp, on_device = sent(raw)
    same(fetched(xp, arrays.to_float(on_device)), raw.astype(np.float32))


@pytest.mark.parametrize("kernel", KERNEL_REACH_PX)
@pytest.mark.parametrize("case", CASES)
def test_resampling_on_a_device_gives_the_same_bits(case, kernel):
    planes, section, shape, nodes, *where = setup(case, kernel)
    nodes = nodes.copy()
    nodes[:, -3:, -4:] = np.nan
    expected = arrays.resample(planes, section, shape, nodes, *where, kernel, TABLE)
    xp, on_device, map_there, table = sent(planes, nodes, TABLE)
    same(fetched(xp, arrays.resample(on_device, section, shape, map_there, *where, kernel, table)), expected)


@pytest.mark.parametrize("width", [0.7, 5.0, 40.0])
@pytest.mark.parametrize("case", CASES)
def test_the_feather_has_the_bits_of_the_compiled_form_on_a_device_too(case, width):
    _, _, size, nodes, origin, corner, shape = setup(case)
    weight = np.random.default_rng(8).uniform(0.1, 3.0, shape).astype(np.float32)
    expected = weight.copy()
    kernels.feather(nodes, origin, corner, *size, width, 0.01, expected)
    assert width < 40 or (expected != weight).any()
    same(arrays.feather(nodes, origin, corner, size, width, 0.01, weight), expected)
    xp, *on_device = sent(nodes, weight)
    result = arrays.feather(on_device[0], origin, corner, size, width, 0.01, on_device[1])
    same(fetched(xp, result), expected)


def test_the_feather_takes_less_memory_than_resampling():
    shape = (180, 160)
    grid = warped_lattice((200, 150), 20.0)
    xp, nodes, weight = sent(grid.nodes, np.ones(shape, dtype=np.float32))
    before = xp.live_bytes
    arrays.feather(nodes, grid.origin, (-90, -80), (200, 150), 20.0, 0.01, weight)
    assert xp.peak_bytes - before < 0.3 * arrays.RESAMPLE_BYTES_PER_PX * weight.size


def test_the_pixel_map_on_a_device_has_the_same_bits():
    _, _, _, nodes, *where = setup("holes")
    xp, on_device = sent(nodes)
    x, y = arrays.pixel_map(on_device, *where)
    expected = arrays.pixel_map(nodes, *where)
    same(fetched(xp, x), expected[0])
    xp.downloads = 0
    same(fetched(xp, y), expected[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_resampling_takes_the_memory_that_is_stated(channels):
    shape, size = (200, 150), (180, 160)
    grid = warped_lattice(shape, 20.0)
    planes = frame_planes(shape, channels, "none")
    copy = 4 * channels * (shape[0] + 8) * (shape[1] + 8)
    for kernel in KERNEL_REACH_PX:
        xp, on_device, nodes, table = sent(planes, grid.nodes, TABLE)
        before = xp.live_bytes
        arrays.resample(on_device, (0, 0), shape, nodes, grid.origin, (-90, -80), size, kernel, table)
        taken = (xp.peak_bytes - before - copy) / (size[0] * size[1])
        assert taken <= arrays.RESAMPLE_BYTES_PER_PX
    if channels == 3:
        assert taken > 0.7 * arrays.RESAMPLE_BYTES_PER_PX


def test_preparing_takes_the_memory_that_is_stated():
    colours = LAYOUTS["GRBG"]
    taken = []
    for function in (
        lambda a: arrays.replace_isolated(a, colours, SKY, NOISE, 8.0),
        lambda a: arrays.demosaic(a, colours),
    ):
        xp, on_device = sent(raw_section((400, 300), colours, "some"))
        before = xp.live_bytes
        function(on_device)
        taken.append((xp.peak_bytes - before) / on_device.size)
    assert 0.8 * arrays.PREPARE_BYTES_PER_PX < max(taken) <= arrays.PREPARE_BYTES_PER_PX
