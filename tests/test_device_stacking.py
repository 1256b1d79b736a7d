"""Stacking on a device against the host: the same rejections, and nothing lost when the device fails."""

import bisect
import os
import pickle
import sys
import threading
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import cuda_on_host
import strict_device
import zemosaic_align_stack_gpu as driver
import zemosaic_frame_arrays
import zemosaic_stack_core
from strict_device import StrictDevice, StrictDeviceError
from strict_namespace import StrictOutOfMemory, at_call
from surveys import survey_in
from test_formats import cube, rewritten
from zemosaic_align_stack import StackOptions, stack_frames
from zemosaic_align_stack_gpu import MOST_FAILURES, DeviceStacker
from zemosaic_fits_io import frame_wcs
from zemosaic_frame_cuda import FrameKernels
from zemosaic_frame_source import FrameSource, RadialWeight
from zemosaic_match import MatchOptions, match_frames
from zemosaic_measure import cell_size_px, measure_frames
from zemosaic_noise_model import NoiseModel
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_preprocess import bayer_colours, demosaic
from zemosaic_reproject import Canvas, optimal_canvas
from zemosaic_resample_kernels import lanczos3_table
from zemosaic_stack_core import stack_arrays
from zemosaic_synthetic import SurveySpec
from zemosaic_types import DeviceUnavailable, Rect, RunCancelled, StackParams

SPEC = SurveySpec(seed=3, panels=(1, 1), frames_per_panel=9, frame_shape=(96, 120), rotation_deg=20.0)
SPEC = replace(SPEC, dither_px=6.0, star_density=3000.0, hot_pixels=1000.0, trail_fraction=0.4)
COUNTS = ("coverage", "rejected_low", "rejected_high")
REJECTIONS = {
    "auto": StackParams(),
    "sample": StackParams(spread="sample", kappa_low=2.0, kappa_high=2.0),
    "noise_model": StackParams(spread="noise_model"),
    "winsorized": StackParams(reject="winsorized_sigma_clip", kappa_low=2.5, kappa_high=2.5, max_iterations=3),
    "linear_fit": StackParams(reject="linear_fit_clip", kappa_low=2.0, kappa_high=2.0),
    "none": StackParams(reject="none"),
}
FAULT = StrictDeviceError("launch failed")
REASON = "StrictDeviceError: launch failed"
TABLE_BYTES = lanczos3_table().nbytes


def masked(path, data, header, number):
    """Every third frame with an ALPHA extension: transparent, half transparent and opaque parts."""
    alpha = np.full(data.shape, 255, dtype=np.uint8)
    alpha[:, :40], alpha[:30, 40:] = 0, 128
    if number % 3 == 0:
        fits.HDUList([fits.PrimaryHDU(data, header), fits.ImageHDU(alpha, name="ALPHA")]).writeto(path)
    return number % 3 == 0


def mixed(path, data, header, number):
    """Of every four frames one mono, one cube, one with an ALPHA extension, one as it was."""
    if number % 4 == 0:
        return masked(path, data, header, 0)
    if number % 4 == 1:
        return cube(0)(path, data, header, number)
    if number % 4 == 2:
        grey = demosaic(data.astype(np.float32), bayer_colours("GRBG"))[1]
        header = header.copy()
        header.remove("BAYERPAT")
        fits.PrimaryHDU(np.clip(np.rint(grey), 0, 65535).astype(np.uint16), header).writeto(path)
    return number % 4 == 2


KINDS = {"mono": (False, None), "GRBG": (True, None), "cube": (True, cube(0)), "mixture": (True, mixed)}
KINDS["mono with alpha"] = (False, masked)


@dataclass(frozen=True)
class Scene:
    """Measured and matched frames, ready to be stacked."""

    frames: list
    canvas: Canvas
    n_channels: int

    def stack(self, device=None, *, rect=None, frames=None, between_slabs=lambda: None, **options):
        where, options = rect or self.canvas.rect, StackOptions(self.n_channels, **options)
        frames = frames or self.frames
        return stack_frames(frames, self.canvas, where, options, between_slabs=between_slabs, device=device)

    @property
    def noise(self):
        return float(np.median([frame.solution.noise for frame in self.frames]))


