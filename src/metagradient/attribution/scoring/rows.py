"""Examples batch by batch, and the share of a batch that a process takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from metagradient.attribution.gradients.hooks import ExampleGradients, Target
from metagradient.distributed import Group
from metagradient.training.batches import Batch, Fields
from metagradient.training.losses import rows_of
from metagradient.training.sources import in_order


@dataclass(frozen=True)
class Rows:
    """Examples batch by batch, in order."""

    examples: Fields
    batch_size: int

    @property
    def n(self) -> int:
        return len(next(iter(self.examples.values())))

    def batches(self, start: int = 0) -> Iterator[Batch]:
        for rows, fields in in_order(self.examples, self.batch_size, start):
            yield Batch(0, rows, fields)


def own_rows(batch: Batch, group: Group) -> Batch:
    """The rows of a batch that this process takes."""
    return batch if group.alone else rows_of(batch, *group.share(len(batch)))


def rows_of_an_example(gradients: ExampleGradients, source: Rows, target: Target) -> int:
    """How many gradients an example contributes: 1, or the S of a target [S, B]."""
    first = next(source.batches())
    one = Batch(0, first.index[:1], {k: v[:1] for k, v in first.fields.items()})
    with torch.no_grad(), gradients.learner.evaluating(gradients.state):
        value = target(gradients.learner, one.to(gradients.state.params.device, gradients.state.params.dtype))
    return 1 if value.dim() == 1 else len(value)
