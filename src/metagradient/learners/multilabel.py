"""`MultiLabel`: several labels at once, each there or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.supervised import Supervised, described, refuse_infinite, rows_where
from metagradient.training.batches import Batch

_READS = "a MultiLabel reads labels [n, C], each 0 or 1 or a probability"


class MultiLabel(Supervised):
    """Binary cross entropy (in nats), the mean over C labels: fields `x` and `y` of the batch.

    model: [B, ...] -> logits [B, C]; label c is there with probability sigmoid(logit_c).

    y: [B, C] of any type, 0 and 1 or probabilities ([B] where C = 1).
    """

    def losses(self, batch: Batch) -> Tensor:
        self.check_read(batch)
        logits = self._logits(batch)
        y = batch.y.reshape(len(logits), -1).to(logits.dtype)
        if y.shape != logits.shape:
            raise UserError(
                f"field y has {y.shape[1]} labels for each example, and the model has {logits.shape[1]} outputs: they must be the same"
            )
        return F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(dim=1)

    def gauss_newton_terms(self, batch: Batch) -> Tensor:
        """[B, C]: sqrt(p (1 - p) / C) times the logits; the outer products of their gradients sum to the Gauss-Newton matrix."""
        logits = self._logits(batch)
        p = logits.sigmoid()
        return (p * (1 - p) / logits.shape[1]).sqrt().detach() * logits

    def _logits(self, batch: Batch) -> Tensor:
        return self.outputs(batch.x).reshape(len(batch.x), -1)

    def check_targets(self, y: Tensor) -> None:
        if y.dim() not in (1, 2) or y.dtype.is_complex:
            raise UserError(f"{described(y)}: {_READS}")
        if isinstance(y, Tensor):
            self.check_values(y, torch.arange(len(y)))

    def check_values(self, y: Tensor, rows: Tensor) -> None:
        refuse_infinite(y, rows)
        odd = ((y < 0) | (y > 1)).reshape(len(y), -1).any(1)
        if bool(odd.any()):
            raise UserError(f"{described(y)} and lies outside [0, 1] in {rows_where(odd, rows)}: {_READS}")
