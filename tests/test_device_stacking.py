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

import strict_device
import zemosaic_align_stack_gpu as driver
from strict_device import StrictDevice, StrictDeviceError
from strict_namespace import StrictOutOfMemory, at_call
from surveys import survey_in
from test_formats import cube, rewritten
from zemosaic_align_stack import StackOptions, stack_frames
from zemosaic_align_stack_gpu import MOST_FAILURES, DeviceStacker
from zemosaic_fits_io import frame_wcs
from zemosaic_frame_source import FrameSource, RadialWeight
from zemosaic_match import MatchOptions, match_frames
from zemosaic_measure import cell_size_px, measure_frames
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_preprocess import bayer_colours, demosaic
from zemosaic_reproject import Canvas, optimal_canvas
from zemosaic_resample_kernels import lanczos3_table
from zemosaic_synthetic import SurveySpec
from zemosaic_types import DeviceUnavailable, Rect, RunCancelled, StackParams

SPEC = SurveySpec(
    seed=3,
    panels=(1, 1),
    frames_per_panel=9,
    frame_shape=(96, 120),
    rotation_deg=20.0,
    dither_px=6.0,
    star_density=3000.0,
    hot_pixels=1000.0,
    trail_fraction=0.4,
)
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


KINDS = {
    "mono": (False, None),
    "GRBG": (True, None),
    "cube": (True, cube(0)),
    "mono with alpha": (False, masked),
    "mixture": (True, mixed),
}


@dataclass(frozen=True)
class Scene:
    """Measured and matched frames, ready to be stacked."""

    frames: list
    canvas: Canvas
    n_channels: int

    def options(self, params=None, **more):
        return StackOptions(self.n_channels, params or StackParams(), **more)

    def stack(self, device=None, *, params=None, rect=None, frames=None, between_slabs=lambda: None, **more):
        options, frames = self.options(params, **more), self.frames if frames is None else frames
        where = self.canvas, rect or self.canvas.rect
        return stack_frames(frames, *where, options, between_slabs=between_slabs, device=device)


def scene_in(folder, kind):
    color, change = KINDS[kind]
    survey_in(folder / "raw", replace(SPEC, color=color))
    frames = rewritten(folder / "raw", folder / "frames", change) if change else folder / "raw"
    records, left_out = load_frames(plan_from_folder(frames)[0], frames)
    assert not left_out
    canvas = optimal_canvas([(record.header.shape, frame_wcs(record.header)) for record in records])
    n_channels = max(record.header.n_channels for record in records)
    cell_px = cell_size_px([record.header.shape for record in records])
    matched = match_frames(measure_frames(records, canvas, cell_px, n_channels), MatchOptions())
    assert len(matched.frames) == SPEC.frames_per_panel
    blurs = np.linspace(-0.6, 0.6, len(matched.frames))  # too few stars to measure them
    blurred = [
        replace(frame, solution=replace(frame.solution, blur=(float(blur),) * n_channels))
        for frame, blur in zip(matched.frames, blurs, strict=True)
    ]
    return Scene(blurred, canvas, n_channels)


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
    return flips, difference / sky_noise(scene)


def sky_noise(scene):
    return float(np.median([frame.solution.noise for frame in scene.frames]))


def equivalent(on_device, on_host, scene):
    """No rejection has flipped, and values agree to the rounding of float32."""
    flips, _ = agreement(on_device, on_host, scene)
    assert flips == 0, f"{flips} rejections flipped on the device"
    for name in (*COUNTS, "tally"):
        np.testing.assert_array_equal(getattr(on_device.result, name), getattr(on_host.result, name), err_msg=name)
    for name, atol in (("image", 1e-6 * sky_noise(scene)), ("weight", 0.0)):
        one, other = getattr(on_device.result, name), getattr(on_host.result, name)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=atol, err_msg=name)


def on_stand_in(scene, **more):
    """Stack on a device that works, without a failure."""
    stacker = DeviceStacker(StrictDevice())
    stacked = scene.stack(stacker, **more)
    assert stacker.failures == []
    assert stacker.device.xp.calls["take"] > 0
    return stacked


