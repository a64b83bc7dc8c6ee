"""Influence functions on compressed per-example gradients.

Removing training example i moves the minimum by +(1/n) (F + lambda I)^-1 g_i, so the loss of query q changes by

    score[i, q] = (1/n) g_q^T (F + lambda I)^-1 g_i    [nats].

Positive: without the example the query's loss rises, the example helps. All methods of this package share sign and
units. F is the Gauss-Newton matrix (the default), the empirical Fisher or the identity, in compressed coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from metagradient.attribution.compression.compressors import Compress, Compressor
from metagradient.attribution.gradients.hooks import ExampleGradients, Target, losses
from metagradient.attribution.gradients.pieces import Piece
from metagradient.attribution.gradients.targets import drawn, enumerated
from metagradient.attribution.scoring.curvature import Curvature, Identity, from_features
from metagradient.attribution.scoring.rows import Rows, own_rows, rows_of_an_example
from metagradient.attribution.scoring.scorers import mean_weights
from metagradient.attribution.scoring.stored_gradients import (
    StoredGradients,
    examples_digest,
    model_digest,
    refuse_another,
)
from metagradient.distributed import SOLO, Group, gather
from metagradient.errors import UserError
from metagradient.learners.fingerprint import named
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batch, Fields
from metagradient.training.run import Progress
from metagradient.training.state import TrainState

CurvatureName = Literal["gauss_newton", "fisher", "identity"]

MEMORY = 2**30
"""Bytes that the gradients of queries which are scored together may take, by default."""


def curvature_target(name: CurvatureName, labels: int | None, seed: int, own: Target = losses) -> Target:
    """Whose gradients' second moment the curvature is."""
    if name not in ("gauss_newton", "fisher"):
        raise UserError(f"curvature must be gauss_newton, fisher or identity, not '{name}': set curvature=gauss_newton")
    if name == "fisher":
        return own
    if labels is not None and labels < 1:
        raise UserError(f"labels must be the number of draws for each example (or null: all classes), not {labels}")
    return enumerated if labels is None else drawn(labels, seed)


