"""How well a model does, as one number, by what it predicts: classes, numbers, or several labels at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional import r2_score
from torchmetrics.functional.classification import multilabel_accuracy

from metagradient.evaluation.classification import hard_labels, outputs_and_targets, outputs_of, share_right
from metagradient.learners.learner import Learner
from metagradient.training.batches import Fields
from metagradient.training.state import TrainState


@dataclass(frozen=True)
class Measure:
    """A number that rises with the quality of a model; 1 is perfect.

    Attributes:
        name: in metrics, `test_<name>`.
        title: in words.
        loss_unit: of the losses beside it.
        of: (outputs [n, K], targets [n, ...]) -> the number.
        verdict: outputs [n, K] -> what the model says, as targets.
    """

    name: str
    title: str
    loss_unit: str
    of: Callable[[Tensor, Tensor], float]
    verdict: Callable[[Tensor], Tensor]

    def __call__(self, learner: Learner, state: TrainState, examples: Fields) -> float:
        """The measure of a model on examples with a target."""
        return self.of(*outputs_and_targets(learner, state, examples))

    def agreement(self, learner: Learner, a: TrainState, b: TrainState, examples: Fields) -> float:
        """The same of a model's outputs, with what another model says as the truth."""
        ours, theirs = (outputs_of(learner, state, examples) for state in (a, b))
        return self.of(ours, self.verdict(theirs))


def _r2(outputs: Tensor, y: Tensor) -> float:
    """The mean over numbers of 1 - (squared error) / (squared deviation from their mean); nan where they do not vary."""
    n = len(y)
    y, outputs = y.reshape(n, -1).double(), outputs.reshape(n, -1).double()
    mean, spread = y.mean(0), y.std(0, unbiased=False)
    if n < 2 or not bool((spread > 0).all()):
        return float("nan")
    # In units of the targets' deviation: torchmetrics takes small numbers for none (an absolute tolerance of 1e-4).
    return float(r2_score((outputs - mean) / spread, (y - mean) / spread))


def _labels_right(outputs: Tensor, y: Tensor) -> float:
    """The share of (example, label) pairs for which the logit has the right sign."""
    y = y.reshape(len(y), -1)
    outputs = outputs.reshape(y.shape)
    if y.shape[1] == 1:  # torchmetrics wants two or more
        return float(((outputs > 0) == (y > 0.5)).float().mean())
    return float(multilabel_accuracy(outputs.sigmoid(), (y > 0.5).int(), num_labels=y.shape[1], average="micro"))


MEASURES = {
    "classes": Measure(
        "accuracy", "accuracy", "nats", lambda out, y: share_right(out, hard_labels(y)), lambda out: out.argmax(1)
    ),
    "numbers": Measure("r2", "R2", "variances of the training targets", _r2, lambda out: out),
    "labels": Measure("label_accuracy", "label accuracy", "nats", _labels_right, lambda out: (out > 0).to(torch.int64)),
}
"""By what is predicted (`data.Splits.task`)."""
