"""`Classifier`: cross entropy of logits."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.learners.learner import ModelLearner
from metagradient.training.batches import Batch
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
        learning_rate: float | Schedule = 0.1,
        *,
        label_smoothing: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, learning_rate, **settings)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing lies in [0, 1), not {label_smoothing}: set learner.label_smoothing=0.1")
        self.label_smoothing = label_smoothing

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def logits(self, batch: Batch) -> Tensor:
        """[B, C]: the loss is their cross entropy."""
        return self.model(batch.x)

    def losses(self, batch: Batch) -> Tensor:
        # Class by class: a softmax along rows of B numbers, and products that fold when many cotangents are pulled.
        log_probabilities = F.log_softmax(self.model(batch.x).T, dim=0)
        losses = -log_probabilities.gather(0, batch.y.unsqueeze(0)).squeeze(0)
        if self.training and self.label_smoothing:
            return (1 - self.label_smoothing) * losses - self.label_smoothing * log_probabilities.mean(dim=0)
        return losses
