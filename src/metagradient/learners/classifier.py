"""`Classifier`: cross entropy of logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metagradient.learners.learner import ModelLearner
from metagradient.training.batches import Batch


class Classifier(ModelLearner):
    """Cross entropy (in nats) of a model's logits: fields `x` and `y` of the batch.

    model: [B, ...] -> logits [B, C].
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def logits(self, batch: Batch) -> Tensor:
        """[B, C]: the loss is their cross entropy."""
        return self.model(batch.x)

    def losses(self, batch: Batch) -> Tensor:
        # Class by class: a softmax along rows of B numbers, and products that fold when many cotangents are pulled.
        log_probabilities = F.log_softmax(self.model(batch.x).T, dim=0)
        return -log_probabilities.gather(0, batch.y.unsqueeze(0)).squeeze(0)