@dataclass(frozen=True)
class Influence:
    """The influence function in compressed coordinates.

    Processes that share the learner (`Learner.group`) each take the gradients of their share of the rows: what they compress is
    gathered, and the curvature is summed. A compressor that is fitted, and a curvature of drawn labels, see all rows in each.

    Attributes:
        compressor: how gradients are compressed (`Dropout(4096)`).
        curvature: gauss_newton, fisher (empirical) or identity (plain gradient products).
        labels: of the Gauss-Newton matrix: draws from the model for each example; None: every class, exactly.
        batch_size: examples at a time.
        cache: bytes that the training examples' compressed gradients may take in memory; beyond, they are
            recomputed for each set of queries.
        store: a folder that keeps the training examples' compressed gradients and the curvature on disk instead, also
            for later processes: asked about the same model and data again, they pass over no training example.
        memory: bytes that the queries' gradients may take; more queries are scored one group after another.
        target: whose gradients are compared (and make up the empirical Fisher): the losses.
    """

    compressor: Compressor
    curvature: CurvatureName = "gauss_newton"
    labels: int | None = None
    batch_size: int = 512
    cache: int = 2**30
    seed: int = 0
    target: Target = losses
    store: str | Path | None = None
    memory: int = MEMORY

    def fit(
        self,
        learner: Learner,
        state: TrainState | Sequence[TrainState],
        train: Fields,
        progress: Progress | None = None,
    ) -> CompressedScorer:
        """One pass over the training examples for the curvature (a second one for their own features follows).

        Of several states along a run, the last one its end, F and the training examples' gradients are means over all
        of them, and the queries' gradients are those at the end. For a run of SGD whose curvature and gradients stayed
        at these means, removing example i moves the end by +(1/n) (1 - exp(-s F)) F^-1 g_i with s the sum of the
        learning rates, which (F + I / s)^-1 comes close to: SOURCE with one segment (Bae et al. 2024, arXiv 2405.12186),
        and `run_damping`.
        """
        states = [state] if isinstance(state, TrainState) else list(state)
        gradients = [ExampleGradients(learner, each) for each in states]
        source, group = Rows(train, self.batch_size), learner.group
        if self.store is not None and not group.alone:
            raise UserError(f"a store is kept by one process, not by {group.size}: leave store out")

        def go(target: Target, what: str, group: Group = SOLO) -> Iterator[list[Piece]]:
            for batch in source.batches():
                own = own_rows(batch, group)
                for each in gradients:
                    if len(own):
                        yield from each(own, target)
                if progress is not None:
                    progress(what, int(batch.index[-1]) + 1, source.n)

        def fitting() -> Iterator[list[Piece]]:
            if self.store is not None:
                raise UserError(
                    f"store={self.store} is read without a look at the training examples, and {self.compressor.name} is "
                    "fitted on them: leave store out, or take dropout"
                )
            return go(self.target, "fitting")

        like = states[-1].params
        compress = self.compressor.bind(gradients[-1].parameters, like, fitting)
        store = self._store(gradients, train, compress.k)
        curvature = None if store is None else store.curvature(like)
        passes = 1.0 if store is None else store.missing
        if curvature is None and self.curvature == "identity":
            curvature = Identity()
        elif curvature is None:
            target = curvature_target(self.curvature, self.labels, self.seed, self.target)
            n, each = source.n * len(gradients), rows_of_an_example(gradients[-1], source, target)
            sharing = group if self.curvature == "fisher" or self.labels is None else SOLO
            features = (compress(pieces) for pieces in go(target, "curvature", sharing))
            curvature = from_features(features, n, n * each, compress.k, sharing, like)
            passes += (1 + 2 * each) / 3
            if store is not None:
                store.keep(curvature)
        passes *= len(gradients)
        return CompressedScorer(self, gradients, compress, curvature, source, store, passes, progress)

    def check_store(self, learner: Learner, state: TrainState | Sequence[TrainState], train: Fields) -> None:
        """Refuse a store of something else, before anything is computed.

        Raises:
            UserError: what is there is of another model, other examples or other settings.
        """
        if self.store is not None:
            states = [state] if isinstance(state, TrainState) else list(state)
            refuse_another(Path(self.store).expanduser(), self._about(learner, states, train))

    def _store(self, gradients: Sequence[ExampleGradients], train: Fields, k: int) -> StoredGradients | None:
        if self.store is None:
            return None
        last = gradients[-1]
        about = self._about(last.learner, [each.state for each in gradients], train)
        n = len(next(iter(train.values())))
        return StoredGradients(Path(self.store).expanduser(), about, n, k, last.state.params.dtype)

    def _about(self, learner: Learner, states: Sequence[TrainState], train: Fields) -> dict[str, str]:
        """What decides the compressed gradients and the curvature."""
        compressor = repr(self.compressor)
        if " at 0x" in compressor:
            raise UserError(
                f"a store tells compressors by how they print, and {self.compressor.name} prints no settings: make it a frozen "
                "dataclass"
            )
        return {
            "model": model_digest(learner, [learner.update.read(each.detach()) for each in states]),
            "training_set": examples_digest(train),
            "compressor": compressor,
            "curvature": self.curvature,
            "labels": str(self.labels),
            "seed": str(self.seed),
            "batch_size": str(self.batch_size),
            "target": named(self.target),
        }


