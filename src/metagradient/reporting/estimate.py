"""How far a whole experiment is, and how long the rest will take: from its planned stages, at the pace so far."""

from collections.abc import Sequence

Stages = Sequence[tuple[str, float]]
"""(description of an outermost bar, planned work), in the order in which they come. Any unit of work will do:
plain trainings are a good one."""

_ENOUGH = 0.05  # of a stage, before its own pace is believed


class Estimate:
    """Time left over all stages.

    A stage that has begun goes on at its own pace, later ones at the overall pace: seconds so far over work so far. A
    stage that never came (nothing to do, or not installed) is passed over as soon as a later one begins. What a resumed
    run found done counts as done, and in no pace.
    """

    def __init__(self, stages: Stages, now: float) -> None:
        self.stages = [(name, max(float(work), 0.0)) for name, work in stages]
        self._total = sum(work for _, work in self.stages)
        self._begun = self._entered = self._moved = now
        self._at = -1  # the stage that is open, or was last
        self._open = False
        self._first = self._share = 0.0  # of it: where it began, how far it is
        self._worked = 0.0  # in all stages before

    def enter(self, description: str, share: float, now: float) -> None:
        """An outermost bar has opened, of which `share` is done already."""
        later = range(self._at + 1, len(self.stages))
        stage = next((i for i in later if self.stages[i][0] == description), None)
        if stage is not None:
            self.leave(now)
            self._at, self._open = stage, True
            self._first = self._share = share
            self._entered = self._moved = now

    def move(self, description: str, share: float, now: float) -> None:
        """So much of the outermost bar is done; it never goes back."""
        if self._open and self.stages[self._at][0] == description and share > self._share:
            self._share, self._moved = min(share, 1.0), now

    def leave(self, now: float, description: str | None = None) -> None:
        """The outermost bar (or any) is closed."""
        if self._open and description in (None, self.stages[self._at][0]):
            self._worked += self.stages[self._at][1] * (1 - self._first)
            self._open, self._share, self._moved = False, 1.0, now

    @property
    def share(self) -> float:
        """Of the whole work, in [0, 1]."""
        if not self._total or self._at < 0:
            return 0.0
        before = sum(work for _, work in self.stages[: self._at])
        return (before + self._share * self.stages[self._at][1]) / self._total

    def seconds_left(self, now: float) -> float | None:
        """None while there is nothing to judge by."""
        if self._at < 0:
            return None
        work, new = self.stages[self._at][1], (self._share - self._first) if self._open else 0.0
        worked = self._worked + new * work
        if worked <= 0:
            return None
        pace = (self._moved - self._begun) / worked
        left = (1 - self._share) * work * pace
        if self._open and new >= _ENOUGH:
            left = (self._moved - self._entered) * (1 - self._share) / new
        later = sum(work for _, work in self.stages[self._at + 1 :])
        return max(0.0, left + later * pace - (now - self._moved))
