"""What any method must beat: scores drawn at random, and the words that two texts share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.attribution.methods.run import MethodSettings, TrainedRun
from metagradient.attribution.scoring.scorers import mean_weights
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.streams import Attribution
from metagradient.training.batches import Fields
from metagradient.training.random import generator

K1, B = 1.5, 0.75
"""How soon a word's repetitions stop to count in BM25, and how far long texts are penalised."""


def bm25(documents: Sequence[Sequence[str]], queries: Sequence[Sequence[str]]) -> Tensor:
    """Okapi BM25 of documents for queries, [n, q], from their words.

    The sum over a query's words w of log(1 + (n - n_w + 1/2) / (n_w + 1/2)) f (K1 + 1) / (f + K1 (1 - B + B |d| / mean |d|)),
    with f the number of times that w is in the document and n_w the documents that have it.
    Source: Robertson & Zaragoza 2009, The Probabilistic Relevance Framework; the logarithm, which is never negative, is Lucene's.
    """
    n, counts = len(documents), [Counter(words) for words in documents]
    lengths = torch.tensor([len(words) for words in documents], dtype=torch.float64)
    norms = K1 * (1 - B + B * lengths / lengths.mean().clamp(min=1))
    holders: dict[str, list[int]] = {}
    for i, found in enumerate(counts):
        for word in found:
            holders.setdefault(word, []).append(i)
    scores = torch.zeros(n, len(queries), dtype=torch.float64)
    for q, asked in enumerate(queries):
        for word, times in Counter(asked).items():
            rows = holders.get(word, [])
            rarity = math.log(1 + (n - len(rows) + 0.5) / (len(rows) + 0.5))
            often = torch.tensor([counts[i][word] for i in rows], dtype=torch.float64)
            scores[rows, q] += times * rarity * often * (K1 + 1) / (often + norms[rows])
    return scores.float()


@dataclass(frozen=True)
class Baseline:
    """Scores [n, q] that no gradient is taken for, as a scorer."""

    n: int
    learner: Learner
    score: Callable[[Fields], Tensor]
    passes: float = 0.0
    scale: float | None = None

    def prepare(self) -> None:
        """Nothing is fitted."""

    def chunks(self, queries: Fields, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        yield self.score(queries)[start:].expand(len(dampings), -1, -1)

    def at_once(self, queries: Fields) -> int:
        return len(next(iter(queries.values())))

    def aggregate(self, queries: Fields, damping: float, weights: Tensor | None = None) -> Tensor:
        given = mean_weights(self.learner, queries) if weights is None else weights
        return self.score(queries) @ given.float()

    def self_influence(self, damping: float) -> Tensor:
        raise UserError("random and bm25 have no self-influence: take dropout:4096, for example")


def random(run: TrainedRun, settings: MethodSettings) -> Baseline:
    """Standard normal numbers from the run's seed."""

    def score(queries: Fields) -> Tensor:
        rngs = [generator(settings.seed, Attribution.RANDOM, q) for q in range(len(next(iter(queries.values()))))]
        return torch.stack([torch.randn(run.n, generator=rng) for rng in rngs], dim=1)

    return Baseline(run.n, run.learner, score)


def by_words(run: TrainedRun, settings: MethodSettings) -> Baseline:
    """BM25 of the training texts for the queries' texts.

    Raises:
        UserError: the run does not tell words.
    """
    words = run.words
    if words is None:
        raise UserError(
            "bm25 compares the words of texts, and this run has none: leave it out (in Python: TrainedRun(..., words=...))"
        )
    return Baseline(run.n, run.learner, lambda queries: bm25(words(run.train), words(queries)))


BASELINES: dict[str, Callable[[TrainedRun, MethodSettings], Baseline]] = {"random": random, "bm25": by_words}
