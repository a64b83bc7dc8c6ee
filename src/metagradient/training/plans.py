"""Index plans [T, B]: which examples each step reads. Padded with -1 where a batch is short.

Every plan is drawn from private generators, and a row depends on the example's own identity only as far as it must:
leaving an example out or giving it weight 0 never changes the order of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.random import generator


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")


def epoch_plan(examples: int, batch_size: int, epochs: int, seed: int, *, drop_last: bool = False) -> Tensor:
    """`epochs` passes over the data, each in an order of its own drawn from (seed, epoch); int64 [T, B]."""
    _positive(examples=examples, batch_size=batch_size, epochs=epochs)
    orders = [torch.randperm(examples, generator=generator(seed, epoch)) for epoch in range(epochs)]
    return torch.cat([_chunk(order, min(batch_size, examples), drop_last) for order in orders])


def full_batch_plan(examples: int, steps: int) -> Tensor:
    """All examples at every step, in order; int64 [T, n] (one row in memory)."""
    _positive(examples=examples, steps=steps)
    return torch.arange(examples).expand(steps, examples)


def given_plan(batches: Sequence[Sequence[int]]) -> Tensor:
    """Given index lists, one a step, of any lengths (an empty one is a skipped step); int64 [T, B]."""
    _positive(steps=len(batches))
    width = max(1, max(len(batch) for batch in batches))
    plan = torch.full((len(batches), width), -1, dtype=torch.int64)
    for t, batch in enumerate(batches):
        plan[t, : len(batch)] = torch.as_tensor(list(batch), dtype=torch.int64)
    return plan


def count_plan(counts: Tensor, batch_size: int, epochs: int, seed: int) -> Tensor:
    """Epochs over the data set in which example i stands counts[i] times; int64 [T, B].

    Copy j of example i gets a random key of its own, drawn from (seed, epoch, j) at position i; an epoch is the copies
    sorted by key. So raising or lowering one count inserts or removes copies and leaves the rest in order.
    """
    _positive(batch_size=batch_size, epochs=epochs)
    if counts.is_floating_point() or counts.dim() != 1 or bool((counts < 0).any()):
        raise UserError("counts must be a vector of integers >= 0, one for each example")
    if int(counts.sum()) == 0:
        raise UserError("every count is 0: there is nothing left to train on")
    rows = []
    for epoch in range(epochs):
        keys, indices = [], []
        for copy in range(int(counts.max())):
            present = (counts > copy).nonzero().flatten()
            key = torch.rand(len(counts), generator=generator(seed, epoch, copy), dtype=torch.float64)
            keys.append(key[present])
            indices.append(present)
        order = torch.cat(indices)[torch.cat(keys).argsort()]
        rows.append(_chunk(order, batch_size, drop_last=False))
    return torch.cat(rows)


def steps_per_epoch(plan: Tensor, examples: int) -> int | None:
    """How many rows of a plan read each of `examples` once, where its first rows do; else None."""
    if plan.stride(0) == 0:
        return 1 if torch.equal(plan[0].sort().values, torch.arange(examples)) else None
    read = (plan >= 0).sum(dim=1).cumsum(0)
    (ends,) = (read == examples).nonzero(as_tuple=True)
    if not len(ends):
        return None
    rows = plan[: int(ends[0]) + 1]
    return len(rows) if torch.equal(rows[rows >= 0].sort().values, torch.arange(examples)) else None


def _chunk(order: Tensor, batch_size: int, drop_last: bool) -> Tensor:
    """An order [n] as rows [ceil(n / B), B], the last padded with -1 or dropped."""
    steps, rest = divmod(len(order), batch_size)
    if rest and not (drop_last and steps):
        order = torch.cat([order, order.new_full((batch_size - rest,), -1)])
        steps += 1
    return order[: steps * batch_size].view(steps, batch_size)
