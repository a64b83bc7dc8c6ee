"""Checkpoint plans are integer schedules, so what they promise is checked exhaustively, without tensors."""

import heapq
import itertools
import math
from functools import cache
from typing import Any, NamedTuple

import pytest

from metagradient.replay import plans
from metagradient.replay.plans import Advance, Free, Plan, Restore, Reverse, Save

LONGEST = 200
SEGMENTS = (1, 2, 3, 7)


class Account(NamedTuple):
    """What executing a plan showed."""

    slots: int
    advanced: int
    advanced_segments: int
    segments: list[tuple[int, int]]
    saved_in_fit: set[int]


def execute(plan: Plan) -> Account:
    """Carry out a plan on an integer, the current state; refuse every action that cannot be done."""
    current: int | None = 0
    stored: set[int] = set()
    in_vain: set[int] = set()
    pulled_from = plan.steps
    peak = 0
    advances: list[Advance] = []
    segments: list[tuple[int, int]] = []
    saved_in_fit: set[int] = set()
    for action in plan.actions:
        match action:
            case Save(t):
                assert current == t
                assert t not in stored
                stored.add(t)
                in_vain.add(t)
                peak = max(peak, len(stored))
                if not segments:
                    saved_in_fit.add(t)
            case Restore(t):
                assert segments, "the fit only goes forward"
                assert t in stored
                in_vain.discard(t)
                current = t
            case Free(t):
                assert segments, "the fit only goes forward"
                stored.remove(t)
            case Advance(a, b):
                assert current == a < b < pulled_from
                advances.append(action)
                current = b
            case Reverse(a, b):
                assert current == a < b == pulled_from
                assert a not in stored, "no longer needed, yet held while the graph is"
                segments.append((a, b))
                pulled_from = a
                current = None
    assert pulled_from == 0
    assert not stored
    assert not in_vain
    ordinal = {a: i for i, (a, _) in enumerate(reversed(segments))}
    return Account(
        slots=peak,
        advanced=sum(advance.b - advance.a for advance in advances),
        advanced_segments=sum(ordinal[advance.b] - ordinal[advance.a] for advance in advances),
        segments=segments[::-1],
        saved_in_fit=saved_in_fit,
    )


def number_of_segments(steps: int, segment: int) -> int:
    return math.ceil(steps / segment)


