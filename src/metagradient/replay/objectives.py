"""Objectives: functions of the trained learner, differentiable in its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor

from metagradient.distributed import summed
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.learners.supervised import labelled, with_labels
from metagradient.training.batches import Batch, Fields
from metagradient.training.losses import see_each_other
from metagradient.training.model import Embedding
from metagradient.training.state import TrainState


def _batch(learner: Learner, examples: Fields, rows: slice = slice(None)) -> Batch:
    fields = {name: field[rows] for name, field in examples.items()}
    n = len(next(iter(fields.values())))
    like = next(learner.parameters())
    return Batch(0, torch.arange(n), fields).to(like.device, like.dtype)


def mean_loss(examples: Fields, chunk: int | None = None) -> MeanLoss:
    """The mean loss of the examples (for instance a validation set), a scalar; rows without a label (`ignore_index`) are left out.

    More than `chunk` examples (by default `rows_with_graph`, a micro-batch where there are any) are run `chunk` at a
    time, forwards and in the derivative, so that a set of any size fits: but for losses in which examples see each other, which are
    computed on all of them together;
    of a contrastive learner's (`Embedding`) the features are still computed `chunk` at a time.

    Processes that share a run (`Learner.group`) each compute the losses of their share of the rows; but for losses in which
    examples see each other, which each of them computes.
    """

    return MeanLoss(examples, chunk)


@dataclass(frozen=True, eq=False)
class MeanLoss:
    """See `mean_loss`."""

    examples: Fields
    chunk: int | None = None

    def __call__(self, learner: Learner) -> Tensor:
        rows = with_labels(learner, self.examples)
        n = len(next(iter(rows.values())))
        if n == 0:
            raise UserError("the objective is a mean over no examples: give it some (data.validation=100)")
        size = _at_once(learner, rows) if self.chunk is None else self.chunk
        if not learner.group.alone and not isinstance(learner, Embedding) and not _tied(learner, rows):
            return _total(learner, rows, size) / n
        if n <= size:
            return learner.losses(_batch(learner, rows)).mean()
        if isinstance(learner, Embedding):
            features = zip(*_in_chunks(learner.embed, learner, rows, size), strict=True)
            return learner.losses_of(tuple(torch.cat(column) for column in features), _batch(learner, rows)).mean()
        if _tied(learner, rows):
            return learner.losses(_batch(learner, rows)).mean()
        return torch.cat(_in_chunks(learner.losses, learner, rows, size)).mean()

    def tried_in_part(self, learner: Learner, rows: int) -> tuple[MeanLoss, float, float]:
        """The same of `rows` examples, and how many times as much memory and time the derivative of all of them takes."""
        labelled_rows = with_labels(learner, self.examples)
        n = len(next(iter(labelled_rows.values())))
        chunk = rows_with_graph(learner, labelled_rows) if self.chunk is None else self.chunk
        some = max(1, min(rows, n, chunk))
        few = MeanLoss({name: field[:some] for name, field in labelled_rows.items()}, self.chunk)
        tied = (
            not isinstance(learner, Embedding)
            and (n > chunk or not learner.group.alone)
            and _tied(learner, labelled_rows)
        )
        if tied:  # all of them at once, in every process
            return few, n / some, n / some
        size = 1 if isinstance(learner, Embedding) else learner.group.size
        own, tried = -(-n // size), -(-some // size)
        return few, min(own, chunk) / tried, n / some * (4 / 3 if own > chunk else 1)

    def not_finite(self, learner: Learner) -> list[int]:
        """The examples whose own loss is not finite."""
        there = labelled(learner, self.examples)
        with torch.no_grad():
            size = learner.rows_at_once(self.examples) if self.chunk is None else self.chunk
            losses = torch.cat(_in_chunks(learner.losses, learner, self.examples, size))
        bad = ~losses.isfinite().cpu()
        return (bad if there is None else bad & there.cpu()).nonzero().flatten().tolist()


def _at_once(learner: Learner, examples: Fields) -> int:
    return rows_with_graph(learner, examples) if torch.is_grad_enabled() else learner.rows_at_once(examples)


def rows_with_graph(learner: Learner, examples: Fields) -> int:
    """How many examples are run together where the derivative of their losses is taken: at most a micro-batch, where there are
    any, and what a learner with large activations says itself."""
    rows: int = getattr(learner, "rows_with_graph", learner.rows_at_once)(examples)
    return rows if learner.micro_batches is None else min(learner.micro_batches.size, rows)


def _total(learner: Learner, examples: Fields, size: int) -> Tensor:
    """The sum of the losses, of which each process of the learner's group computes its share."""
    start, stop, counted = learner.group.rows(len(next(iter(examples.values()))))
    own = {name: field[start:stop] for name, field in examples.items()}

    def of_own(params: Tensor, buffers: Tensor) -> tuple[Tensor]:
        with learner.evaluating(TrainState(params, (), buffers)):
            if stop - start <= size:
                return (counted * learner.losses(_batch(learner, own)).sum(),)
            return (torch.cat(_in_chunks(learner.losses, learner, own, size)).sum(),)

    params = learner.layout.held()
    return summed(learner.group, of_own, params, learner.layout.buffers(like=params))[0]


def _in_chunks(function: Callable[[Batch], Any], learner: Learner, examples: Fields, chunk: int) -> list[Any]:
    """`function` of `chunk` rows at a time, run again in the derivative, where the learner's own context binds the same
    parameters again."""

    def of(start: int) -> Any:
        return function(_batch(learner, examples, slice(start, start + chunk)))

    starts = range(0, len(next(iter(examples.values()))), chunk)
    if not torch.is_grad_enabled():
        return [of(start) for start in starts]
    return [checkpointing.checkpoint(of, start, use_reentrant=False) for start in starts]


def _tied(learner: Learner, examples: Fields) -> bool:
    """Whether the losses of eight examples, from everywhere in the set, depend on who is beside them."""
    n = len(next(iter(examples.values())))
    some = {
        name: field[torch.linspace(0, n - 1, min(n, 8)).long().to(field.device)] for name, field in examples.items()
    }

    def of(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return learner.losses(_batch(learner, some, slice(int(rows[0]), int(rows[-1]) + 1)))

    return see_each_other(of, torch.arange(min(n, 8)))


def example_losses(examples: Fields) -> Callable[[Learner], Tensor]:
    """The loss of each example, [Q]: one objective each, all pulled back in one replay."""
    if len(next(iter(examples.values()))) == 0:
        raise UserError("there are no examples to ask about: give some (queries=10)")
    return lambda learner: learner.losses(_batch(learner, examples))
