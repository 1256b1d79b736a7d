"""The pass that finds the frames of a run: what it reads, and what it tells meanwhile."""

from collections import Counter

import pytest

import zemosaic_passes
from surveys import survey_in
from zemosaic_events import CancelToken, Emitter, PhaseProgress, RunStarted
from zemosaic_outputs import ProductPaths
from zemosaic_passes import read_frames
from zemosaic_plan import load_frames, plan_from_folder, write_plan
from zemosaic_plan_table import PLAN_NAME
from zemosaic_runbook import RunBook
from zemosaic_synthetic import small_spec


@pytest.fixture
def folder(tmp_path):
    """Four frames and a file that is none."""
    folder = tmp_path / "frames"
    survey_in(folder, small_spec(seed=2, frames_per_panel=2))
    (folder / "broken.fit").write_bytes(b"SIMPLE  =")
    return folder


@pytest.fixture
def counted(monkeypatch):
    """How often each header was read by its file's name."""
    reads, read = Counter(), zemosaic_passes.read_frame_header

    def counting(path):
        reads[path.name] += 1
        return read(path)

    monkeypatch.setattr(zemosaic_passes, "read_frame_header", counting)
    return reads


def found(folder, output):
    """Return the frames of a folder, what was left out, and the events on the way."""
    output.mkdir()
    events = []
    book = RunBook(ProductPaths(output), Emitter(events.append), CancelToken())
    return read_frames(folder, book), book.left_out, events


@pytest.mark.parametrize("planned", [False, True])
def test_each_header_is_read_once(folder, tmp_path, counted, planned):
    if planned:
        write_plan(folder / PLAN_NAME, plan_from_folder(folder)[0])
    records, _, _ = found(folder, tmp_path / "out")
    assert len(records) == 4
    assert set(counted.values()) == {1}
    assert set(counted) == {path.name for path in folder.glob("*.fit")} - ({"broken.fit"} if planned else set())


def test_the_frames_are_those_of_the_plan_that_is_made(folder, tmp_path):
    records, left_out, _ = found(folder, tmp_path / "out")
    rows, unreadable = plan_from_folder(folder)
    assert records == load_frames(rows, folder)[0]
    assert left_out == unreadable
    assert [item.path for item in left_out] == ["broken.fit"]
    assert (tmp_path / "out" / PLAN_NAME).is_file()


@pytest.mark.parametrize("planned", [False, True])
def test_the_reading_of_headers_is_told_forwards_and_to_its_end(folder, tmp_path, planned):
    if planned:
        write_plan(folder / PLAN_NAME, plan_from_folder(folder)[0])
    _, _, events = found(folder, tmp_path / "out")
    told = [(event.done, event.total) for event in events if isinstance(event, PhaseProgress)]
    n_files = 4 if planned else 5
    assert told == [(k, n_files) for k in range(1, n_files + 1)]
    assert [event.n_frames for event in events if isinstance(event, RunStarted)] == [4]
