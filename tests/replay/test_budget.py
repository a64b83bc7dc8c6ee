"""`auto` is integer arithmetic on bytes: it fits, and it recomputes no more than other plans that fit."""

import re
from functools import cache
from itertools import product

import pytest

from metagradient.errors import UserError
from metagradient.replay import plans
from metagradient.replay.budget import choose, parse_bytes, plan_named
from metagradient.replay.plans import Plan
from metagradient.replay.trial import Footprint

LONGEST = 24
FOOTPRINTS = [Footprint(1, 1), Footprint(1, 3), Footprint(2, 3), Footprint(2, 5), Footprint(5, 11)]


@cache
def rivals(steps: int) -> list[Plan]:
    """Every plan of every spec."""
    out = [plans.tape(steps), plans.all_steps(steps), plans.sqrt(steps)]
    for segment in range(1, steps + 1):
        out += [plans.every(steps, segment)]
        out += [plans.binomial(steps, slots, segment) for slots in range(1, -(-steps // segment) + 1)]
        out += [plans.tree(steps, k, segment) for k in (2, 3, 4)]
    return out


def budgets(steps: int, footprint: Footprint) -> range:
    return range(5 * footprint.state + steps * (footprint.taped_step + footprint.state) + 1)


def steps_in_full_segments(plan: Plan) -> int:
    """Plain steps as if the first segment, the one that may be shorter, were as long as the others."""
    at = {a: i for i, (a, _) in enumerate(plan.segments)}
    advanced = [action for action in plan.actions if isinstance(action, plans.Advance)]
    return sum(at[action.b] - at[action.a] for action in advanced) * plan.longest_segment


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("footprint", FOOTPRINTS, ids=str)
def test_auto_fits_wherever_anything_fits_and_nothing_that_fits_recomputes_less(
    footprint: Footprint, in_memory: bool
) -> None:
    """A tree may pass the first, shorter segment once more often than `binomial`, so it is counted in full segments."""
    for steps in range(1, LONGEST + 1):
        known = [
            (footprint.peak(p, in_memory), p.advanced_steps, steps_in_full_segments(p), p.name.startswith("tree"))
            for p in rivals(steps)
        ]
        for memory in budgets(steps, footprint):
            fitting = [(exact, full, tree) for peak, exact, full, tree in known if peak <= memory]
            if not fitting:
                with pytest.raises(UserError, match="is too small"):
                    choose("auto", steps, footprint, memory, stored_in_memory=in_memory)
                continue
            plan = choose("auto", steps, footprint, memory, stored_in_memory=in_memory)
            where = (steps, memory, plan.name)
            assert footprint.peak(plan, in_memory) <= memory, where
            assert plan.advanced_steps <= min(full if tree else exact for exact, full, tree in fitting), where


def test_more_memory_never_costs_more_steps() -> None:
    for footprint, steps in product(FOOTPRINTS, (1, 7, 16, 50)):
        costs = []
        for memory in budgets(steps, footprint):
            try:
                costs.append(choose("auto", steps, footprint, memory).advanced_steps)
            except UserError:
                assert not costs
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] == 0


def test_the_count_of_plain_steps_is_that_of_the_plan() -> None:
    for steps in range(1, 60):
        for segment, slots in product((1, 2, 3, 5, 8), (1, 2, 3, 5, 20)):
            plan = plans.binomial(steps, slots, segment)
            assert plans.binomial_advanced_steps(steps, slots, segment) == plan.advanced_steps, (steps, segment, slots)


def test_the_tape_is_taken_as_soon_as_it_fits_and_what_almost_fits_repeats_almost_nothing() -> None:
    footprint = Footprint(1000, 5000)
    enough = footprint.peak(plans.tape(3125))
    assert choose("auto", 3125, footprint, enough).name == "tape"
    almost = choose("auto", 3125, footprint, enough - 1)
    assert almost.advanced_steps == 1
    assert footprint.peak(almost) < enough


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("footprint", [*FOOTPRINTS, Footprint(700_000, 3_100_000), Footprint(2**21, 2**24)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 9, 1000])
def test_the_refusal_names_the_smallest_memory_that_works(steps: int, footprint: Footprint, in_memory: bool) -> None:
    def works(memory: int) -> bool:
        try:
            choose("auto", steps, footprint, memory, stored_in_memory=in_memory)
        except UserError:
            return False
        return True

    with pytest.raises(UserError) as refusal:
        choose("auto", steps, footprint, 0, stored_in_memory=in_memory)
    assert "\n" not in str(refusal.value)
    named = re.search(r"the smallest that works is replay\.memory=(\d+(B|KiB|MiB|GiB))$", str(refusal.value))
    assert named is not None, refusal.value
    smallest = next(m for m in range(4 * footprint.state, 10**9) if works(m)) if footprint.state < 10 else None
    unit = parse_bytes(f"1{named[2]}")
    assert works(parse_bytes(named[1]))
    assert not works(parse_bytes(named[1]) - unit)
    if smallest is not None:
        assert parse_bytes(named[1]) - unit < smallest <= parse_bytes(named[1])


@pytest.mark.parametrize("spec", ["tape", "all", "sqrt", "every(7)", "tree(3)", "tree(3, 4)", "binomial(5)"])
def test_a_named_plan_is_that_plan_or_refused_with_the_memory_it_needs(spec: str) -> None:
    footprint = Footprint(700_000, 3_100_000)
    plan = choose(spec, 100, footprint, 10**12)
    assert plan.name.replace("segment=", "") == spec
    need = footprint.peak(plan)
    assert choose(spec, 100, footprint, need).actions == plan.actions
    with pytest.raises(UserError, match=r"^checkpoints '[^\n]*' needs about [^\n]*set replay\.memory=\d+\w+, or ") as e:
        choose(spec, 100, footprint, need - 1)
    named, smallest = re.findall(r"replay\.memory=(\d+\w+)", str(e.value))
    assert choose(spec, 100, footprint, parse_bytes(named)).actions == plan.actions
    assert footprint.peak(choose("auto", 100, footprint, parse_bytes(smallest))) <= parse_bytes(smallest)


@pytest.mark.parametrize(
    "spec",
    [
        *("", "nope", "auto(2)", "tape(3)", "all(1)", "sqrt(2)", "every", "every()", "every(2,3)", "tree", "tree(x)"),
        *("tree(2,3,4)", "binomial", "binomial(-1)", "binomial(2", "binomial(1.5)", "tree(2) ; tape"),
    ],
)
def test_a_misspelt_plan_is_one_line_with_what_is_allowed(spec: str) -> None:
    allowed = r"auto, tape, all, sqrt, every\(segment\), tree\(k\) or binomial\(slots\)"
    with pytest.raises(UserError, match=rf"^replay\.checkpoints must be {allowed}, not '{re.escape(spec)}'$"):
        choose(spec, 9, Footprint(1, 1), 10**9)


@pytest.mark.parametrize("spec", ["tree(1)", "tree(0)", "every(0)", "binomial(0)", "tree(2, 0)", "binomial(2,0)"])
def test_a_plan_with_an_impossible_number_is_one_line(spec: str) -> None:
    with pytest.raises(UserError, match=rf"^replay\.checkpoints='{re.escape(spec)}': [^\n]* whole number >= \d$"):
        choose(spec, 9, Footprint(1, 1), 10**9)


def test_spaces_in_a_spec_do_not_matter() -> None:
    assert choose(" tree( 3 , 2 ) ", 9, Footprint(1, 1), 10**9).actions == plans.tree(9, 3, 2).actions


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("12B", 12), ("3KiB", 3072), ("1.5 MiB", 3 * 2**19), ("2gib", 2**31), ("2 GB", 2 * 10**9), (1e9, 10**9)],
)
def test_sizes(text: str | float, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "abc", "1.2.3MiB", ".", "-1", "5TiB", "1 2", "GiB"])
def test_a_misspelt_size_is_one_line(text: str) -> None:
    with pytest.raises(
        UserError, match=rf"^replay\.memory must be a size such as 500MiB or 2GiB, not '{re.escape(text)}'$"
    ):
        parse_bytes(text)


def test_large_steps_are_taped_one_at_a_time_and_only_on_a_cpu():
    large = 300 * 2**20
    assert choose("auto", 40, Footprint(2**20, large), 2**36) == plans.binomial(40, 40, 1)
    assert choose("auto", 40, Footprint(2**20, large, on_cpu=False), 2**36) == plans.tape(40)
    assert choose("auto", 40, Footprint(2**20, large // 2), 2**36) == plans.tape(40)
    assert choose("tape", 40, Footprint(2**20, large), 2**36) == plans.tape(40)  # what is asked for is done


@pytest.mark.parametrize(
    "plan",
    [
        plans.tape(7),
        plans.all_steps(7),
        plans.sqrt(7),
        plans.every(7, 3),
        plans.tree(7, 3),
        plans.tree(7, 3, 2),
        plans.binomial(7, 2),
        plans.binomial(7, 2, 3),
    ],
    ids=lambda plan: plan.name,
)
def test_a_plan_is_found_again_by_its_name(plan: Plan) -> None:
    """As a replay that goes on finds it."""
    assert plan_named(plan.name, 7) == plan
