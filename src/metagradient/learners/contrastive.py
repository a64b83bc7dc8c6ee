"""`ContrastiveLearner`: each pair of an image and a text, say, against all pairs of its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.learners.learner import ModelLearner
from metagradient.training.batches import Batch
from metagradient.training.updates import Optimizer, Schedule

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""(similarities [B, B] of each a_i with each b_j, bool [B, B] of those that are negatives) -> [B], of each pair its own."""


def clip_losses(logits: Tensor, negatives: Tensor) -> Tensor:
    """CLIP's loss: of pair i the mean of two cross entropies, of b_i among a_i's texts and of a_i among b_i's images, [B].

    Source: arXiv 2103.00020.
    """
    logits = logits.masked_fill(~negatives & ~_diagonal(logits), -torch.inf)
    own = logits.diagonal()
    return (logits.logsumexp(1) - own + logits.logsumexp(0) - own) / 2


def siglip_losses(logits: Tensor, negatives: Tensor) -> Tensor:
    """SigLIP's loss: each cell of the table is a decision of its own, with the loss -log sigmoid(+- logit), [B].

    Pair i's share is its own cell and half of each other cell of its row and of its column, so that the shares sum to the
    sum over all cells. Source: arXiv 2303.15343.
    """
    apart = -F.logsigmoid(-logits).where(negatives, 0.0)
    return -F.logsigmoid(logits.diagonal()) + (apart.sum(1) + apart.sum(0)) / 2


LOSSES: Mapping[str, PairLoss] = {"clip": clip_losses, "siglip": siglip_losses}
"""The losses by name."""


class ContrastiveLearner(ModelLearner):
    """A contrastive loss: pair i against all pairs of its batch; fields `x` and `y`, and two optional ones.

    A field `pair` (int64 [n]) says which rows are the same: rows of equal value are no negatives of each other. Without it
    that are equal rows of the training set, which stand in a batch several times where rows have counts; give a number to
    each text, and equal texts are no negatives either. A field `mask` (bool [n]) takes rows out where it is False (as an
    index of -1 does): they are neither examples, so that their loss is 0, nor negatives of others. A data weight of 0 is
    not the same: it takes the row's own loss away and leaves the row as a negative.

    Args:
        model: (x, y) -> (embeddings a [B, D], embeddings b [B, D], scale []), or with a fourth, a bias [] of the
            similarities scale <a_i, b_j> + bias; the embeddings normalised (`models.TwoTower`, or one of your own).
        optimizer: as of `Learner`, like learning_rate and settings.
        learning_rate: see optimizer.
        loss: "clip", "siglip" (which needs the bias: -10 at the start), or a function (see `PairLoss`).
        settings: see optimizer. `micro_batch` rows are embedded at a time, and contrasted with the whole batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule | None = None,
        *,
        loss: str | PairLoss = "clip",
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, learning_rate, **settings)
        if isinstance(loss, str) and loss not in LOSSES:
            raise UserError(
                f"loss must be one of {', '.join(LOSSES)}, or a function, not '{loss}': set learner.loss=clip"
            )
        self.pair_loss: PairLoss = LOSSES[loss] if isinstance(loss, str) else loss

    def losses(self, batch: Batch) -> Tensor:
        return self.losses_of(self.embed(batch), batch)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """a [B, D], b [B, D], and the scale (and the bias) of the similarities in every row, [B]."""
        a, b, *shared = self.model(batch.x, batch.y)
        return a, b, *(number.expand(len(a)) for number in shared)

    def losses_of(self, features: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The loss of each pair, [B], from the features of all pairs of the batch."""
        a, b, scale, *bias = features
        logits = scale[0] * a @ b.T + (bias[0][0] if bias else 0.0)
        there = batch.index >= 0
        if "mask" in batch.fields:
            there = there & batch.mask.bool()
        same = batch.fields.get("pair", batch.index)
        negatives = (same.unsqueeze(1) != same) & there.unsqueeze(1) & there
        return self.pair_loss(logits, negatives.to(logits.device)).where(there.to(logits.device), 0.0)


def _diagonal(logits: Tensor) -> Tensor:
    return torch.eye(len(logits), dtype=torch.bool, device=logits.device)