def scene_in(folder, kind):
    color, change = KINDS[kind]
    survey_in(folder / "raw", replace(SPEC, color=color))
    frames = rewritten(folder / "raw", folder / "frames", change) if change else folder / "raw"
    records, left_out = load_frames(plan_from_folder(frames)[0], frames)
    assert not left_out
    canvas = optimal_canvas([(record.header.shape, frame_wcs(record.header)) for record in records])
    n_channels = max(record.header.n_channels for record in records)
    cell_px = cell_size_px([record.header.shape for record in records])
    matched = match_frames(measure_frames(records, canvas, cell_px, n_channels), canvas, MatchOptions())
    assert len(matched.frames) == SPEC.frames_per_panel
    return Scene([blurred(k, frame) for k, frame in enumerate(matched.frames)], matched.canvas, n_channels)


def blurred(k, frame):
    """A frame with some blur, which too few stars are there to measure."""
    blur = (0.15 * (k - 4),) * len(frame.solution.gain)
    return replace(frame, solution=replace(frame.solution, blur=blur))


@pytest.fixture(scope="module")
def scene_of(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = scene_in(tmp_path_factory.mktemp("scene"), kind)
        return made[kind]

    return get


@pytest.fixture
def mono(scene_of):
    return scene_of("mono")


@pytest.fixture
def four_slabs(monkeypatch):
    """What to hand to `Scene.stack` for a rectangle that a device stacks in four slabs."""
    monkeypatch.setattr(driver, "_SLAB_SIDE_PX", 48)
    return {"rect": Rect(20, 116, 20, 116)}


def identical(one, other):
    assert one.problems == other.problems
    for name in ("image", "weight", *COUNTS, "tally"):
        np.testing.assert_array_equal(getattr(one.result, name), getattr(other.result, name), err_msg=name)


def agreement(on_device, on_host, scene):
    """Number of flipped rejections, and the differences of both images in units of the sky's noise."""
    one, other = on_device.result, on_host.result
    assert on_device.problems == on_host.problems
    flips = sum(int(np.abs(getattr(one, name) - getattr(other, name)).sum()) for name in COUNTS)
    np.testing.assert_array_equal(np.isnan(one.image), np.isnan(other.image))
    difference = (one.image - other.image)[np.isfinite(other.image)].astype(np.float64)
    return flips, difference / scene.noise


def equivalent(on_device, on_host, scene):
    """No rejection has flipped, and values agree to the rounding of float32."""
    flips, _ = agreement(on_device, on_host, scene)
    assert flips == 0, f"{flips} rejections flipped on the device"
    for name in (*COUNTS, "tally"):
        np.testing.assert_array_equal(getattr(on_device.result, name), getattr(on_host.result, name), err_msg=name)
    for name, atol in (("image", 1e-6 * scene.noise), ("weight", 0.0)):
        one, other = getattr(on_device.result, name), getattr(on_host.result, name)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=atol, err_msg=name)


def on_stand_in(scene, **more):
    """Stack on a device that works, without a failure."""
    stacker = DeviceStacker(StrictDevice())
    stacked = scene.stack(stacker, **more)
    assert stacker.failures == []
    return stacked


@pytest.mark.parametrize(
    "weights", [{}, {"radial": RadialWeight(feather=0.9)}, {"feather_px": 9.0}], ids=["flat", "radial", "feather"]
)
@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_every_kind_give_the_same_on_a_device(scene_of, kind, kernel, weights):
    scene = scene_of(kind)
    host = scene.stack(kernel=kernel, **weights)
    equivalent(on_stand_in(scene, kernel=kernel, **weights), host, scene)
    assert host.result.coverage.max() == len(scene.frames)
    assert host.result.rejected_high.sum() > 100


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("rejection", REJECTIONS)
@pytest.mark.parametrize("kind", ["mono", "mixture"])
def test_every_rejection_and_combination_gives_the_same_on_a_device(scene_of, kind, rejection, combine):
    scene = scene_of(kind)
    choice = {"params": replace(REJECTIONS[rejection], combine=combine), "rect": Rect(0, 100, 0, 100)}
    choice["radial"] = None if kind == "mono" else RadialWeight()
    host = scene.stack(**choice)
    equivalent(on_stand_in(scene, **choice), host, scene)
    rejected = host.result.rejected_low.sum(), host.result.rejected_high.sum()
    assert (min(rejected) > 20) == (rejection != "none")


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_the_size_of_slabs_leaves_no_trace(scene_of, monkeypatch, kernel):
    scene, slabs, some = scene_of("mixture"), [], {"kernel": kernel, "rect": Rect(0, 90, 20, 110)}
    whole = on_stand_in(scene, **some)
    monkeypatch.setattr(driver, "_SLAB_SIDE_PX", 32)
    identical(on_stand_in(scene, **some, between_slabs=lambda: slabs.append(1)), whole)
    assert len(slabs) == 9


