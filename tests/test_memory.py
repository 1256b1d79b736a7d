"""The memory of a worker is bounded by its budget, however many frames overlap."""

import itertools
import json
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from parallel_utils import WORKER_BASE_BYTES
from surveys import TWO_WORKERS, Run, survey_in
from test_truth import DEEP, truth_frames
from zemosaic_align_stack import StackOptions, slab_shape, stack_frames
from zemosaic_synthetic import small_spec
from zemosaic_types import RunCancelled

MEGABYTE = 1024**2


def test_three_hundred_frames_on_one_tile_stay_within_the_budget(tmp_path):
    spec = small_spec(panels=(1, 1), frames_per_panel=6, frame_shape=(400, 420), color=True, star_density=400.0)
    survey_in(tmp_path / "frames", spec)
    originals = sorted((tmp_path / "frames").glob("*.fit"))
    for copy in range(49):
        for path in originals:
            shutil.copy(path, path.with_name(f"{path.stem}_{copy:02d}.fit"))
    run = Run(tmp_path / "frames", tmp_path / "out", replace(TWO_WORKERS, size_factor=0.5, chunk_ram_mb=64))
    assert run.result.n_used == 300
    assert len(list(run.paths.tiles.glob("*.fits"))) == 1
    whole_stack = 300 * run.mosaic.size * 4
    limit = 64 * MEGABYTE + WORKER_BASE_BYTES
    assert whole_stack + 200 * MEGABYTE > limit  # in one piece it would not fit
    report = json.loads(run.paths.report.read_text(encoding="utf-8"))
    assert report["peak_memory_bytes"]["worker"] < limit
    assert run.coverage.max() > 290


def test_slabs_shrink_as_frames_pile_up_never_vanish_and_stay_square():
    options = StackOptions(n_channels=3, mem_limit_bytes=64 * MEGABYTE)
    sizes = [slab_shape(n, (1920, 1920), options) for n in (1, 10, 100, 1000, 20_000)]
    areas = [rows * columns for rows, columns in sizes]
    assert areas == sorted(areas, reverse=True)
    assert min(map(min, sizes)) >= 4
    assert sizes[3][0] == sizes[3][1]
    for n, (rows, columns) in zip((10, 100, 1000, 20_000), sizes[1:], strict=True):
        used = 4 * (3 * n + n) * (rows + 2) * (columns + 2)
        assert used <= options.mem_limit_bytes
        assert rows == 480 or used > 0.3 * options.mem_limit_bytes  # at most 512 px a side, four times over


def test_slabs_of_a_few_pixels_give_the_same_as_one_slab(tmp_path):
    survey = survey_in(tmp_path / "frames", replace(DEEP, frames_per_panel=5, frame_shape=(60, 80)))
    options = StackOptions(n_channels=1)
    pairs, canvas = truth_frames(survey, tmp_path / "frames", options)
    frames = [frame for frame, _ in pairs]
    whole = stack_frames(frames, canvas, canvas.rect, options).result
    tiny = stack_frames(frames, canvas, canvas.rect, replace(options, mem_limit_bytes=5000)).result
    assert slab_shape(5, canvas.shape, replace(options, mem_limit_bytes=5000))[0] < 8
    np.testing.assert_array_equal(tiny.image, whole.image)
    np.testing.assert_array_equal(tiny.coverage, whole.coverage)
    np.testing.assert_array_equal(tiny.tally, whole.tally)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Frames on a canvas, and options with which it is cut into many slabs."""
    folder = tmp_path_factory.mktemp("deep")
    survey = survey_in(folder, replace(DEEP, frames_per_panel=5, frame_shape=(60, 80)))
    pairs, canvas = truth_frames(survey, folder, StackOptions(n_channels=1))
    return [frame for frame, _ in pairs], canvas, StackOptions(n_channels=1, mem_limit_bytes=30_000)


def test_slabs_in_several_threads_share_the_memory_and_leave_no_trace(deep):
    frames, canvas, options = deep
    one = stack_frames(frames, canvas, canvas.rect, options)
    together = threading.Barrier(3)

    def meet():
        if not together.broken and len(met) < 3:
            met.append(threading.get_ident())
            together.wait(timeout=30)

    met = []
    three = replace(options, threads=3)
    several = stack_frames(frames, canvas, canvas.rect, three, between_slabs=meet)
    assert len(set(met)) == 3
    assert np.prod(slab_shape(5, canvas.shape, three)) < 0.5 * np.prod(slab_shape(5, canvas.shape, options))
    for name in ("image", "weight", "coverage", "rejected_low", "rejected_high", "tally"):
        np.testing.assert_array_equal(getattr(several.result, name), getattr(one.result, name))


@pytest.mark.parametrize("threads", [1, 3])
def test_what_one_slab_raises_ends_the_stack(deep, threads):
    frames, canvas, options = deep
    options = replace(options, threads=threads, mem_limit_bytes=threads * 15_000)
    rows, columns = slab_shape(5, canvas.shape, options)
    n_slabs = -(-canvas.shape[0] // rows) * -(-canvas.shape[1] // columns)
    assert n_slabs >= 40
    numbers, begun = itertools.count(1), []

    def cancel_the_fifth():
        number = next(numbers)
        begun.append(number)
        if number == 1:
            time.sleep(0.5)  # while results are waited for in order, and this is the first
        if number == 5:
            raise RunCancelled("enough")

    with pytest.raises(RunCancelled, match="enough"):
        stack_frames(frames, canvas, canvas.rect, options, between_slabs=cancel_the_fifth)
    assert len(begun) < 5 + 2 * threads
