"""`LanguageModel`: next-token cross entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metagradient.learners.learner import ModelLearner
from metagradient.training.batches import Batch


class LanguageModel(ModelLearner):
    """Mean next-token cross entropy of each sequence (nats per token): field `tokens` [B, L + 1] of the batch.

    model: tokens [B, L] -> logits [B, L, V].
    """

    def logits(self, batch: Batch) -> Tensor:
        """[B, L, V]: the loss is their mean cross entropy over positions."""
        return self.model(batch.tokens[:, :-1])

    def losses(self, batch: Batch) -> Tensor:
        logits = self.logits(batch)
        return F.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none").mean(dim=1)