def raw_and_nodes(scene):
    """Bytes of the sections that the canvas needs, 2 a pixel as they are stored, of their pixel maps and ramps."""
    sources = [FrameSource(frame, scene.canvas, "lanczos3") for frame in scene.frames]
    total = 0
    for source in sources:
        part = source.part_of(scene.canvas.rect)
        total += 2 * int(np.prod(source.section_of(part).shape)) + source.grid.nodes.nbytes
        total += sum(ramp.nbytes for ramp in source.ramps(part) if ramp is not None)
    return total


@pytest.mark.parametrize("rejection", ["auto", "sample"])
@pytest.mark.parametrize("kind", ["mono", "GRBG"])
def test_only_raw_sections_go_up_and_only_the_result_comes_down(scene_of, kind, rejection):
    scene, params = scene_of(kind), REJECTIONS[rejection]
    stacker = DeviceStacker(StrictDevice())
    xp, needed = stacker.device.xp, raw_and_nodes(scene)
    scene.stack(stacker, params=params)
    up = xp.uploaded_bytes
    assert needed + TABLE_BYTES < up < needed + TABLE_BYTES + 4096  # the last: weights of frames
    result = 5 * 4 * scene.n_channels * int(np.prod(scene.canvas.shape)) + 3 * 8 * len(scene.frames)
    flags = xp.downloads - 6  # the tally and the five arrays of planes are a copy each
    assert xp.downloaded_bytes == result + flags
    assert flags == 0 if rejection == "auto" else 1 <= flags <= params.max_iterations
    scene.stack(stacker, params=params)
    assert xp.uploaded_bytes == 2 * up - TABLE_BYTES  # the Lanczos table stays


def memory_for(side, n_frames, n_channels):
    """Return the least free memory for which slabs of that side are planned."""
    return bisect.bisect_left(range(2**36), side, key=lambda free: planned_side(free, n_frames, n_channels))


def planned_side(free, n_frames=100, n_channels=3):
    return DeviceStacker(StrictDevice(claimed_bytes=free)).slab_side(n_frames, n_channels, StackParams())


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("n_frames", [3, 9, 36])
@pytest.mark.parametrize("kind", ["mono", "GRBG"])
def test_a_slab_fits_into_the_memory_that_it_was_planned_for(scene_of, kind, n_frames, combine):
    scene = scene_of(kind)
    frames, rect = (scene.frames * 4)[:n_frames], Rect(30, 110, 30, 110)
    capacity = memory_for(80, n_frames, scene.n_channels)
    for rejection in REJECTIONS if n_frames < 9 else ("auto", "linear_fit"):
        stacker = DeviceStacker(StrictDevice(capacity))
        params = replace(REJECTIONS[rejection], combine=combine)
        scene.stack(stacker, rect=rect, frames=frames, params=params, radial=RadialWeight())
        assert stacker.failures == []
        assert stacker.device.releases == 1  # one slab, not halved
        assert stacker.device.xp.peak_bytes <= capacity
        if (rejection, combine, n_frames) == ("auto", "median", 36):
            assert stacker.device.xp.peak_bytes > 0.5 * capacity  # the plan does not waste much either


def test_slabs_shrink_with_free_memory_and_with_the_number_of_frames():
    sides = [planned_side(10**k) for k in range(12)]
    assert sides == sorted(sides)
    assert (sides[0], sides[-1]) == (16, 2048)
    assert planned_side(10**9) > 1.5 * planned_side(10**9, n_frames=400)


def test_a_small_device_stacks_small_slabs_and_is_never_full(mono):
    capacity, slabs = memory_for(64, 9, 1), []
    stacker = DeviceStacker(StrictDevice(capacity))
    stacked = mono.stack(stacker, between_slabs=lambda: slabs.append(1))
    identical(stacked, on_stand_in(mono))
    equivalent(stacked, mono.stack(), mono)
    assert stacker.failures == []
    assert stacker.device.releases == len(slabs) == 9
    assert stacker.device.xp.peak_bytes <= capacity


