"""What the program says of the time that is left."""

import random

import pytest

from surveys import GRID_PHASES as PHASES
from zemosaic_events import PhaseProgress
from zemosaic_gui_eta import RunClock


def run_at(speed, expected_s=None):
    """Yield (time, clock, outlook) through a run whose steps take what `speed(phase, step)` says."""
    clock, now = RunClock(0.0, expected_s), 0.0
    for phase in PHASES:
        for step in range(11):
            now += speed(phase, step)
            clock.hear(PhaseProgress(phase, step, 10))
            yield now, clock, clock.outlook(now)


def test_progress_never_goes_back_whatever_phases_say():
    clock, seen = RunClock(0.0), []
    rng = random.Random(1)
    for _ in range(200):
        clock.hear(PhaseProgress(rng.choice([*PHASES, "something new"]), rng.randrange(12), rng.choice([0, 10])))
        seen.append(clock.fraction)
    assert seen == sorted(seen)
    assert 0.0 < seen[-1] <= 1.0


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_never_grows_unless_it_is_said(seed):
    rng = random.Random(seed)
    before = None
    for _, _, outlook in run_at(lambda *_: rng.uniform(0.2, 3.0), (20.0, 60.0)):
        assert 0.0 <= outlook.low <= outlook.high
        if before is not None and before.late == outlook.late:
            assert outlook.low <= before.low
            assert outlook.high <= before.high
        before = outlook


def test_an_even_run_ends_within_what_was_said_of_it():
    shares = dict(zip(PHASES, (4, 1, 28, 2, 1, 3, 43, 7), strict=True))
    history = [(now, clock.fraction, outlook) for now, clock, outlook in run_at(lambda p, _: shares[p] / 10)]
    end = history[-1][0]
    said = [(end - now, outlook) for now, fraction, outlook in history if fraction > 0.3]
    assert len(said) > 20
    for left, outlook in said:
        assert outlook.low <= 1.2 * left + 2.0
        assert outlook.high >= 0.5 * left


def test_a_run_that_is_far_slower_than_expected_is_called_late():
    outlooks = [outlook for _, _, outlook in run_at(lambda *_: 30.0, (2.0, 5.0))]
    assert not outlooks[0].late
    assert outlooks[len(outlooks) // 2].late
    assert outlooks[len(outlooks) // 2].high > 30.0


def test_nothing_is_said_before_anything_is_known():
    assert RunClock(0.0).outlook(3.0) is None


@pytest.mark.parametrize("phase", ["coadd", "add"])
def test_the_master_tiles_of_classic_have_a_share(phase):
    clock = RunClock(0.0, None, "classic")
    clock.hear(PhaseProgress("stack", 4, 4))
    stacked = clock.fraction
    clock.hear(PhaseProgress(phase, 2, 4))
    assert stacked < clock.fraction < 1.0
    clock.hear(PhaseProgress("assemble", 3, 3))
    assert clock.fraction == 1.0
