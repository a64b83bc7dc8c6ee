"""TRAK: influence functions of the margin on projected gradients, averaged over several models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.attribution.compression.compressors import Compressor
from metagradient.attribution.gradients.hooks import losses
from metagradient.attribution.scoring.influence import Influence
from metagradient.attribution.scoring.rows import Rows
from metagradient.attribution.scoring.scorers import Weighted, mean_weights
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.learners.multilabel import MultiLabel
from metagradient.learners.regressor import Regressor
from metagradient.training.batches import Batch, Fields
from metagradient.training.run import Progress
from metagradient.training.state import TrainState


def margins(learner: Learner, batch: Batch) -> Tensor:
    """log(p / (1 - p)) of each example, with p = exp(-loss) the probability of its label."""
    if isinstance(learner, Regressor | MultiLabel):
        raise UserError(
            f"trak compares the probabilities of labels, and a {type(learner).__name__} has none: leave it out"
        )
    loss = losses(learner, batch)
    return -loss - torch.log(-torch.expm1(-loss.clamp(min=1e-6)))


@dataclass(frozen=True)
class TRAK:
    """TRAK over several independently trained models (Park et al. 2023, arXiv 2303.14186).

    With phi the compressed gradients of the margin log(p / (1 - p)), averaged over models:
    mean_m[ phi_q^T (Phi^T Phi + lambda)^-1 phi_i ] mean_m[1 - p_i] is the predicted fall of the query's margin without
    example i; times 1 - p_q it is the rise of its loss in nats.
    """

    compressor: Compressor
    batch_size: int = 512

    def fit(
        self, models: Sequence[tuple[Learner, TrainState]], examples: Fields, progress: Progress | None = None
    ) -> TRAKScorer:
        method = Influence(self.compressor, "fisher", batch_size=self.batch_size, target=margins)
        scorers = [method.fit(learner, state, examples, progress) for learner, state in models]
        return TRAKScorer(models, Weighted(scorers, [1 / len(models)] * len(models)), Rows(examples, self.batch_size))


class TRAKScorer:
    """Scores of `TRAK`."""

    def __init__(self, models: Sequence[tuple[Learner, TrainState]], mean: Weighted, source: Rows) -> None:
        self.models, self.mean, self.source, self.n = models, mean, source, source.n
        self.passes, self.scale = mean.passes, None

    def _doubt(self, examples: Fields) -> Tensor:
        """1 - p of each example's label, averaged over models, [n]."""
        rows = []
        for learner, state in self.models:
            with torch.no_grad(), learner.evaluating(state):
                like = state.params
                batches = Rows(examples, self.source.batch_size).batches()
                rows.append(torch.cat([-torch.expm1(-learner.losses(b.to(like.device, like.dtype))) for b in batches]))
        return torch.stack(rows).mean(0)

    def prepare(self) -> None:
        self.mean.prepare()

    def chunks(self, queries: Fields, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        own, others, first = self._doubt(self.source.examples), self._doubt(queries), start
        for part in self.mean.chunks(queries, dampings, start):
            rows = part.shape[1]
            yield part * own[first : first + rows].unsqueeze(1) * others
            first += rows

    def at_once(self, queries: Fields) -> int:
        return self.mean.at_once(queries)

    def aggregate(self, queries: Fields, damping: float, weights: Tensor | None = None) -> Tensor:
        others = self._doubt(queries)
        given = (mean_weights(self.models[0][0], queries) if weights is None else weights).to(others)
        return self.mean.aggregate(queries, damping, given * others) * self._doubt(self.source.examples)

    def self_influence(self, damping: float) -> Tensor:
        return self.mean.self_influence(damping) * self._doubt(self.source.examples).square()