def test_a_plan_that_is_too_optimistic_halves_slabs_until_they_fit(scene_of):
    """Nothing of a slab is left on the device when its halves are tried."""
    scene, slabs, left = scene_of("mixture"), [], []
    noting = {"release": lambda _call: left.append(device.xp.live_bytes)}
    device = StrictDevice(memory_for(48, 9, 3), noting, claimed_bytes=2**40)
    stacker = DeviceStacker(device)
    stacked = scene.stack(stacker, between_slabs=lambda: slabs.append(1))
    identical(stacked, on_stand_in(scene))
    equivalent(stacked, scene.stack(), scene)
    assert stacker.failures == []
    assert len(slabs) == 1
    assert len(left) >= 7  # a slab that is halved and halved again
    assert max(left) == TABLE_BYTES
    assert device.xp.peak_bytes <= device.info.total_bytes


PLACES = ("asarray", "alloc", "full", "setitem", "take", "sort", "where", "get")


@pytest.mark.parametrize("name", PLACES)
def test_a_device_that_always_fails_is_left_alone_and_the_host_gives_its_result(mono, four_slabs, name):
    device, seen = StrictDevice(fail_on={name: FAULT}), []
    stacker = DeviceStacker(device)
    host = mono.stack(**four_slabs)
    identical(mono.stack(stacker, **four_slabs, between_slabs=lambda: seen.append(Counter(device.xp.calls))), host)
    assert stacker.failures == [REASON] * MOST_FAILURES
    assert len(seen) == 4
    assert seen[1][name] < seen[2][name] < seen[3][name] == device.xp.calls[name]
    assert seen[3] == device.xp.calls  # the fourth slab does not touch it
    assert stacker.given_up
    identical(mono.stack(stacker, **four_slabs), host)  # neither does the next tile
    assert seen[3] == device.xp.calls
    assert device.releases == MOST_FAILURES


@pytest.mark.parametrize("name", PLACES)
def test_a_device_that_fails_once_is_used_on(mono, four_slabs, name):
    stacker = DeviceStacker(StrictDevice(fail_on={name: at_call(3, FAULT)}))
    equivalent(mono.stack(stacker, **four_slabs), mono.stack(**four_slabs), mono)
    assert stacker.failures == [REASON]
    assert stacker.device.releases == 4


def test_a_device_too_small_for_the_smallest_slab_is_left_alone(mono):
    stacker = DeviceStacker(strict_device.open_tiny())
    identical(mono.stack(stacker), mono.stack())
    assert stacker.failures == ["its memory is full, even for a small slab"] * MOST_FAILURES


def test_a_large_slab_is_halved_only_while_memory_is_full(mono):
    """Another fault in the halves counts as a failure, and costs those halves only."""
    full = {"alloc": at_call(5, StrictOutOfMemory("full")), "sort": at_call(1, FAULT)}
    stacker = DeviceStacker(StrictDevice(fail_on=full))
    equivalent(mono.stack(stacker), mono.stack(), mono)
    assert stacker.failures == [REASON]
    assert stacker.device.releases == 3


def test_a_failing_release_counts_but_loses_no_slab(mono, four_slabs):
    stacker = DeviceStacker(StrictDevice(fail_on={"release": FAULT}))
    equivalent(mono.stack(stacker, **four_slabs), mono.stack(**four_slabs), mono)
    assert stacker.failures == [REASON] * MOST_FAILURES
    assert stacker.device.xp.calls["sort"] == 2 * MOST_FAILURES  # of samples and of their deviations


def test_a_device_that_cannot_say_how_much_memory_is_free_costs_no_tile(mono):
    """After some errors of CUDA every call fails, that for free memory too."""
    stacker = DeviceStacker(StrictDevice(fail_on={"free_bytes": FAULT, "sort": FAULT, "release": FAULT}))
    identical(mono.stack(stacker), mono.stack())
    assert stacker.failures == [REASON] * 2  # of the plan and of the slab, whose release is no failure of its own
    only = DeviceStacker(StrictDevice(fail_on={"free_bytes": FAULT}))
    equivalent(mono.stack(only), mono.stack(), mono)
    assert only.failures == [REASON]