@cache
def fewest_advances(slots: int) -> list[int]:
    """Least advances to reverse n = 0..LONGEST unit segments: a programme over the next state to store."""
    if slots == 1:
        return [n * (n - 1) // 2 for n in range(LONGEST + 1)]
    right = fewest_advances(slots - 1)
    best = [0, 0]
    for n in range(2, LONGEST + 1):
        best.append(min(m + best[m] + right[n - m] for m in range(1, n)))
    return best


def fewest_advances_of_any_schedule(n: int, slots: int) -> int:
    """Dijkstra over all that can be done: (segments left, current state or -1, stored states)."""
    start = (n, 0, frozenset[int]())
    cost = {start: 0}
    queue = [(0, 0, start)]
    ticket = itertools.count(1)
    while queue:
        spent, _, node = heapq.heappop(queue)
        left, current, stored = node
        if left == 0:
            return spent
        if spent > cost[node]:
            continue
        ways = [(0, (left, t, stored)) for t in stored] + [(0, (left, current, stored - {t})) for t in stored]
        if current >= 0:
            ways.append((1, (left, current + 1 if current + 1 < n else -1, stored)))
            if len(stored) < slots:
                ways.append((0, (left, current, stored | {current})))
            if current == left - 1:
                ways.append((0, (left - 1, -1, stored)))
        for price, way in ways:
            if spent + price < cost.get(way, 10**9):
                cost[way] = spent + price
                heapq.heappush(queue, (spent + price, next(ticket), way))
    raise AssertionError("no schedule")


def levels(n: int, k: int) -> int:
    """ceil(log_k n), in integers."""
    return next(d for d in itertools.count() if k**d >= n)


def slot_counts(n: int) -> list[int]:
    return sorted({*range(1, min(n, 12) + 1), 14, max(n - 1, 1), n + 3})


def same_as_executed(plan: Plan, account: Account) -> bool:
    return (
        plan.slots == account.slots
        and plan.advanced_steps == account.advanced
        and list(plan.segments) == account.segments
        and plan.saves_in_fit == account.saved_in_fit
        and plan.tape_from == account.segments[-1][0]
        and plan.forward_runs == account.advanced / plan.steps
        and plan.longest_segment == max(b - a for a, b in account.segments)
    )


@pytest.mark.parametrize("segment", SEGMENTS)
def test_binomial_is_the_optimum(segment: int) -> None:
    for steps in range(1, LONGEST + 1):
        n = number_of_segments(steps, segment)
        for slots in slot_counts(n):
            plan = plans.binomial(steps, slots, segment)
            account = execute(plan)
            optimum = fewest_advances(min(slots, LONGEST))[n]
            assert account.advanced_segments == optimum == plans.binomial_advances(n, slots), (steps, slots)
            assert account.slots == min(slots, n - 1)
            assert same_as_executed(plan, account)


def test_the_optimum_is_that_of_any_schedule_whatever() -> None:
    """The dynamic programme presumes a shape of the schedule; a search without that finds nothing better."""
    for n in range(1, 9):
        for slots in range(1, 5):
            assert fewest_advances(slots)[n] == fewest_advances_of_any_schedule(n, slots), (n, slots)


@pytest.mark.parametrize("k", range(2, 7))
def test_tree_keeps_the_papers_bounds(k: int) -> None:
    """States k per level and log_k N levels; forward work 1 + log_k N runs, the taped one counted."""
    for steps in range(1, LONGEST + 1):
        for segment in SEGMENTS:
            plan = plans.tree(steps, k, segment)
            account = execute(plan)
            n = number_of_segments(steps, segment)
            depth = levels(n, k)
            assert account.slots <= (k - 1) * depth
            assert k * account.advanced <= (k - 1) * depth * steps
            assert plan.forward_runs + 1 <= 1 + depth
            assert account.advanced_segments >= plans.binomial_advances(n, max(account.slots, 1))
            assert same_as_executed(plan, account)


@pytest.mark.parametrize(("k", "depth"), [(2, 7), (3, 4), (4, 3), (5, 3), (6, 2)])
def test_tree_bounds_are_met_by_powers(k: int, depth: int) -> None:
    account = execute(plans.tree(k**depth, k))
    assert account.slots == (k - 1) * depth
    assert k * account.advanced == (k - 1) * depth * k**depth


@pytest.mark.parametrize("segment", SEGMENTS)
def test_every_stores_each_start_in_the_fit_and_runs_nothing_plainly_twice(segment: int) -> None:
    for steps in range(1, LONGEST + 1):
        plan = plans.every(steps, segment)
        account = execute(plan)
        assert account.saved_in_fit == {a for a, _ in account.segments[:-1]}
        assert account.slots == number_of_segments(steps, segment) - 1
        assert account.advanced == max(0, steps - segment)
        assert not any(isinstance(action, Advance | Save) for action in plan.reverse_actions)
        assert same_as_executed(plan, account)


def test_tape_is_one_segment_and_what_every_plan_of_one_segment_does() -> None:
    for steps in (1, 2, 17, LONGEST):
        plan = plans.tape(steps)
        assert plan.actions == (Reverse(0, steps),)
        assert same_as_executed(plan, execute(plan))
        assert (plan.slots, plan.tape_from, plan.forward_runs, plan.reverse_actions) == (0, 0, 0, ())
        for other in (
            plans.every(steps, steps),
            plans.tree(steps, 2, steps),
            plans.binomial(steps, 3, steps + 1),
        ):
            assert other.actions == plan.actions


def test_all_and_sqrt() -> None:
    for steps in range(1, LONGEST + 1):
        assert plans.all_steps(steps).actions == plans.every(steps, 1).actions
        root = next(r for r in itertools.count() if r * r >= steps)
        plan = plans.sqrt(steps)
        assert plan.actions == plans.every(steps, root).actions
        assert plan.longest_segment == root
        assert plan.slots < root


def test_segments_are_of_full_length_but_for_the_first() -> None:
    for plan in (plans.every(10, 4), plans.tree(10, 2, 4), plans.binomial(10, 2, 4)):
        assert plan.segments == ((0, 2), (2, 6), (6, 10))


def test_a_small_schedule_reads_as_expected() -> None:
    assert plans.binomial(4, 2).actions == (
        *(Save(0), Advance(0, 1), Save(1), Advance(1, 3), Reverse(3, 4)),
        *(Restore(1), Advance(1, 2), Reverse(2, 3), Restore(1), Free(1), Reverse(1, 2)),
        *(Restore(0), Free(0), Reverse(0, 1)),
    )


def test_known_numbers_at_3125_steps() -> None:
    tree, binomial = plans.tree(3125, 5), plans.binomial(3125, 25)
    assert (tree.slots, tree.advanced_steps, tree.forward_runs) == (
        20,
        12_500,
        4.0,
    )  # the paper counts 20 + current
    assert (binomial.slots, binomial.advanced_steps) == (25, 8_997)
    assert binomial.forward_runs == pytest.approx(2.88, abs=0.005)
    assert plans.binomial_advances(3125, 25) == 8_997
    assert plans.binomial_advances(3125, 20) < tree.advanced_steps
    assert plans.sqrt(3125).forward_runs < 1


@pytest.mark.parametrize("slots", [1, 30])
def test_long_runs_need_no_recursion(slots: int) -> None:
    plan = plans.binomial(100_000, slots)
    account = execute(plan)
    assert account.advanced == plans.binomial_advances(100_000, slots)
    assert len(plan.actions) < 5 * 100_000
    assert same_as_executed(plan, account)


def test_names_say_what_was_asked_for() -> None:
    made = (
        *(plans.tape(9), plans.all_steps(9), plans.sqrt(9), plans.every(9, 4)),
        *(
            plans.tree(9, 3),
            plans.tree(9, 3, segment=2),
            plans.binomial(9, 2),
            plans.binomial(9, 2, segment=2),
        ),
    )
    assert [plan.name for plan in made] == [
        *("tape", "all", "sqrt", "every(4)"),
        *("tree(3)", "tree(3, segment=2)", "binomial(2)", "binomial(2, segment=2)"),
    ]


def test_bad_numbers_are_one_line_with_the_value_and_what_is_allowed() -> None:
    def refused(name: str, value: float, least: int) -> pytest.RaisesExc[ValueError]:
        return pytest.raises(ValueError, match=rf"^{name}={value} [^\n]*{name} must be a whole number >= {least}$")

    for make in (
        *(plans.tape, plans.all_steps, plans.sqrt),
        *(
            lambda steps: plans.every(steps, 3),
            lambda steps: plans.tree(steps, 2),
            lambda steps: plans.binomial(steps, 2),
        ),
    ):
        for steps in (0, -3):
            with refused("steps", steps, 1):
                make(steps)
    with refused("segment", 0, 1):
        plans.every(5, 0)
    with refused("segment", -1, 1):
        plans.tree(5, 2, segment=-1)
    fraction: Any = 2.5
    with refused("segment", fraction, 1):
        plans.binomial(5, 2, segment=fraction)
    with refused("k", 1, 2):
        plans.tree(5, 1)
    for slots in (0, -2):
        with refused("slots", slots, 1):
            plans.binomial(5, slots)
        with refused("slots", slots, 1):
            plans.binomial_advances(5, slots)
    with refused("n", 0, 1):
        plans.binomial_advances(0, 2)
