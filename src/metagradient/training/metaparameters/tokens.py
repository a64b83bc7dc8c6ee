"""Weights of single tokens in the loss of a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch, Fields
from metagradient.training.metaparameters.metaparameter import Metaparameter
from metagradient.training.sources import in_order
from metagradient.training.tokens import IGNORED, WEIGHTS, target_counts, target_mask

_READ = 256  # rows of a data set that are counted together


@dataclass(frozen=True, eq=False)
class TokenWeights(Metaparameter):
    """Per-token loss weights u: l_i = (1 / L_i) sum_j u_ij l_ij over the L_i target tokens of row i, at every step.

    Stored ragged: the weights of row i are value[sum of counts before i :][: counts[i]]. L_i does not depend on u, so under
    `normalize="batch"` the scores of a row's tokens sum to that of its weight. For learners that read the field
    `token_weights` (`LanguageModel`).

    value: [sum of counts]; counts: int64 [n], L_i; ignore_index: as of the learner.
    """

    name: str = "token_weights"
    counts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    ignore_index: int = IGNORED

    @classmethod
    def ones(cls, examples: Fields, ignore_index: int = IGNORED) -> Self:
        """Weight 1 for every target token of the examples."""
        parts = [target_counts(part, ignore_index) for _, part in in_order(examples, _READ)]
        counts = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        return cls(torch.ones(int(counts.sum())), counts=counts, ignore_index=ignore_index)

    def rows(self) -> tuple[Tensor, ...]:
        """The weights of each row, n tensors [L_i]."""
        return self.split(self.value)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values like the weights [..., sum of counts], a metagradient for instance, by row."""
        return values.split(self.counts.tolist(), dim=-1)

    def check(self, examples: int, steps: int) -> None:
        if len(self.counts) != examples or self.value.shape != (int(self.counts.sum()),):
            raise UserError(
                f"TokenWeights of {len(self.counts)} rows and {list(self.value.shape)} tokens do not fit {examples} examples: make them "
                "with TokenWeights.ones(batches.examples)"
            )

    def on_batch(self, batch: Batch, t: int) -> Batch:
        there = target_mask(batch.fields, self.ignore_index)
        counts = self.counts.to(batch.index.device)
        starts = (counts.cumsum(0) - counts).index_select(0, batch.index)
        if not torch.equal(there.sum(1), counts.index_select(0, batch.index)):
            raise UserError(
                "TokenWeights were made for rows with other target tokens: TokenWeights.ones(batches.examples)"
            )
        places = (starts[:, None] + there.cumsum(1) - 1).clamp(min=0)
        weights = self.value.index_select(0, places.flatten()).view(places.shape)
        return batch.replace(**{WEIGHTS: torch.where(there, weights, 0)})