class CompressedScorer:
    """Scores from compressed gradients; the training examples are streamed, nothing [n, P] or [n, n] is held."""

    def __init__(
        self,
        method: Influence,
        gradients: Sequence[ExampleGradients],
        compress: Compress,
        curvature: Curvature,
        source: Rows,
        store: StoredGradients | None,
        passes: float,
        progress: Progress | None = None,
    ) -> None:
        self.gradients, self.compress, self.curvature, self.source = gradients, compress, curvature, source
        self.n, self.target, self.memory, self.store = source.n, method.target, method.memory, store
        self.passes, self.progress = passes, progress
        self._bytes = gradients[-1].state.params.element_size()
        fits = store is None and source.n * compress.k * self._bytes <= method.cache
        self._kept: list[Tensor] | None = [] if fits else None

    @property
    def scale(self) -> float:
        """The mean eigenvalue of the curvature."""
        return self.curvature.scale

    def features(self, batch: Batch) -> Tensor:
        """Compressed gradients at the end of the run, [B, k]."""
        return self._features(self.gradients[-1], batch)

    def _features(self, gradients: ExampleGradients, batch: Batch) -> Tensor:
        group, like = gradients.learner.group, gradients.state.params
        own, found = own_rows(batch, group), like.new_zeros(0, self.compress.k)
        if len(own):
            (pieces,) = gradients(own, self.target)
            found = self.compress(pieces)
        return gather(group, len(batch), found)[0]

    def _along_the_run(self, batch: Batch) -> Tensor:
        """Their means over the states [B, k]."""
        total = self._features(self.gradients[0], batch)
        for gradients in self.gradients[1:]:
            total = total + self._features(gradients, batch)
        return total / len(self.gradients) if len(self.gradients) > 1 else total

    def prepare(self) -> None:
        if self.store is not None:
            file = self.store.gradients
            for batch in self.source.batches(file.done):
                file.write_rows(self._along_the_run(batch))
                self._tell(batch)
        elif self._kept is not None and not self._kept:
            for batch in self.source.batches():
                self._kept.append(self._along_the_run(batch))
                self._tell(batch)

    def _train_features(self, start: int) -> Iterator[Tensor]:
        self.prepare()
        if self.store is not None:
            like = self.gradients[-1].state.params
            chunks: Iterable[Tensor] = (
                part.to(like.device) for part in self.store.gradients.values.split(self.source.batch_size)
            )
        elif self._kept is not None:
            chunks = self._kept
        else:
            yield from (self._along_the_run(batch) for batch in self.source.batches(start))
            return
        for first, chunk in zip(range(0, self.n, self.source.batch_size), chunks, strict=True):
            if first + len(chunk) > start:
                yield chunk[max(0, start - first) :]

    def _tell(self, batch: Batch) -> None:
        if self.progress is not None:
            self.progress("compressing", int(batch.index[-1]) + 1, self.n)

    def at_once(self, queries: Fields) -> int:
        # Of a query: its gradient, twice in double precision while it is solved for, the outcome, and a block of scores.
        each = self.compress.k * (2 * self._bytes + 16) + self.source.batch_size * self._bytes
        return max(1, self.memory // each)

    def chunks(self, queries: Fields, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        own = torch.cat([self.features(batch) for batch in Rows(queries, self.source.batch_size).batches()])
        return self._against(own, dampings, start)

    def aggregate(self, queries: Fields, damping: float, weights: Tensor | None = None) -> Tensor:
        given = (mean_weights(self.gradients[-1].learner, queries) if weights is None else weights).to(
            self.gradients[-1].state.params
        )
        batches = Rows(queries, self.source.batch_size).batches()
        total = torch.stack([given[batch.index] @ self.features(batch) for batch in batches]).sum(0, keepdim=True)
        return torch.cat([part[0, :, 0] for part in self._against(total, [damping])])

    def _against(self, own: Tensor, dampings: Sequence[float], start: int = 0) -> Iterator[Tensor]:
        """Scores [D, b, q] for the compressed gradients [q, k] of some queries."""
        solved = torch.cat([self.curvature.solve(own, damping) for damping in dampings])  # [D q, k]
        for features in self._train_features(start):
            yield (features @ solved.T / self.n).unflatten(1, (len(dampings), len(own))).movedim(1, 0)

    def self_influence(self, damping: float) -> Tensor:
        parts = []
        for batch, along in zip(self.source.batches(), self._train_features(0), strict=True):
            end = along if len(self.gradients) == 1 else self.features(batch)
            parts.append((end * self.curvature.solve(along, damping)).sum(1) / self.n)
        return torch.cat(parts)
