"""Whole runs on a real GPU, in processes of their own, against the same runs on the CPU."""

import re
from dataclasses import replace

import numpy as np
import pytest

import real_device
from surveys import CLASSIC, TWO_WORKERS, ClassicRun, Run, survey_in
from zemosaic_backend import find_devices, open_device
from zemosaic_events import Message, TileDone
from zemosaic_stack_pool import DeviceAccess
from zemosaic_synthetic import small_spec

pytestmark = pytest.mark.gpu

GRID = replace(TWO_WORKERS, size_factor=2.0)
FELL_BACK = "GPU stack failed, falling back to CPU"


@pytest.fixture(scope="module", params=["colour", "mono"])
def frames(request, gpu_device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "frames"
    colour = request.param == "colour"
    survey_in(folder, small_spec(seed=5, panels=(1, 2), frames_per_panel=6, color=colour, trail_fraction=0.3))
    return folder


@pytest.fixture(scope="module")
def on_cpu(frames, tmp_path_factory):
    return Run(frames, tmp_path_factory.mktemp("cpu"), GRID)


def run_on_gpu(frames, output, opener):
    return Run(frames, output, replace(GRID, use_gpu=True), access=DeviceAccess(find_devices, opener))


def warnings_of(run):
    return [e.text for e in run.events if isinstance(e, Message) and e.level == "WARNING" and "GPU" in e.text]


def same(run, other):
    """The same mosaic to the last bit."""
    assert run.result.complete
    for name in ("mosaic", "weight", "coverage"):
        np.testing.assert_array_equal(getattr(run, name), getattr(other, name), err_msg=name)


def agrees(run, other):
    """Values agree to the rounding of float32, and but for one in a million the same samples are kept."""
    assert run.result.complete
    flips = int(np.abs(run.coverage.astype(int) - other.coverage).sum())
    assert flips <= 1e-6 * other.coverage.sum()
    np.testing.assert_array_equal(np.isnan(run.mosaic), np.isnan(other.mosaic))
    sigma = 1.0 / np.sqrt(np.median(other.weight[other.weight > 0]))
    same = run.coverage == other.coverage
    np.testing.assert_allclose(run.mosaic[same], other.mosaic[same], rtol=1e-5, atol=1e-3 * sigma)
    np.testing.assert_allclose(run.weight[same], other.weight[same], rtol=1e-5)


OPENERS = {open_device: same, real_device.open_full: same, real_device.open_without_kernels: agrees}


@pytest.mark.parametrize("opener", OPENERS)
def test_the_mosaic_of_a_real_gpu_is_that_of_the_cpu(frames, on_cpu, tmp_path, opener):
    run = run_on_gpu(frames, tmp_path, opener)
    assert re.search(r"\[GRID\] GPU=ON \(.+, [\d.]+ GiB free\)\n", run.log)
    assert warnings_of(run) == []
    assert len({e.worker_pid for e in run.events if isinstance(e, TileDone)}) == 1
    OPENERS[opener](run, on_cpu)


def test_a_real_gpu_that_breaks_down_costs_nothing_but_warnings(frames, on_cpu, tmp_path):
    run = run_on_gpu(frames, tmp_path, real_device.open_poisoned)
    np.testing.assert_array_equal(run.mosaic, on_cpu.mosaic)
    np.testing.assert_array_equal(run.coverage, on_cpu.coverage)
    assert run.result.complete
    fell_back = [text for text in warnings_of(run) if text.startswith(f"{FELL_BACK}: ")]
    assert fell_back
    assert all("Illegal" in text or "illegal" in text for text in fell_back)
    assert warnings_of(run)[-1] == "GPU 0 is left alone for the rest of the run"


@pytest.mark.parametrize("how", ["reproject_coadd", "incremental"])
def test_classic_on_a_real_gpu_gives_the_mosaic_of_the_cpu(frames, tmp_path, how):
    settings = replace(CLASSIC, final_assembly_method=how)
    other = ClassicRun(frames, tmp_path / "cpu", settings)
    run = ClassicRun(frames, tmp_path / "gpu", replace(settings, use_gpu=True))
    assert "[CLASSIC] GPU=ON (" in run.log
    assert warnings_of(run) == []
    same(run, other)
