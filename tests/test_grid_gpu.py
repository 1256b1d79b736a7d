"""Whole runs of Grid mode with a GPU: on a stand-in for one, in processes of their own, and without any."""

import re
from dataclasses import replace

import numpy as np
import pytest

import cuda_on_host
import strict_device
from grid_mode import run_grid_mode
from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_events import Message, TileDone
from zemosaic_stack_pool import DeviceAccess
from zemosaic_synthetic import small_spec

WITH_GPU = replace(TWO_WORKERS, size_factor=2.0, use_gpu=True)
FELL_BACK = "GPU stack failed, falling back to CPU"


def access(opener, find=strict_device.find_stand_ins):
    return DeviceAccess(find, opener)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "frames"
    survey_in(folder, small_spec(seed=5, panels=(1, 2), frames_per_panel=4, color=True, trail_fraction=0.3))
    return folder


@pytest.fixture(scope="module")
def on_cpu(frames, tmp_path_factory):
    return Run(frames, tmp_path_factory.mktemp("cpu"), replace(WITH_GPU, use_gpu=False))


def warnings_of(run):
    return [e.text for e in run.events if isinstance(e, Message) and e.level == "WARNING" and "GPU" in e.text]


def same_products(run, other):
    np.testing.assert_array_equal(run.mosaic, other.mosaic)
    np.testing.assert_array_equal(run.weight, other.weight)
    np.testing.assert_array_equal(run.coverage, other.coverage)
    columns = ("n_rejected_low", "n_rejected_high", "weight", "reason")
    assert [[row.get(c) for c in columns] for row in run.ledger] == [
        [row.get(c) for c in columns] for row in other.ledger
    ]


def test_a_run_that_asks_for_no_gpu_looks_for_none(on_cpu):
    assert "[GRID] GPU requested = False\n" in on_cpu.log
    assert "[GRID] GPU=OFF (not asked for)\n" in on_cpu.log
    assert warnings_of(on_cpu) == []


def test_the_mosaic_of_a_gpu_is_that_of_the_cpu(frames, on_cpu, tmp_path):
    run = Run(frames, tmp_path, WITH_GPU, access=access(strict_device.open_stand_in))
    assert "[GRID] GPU requested = True\n" in run.log
    assert re.search(r"\[GRID\] GPU=ON \(strict stand-in, [\d.]+ GiB free\)\n", run.log)
    assert warnings_of(run) == []
    assert np.array_equal(run.coverage, on_cpu.coverage)
    sigma = 1.0 / np.sqrt(np.median(on_cpu.weight[on_cpu.weight > 0]))
    np.testing.assert_allclose(run.mosaic, on_cpu.mosaic, rtol=1e-6, atol=1e-4 * sigma)
    np.testing.assert_allclose(run.weight, on_cpu.weight, rtol=1e-6)


@pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="neither g++ nor clang++, or not on Linux")
def test_the_mosaic_of_the_kernels_is_that_of_the_cpu_to_the_last_bit(frames, on_cpu, tmp_path):
    run = Run(frames, tmp_path, WITH_GPU, access=access(cuda_on_host.open_host_kernels))
    assert warnings_of(run) == []
    same_products(run, on_cpu)


def test_wrong_kernels_are_not_used_and_the_log_says_so(frames, on_cpu, tmp_path):
    run = Run(frames, tmp_path, WITH_GPU, access=access(cuda_on_host.open_wrong_kernels))
    assert np.array_equal(run.coverage, on_cpu.coverage)
    said = [e.text for e in run.events if isinstance(e, Message) and e.level == "WARNING"]
    assert any("the kernels of frames compute wrongly and are not used" in text for text in said)
    assert any("the stack kernel for" in text for text in said)
    assert "compute wrongly and are not used" in run.log


def test_one_process_owns_the_gpu_however_many_workers_there_are(frames, tmp_path):
    run = Run(frames, tmp_path, replace(WITH_GPU, workers=2), access=access(strict_device.open_stand_in))
    pids = {event.worker_pid for event in run.events if isinstance(event, TileDone)}
    assert len([e for e in run.events if isinstance(e, TileDone)]) >= 4
    assert len(pids) == 1


NOTHING = access(strict_device.open_stand_in, strict_device.find_nothing)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (NOTHING, "CuPy is not installed"),
        (access(strict_device.open_broken), ""),
        (access(strict_device.open_failing_kernel), "kernel launch failed"),
        (access(strict_device.open_failing_copy), ""),
        (access(strict_device.open_tiny), "memory is full"),
    ],
    ids=["no CuPy", "cannot be opened", "kernel fails", "copy fails", "no memory"],
)
def test_whatever_fails_on_a_gpu_ends_in_the_result_of_the_cpu_and_one_warning_each_says_why(
    frames, on_cpu, tmp_path, way, reason
):
    run = Run(frames, tmp_path, WITH_GPU, access=way)
    same_products(run, on_cpu)
    assert run.result.complete
    said = warnings_of(run)
    fell_back = [text for text in said if text.startswith(f"{FELL_BACK}: ")]
    assert 1 <= len(fell_back) <= 3
    assert all(reason in text for text in fell_back)
    assert f"[GRID] {fell_back[0]}" in run.log
    if way is not NOTHING:
        assert said[-1] == "GPU 0 is left alone for the rest of the run"
        pids = [e.worker_pid for e in run.events if isinstance(e, TileDone)]
        assert len(set(pids)) > 1  # the workers took over


def test_a_gpu_short_of_memory_works_on_smaller_slabs(frames, on_cpu, tmp_path):
    run = Run(frames, tmp_path, WITH_GPU, access=access(strict_device.open_full))
    assert warnings_of(run) == []
    assert np.array_equal(run.coverage, on_cpu.coverage)


def test_a_process_that_dies_with_its_gpu_costs_no_tile(frames, on_cpu, tmp_path):
    run = Run(frames, tmp_path, WITH_GPU, access=access(strict_device.open_deadly))
    same_products(run, on_cpu)
    assert run.result.complete
    assert any("its worker process died" in text for text in warnings_of(run))


def test_two_gpus_are_owned_by_a_process_each(frames, on_cpu, tmp_path):
    two = access(strict_device.open_one_of_two, strict_device.find_two)
    run = Run(frames, tmp_path, WITH_GPU, access=two)
    assert run.log.count("[GRID] GPU=ON") == 2
    assert np.array_equal(run.coverage, on_cpu.coverage)
    assert 1 <= len({e.worker_pid for e in run.events if isinstance(e, TileDone)}) <= 2


def test_the_function_takes_the_flag_and_runs_without_a_gpu(frames, tmp_path):
    """On a machine with one it is used; without, the run says so and ends well."""
    events = []
    result = run_grid_mode(frames, tmp_path, events.append, grid_workers=1, grid_use_gpu=True)
    assert result.complete
    log = (tmp_path / "zemosaic.log").read_text(encoding="utf-8")
    assert "[GRID] GPU requested = True (use_gpu_grid)\n" in log
    assert ("[GRID] GPU=ON" in log) != (FELL_BACK in log)
