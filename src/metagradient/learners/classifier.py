"""`Classifier`: cross entropy of logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.learners.learner import ModelLearner
from metagradient.training.batches import Batch, Batches, Fields
from metagradient.training.updates import Optimizer, Schedule


class Classifier(ModelLearner):
    """Cross entropy (in nats) of a model's logits: fields `x` and `y` of the batch.

    model: [B, ...] -> logits [B, C].

    Args:
        label_smoothing: a in the target (1 - a) onehot(y) + a / C of the training loss, as in
            `torch.nn.functional.cross_entropy`; in evaluation mode (objectives, validation) labels are taken as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule | None = None,
        *,
        label_smoothing: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, learning_rate, **settings)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing lies in [0, 1), not {label_smoothing}: set learner.label_smoothing=0.1")
        self.label_smoothing = label_smoothing
        self._outputs: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def logits(self, batch: Batch) -> Tensor:
        """[B, C]: the loss is their cross entropy."""
        return self.model(batch.x)

    def probe(self, batches: Batches) -> None:
        """As ever, after a look at all labels.

        Raises:
            UserError: fields, labels or inputs that are none of a classifier's, named with what to do.
        """
        if self._needs is None:
            check_fields(batches.examples)
        try:
            super().probe(batches)
        except (RuntimeError, IndexError):
            self._refuse_large(batches)
            raise
        self._refuse_large(batches)

    def _refuse_large(self, batches: Batches) -> None:
        """Labels beyond the model's outputs, of which it has as many as its last forward pass gave."""
        y = batches.examples["y"]
        highest = int(y.max()) if self._outputs is not None and isinstance(y, Tensor) else -1
        if self._outputs is not None and highest >= self._outputs:
            raise UserError(
                f"labels go up to {highest}, but the model has {self._outputs} outputs, for classes 0 to {self._outputs - 1}: give "
                "it more, or number the classes without gaps (y.unique(return_inverse=True)[1])"
            )

    def losses(self, batch: Batch) -> Tensor:
        # Class by class: a softmax along rows of B numbers, and products that fold when many cotangents are pulled.
        log_probabilities = F.log_softmax(self.model(batch.x).T, dim=0)
        if self._outputs is None:
            self._outputs = len(log_probabilities)
        losses = -log_probabilities.gather(0, batch.y.long().unsqueeze(0)).squeeze(0)
        if self.training and self.label_smoothing:
            return (1 - self.label_smoothing) * losses - self.label_smoothing * log_probabilities.mean(dim=0)
        return losses


def check_fields(examples: Fields) -> None:
    """Refuse fields that a classifier cannot read.

    Raises:
        UserError: no fields x and y, labels that are no numbers of classes, inputs in bytes.
    """
    if "x" not in examples or "y" not in examples:
        raise UserError(
            f"a Classifier reads the fields x and y, and the examples have {', '.join(sorted(examples))}: name them so, or subclass "
            "Learner and read your own in losses(batch)"
        )
    x, y = examples["x"], examples["y"]
    if y.dim() != 1 or y.is_floating_point():
        hint = "y.argmax(1)" if y.dim() == 2 and y.shape[1] > 1 else "y.flatten().long()"
        raise UserError(
            f"labels must be class numbers [n], integers from 0, not {str(y.dtype).removeprefix('torch.')} {list(y.shape)}: give {hint}"
        )
    if isinstance(y, Tensor) and len(y) and int(y.min()) < 0:
        low = int(y.min())
        raise UserError(
            f"labels must be class numbers from 0, and {int((y == low).sum())} are {low}: leave these rows out"
        )
    if x.dtype == torch.uint8:
        raise UserError("inputs are bytes (uint8), which no layer multiplies: give x.float() / 255")
