"""How far a run is and how long it will take, as a range; neither ever jumps back."""

from __future__ import annotations

from dataclasses import dataclass

from zemosaic_events import PhaseProgress

#: Phases that tell their progress, in order, and their usual shares of the time.
_SHARES = {
    "headers": 4,
    "solve": 10,
    "align": 1,
    "canvas": 1,
    "measure": 28,
    "refine": 2,
    "flat": 1,
    "match": 3,
    "group": 0,
    "stack": 43,
    "coadd": 0,
    "assemble": 7,
}
_CLASSIC_SHARES = _SHARES | {"group": 1, "coadd": 12}  # only Classic coadds
_SAME = {"add": "coadd"}  # phases that take each other's place
_FIRST_SAYS = 0.05  # of the run; before, what was estimated beforehand counts
_SPREAD = (0.5, 0.15)  # of the range, at the start and at the end
_LATE, _LATE_S = 1.5, 5.0


@dataclass(frozen=True)
class Outlook:
    """What is left of a run: seconds from `low` to `high`; `late` if it takes longer than was said first."""

    low: float
    high: float
    late: bool = False


class RunClock:
    """Turns the progress of phases into the progress of a run.

    Parameters
    ----------
    now : float
        Seconds on any clock, when the run starts.
    expected_s : tuple of float, optional
        Range of the whole run, estimated beforehand.
    pipeline : str
        Which has a share of its own for each phase.
    """

    def __init__(self, now: float, expected_s: tuple[float, float] | None = None, pipeline: str = "grid") -> None:
        self._shares = _CLASSIC_SHARES if pipeline == "classic" else _SHARES
        self._start = now
        self._expected = expected_s if expected_s and expected_s[1] > 0 else None
        self._shown: Outlook | None = None
        self.phase = ""
        self.fraction = 0.0

    def hear(self, event: PhaseProgress) -> None:
        """Take the progress of a phase into account; a phase of another pipeline has a name, but no share."""
        self.phase = event.phase
        phase = _SAME.get(event.phase, event.phase)
        if phase not in self._shares or event.total <= 0:
            return
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(phase)])
        share = self._shares[phase] * min(1.0, event.done / event.total)
        self.fraction = max(self.fraction, (before + share) / sum(self._shares.values()))

    def elapsed(self, now: float) -> float:
        """Return the seconds since the start."""
        return now - self._start

    def outlook(self, now: float) -> Outlook | None:
        """Return what is left, None while nothing can be said.

        Neither end of the range ever grows, but for a run that is far slower than was said: from then on it is
        called late, with a new range.
        """
        range_s = self._estimate(now)
        if range_s is None:
            return self._shown
        low, high = range_s
        shown = self._shown
        if shown is None or low > _LATE * shown.high + _LATE_S:
            self._shown = Outlook(low, high, late=shown is not None)
        else:
            high = min(high, shown.high)
            self._shown = Outlook(min(low, shown.low, high), high, shown.late)
        return self._shown

    def _estimate(self, now: float) -> tuple[float, float] | None:
        elapsed, done = self.elapsed(now), self.fraction
        if done < _FIRST_SAYS:
            if self._expected is None:
                return None
            return max(0.0, self._expected[0] - elapsed), max(0.0, self._expected[1] - elapsed)
        middle = elapsed * (1.0 - done) / done
        first, last = _SPREAD
        spread = first + (last - first) * done
        return middle * (1.0 - spread), middle * (1.0 + spread)
