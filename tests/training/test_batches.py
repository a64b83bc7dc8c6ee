"""Batches are a function of the step, and an example's place does not depend on the others' weights or counts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient.errors import UserError

N = 23


def fields() -> dict[str, Tensor]:
    return {"x": torch.arange(N * 2.0).view(N, 2), "y": torch.arange(N)}


def order(plan: Tensor) -> list[int]:
    """The examples of a plan one after the other."""
    return [i for i in plan.flatten().tolist() if i >= 0]


def noise(batch: dict[str, Tensor], g: torch.Generator) -> dict[str, Tensor]:
    return {**batch, "x": batch["x"] + torch.randn(batch["x"].shape, generator=g)}


def noise_in_place(batch: dict[str, Tensor], g: torch.Generator) -> dict[str, Tensor]:
    batch["x"] += torch.randn(batch["x"].shape, generator=g)
    return batch


def test_every_epoch_holds_every_example_once_in_an_order_of_its_own() -> None:
    plan = mg.epoch_plan(N, 5, epochs=3, seed=1)
    assert plan.shape == (15, 5)
    epochs = [order(part) for part in plan.split(5)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (plan[4] == -1).sum() == 2
    dropped = mg.epoch_plan(N, 5, epochs=3, seed=1, drop_last=True)
    assert dropped.shape == (12, 5)
    assert int(dropped.min()) >= 0
    assert torch.equal(dropped[:4], plan[:4])


def test_more_epochs_and_other_batch_sizes_keep_the_order() -> None:
    plan = mg.epoch_plan(N, 5, epochs=2, seed=1)
    assert torch.equal(mg.epoch_plan(N, 5, epochs=4, seed=1)[: len(plan)], plan)
    assert order(mg.epoch_plan(N, 7, epochs=2, seed=1)) == order(plan)
    assert order(mg.epoch_plan(N, 5, epochs=2, seed=2)) != order(plan)
    assert order(mg.epoch_plan(N, 100, epochs=2, seed=1)) == order(plan)


def test_full_batch_plan_is_every_example_at_every_step_and_one_row_in_memory() -> None:
    plan = mg.full_batch_plan(N, 1000)
    assert plan.shape == (1000, N)
    assert plan.untyped_storage().nbytes() == N * 8
    assert order(plan[-1:]) == list(range(N))


def test_given_plan_is_what_was_given() -> None:
    rows = [[3, 1], [], [0, 2, 4], [5]]
    batches = mg.Batches(fields(), mg.given_plan(rows))
    assert [batches(t).index.tolist() for t in range(4)] == rows
    assert len(batches(1)) == 0
    assert mg.given_plan([[], []]).shape == (2, 1)


@pytest.mark.parametrize("change", [-1, +1, +2])
@pytest.mark.parametrize("changed", range(0, N, 4))
def test_changing_one_count_inserts_or_removes_copies_and_keeps_the_rest_in_order(changed: int, change: int) -> None:
    counts = torch.tensor([(3 * i) % 4 for i in range(N)])
    others = counts.clone()
    others[changed] = max(0, int(counts[changed]) + change)
    before = mg.count_plan(counts, 5, epochs=2, seed=4)
    after = mg.count_plan(others, 5, epochs=2, seed=4)
    for copies, plan in ((counts, before), (others, after)):
        half = order(plan)[: int(copies.sum())]
        assert torch.equal(torch.bincount(torch.tensor(half), minlength=N), copies)
    assert [i for i in order(before) if i != changed] == [i for i in order(after) if i != changed]


def test_count_plan_with_every_count_one_is_an_epoch_of_all() -> None:
    plan = mg.count_plan(torch.ones(N, dtype=torch.int64), 5, epochs=3, seed=4)
    assert all(sorted(order(part)) == list(range(N)) for part in plan.split(5))
    assert order(plan[:5]) != order(plan[5:10]) != order(plan[10:])


@pytest.mark.parametrize("augment", [None, noise, noise_in_place])
@pytest.mark.parametrize("plan", [mg.epoch_plan(N, 5, 2, seed=0), mg.full_batch_plan(N, 10)], ids=["epochs", "full"])
def test_batches_come_the_same_in_any_order(plan: Tensor, augment: Callable | None) -> None:
    examples = fields()
    batches = mg.Batches(examples, plan, seed=3, augment=augment)
    straight = [(b.index.clone(), b.x.clone(), b.y.clone()) for b in batches]
    for t in (7, 0, 9, 7, 3, 0):
        again = batches(t)
        assert again.t == t
        assert all(torch.equal(a, b) for a, b in zip(straight[t], (again.index, again.x, again.y), strict=True))
    assert torch.equal(examples["x"], fields()["x"])
    batches.from_step(6)
    assert [b.t for b in batches] == [6, 7, 8, 9]
    assert [b.t for b in batches] == list(range(10))


def test_augmentation_is_a_function_of_seed_and_step_alone() -> None:
    plan = mg.full_batch_plan(N, 6)
    here, there = mg.Batches(fields(), plan, 3, noise), mg.Batches(fields(), plan, 3, noise)
    other = mg.Batches(fields(), plan, 4, noise)
    assert torch.equal(here(2).x, there(2).x)
    assert not torch.equal(here(2).x, here(3).x)
    assert not torch.equal(here(2).x, other(2).x)


def test_nothing_draws_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    batches = mg.Batches(fields(), mg.epoch_plan(N, 5, 2, seed=0), seed=3, augment=noise)
    mg.count_plan(torch.full((N,), 2), 5, epochs=2, seed=4)
    list(batches)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_short_or_empty_batch_has_only_its_own_examples() -> None:
    batches = mg.Batches(fields(), mg.given_plan([[4, 2, 9], [7], []]), augment=noise)
    assert [len(b) for b in batches] == [3, 1, 0]
    assert batches(1).y.tolist() == [7]
    assert batches(2).x.shape == (0, 2)


def test_a_batch_in_another_dtype_keeps_its_integers() -> None:
    batch = mg.Batches(fields(), mg.given_plan([[1, 2]]))(0)
    moved = batch.to(dtype=torch.float64)
    assert moved.x.dtype == torch.float64
    assert moved.y.dtype == torch.int64
    assert batch.to(dtype=torch.float32) is batch
    with pytest.raises(AttributeError, match=r"no field 'z'; it has \['x', 'y'\]"):
        _ = batch.z


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mg.Batches({}, mg.full_batch_plan(3, 1)), "one or more fields of equal length, not {}"),
        (
            lambda: mg.Batches({"x": torch.ones(3), "y": torch.ones(4)}, mg.full_batch_plan(3, 1)),
            "equal length, not {'x': 3, 'y': 4}",
        ),
        (lambda: mg.Batches(fields(), torch.zeros(3, 4)), r"int64 \[T, B\]"),
        (lambda: mg.Batches(fields(), torch.empty(0, 4, dtype=torch.int64)), r"T, B >= 1, not torch.int64 \[0, 4\]"),
        (lambda: mg.Batches(fields(), mg.given_plan([[0, N]])), rf"\[0, {N}\) or be -1, not in \[0, {N}\]"),
        (lambda: mg.Batches(fields(), torch.tensor([[0, -2]])), r"not in \[-2, 0\]"),
        (lambda: mg.epoch_plan(0, 5, 1, 0), "examples must be at least 1, not 0"),
        (lambda: mg.epoch_plan(5, 0, 1, 0), "batch_size must be at least 1, not 0"),
        (lambda: mg.epoch_plan(5, 5, 0, 0), "epochs must be at least 1, not 0"),
        (lambda: mg.full_batch_plan(5, 0), "steps must be at least 1, not 0"),
        (lambda: mg.given_plan([]), "steps must be at least 1, not 0"),
        (lambda: mg.count_plan(torch.ones(4), 2, 1, 0), "vector of integers >= 0"),
        (lambda: mg.count_plan(torch.tensor([1, -1]), 2, 1, 0), "vector of integers >= 0"),
        (lambda: mg.count_plan(torch.zeros(4, dtype=torch.int64), 2, 1, 0), "nothing left to train on"),
    ],
)
def test_bad_input_is_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        make()