# Readers silence astropy with filters of the whole process, which the stand-in sets and resets meanwhile.
@pytest.mark.filterwarnings("ignore:File may have been truncated")
@pytest.mark.parametrize("kept_bytes", [None, 10_000], ids=["gone", "truncated"])
def test_a_frame_that_cannot_be_read_any_more_costs_itself_only(tmp_path, kept_bytes):
    scene = scene_in(tmp_path, "mono")
    record = scene.frames[4].record
    os.truncate(record.path, kept_bytes) if kept_bytes else Path(record.path).unlink()
    host, on_device = scene.stack(), on_stand_in(scene)
    equivalent(on_device, host, scene)
    assert [frame_id for frame_id, _ in on_device.problems] == [record.frame_id]
    without = scene.stack(frames=scene.frames[:4] + scene.frames[5:])
    np.testing.assert_array_equal(host.result.image, without.result.image)
    identical(scene.stack(DeviceStacker(StrictDevice(fail_on={"get": FAULT}))), host)


@pytest.fixture
def readers(monkeypatch):
    """The threads that read sections."""
    seen, read = set(), FrameSource.read

    def noted(source, section):
        seen.add(threading.current_thread())
        return read(source, section)

    monkeypatch.setattr(FrameSource, "read", noted)
    return seen


def no_reader_left(readers):
    readers = readers - {threading.main_thread()}  # which reads for the host
    assert readers
    assert not readers & set(threading.enumerate())


def test_cancelling_between_slabs_leaves_no_reader(mono, four_slabs, readers):
    stacker = DeviceStacker(StrictDevice())

    def cancel():
        if stacker.device.releases == 2:
            raise RunCancelled("enough")

    with pytest.raises(RunCancelled):
        mono.stack(stacker, between_slabs=cancel, **four_slabs)
    no_reader_left(readers)


@pytest.mark.parametrize("error", [FAULT, KeyboardInterrupt()], ids=["failure", "interrupt"])
def test_what_ends_a_slab_in_the_middle_of_reading_leaves_no_reader(mono, readers, error):
    """A failure of the device goes to the host, anything else is passed on."""
    stacker = DeviceStacker(StrictDevice(fail_on={"take": at_call(3, error)}))
    if error is FAULT:
        identical(mono.stack(stacker), mono.stack())
    else:
        with pytest.raises(KeyboardInterrupt):
            mono.stack(stacker)
    no_reader_left(readers)
    assert stacker.failures == ([REASON] if error is FAULT else [])


def test_the_stand_ins_do_what_their_names_say(mono):
    assert strict_device.find_stand_ins() == [strict_device.open_stand_in(0).info]
    host = mono.stack()
    for opener in (strict_device.open_failing_kernel, strict_device.open_failing_copy):
        stacker = DeviceStacker(pickle.loads(pickle.dumps(opener))(0))
        identical(mono.stack(stacker), host)
        assert len(stacker.failures) == 1
    full = DeviceStacker(strict_device.open_full())
    equivalent(mono.stack(full), host, mono)
    assert full.failures == []
    assert full.device.releases > 1
    for refusing in (strict_device.open_broken, strict_device.open_stand_in):
        with pytest.raises(DeviceUnavailable):
            refusing(1)
    with pytest.raises(DeviceUnavailable, match="not installed"):
        strict_device.find_nothing()
    with pytest.raises(StrictDeviceError):
        strict_device.open_stand_in().kernel("", "trial")