@pytest.mark.parametrize("radial", [None, RadialWeight(feather=0.9)], ids=["flat", "radial"])
@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_every_kind_give_the_same_on_a_device(scene_of, kind, kernel, radial):
    scene = scene_of(kind)
    host = scene.stack(kernel=kernel, radial=radial)
    equivalent(on_stand_in(scene, kernel=kernel, radial=radial), host, scene)
    assert host.result.coverage.max() == len(scene.frames)
    assert host.result.rejected_high.sum() > 100


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("rejection", REJECTIONS)
@pytest.mark.parametrize("kind", ["mono", "mixture"])
def test_every_rejection_and_combination_gives_the_same_on_a_device(scene_of, kind, rejection, combine):
    scene, params = scene_of(kind), replace(REJECTIONS[rejection], combine=combine)
    radial = None if kind == "mono" else RadialWeight()
    host = scene.stack(params=params, radial=radial)
    equivalent(on_stand_in(scene, params=params, radial=radial), host, scene)
    rejected = host.result.rejected_low.sum(), host.result.rejected_high.sum()
    assert (min(rejected) > 50) == (rejection != "none")


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_the_size_of_slabs_leaves_no_trace(scene_of, monkeypatch, kernel):
    scene, slabs, some = scene_of("mixture"), [], {"kernel": kernel, "rect": Rect(0, 90, 20, 110)}
    whole = on_stand_in(scene, **some)
    monkeypatch.setattr(driver, "_SLAB_SIDE_PX", 32)
    identical(on_stand_in(scene, **some, between_slabs=lambda: slabs.append(1)), whole)
    assert len(slabs) == 9


def raw_and_nodes(scene, rect):
    """Bytes of the sections that a rectangle needs, as they are stored (uint16), and of their pixel maps."""
    total = 0
    for frame in scene.frames:
        source = FrameSource(frame, scene.canvas, "lanczos3")
        section = source.section_of(source.part_of(rect))
        read = source.read(section)
        assert read.dtype == np.uint16
        total += read.nbytes + source.grid.nodes.nbytes
    return total


@pytest.mark.parametrize("rejection", ["auto", "sample"])
@pytest.mark.parametrize("kind", ["mono", "GRBG"])
def test_only_raw_sections_go_up_and_only_the_result_comes_down(scene_of, kind, rejection):
    scene, params = scene_of(kind), REJECTIONS[rejection]
    device = StrictDevice()
    stacker, xp = DeviceStacker(device), device.xp
    scene.stack(stacker, params=params)
    before = xp.uploaded_bytes, xp.downloaded_bytes, xp.downloads
    assert before[0] > TABLE_BYTES
    scene.stack(stacker, params=params)
    up, down, copies = np.subtract((xp.uploaded_bytes, xp.downloaded_bytes, xp.downloads), before).tolist()
    needed = raw_and_nodes(scene, scene.canvas.rect)
    assert needed < up < needed + 4096  # weights of frames; the Lanczos table is there already
    assert up < before[0]
    n_planes = 5 * scene.n_channels
    result = 4 * n_planes * scene.canvas.shape[0] * scene.canvas.shape[1] + 3 * 8 * len(scene.frames)
    flags = copies - 6  # the tally and the five arrays of planes are a copy each
    assert down == result + flags
    assert flags == 0 if rejection == "auto" else 1 <= flags <= params.max_iterations


def memory_for(side, n_frames, n_channels):
    """Return the least free memory for which slabs of that side are planned."""

    def planned(free):
        return DeviceStacker(StrictDevice(claimed_bytes=free)).slab_side(n_frames, n_channels)

    return bisect.bisect_left(range(2**36), side, key=planned)


