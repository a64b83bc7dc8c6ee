"""What a trained classifier does on given examples."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch, Fields
from metagradient.training.state import TrainState


def _chunks(examples: Fields, chunk: int) -> list[Batch]:
    n = len(next(iter(examples.values())))
    parts = torch.arange(n).split(chunk)
    return [Batch(0, part, {k: v[part[0] : part[-1] + 1] for k, v in examples.items()}) for part in parts]


def accuracy(learner: Learner, state: TrainState, examples: Fields, chunk: int = 2048) -> float:
    """Share of examples whose largest logit is their label, in [0, 1]."""
    predictions = []
    with torch.no_grad(), learner.evaluating(state):
        for batch in _chunks(examples, chunk):
            logits = learner(batch.to(state.params.device, state.params.dtype).x)
            predictions.append(logits.argmax(dim=1).cpu())
            classes = logits.shape[1]
    return float(multiclass_accuracy(torch.cat(predictions), examples["y"].cpu(), num_classes=classes, average="micro"))


def example_losses_of(learner: Learner, state: TrainState, examples: Fields, chunk: int = 2048) -> Tensor:
    """The loss of each example at a state, [n], on the CPU."""
    losses = []
    with torch.no_grad(), learner.evaluating(state):
        for batch in _chunks(examples, chunk):
            losses.append(learner.losses(batch.to(state.params.device, state.params.dtype)).cpu())
    return torch.cat(losses)


def mean_cross_entropy(learner: Learner, state: TrainState, examples: Fields) -> float:
    """Mean loss in nats."""
    return float(example_losses_of(learner, state, examples).mean())
