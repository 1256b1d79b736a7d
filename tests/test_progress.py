"""What long work tells while it goes on, and that it can be ended there."""

from dataclasses import replace

import pytest

from surveys import survey_in
from zemosaic_events import PERCENT, CancelToken, Emitter, PhaseProgress, PlannedTile, TilesPlanned, describe
from zemosaic_fits_io import frame_wcs
from zemosaic_flat_frames import flatten_frames
from zemosaic_match import MatchOptions, match_frames
from zemosaic_measure import cell_size_px, measure_frames
from zemosaic_outputs import ProductPaths
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_refine import refine_frames
from zemosaic_reproject import optimal_canvas
from zemosaic_runbook import RunBook
from zemosaic_synthetic import SurveySpec
from zemosaic_types import Rect, RunCancelled, part_of

SPEC = SurveySpec(
    seed=11, panels=(1, 2), frames_per_panel=6, frame_shape=(300, 380), star_density=1200.0, overlap_fraction=0.3
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The canvas of a small survey, and its frames as the measuring pass gives them."""
    folder = tmp_path_factory.mktemp("seen") / "frames"
    survey_in(folder, SPEC)
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    canvas = optimal_canvas([(r.header.shape, frame_wcs(r.header)) for r in records])
    return canvas, measure_frames(records, canvas, cell_size_px([r.header.shape for r in records]), 1)


WORK = {
    "refine": lambda canvas, measured, tell: refine_frames(measured, canvas, method="on", tell=tell),
    "flat": lambda canvas, measured, tell: flatten_frames(measured, "on", tell=tell),
    "match": lambda canvas, measured, tell: match_frames(measured, canvas, MatchOptions(), tell=tell),
}


@pytest.fixture(params=WORK)
def work(request, seen):
    """One of the passes over all frames at once, as a function of what hears its progress."""
    return lambda tell: WORK[request.param](*seen, tell)


def test_a_pass_over_all_frames_tells_how_far_it_is_and_never_goes_back(work):
    told = []
    work(told.append)
    assert told == sorted(told)
    assert told[0] < 0.1
    assert told[-1] <= 1.0
    assert len(set(told)) >= 4
    assert max(b - a for a, b in zip([0.0, *told], [*told, 1.0], strict=True)) < 0.5


def test_a_pass_can_be_ended_wherever_it_tells_something(work):
    told = []
    work(told.append)
    for last in {0, 1, len(told) // 2, len(told) - 1}:
        heard = []

        def tell(share, heard=heard, last=last):
            if len(heard) == last:
                raise RunCancelled("enough")
            heard.append(share)

        with pytest.raises(RunCancelled, match="enough"):
            work(tell)
        assert heard == told[:last]


def test_frames_left_out_by_the_match_do_not_turn_its_progress_back(seen):
    canvas, measured = seen
    dim = measured[0].measure
    clouded = replace(measured[0], measure=replace(dim, flux=dim.flux / 40.0, flux_error=dim.flux_error / 40.0))
    told = []
    matched = match_frames([clouded, *measured[1:]], canvas, MatchOptions(), tell=told.append)
    assert [item.path for item in matched.left_out] == [clouded.record.path]
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_parts_of_a_work_lie_where_they_belong():
    told = []
    middle = part_of(part_of(told.append, 0.5, 1.0), 0.2, 0.6)
    middle(0.0)
    middle(1.0)
    assert told == pytest.approx([0.6, 0.8])


@pytest.fixture
def book(tmp_path):
    """A book, the events it has told, and its cancel token."""
    events, cancel = [], CancelToken()
    return RunBook(ProductPaths(tmp_path), Emitter(events.append), cancel), events, cancel


def test_a_share_is_told_in_whole_percents_once_each_and_forwards(book):
    book, events, _ = book
    tell = book.share("refine")
    for share in (0.0, 0.001, 0.25, 0.2501, 0.1, 1.0):
        tell(share)
    assert events == [PhaseProgress("refine", percent, 100, PERCENT) for percent in (0, 25, 100)]
    assert [describe(event)[:2] for event in events] == [
        ("refine: 0 %", 0.0),
        ("refine: 25 %", 25.0),
        ("refine: 100 %", 100.0),
    ]


@pytest.mark.parametrize(
    ("n", "kind", "said"),
    [
        (1, "tile", "1 tile"),
        (6, "tile", "6 tiles"),
        (1, "master tile", "1 master tile"),
        (12, "master tile", "12 master tiles"),
    ],
)
def test_tiles_are_told_by_what_they_are(n, kind, said):
    tiles = tuple(PlannedTile(k, Rect(0, 0, 9, 9), (), 3) for k in range(n))
    assert describe(TilesPlanned((800, 900), tiles, kind))[0] == f"canvas of 900 x 800 px, {said}"


def test_a_cancelled_run_ends_where_a_share_is_told(book):
    book, _, cancel = book
    tell = book.share("match")
    cancel.cancel()
    with pytest.raises(RunCancelled):
        tell(0.5)
