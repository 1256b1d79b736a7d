"""The memory of a worker is bounded by its budget, however many frames overlap."""

import json
import shutil
from dataclasses import replace

import numpy as np

from parallel_utils import WORKER_BASE_BYTES
from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_align_stack import StackOptions, slab_rows
from zemosaic_synthetic import small_spec

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


def test_slabs_shrink_as_frames_pile_up_and_never_vanish():
    options = StackOptions(n_channels=3, mem_limit_bytes=64 * MEGABYTE)
    rows = [slab_rows(n, 1920, options) for n in (1, 10, 100, 1000, 100_000)]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] >= 1
    for n in (10, 100):
        used = 4 * 3 * 1920 * n * (slab_rows(n, 1920, options) + 2)
        assert 0.3 * options.mem_limit_bytes < used <= options.mem_limit_bytes
    assert np.diff(rows).sum() < 0
