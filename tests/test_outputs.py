"""What headers say of a run: when its exposures began and ended."""

import random
from datetime import datetime, timedelta

import pytest

from zemosaic_outputs import LedgerRow, RunSummary

SPOILT = ("", "soon", "2199-01-01T00:00:00", "0000-00-00T00:00:00")


def row(date_obs, exptime_s=10.0):
    return LedgerRow("frame.fit", used=True, date_obs=date_obs, exptime_s=exptime_s)


def span(rows):
    return RunSummary(None, 1, {}, rows, 65535.0).span


def night(n, seed=0):
    """Rows of one night in any order, and the true start and end of all."""
    rng = random.Random(seed)
    starts = [datetime(2024, 3, 1, 20) + timedelta(milliseconds=rng.randrange(10**7)) for _ in range(n)]
    rows = [row(start.isoformat(timespec="milliseconds"), rng.choice([5.0, 10.0, 60.0])) for start in starts]
    end = max(start + timedelta(seconds=r.exptime_s) for start, r in zip(starts, rows, strict=True))
    return rows, min(starts), end


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("spoilt", [(), SPOILT])
def test_the_span_is_that_of_the_readable_dates(n, spoilt):
    rows, start, end = night(n)
    rows[n // 2 : n // 2] = map(row, spoilt)
    first, last = span(rows)
    assert (first.isot, last.isot) == tuple(t.isoformat(timespec="milliseconds") for t in (start, end))


def test_dates_written_in_different_ways_are_one_list():
    first, last = span([row("2024-03-02"), row("2024-03-01 21:00:00", None), row("2024-03-01T22:00:00.25", 1e30)])
    assert (first.isot, last.isot) == ("2024-03-01T21:00:00.000", "2024-03-02T22:00:00.250")


def test_no_readable_date_is_no_span():
    assert span([]) is None
    assert span([row(date) for date in SPOILT]) is None
    unused = row("2024-03-01T20:00:00")
    unused.used = False
    assert span([unused]) is None


def test_the_dates_of_a_run_are_parsed_once():
    summary = RunSummary(None, 1, {}, night(3)[0], 65535.0)
    assert summary.span is summary.span


@pytest.mark.parametrize(
    "change",
    [
        {"gain": (1.1,)},
        {"gradient_x": (1e-4,)},
        {"weight": (2.0,)},
        {"outline": "0.0 0.0 9.0 0.0 9.0 9.0 0.0 9.1"},
        {"used": False},
    ],
)
def test_the_digest_knows_what_decides_a_frames_part(change):
    plain = dict(path="a", frame_id="a", used=True, gain=(1.0,), offset=(0.0,), weight=(1.0,), gradient_x=(0.0,))
    plain |= {"gradient_y": (0.0,), "outline": "0.0 0.0 9.0 0.0 9.0 9.0 0.0 9.0"}
    before, again, after = (
        RunSummary(None, 1, {"kernel": "lanczos3"}, [LedgerRow(**values)], 65535.0).digest
        for values in (plain, plain, plain | change)
    )
    assert before == again != after


def test_the_digest_knows_flats_and_settings():
    digests = {
        RunSummary(None, 1, settings, [], 65535.0, flats).digest
        for settings in ({"kernel": "lanczos3"}, {"kernel": "bilinear"})
        for flats in ((), ({"name": "camera"},))
    }
    assert len(digests) == 4
