"""The look at the frames before a run: it foretells the run, and touches nothing."""

import gzip
import json
import os
from dataclasses import replace

import pytest

import zemosaic_survey
from classic_mode import ClassicSettings, run_classic
from grid_mode import GridSettings, run_grid
from surveys import shuffled_copy, survey_in
from zemosaic_astrometry import SolveOptions
from zemosaic_config import resolve
from zemosaic_estimate import loops_are_compiled
from zemosaic_events import (
    CancelToken,
    FinishReason,
    FrameLeftOut,
    RunFinished,
    SurveyDone,
    SurveyFrames,
    TilesPlanned,
)
from zemosaic_fits_io import read_frame_header
from zemosaic_groups import GROUPS_NAME, GroupSettings
from zemosaic_plan import plan_from_folder, write_plan
from zemosaic_plan_table import PLAN_NAME
from zemosaic_solving import CACHE_NAME, Entry, WcsCache, digest_of
from zemosaic_survey import SurveySettings, run_survey
from zemosaic_synthetic import small_spec
from zemosaic_types import PlanError, PlanRow, RunCancelled, SolverMissing
from zemosaic_worker import RunRequest, choose_pipeline, start_run


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "frames"
    survey_in(folder, small_spec(seed=5))
    return folder


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """The loops of a run are compiled, whatever has run on this machine."""
    monkeypatch.setattr(zemosaic_survey, "loops_are_compiled", lambda _: True)