def square(scene, side):
    y0, x0 = ((size - side) // 2 for size in scene.canvas.shape)
    return Rect(y0, y0 + side, x0, x0 + side)


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("n_frames", [3, 9, 36])
@pytest.mark.parametrize("kind", ["mono", "GRBG"])
def test_a_slab_fits_into_the_memory_that_it_was_planned_for(scene_of, kind, n_frames, combine):
    scene = scene_of(kind)
    frames, rect = (scene.frames * 4)[:n_frames], square(scene, 80)
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
    def side(free, n_frames=100, n_channels=3):
        return DeviceStacker(StrictDevice(claimed_bytes=free)).slab_side(n_frames, n_channels)

    sides = [side(10**k) for k in range(12)]
    assert sides == sorted(sides)
    assert (sides[0], sides[-1]) == (16, 2048)
    assert side(10**9) > 1.5 * side(10**9, n_frames=400)
    assert side(10**9) > 1.5 * side(10**9, n_channels=9)


def test_a_small_device_stacks_small_slabs_and_is_never_full(mono):
    capacity, slabs = memory_for(64, 9, 1), []
    device = StrictDevice(capacity)
    stacker = DeviceStacker(device)
    stacked = mono.stack(stacker, between_slabs=lambda: slabs.append(1))
    identical(stacked, on_stand_in(mono))
    equivalent(stacked, mono.stack(), mono)
    assert stacker.failures == []
    assert device.releases == len(slabs) == 9
    assert device.xp.peak_bytes <= capacity


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


FAULTS = {name: FAULT for name in ("asarray", "alloc", "full", "setitem", "take", "sort", "where", "get")}


@pytest.mark.parametrize("name", FAULTS)
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


@pytest.mark.parametrize("name", FAULTS)
def test_a_device_that_fails_once_is_used_on(scene_of, four_slabs, name):
    scene, device = scene_of("mixture"), StrictDevice(fail_on={name: at_call(3, FAULT)})
    stacker = DeviceStacker(device)
    equivalent(scene.stack(stacker, **four_slabs), scene.stack(**four_slabs), scene)
    assert stacker.failures == [REASON]
    assert device.releases == 4
    assert device.xp.calls[name] > 5


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
    device = StrictDevice(fail_on={"release": FAULT})
    stacker = DeviceStacker(device)
    equivalent(mono.stack(stacker, **four_slabs), mono.stack(**four_slabs), mono)
    assert stacker.failures == [REASON] * MOST_FAILURES
    assert device.xp.calls["sort"] == 2 * MOST_FAILURES  # of samples and of their deviations


def test_a_device_that_cannot_say_how_much_memory_is_free_costs_no_tile(mono):
    """After some errors of CUDA every call fails, that for free memory too."""
    stacker = DeviceStacker(StrictDevice(fail_on={"free_bytes": FAULT, "sort": FAULT, "release": FAULT}))
    identical(mono.stack(stacker), mono.stack())
    assert stacker.failures == [REASON] * 3
    assert stacker.given_up
    only = DeviceStacker(StrictDevice(fail_on={"free_bytes": FAULT}))
    equivalent(mono.stack(only), mono.stack(), mono)
    assert only.failures == [REASON]


def damaged(tmp_path, how):
    """A scene of mono frames with one file that is damaged after it was measured; its frame's id."""
    scene = scene_in(tmp_path, "mono")
    record = scene.frames[4].record
    if how == "gone":
        Path(record.path).unlink()
    else:
        os.truncate(record.path, Path(record.path).stat().st_size // 2)
    return scene, record.frame_id


@pytest.mark.parametrize("how", ["gone", "truncated"])
def test_a_frame_that_cannot_be_read_any_more_costs_itself_only(tmp_path, how):
    scene, frame_id = damaged(tmp_path, how)
    host = scene.stack()
    on_device = on_stand_in(scene)
    equivalent(on_device, host, scene)
    assert [problem[0] for problem in on_device.problems] == [frame_id]
    without = scene.stack(frames=[frame for frame in scene.frames if frame.record.frame_id != frame_id])
    np.testing.assert_array_equal(host.result.image, without.result.image)
    failed = DeviceStacker(StrictDevice(fail_on={"get": FAULT}))
    identical(scene.stack(failed), host)


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
    assert readers - {threading.main_thread()}
    assert not readers & set(threading.enumerate()) - {threading.main_thread()}


def test_cancelling_between_slabs_leaves_no_reader(mono, four_slabs, readers):
    calls = []

    def cancel():
        calls.append(1)
        if len(calls) == 3:
            raise RunCancelled("enough")

    stacker = DeviceStacker(StrictDevice())
    with pytest.raises(RunCancelled):
        mono.stack(stacker, between_slabs=cancel, **four_slabs)
    no_reader_left(readers)
    assert stacker.device.releases == 2


def test_a_failure_in_the_middle_of_reading_leaves_no_reader(mono, readers):
    stacker = DeviceStacker(StrictDevice(fail_on={"take": at_call(3, FAULT)}))
    identical(mono.stack(stacker), mono.stack())
    assert stacker.failures == [REASON]
    no_reader_left(readers)


def test_an_interrupt_in_the_middle_of_reading_is_passed_on_and_leaves_no_reader(mono, readers):
    stacker = DeviceStacker(StrictDevice(fail_on={"take": at_call(3, KeyboardInterrupt())}))
    with pytest.raises(KeyboardInterrupt):
        mono.stack(stacker)
    no_reader_left(readers)
    assert stacker.failures == []


def test_the_stand_ins_do_what_their_names_say(mono):
    assert [info.index for info in strict_device.find_stand_ins()] == [0]
    host = mono.stack()
    for opener in (strict_device.open_failing_kernel, strict_device.open_failing_copy):
        stacker = DeviceStacker(pickle.loads(pickle.dumps(opener))(0))
        identical(mono.stack(stacker), host)
        assert len(stacker.failures) == 1
    full = DeviceStacker(strict_device.open_full())
    equivalent(mono.stack(full), host, mono)
    assert full.failures == []
    assert full.device.releases > 1
    for refusing in (
        strict_device.find_nothing,
        strict_device.open_broken,
        lambda: strict_device.open_stand_in(1),
    ):
        with pytest.raises(DeviceUnavailable):
            refusing()
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
