"""What a trained model does on given examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from metagradient.learners.language import LanguageModel
from metagradient.learners.learner import Learner
from metagradient.learners.supervised import labelled
from metagradient.training.batches import Batch, Fields
from metagradient.training.sources import in_order
from metagradient.training.state import TrainState


def _chunks(examples: Fields, chunk: int) -> Iterator[Batch]:
    for rows, fields in in_order(examples, chunk):
        yield Batch(0, rows, fields)


def accuracy(learner: Learner, state: TrainState, examples: Fields, chunk: int = 2048) -> float:
    """Share of examples whose largest logit is their label (of soft labels: the largest share), in [0, 1].

    Rows without a label (`ignore_index`) are left out.
    """
    outputs, y = outputs_and_targets(learner, state, examples, chunk)
    return share_right(outputs, hard_labels(y))


def share_right(logits: Tensor, labels: Tensor) -> float:
    """The share of logits [n, C] whose largest is that of the label [n]."""
    return float(multiclass_accuracy(logits.argmax(dim=1), labels, num_classes=logits.shape[1], average="micro"))


def outputs_of(learner: Learner, state: TrainState, examples: Fields, chunk: int = 2048) -> Tensor:
    """What a model says of inputs `x`: logits [n, C] of classes or labels, numbers [n, k]; on the CPU."""
    with torch.no_grad(), learner.evaluating(state):
        parts = [learner(b.to(state.params.device, state.params.dtype).x).cpu() for b in _chunks(examples, chunk)]
    return torch.cat(parts)


def outputs_and_targets(
    learner: Learner, state: TrainState, examples: Fields, chunk: int = 2048
) -> tuple[Tensor, Tensor]:
    """`outputs_of` the examples with a label, and their targets [n, ...]; rows of a data set are read once, for both."""
    outputs, targets = [], []
    with torch.no_grad(), learner.evaluating(state):
        for b in _chunks(examples, chunk):
            there = labelled(learner, b)
            said = learner(b.to(state.params.device, state.params.dtype).x).cpu()
            outputs.append(said if there is None else said[there.cpu()])
            targets.append((b.y if there is None else b.y[there]).cpu())
    return torch.cat(outputs), torch.cat(targets)


def hard_labels(y: Tensor) -> Tensor:
    """Class numbers [n] of labels [n], [n, 1] or shares [n, C]: the class of the largest share."""
    return y.argmax(1) if y.dim() == 2 and y.shape[1] > 1 else y.flatten().long()


def example_losses_of(learner: Learner, state: TrainState, examples: Fields, chunk: int | None = None) -> Tensor:
    """The loss of each example at a state, [n], on the CPU."""
    losses = []
    with torch.no_grad(), learner.evaluating(state):
        for batch in _chunks(examples, chunk or learner.rows_at_once(examples)):
            losses.append(learner.losses(batch.to(state.params.device, state.params.dtype)).cpu())
    return torch.cat(losses)


def token_losses_of(learner: LanguageModel, state: TrainState, examples: Fields, chunk: int = 64) -> Tensor:
    """The loss of each token at a state, [n, L], 0 of those that are no targets, on the CPU."""
    with torch.no_grad(), learner.evaluating(state):
        parts = [
            learner.token_losses(b.to(state.params.device, state.params.dtype)).cpu() for b in _chunks(examples, chunk)
        ]
    return torch.cat(parts)


def next_logits_of(learner: LanguageModel, state: TrainState, examples: Fields) -> Tensor:
    """Logits [n, V] of the token that follows each row, on the CPU."""
    with torch.no_grad(), learner.evaluating(state):
        parts = [
            learner.next_logits(b.to(state.params.device, state.params.dtype)).cpu()
            for b in _chunks(examples, learner.rows_at_once(examples))
        ]
    return torch.cat(parts)


def mean_cross_entropy(learner: Learner, state: TrainState, examples: Fields) -> float:
    """Mean loss in nats; rows without a label (`ignore_index`) are left out."""
    losses = []
    with torch.no_grad(), learner.evaluating(state):
        for batch in _chunks(examples, learner.rows_at_once(examples)):
            there = labelled(learner, batch)
            found = learner.losses(batch.to(state.params.device, state.params.dtype)).cpu()
            losses.append(found if there is None else found[there.cpu()])
    return float(torch.cat(losses).mean())
