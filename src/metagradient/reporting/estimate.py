"""The share of an experiment that is done and the time left, estimated from its planned stages and the pace so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_ENOUGH = 0.05  # of a stage, before its own pace is believed


@dataclass(frozen=True)
class Stage:
    """A planned part of an experiment, one outermost bar.

    Args:
        key: what `Progress.track`, `bar` and `callback` are given as `stage`; it is not shown.
        work: in any unit that is the same for all stages; plain trainings are a good one.
        phases: where the bars within one step begin and end, as shares of the step, by the name they are reported
            under; a bar that is not named here is the whole step.
    """

    key: str
    work: float
    phases: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Estimate:
    """Time left over all stages.

    A stage that has begun goes on at its own pace, later ones at the overall pace: seconds so far over work so far. A
    stage that never came (nothing to do, or not installed) is passed over as soon as a later one begins. What a resumed
    run found done counts as done, and in no pace.
    """

    def __init__(self, stages: Sequence[Stage], now: float) -> None:
        self.stages = tuple(stages)
        self._work = [max(float(stage.work), 0.0) for stage in stages]
        self._begun = self._entered = self._moved = now
        self._at = -1  # the stage that is open, or was last
        self._open = False
        self._first = self._share = 0.0  # of it: where it began, how far it is
        self._worked = 0.0  # in all stages before

    def enter(self, key: str, share: float, now: float) -> None:
        """The next stage of this key has begun, of which `share` is done already; none is left: nothing.

        Raises:
            ValueError: no stage of this key was planned.
        """
        if self.stages and key not in (planned := [stage.key for stage in self.stages]):
            raise ValueError(f"no stage {key!r} is planned, only {', '.join(planned)}")
        later = range(self._at + 1, len(self.stages))
        stage = next((i for i in later if self.stages[i].key == key), None)
        if stage is not None:
            self.leave(now)
            self._at, self._open = stage, True
            self._first = self._share = share
            self._entered = self._moved = now

    def move(self, key: str, share: float, now: float) -> None:
        """So much of the stage is done; it never goes back."""
        if self._open and self.stages[self._at].key == key and share > self._share:
            self._share, self._moved = min(share, 1.0), now

    def leave(self, now: float, key: str | None = None) -> None:
        """The stage (without a key, whichever is open) is over."""
        if self._open and key in (None, self.stages[self._at].key):
            self._worked += self._work[self._at] * (1 - self._first)
            self._open, self._share, self._moved = False, 1.0, now

    @property
    def phases(self) -> Mapping[str, tuple[float, float]]:
        """Those of the open stage."""
        return self.stages[self._at].phases if self._open else {}

    @property
    def share(self) -> float:
        """The share of the planned work that is done, in [0, 1]."""
        total = sum(self._work)
        if not total or self._at < 0:
            return 0.0
        return (sum(self._work[: self._at]) + self._share * self._work[self._at]) / total

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds until the last stage ends; None before any work is measured."""
        if self._at < 0:
            return None
        work, new = self._work[self._at], (self._share - self._first) if self._open else 0.0
        worked = self._worked + new * work
        if worked <= 0:
            return None
        pace = (self._moved - self._begun) / worked
        left = (1 - self._share) * work * pace
        if self._open and new >= _ENOUGH:
            left = (self._moved - self._entered) * (1 - self._share) / new
        later = sum(self._work[self._at + 1 :])
        return max(0.0, left + later * pace - (now - self._moved))
