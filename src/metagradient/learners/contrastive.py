"""`ContrastiveLearner`: each example against all pairs of its batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metagradient.learners.learner import ModelLearner
from metagradient.training.batches import Batch


class ContrastiveLearner(ModelLearner):
    """CLIP's symmetric contrastive loss: example i against all pairs of its batch; fields `x` and `y`.

    model: (x, y) -> (embeddings a [B, D], embeddings b [B, D], logit scale []), the embeddings normalised
    (`models.TwoTower`, or one of your own).
    """

    def losses(self, batch: Batch) -> Tensor:
        a, b, scale = self.model(batch.x, batch.y)
        logits = scale * a @ b.T
        target = torch.arange(len(batch), device=logits.device)
        return 0.5 * (
            F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
        )
