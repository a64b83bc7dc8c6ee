"""Checkpoint plans: which states a reversal of T training steps keeps, and which it computes again.

The adjoint of a run needs the states 0..T in reverse, and they do not all fit in memory. A plan is the
complete schedule, as integers only: no tensors, no storage, nothing measured. It works on *segments* [a, b)
of steps. Each is run once with its autograd graph kept and pulled once, the last one first. The fit is the
first part of the schedule: it advances from state 0, saves states on its way and keeps the graph of the last
segment, which therefore never runs twice.

    plan                     states stored (N = number of segments)    plain steps, first run included
    tape                     0                                         0
    every, sqrt, all         N - 1                                     T - segment
    tree(k)                  <= (k - 1) ceil(log_k N)                  <= T (k - 1)/k ceil(log_k N)
    binomial(slots)          <= slots                                  the fewest possible, in segments

On top of these every step runs once with its graph. A state is stored only if it is restored later (the start
of the last segment never is), and it is dropped when it is restored for the last time, before that segment is
taped. When `segment` does not divide T the *first* segment is the shorter one, because a full last segment is
the most that the fit can tape for nothing.

Sources: lazy k-ary tree, Engstrom et al. 2025 (arXiv 2503.13751); binomial, Griewank & Walther 2000 (revolve,
ACM TOMS 799).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Save:
    """Store the current state, which is the one at t."""

    t: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Make the stored state at t the current one; it stays stored."""

    t: int


@dataclass(frozen=True, slots=True)
class Free:
    """Drop the stored state at t; the current state is untouched."""

    t: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Run the plain steps a..b-1: the current state moves from a to b."""

    a: int
    b: int


@dataclass(frozen=True, slots=True)
class Reverse:
    """Run steps a..b-1 with their graph and pull the cotangents through; then no state is current."""

    a: int
    b: int


Action = Save | Restore | Free | Advance | Reverse


@dataclass(frozen=True)
class Plan:
    """A schedule that reverses `steps` steps: its first Reverse ends at `steps`, its last begins at 0."""

    name: str
    steps: int
    actions: tuple[Action, ...]

    @cached_property
    def _first_reverse(self) -> int:
        return next(i for i, action in enumerate(self.actions) if isinstance(action, Reverse))

    @cached_property
    def saves_in_fit(self) -> frozenset[int]:
        """The t whose states the fit stores."""
        return frozenset(action.t for action in self.actions[: self._first_reverse] if isinstance(action, Save))

    @property
    def tape_from(self) -> int:
        """Start of the last segment: the fit keeps the graph from this step on."""
        return self.segments[-1][0]

    @cached_property
    def reverse_actions(self) -> tuple[Action, ...]:
        """What is left to do once the last segment has been pulled."""
        return self.actions[self._first_reverse + 1 :]

    @cached_property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """The segments (a, b) in the order of time; they are reversed from the last to the first."""
        return tuple((action.a, action.b) for action in reversed(self.actions) if isinstance(action, Reverse))

    @cached_property
    def next_restored(self) -> tuple[int | None, ...]:
        """The t of the next state that is restored once i of `reverse_actions` are done, for each i; None where there is none."""
        found: list[int | None] = [None]
        for action in reversed(self.reverse_actions):
            found.append(action.t if isinstance(action, Restore) else found[-1])
        return tuple(reversed(found))

    @property
    def longest_segment(self) -> int:
        """Steps whose graph is held at once."""
        return max(b - a for a, b in self.segments)

    @cached_property
    def slots(self) -> int:
        """Peak number of stored states, the initial one included, the current one not."""
        stored = peak = 0
        for action in self.actions:
            stored += isinstance(action, Save) - isinstance(action, Free)
            peak = max(peak, stored)
        return peak

    @cached_property
    def advanced_steps(self) -> int:
        """Plain steps in all, the fit's included; taped steps, `steps` in number, come on top."""
        return sum(action.b - action.a for action in self.actions if isinstance(action, Advance))

    @property
    def forward_runs(self) -> float:
        """Plain steps in units of the run, the fit's included; the taped run, 1, comes on top."""
        return self.advanced_steps / self.steps


def tape(steps: int) -> Plan:
    """One segment: the fit itself keeps the graph of the whole run, no step runs twice."""
    _at_least("steps", steps, 1)
    return Plan("tape", steps, (Reverse(0, steps),))


def every(steps: int, segment: int) -> Plan:
    """Store each segment's start in the fit; nothing runs plainly twice."""
    return _build(f"every({segment})", steps, segment, _split_fully)


def all_steps(steps: int) -> Plan:
    """Store every state: segments of one step, the least graph and the most states."""
    return _build("all", steps, 1, _split_fully)


def sqrt(steps: int) -> Plan:
    """Segments of ceil(sqrt(T)) steps: about as many stored states as steps in a graph."""
    _at_least("steps", steps, 1)
    segment = math.isqrt(steps - 1) + 1
    return _build("sqrt", steps, segment, _split_fully)