@pytest.mark.gpu
@pytest.mark.parametrize("rejection", REJECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_gpu_gives_the_same_to_the_rounding_of_float32(scene_of, gpu_device, kind, rejection):
    scene, params = scene_of(kind), REJECTIONS[rejection]
    for kernel, combine in (("lanczos3", "mean"), ("bilinear", "median")):
        choice = {"params": replace(params, combine=combine), "kernel": kernel, "radial": RadialWeight()}
        stacker, host = DeviceStacker(gpu_device), scene.stack(**choice)
        flips, difference = agreement(scene.stack(stacker, **choice), host, scene)
        samples, rms = int(host.result.tally.sum()), float(np.sqrt(np.mean(difference**2)))
        sys.stdout.write(
            f"{kind}, {rejection}, {kernel}, {combine}: {flips} of {samples} samples flipped; image differs by "
            f"{np.abs(difference).max():.2g} at most, {rms:.2g} rms, in sigmas of the sky\n"
        )
        assert stacker.failures == []
        assert flips <= 1e-6 * samples
        assert np.abs(difference).max() <= 1e-3
        assert rms <= 1e-4


class CompilingDevice(StrictDevice):
    """A stand-in that pretends to have CUDA kernels; what they give is patched in by a test."""

    compiles = True


def test_slabs_for_kernels_that_need_less_memory_are_larger(monkeypatch):
    monkeypatch.setattr(driver, "frame_kernels_agree", lambda _: False)
    monkeypatch.setattr(driver, "stack_kernels_agree", lambda *_: True)
    stacker = DeviceStacker(CompilingDevice(claimed_bytes=10**9))
    plain = planned_side(10**9, n_frames=400)
    assert stacker.slab_side(400, 3, StackParams()) > 1.8 * plain
    assert stacker.slab_side(400, 3, StackParams(combine="median")) == plain
    monkeypatch.setattr(driver, "stack_kernels_agree", lambda *_: False)
    assert DeviceStacker(CompilingDevice(claimed_bytes=10**9)).slab_side(400, 3, StackParams()) == plain
    monkeypatch.setattr(driver, "frame_kernels_agree", lambda _: True)
    plain = planned_side(10**9, n_frames=4)
    assert DeviceStacker(CompilingDevice(claimed_bytes=10**9)).slab_side(4, 3, StackParams()) > plain


@pytest.fixture(scope="module")
def host_kernels(tmp_path_factory):
    if cuda_on_host.COMPILER is None:
        pytest.skip("neither g++ nor clang++, or not on Linux")
    return cuda_on_host.HostKernels(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_the_kernels_give_the_tile_of_the_host_to_the_last_bit(scene_of, host_kernels, kind, kernel):
    """From raw frames to the stacked rectangle, run on the processor; a real GPU does the same below."""
    launches = len(host_kernels.launches)
    same_bits(DeviceStacker(host_kernels), scene_of(kind), kernel)
    assert {"bounds", "combine", kernel} <= {name for name, _ in host_kernels.launches[launches:]}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_a_real_gpu_gives_the_tile_of_the_host_to_the_last_bit(scene_of, gpu_device, kind, kernel):
    same_bits(DeviceStacker(gpu_device), scene_of(kind), kernel)


def same_bits(stacker, scene, kernel):
    choice = {"kernel": kernel, "radial": RadialWeight(), "feather_px": 15.0}
    identical(scene.stack(stacker, **choice), scene.stack(**choice))
    assert stacker.failures == []


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_frame_kernels_are_used_only_if_they_give_what_the_cpu_gives(right, host_kernels, monkeypatch, caplog):
    if not right:
        honest = FrameKernels.feather
        monkeypatch.setattr(FrameKernels, "feather", lambda *given: honest(*given) * np.float32(1.0 + 1e-6))
    stacker = DeviceStacker(host_kernels)
    for _ in range(2):
        forms = stacker._frame_forms()
        assert isinstance(forms, FrameKernels) if right else forms is zemosaic_frame_arrays
    assert caplog.text.count("compute wrongly and are not used") == len(stacker.notes) == (0 if right else 1)


@pytest.mark.parametrize("n_frames", [2, 5, 9, 100])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_stack_kernels_are_used_only_if_they_give_what_the_cpu_gives(right, n_frames, monkeypatch, caplog):
    """A kernel that computes nonsense, by a fault of ours or of a compiler, must not reach a mosaic."""
    calls = []

    def kernel(_device, data, weight, *more):
        calls.append(data.shape)
        params, model = StackParams(reject="none"), NoiseModel(np.ones(weight.shape))
        halo, pixel_weight = more[-2:]
        result = stack_arrays(data, weight, model, params, halo=halo, pixel_weight=pixel_weight)
        return tuple(vars(result).values())

    monkeypatch.setattr(zemosaic_stack_core, "stack_on_cuda", kernel)
    # The patched kernel rejects nothing, which is right only where nothing is to be rejected.
    params = StackParams(reject="none") if right else StackParams()
    right = right or n_frames < 3
    stacker = DeviceStacker(CompilingDevice())
    for _ in range(2):
        assert stacker._kernels(params, n_frames) is (stacker.device if right else None)
    assert len(calls) == (2 if right else 1)
    assert {shape[0] for shape in calls} == {{2: 2, 5: 8, 9: 16, 100: 112}[n_frames]}
    assert stacker._kernels(params, 5000) is None
    assert ("computes wrongly and is not used" in caplog.text) is not right
    assert len(stacker.notes) == (0 if right else 1)
    assert stacker.failures == []