@pytest.fixture
def linked(frames, tmp_path):
    """A folder of its own with links to the frames."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in frames.glob("*.fit"):
        os.link(path, folder / path.name)
    return folder


def surveyed(folder, output, settings=SurveySettings(), **more):  # noqa: B008 - frozen
    """Return the last word on each frame by its id, the end, and all events."""
    events = []
    done = run_survey(folder, output, settings, listener=events.append, **more)
    told = {frame.frame_id: frame for event in events if isinstance(event, SurveyFrames) for frame in event.frames}
    return told, done, events


@pytest.mark.parametrize("orientation", ["north_up", "auto"])
def test_the_canvas_and_the_tiles_are_those_of_the_run(frames, tmp_path, orientation):
    choices = {"orientation": orientation, "size_factor": 3.0, "overlap_px": 7}
    events = []
    settings = GridSettings(workers=1, refine_wcs="off", **choices)
    run_grid(frames, tmp_path / "out", settings, listener=events.append)
    planned = next(event for event in events if isinstance(event, TilesPlanned))
    _, done, _ = surveyed(frames, tmp_path / "out", SurveySettings(grid_mode=True, **choices))
    assert (done.shape, done.tiles) == (planned.shape, planned.tiles)
    assert len(done.tiles) > 1


@pytest.mark.parametrize("rule", ["found", "the user's"])
def test_the_master_tiles_are_those_of_the_run(linked, tmp_path, rule):
    if rule == "found":
        choices = {"groups": GroupSettings(threshold_deg=1.0)}
    else:
        choices = {}
        names = sorted(path.name for path in linked.glob("*.fit"))
        groups = [{"name": "first", "frames": names[:2]}, {"name": "second", "frames": names[2:5]}]
        (linked / GROUPS_NAME).write_text(json.dumps({"version": 1, "groups": groups}), encoding="utf-8")
    events = []
    settings = ClassicSettings(workers=1, refine_wcs="off", **choices)
    run_classic(linked, tmp_path / "out", settings, listener=events.append)
    planned = next(event for event in events if isinstance(event, TilesPlanned))
    told, done, _ = surveyed(linked, tmp_path / "out", SurveySettings(**choices))
    assert (done.shape, done.tiles) == (planned.shape, planned.tiles)
    assert len(done.tiles) == (1 if rule == "found" else 2)
    left_out = {event.left_out.path: event.left_out.reason for event in events if isinstance(event, FrameLeftOut)}
    assert {frame.path: frame.reason for frame in told.values() if not frame.usable} == left_out
    assert done.n_usable == 6 - len(left_out)


@pytest.mark.parametrize("grid_mode", [False, True])
@pytest.mark.parametrize("plan", [False, True])
def test_the_survey_is_of_the_pipeline_that_will_run(linked, tmp_path, grid_mode, plan):
    if plan:
        write_plan(linked / PLAN_NAME, plan_from_folder(linked)[0])
    config = resolve({}, {}, {"grid_mode_enabled": grid_mode})
    settings = SurveySettings.from_config(config)
    _, done, _ = surveyed(linked, tmp_path / "out", settings)
    chosen, _ = choose_pipeline(linked, config)
    _, grid, _ = surveyed(linked, tmp_path / "out", replace(settings, grid_mode=True))
    assert (done.tiles == grid.tiles) == (chosen == "grid")
    assert (done.cpu_s == grid.cpu_s) == (chosen == "grid")


def test_a_file_of_groups_that_cannot_be_read_ends_the_survey_as_it_would_the_run(linked, tmp_path):
    (linked / GROUPS_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(PlanError, match="not JSON"):
        surveyed(linked, tmp_path / "out")
    _, done, _ = surveyed(linked, tmp_path / "out", SurveySettings(grid_mode=True))
    assert done.n_usable == 6


def test_a_survey_tells_of_each_frame_and_ends_once(frames, tmp_path):
    told, done, events = surveyed(frames, tmp_path / "out")
    assert list(told) == sorted(path.name for path in frames.glob("*.fit"))
    assert all(len(frame.corners_deg) == 4 and frame.usable and not frame.reason for frame in told.values())
    assert {frame.exposure_s for frame in told.values()} == {10.0}
    assert {frame.shape for frame in told.values()} == {(160, 200)}
    assert done.n_frames == done.n_usable == len(told) == 6
    assert events[-2] == done
    assert [event for event in events if isinstance(event, RunFinished)] == [events[-1]]
    assert events[-1].reason is FinishReason.COMPLETE


def test_what_neither_plan_nor_header_say_is_not_made_up(linked, tmp_path):
    without_wcs(linked)
    told, _, _ = surveyed(linked, tmp_path / "out")
    assert {frame.exposure_s for frame in told.values()} == {None}
    rows = [PlanRow(1, path, exposure_s=20.0, filter="LP") for path in sorted(linked.glob("*.fit"))]
    write_plan(linked / PLAN_NAME, rows)
    told, _, _ = surveyed(linked, tmp_path / "out")
    assert {(frame.exposure_s, frame.filter) for frame in told.values()} == {(20.0, "LP")}


def test_a_survey_writes_nothing_anywhere(frames, tmp_path):
    before = sorted(frames.iterdir())
    surveyed(frames, tmp_path / "out")
    assert sorted(frames.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_the_plan_leaves_no_trace(frames, tmp_path):
    shuffled = shuffled_copy(frames, tmp_path / "shuffled", seed=4)
    _, first, _ = surveyed(frames, tmp_path / "out", SurveySettings(grid_mode=True))
    _, second, _ = surveyed(shuffled, tmp_path / "out")
    assert (first.shape, first.corners_deg, first.tiles) == (second.shape, second.corners_deg, second.tiles)


def test_frames_that_cannot_be_used_are_told_with_their_reasons(linked, tmp_path):
    (linked / "broken.fit").write_bytes(b"SIMPLE  =")
    names = sorted(path.name for path in linked.glob("Light*.fit"))
    told, done, _ = surveyed(linked, tmp_path / "out", SurveySettings(excluded=(names[0],)))
    assert not told["broken.fit"].usable
    assert told["broken.fit"].reason
    assert told[names[0]].usable  # the wish is the user's
    assert len(told[names[0]].corners_deg) == 4
    assert (done.n_frames, done.n_usable) == (7, 5)


def test_a_compressed_copy_beside_a_frame_is_no_frame_of_its_own(linked, tmp_path):
    path = min(linked.glob("*.fit"))
    (linked / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    told, done, _ = surveyed(linked, tmp_path / "out")
    assert done.n_frames == len(told) == 6


def test_an_excluded_frame_does_not_widen_the_canvas(frames, tmp_path):
    _, whole, _ = surveyed(frames, tmp_path / "out")
    names = sorted(path.name for path in frames.glob("*.fit"))
    panel = tuple(name for name in names if name.startswith("Light_01"))
    told, less, _ = surveyed(frames, tmp_path / "out", SurveySettings(excluded=panel))
    assert less.shape[1] < 0.7 * whole.shape[1]
    assert less.n_usable == less.n_frames - len(panel)
    assert all(frame.usable and not frame.reason for frame in told.values())  # the user may change their mind


def without_wcs(folder):
    from astropy.io import fits

    for path in folder.glob("*.fit"):
        with fits.open(path) as hdus:
            bare = fits.PrimaryHDU(hdus[0].data.copy())
        path.unlink()
        bare.writeto(path)


class AnySolver:
    name = "Any Solver"


@pytest.fixture
def a_solver(monkeypatch):
    monkeypatch.setattr(zemosaic_survey, "choose_solver", lambda _options: AnySolver())


def test_frames_without_a_place_wait_for_the_solver_or_are_out(linked, tmp_path, a_solver):
    without_wcs(linked)
    told, done, _ = surveyed(linked, tmp_path / "out")
    assert all(frame.usable and not frame.corners_deg for frame in told.values())
    assert all("the run looks for its place" in frame.reason for frame in told.values())
    assert (done.n_usable, done.shape, done.tiles) == (6, (0, 0), ())
    assert "6 frames have no place on the sky yet; Any Solver solves them" in done.notes[0]
    told, done, _ = surveyed(linked, tmp_path / "out", SurveySettings(solve=None))
    assert not any(frame.usable for frame in told.values())
    assert done.n_usable == 0


def test_without_a_solver_the_survey_says_what_to_install(linked, tmp_path, monkeypatch):
    def missing(_options):
        raise SolverMissing("nothing found")

    monkeypatch.setattr(zemosaic_survey, "choose_solver", missing)
    without_wcs(linked)
    _, done, _ = surveyed(linked, tmp_path / "out")
    assert "no plate solver is there (nothing found)" in done.notes[0]
    assert "astrometry.net" in done.notes[0]
    assert "by the stars" in done.notes[0]
    _, done, _ = surveyed(linked, tmp_path / "out", SurveySettings(solve=SolveOptions(method="none")))
    assert "solver" not in done.notes[0]


def test_frames_that_nothing_can_place_are_not_called_usable(linked, tmp_path, monkeypatch):
    def missing(_options):
        raise SolverMissing("nothing found")

    monkeypatch.setattr(zemosaic_survey, "choose_solver", missing)
    without_wcs(linked)
    settings = SurveySettings(solve=SolveOptions(align_by_stars=False))
    told, done, _ = surveyed(linked, tmp_path / "out", settings)
    assert not any(frame.usable for frame in told.values())
    assert {frame.reason for frame in told.values()} == {
        "no celestial WCS in the file or beside it; no plate solver is there"
    }
    assert done.n_usable == 0
    assert "6 frames have no place on the sky yet, and are left out" in done.notes[0]
    assert "astrometry.net" in done.notes[0]


def test_what_an_earlier_run_has_solved_is_shown_in_its_place(frames, linked, tmp_path, a_solver):
    texts = {path.name: read_frame_header(path).wcs_text for path in frames.glob("*.fit")}
    _, placed, _ = surveyed(frames, tmp_path / "out")
    without_wcs(linked)
    cache = WcsCache(tmp_path / "out" / CACHE_NAME)
    for path in sorted(linked.glob("*.fit"))[1:]:
        cache.put(digest_of(path), Entry(texts[path.name], "", {"name": "x"}))
    kept = sorted(cache.folder.iterdir())
    told, done, _ = surveyed(linked, tmp_path / "out")
    assert [name for name, frame in told.items() if not frame.corners_deg] == ["Light_00_0000.fit"]
    assert not told["Light_00_0001.fit"].reason
    assert done.n_usable == 6
    assert done.shape == pytest.approx(placed.shape, rel=0.1)
    assert sorted(cache.folder.iterdir()) == kept


def test_a_folder_without_frames_is_an_error_that_says_so(tmp_path):
    events = []
    with pytest.raises(PlanError, match="no FITS file"):
        run_survey(tmp_path, tmp_path / "out", SurveySettings(), listener=events.append)
    assert events[-1].reason is FinishReason.ERROR


def test_a_cancelled_survey_ends_as_cancelled(frames, tmp_path):
    cancel, events = CancelToken(), []
    cancel.cancel()
    with pytest.raises(RunCancelled):
        run_survey(frames, tmp_path / "out", SurveySettings(), listener=events.append, cancel=cancel)
    assert events[-1].reason is FinishReason.CANCELLED


def test_more_workers_take_less_time_and_more_memory(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(zemosaic_survey, "machine", lambda: (4, 16 * 10**9))
    _, one, _ = surveyed(frames, tmp_path / "out", SurveySettings(workers=1))
    _, four, _ = surveyed(frames, tmp_path / "out", SurveySettings(workers=4))
    assert one.wall_s > four.wall_s
    assert one.memory_bytes < four.memory_bytes
    _, eight, _ = surveyed(frames, tmp_path / "out", SurveySettings(workers=8))
    assert eight.wall_s == four.wall_s
    for low, high in (one.cpu_s, one.wall_s, one.memory_bytes, one.disk_bytes):
        assert 0 < low < high


def test_a_survey_says_what_its_times_do_not_count(frames, tmp_path, a_solver):
    _, without, _ = surveyed(frames, tmp_path / "out")
    _, done, _ = surveyed(frames, tmp_path / "out", SurveySettings(use_gpu=True))
    assert {*done.notes} - {*without.notes} == {"the time is that of the processor; a GPU stacks faster"}
    again = SurveySettings(solve=SolveOptions(resolve_all=True))
    _, done, _ = surveyed(frames, tmp_path / "out", again)
    (note,) = {*done.notes} - {*without.notes}
    assert note.endswith(" solves all frames again; this takes time that is not counted here")


@pytest.mark.parametrize("found", [False, None])
def test_a_first_run_on_a_machine_counts_the_compiling_of_loops(frames, tmp_path, monkeypatch, found):
    _, known, _ = surveyed(frames, tmp_path / "out")
    asked = []
    monkeypatch.setattr(zemosaic_survey, "loops_are_compiled", lambda path: asked.append(path) or found)
    _, first, _ = surveyed(frames, tmp_path / "out")
    note = "the first run on this machine compiles its loops, about half a minute more"
    assert set(first.notes) - set(known.notes) == ({note} if found is False else set())
    assert first.wall_s[0] == known.wall_s[0]
    assert (first.wall_s[1] > known.wall_s[1] + 20) == (found is False)
    surveyed(frames, tmp_path / "out", SurveySettings(use_gpu=True))
    assert asked[0] != asked[-1]  # a GPU does not stack by compiled loops
    run_grid(frames, tmp_path / "out", GridSettings(workers=1, refine_wcs="off"))
    assert [loops_are_compiled(path) for path in (asked[0], asked[-1])] in ([True, True], [None, None])


@pytest.mark.parametrize(("pipeline", "settings"), [(run_grid, GridSettings), (run_classic, ClassicSettings)])
def test_the_disk_that_a_run_takes_is_in_the_range(frames, tmp_path, pipeline, settings):
    _, done, _ = surveyed(frames, tmp_path / "out", SurveySettings(grid_mode=pipeline is run_grid))
    pipeline(frames, tmp_path / "out", settings(workers=1))
    taken = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    low, high = done.disk_bytes
    assert low <= taken <= high


def test_the_settings_are_those_of_the_run():
    values = {"grid_size_factor": 2.5, "grid_overlap_px": 9, "canvas_orientation": "auto", "grid_workers": 3}
    config = resolve({}, {}, values)
    survey = SurveySettings.from_config(config, excluded=("a.fit",))
    run = GridSettings.from_config(config, excluded=("a.fit",))
    for name in (
        "orientation",
        "size_factor",
        "overlap_px",
        "chunk_ram_mb",
        "workers",
        "save_uint16",
        "excluded",
        "use_gpu",
    ):
        assert getattr(survey, name) == getattr(run, name)
    assert survey.groups == ClassicSettings.from_config(config).groups
    assert survey.solve == run.solve
    nowhere = resolve({}, {}, {"solve_missing_wcs": False, "align_by_stars": False})
    assert SurveySettings.from_config(nowhere).solve is None


def test_a_survey_in_a_process_of_its_own_returns_its_end(frames, tmp_path):
    request = RunRequest("survey", frames, tmp_path / "out", resolve({}, {}, {}))
    with start_run(request) as handle:
        events = list(handle.events())
    done = handle.result()
    assert isinstance(done, SurveyDone)
    assert events[-2] == done
    assert handle.wait().reason is FinishReason.COMPLETE
    assert not (tmp_path / "out").exists()