def tree(steps: int, k: int, segment: int = 1) -> Plan:
    """REPLAY's lazy k-ary tree: split into k near-equal parts, store their starts, recurse last to first.

    On N segments it stores at most (k - 1) ceil(log_k N) states and runs at most T (k - 1)/k ceil(log_k N)
    plain steps. Both are met when N is a power of k: k = 5 at T = 3125 stores 20 states (21 with the current
    one) and needs 4.0 forward runs.
    """
    _at_least("k", k, 2)
    return _build(_name("tree", k, segment), steps, segment, lambda part: _split_evenly(part, k))


def binomial(steps: int, slots: int, segment: int = 1) -> Plan:
    """Revolve: no plan that stores at most `slots` states runs fewer segments plainly.

    `slots` counts the initial state; `binomial_advances` is the number of segments run plainly.
    """
    _at_least("slots", slots, 1)
    return _build(_name("binomial", slots, segment), steps, segment, _split_binomially, slots)


def binomial_advances(n: int, slots: int) -> int:
    """Segments that `binomial` runs plainly to reverse n of them, the fit's included: the least possible.

    With r the smallest integer for which C(slots + r, slots) >= n, it is `r n - C(slots + r, slots + 1)`
    (Griewank & Walther 2000). Once slots >= n - 1 it is n - 1: all but the last, which the fit tapes.
    """
    _at_least("n", n, 1)
    _at_least("slots", slots, 1)
    r = _repeats(n, slots)
    return r * n - math.comb(slots + r, slots + 1)


def binomial_advanced_steps(steps: int, slots: int, segment: int) -> int:
    """`binomial(steps, slots, segment).advanced_steps` without making the plan.

    Segments times their length would overcount: the first one, passed the most often, is the shorter one.
    """
    n = -(-steps // segment)
    first, passes = _Part(0, n, slots, _repeats(n, slots)), 0
    while first.length > 1:
        first, passes = _split_binomially(first)[0], passes + 1
    return segment * binomial_advances(n, slots) - passes * (n * segment - steps)


class _Part(NamedTuple):
    """Segments start..stop-1, and what `binomial` may spend on them; the other plans ignore that."""

    start: int
    stop: int
    slots: int = 0  # its own start included
    repeats: int = 0  # the most often that any of its segments runs plainly

    @property
    def length(self) -> int:
        return self.stop - self.start


def _split_fully(part: _Part) -> list[_Part]:
    return _split_evenly(part, part.length)


def _split_evenly(part: _Part, k: int) -> list[_Part]:
    k = min(k, part.length)
    edges = [part.start + part.length * i // k for i in range(k + 1)]
    return [_Part(a, b) for a, b in pairwise(edges)]


def _split_binomially(part: _Part) -> list[_Part]:
    """The smallest optimal left part (the largest costs as many steps but stores more states on the way).

    s slots and r repeats are right for C(s + r - 1, s) <= n <= C(s + r, s). By Pascal's rule both bounds are
    the left part's, at (s, r - 1), plus the right part's, at (s - 1, r); so any split that keeps each part
    within its own bounds is optimal, and r need not be searched for again.
    """
    s, r = part.slots, part.repeats
    left = max(1, math.comb(s + r - 2, s), part.length - math.comb(s + r - 1, s - 1))
    middle = part.start + left
    return [_Part(part.start, middle, s, r - 1), _Part(middle, part.stop, s - 1, r)]


def _repeats(n: int, slots: int) -> int:
    """The smallest r for which C(slots + r, slots) >= n."""
    r, reach = 0, 1
    while reach < n:
        r += 1
        reach = reach * (slots + r) // r
    return r


def _build(name: str, steps: int, segment: int, split: Callable[[_Part], list[_Part]], slots: int = 0) -> Plan:
    """Reverse a run by splitting it again and again, last part first, down to single segments.

    Splitting a part takes the run from its start to its last part's, and stores the other starts on the way.
    """
    _at_least("steps", steps, 1)
    _at_least("segment", segment, 1)
    n = -(-steps // segment)
    # segment i is the steps at[i]..at[i + 1] - 1
    at = [0, *range(steps - (n - 1) * segment, steps + 1, segment)]
    actions: list[Action] = []
    stored: set[int] = set()
    current: int | None = 0
    waiting = [_Part(0, n, slots, _repeats(n, slots) if slots else 0)]
    while waiting:
        part = waiting.pop()
        start = at[part.start]
        if current != start:
            actions.append(Restore(start))
        if part.length == 1:
            if start in stored:
                actions.append(Free(start))
                stored.remove(start)
            actions.append(Reverse(start, at[part.stop]))
            current = None
            continue
        current = start
        parts = split(part)
        for here, following in pairwise(parts):
            if current not in stored:
                actions.append(Save(current))
                stored.add(current)
            actions.append(Advance(at[here.start], at[following.start]))
            current = at[following.start]
        waiting += parts
    return Plan(name, steps, tuple(actions))


def _name(kind: str, argument: int, segment: int) -> str:
    return f"{kind}({argument})" if segment == 1 else f"{kind}({argument}, segment={segment})"


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} makes no checkpoint plan: {name} must be a whole number >= {least}")
