"""Methods by name, each a function from a trained run and queries to scores [n_train, n_query]."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from metagradient.attribution.compression.compressors import Compressor, Uncompressed
from metagradient.attribution.compression.projections import Gaussian
from metagradient.attribution.methods.baselines import BASELINES
from metagradient.attribution.methods.packages import PACKAGES, contained
from metagradient.attribution.methods.run import MethodSettings, TrainedRun
from metagradient.attribution.methods.spec import OWN, MethodSpec, slug
from metagradient.attribution.methods.tracin import checkpoints, tracin
from metagradient.attribution.methods.trak import TRAK
from metagradient.attribution.scoring.curvature import run_damping
from metagradient.attribution.scoring.exact import ExactScores, exact_scores
from metagradient.attribution.scoring.influence import MEMORY, Influence
from metagradient.attribution.scoring.kernel import KernelInfluence
from metagradient.attribution.scoring.scorers import Scorer, fit_at_weight, scores
from metagradient.attribution.scoring.store import read_scores
from metagradient.errors import UserError
from metagradient.replay.budget import parse_bytes
from metagradient.streams import Attribution
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in
from metagradient.training.run import Progress
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """An attribution method, from `method(...)`. Calling it gives scores; `fit` gives what computes them."""

    spec: MethodSpec
    settings: MethodSettings = field(default_factory=MethodSettings)
    compressor: Compressor | None = None

    def __call__(
        self, run: TrainedRun, queries: Fields, *, weight: float | None = None, progress: Progress | None = None
    ) -> Tensor:
        """Scores [n_train, n_query]: positive where removing the training example raises the query's loss.

        In nats, the predicted rise of the loss, unless the method has a unit of its own (`spec.unit`).

        Args:
            run: the trained run.
            queries: fields of the examples asked about.
            weight: for methods at alpha: the weight of all examples in the run that is looked at.
            progress: called now and then.

        Raises:
            UserError: the method cannot be had for this run.
        """
        if self.spec.name == "file":
            return read_scores(self.spec.word)
        if self.spec.name == "exact":
            return exact_scores(self.exact(run, self._weight(weight), progress), queries)[0]
        scorer = self.fit(run, weight=weight, progress=progress)
        return scores(scorer, queries, self.damping(run, scorer))

    def aggregate(
        self, run: TrainedRun, queries: Fields, *, weight: float | None = None, progress: Progress | None = None
    ) -> Tensor:
        """The mean over queries with a label of their scores, [n_train]: about a set of any size, in one pass over it and no matrix.

        Arguments and errors as for a call.
        """
        self._able(self.spec.additive, "scores no whole set at once")
        if self.spec.name == "exact":
            return self.exact(run, self._weight(weight), progress).aggregate(queries)[0]
        scorer = self.fit(run, weight=weight, progress=progress)
        return scorer.aggregate(queries, self.damping(run, scorer))

    def self_influence(
        self, run: TrainedRun, *, weight: float | None = None, progress: Progress | None = None
    ) -> Tensor:
        """How much each training example's own loss would rise without it, [n_train]; wrong labels stand out.

        Exact, this is as many queries as training examples. Arguments and errors as for a call.
        """
        self._able(self.spec.reflexive, "has no self-influence")
        if self.spec.name == "exact":
            return torch.cat([part for part, _ in self.exact(run, self._weight(weight), progress).self_influence()])
        scorer = self.fit(run, weight=weight, progress=progress)
        return scorer.self_influence(self.damping(run, scorer))

    def _able(self, able: bool, what: str) -> None:
        if not able:
            raise UserError(f"{self.spec.word} {what}: take dropout:4096, gradient_dot or exact, for example")

    def exact(self, run: TrainedRun, weight: float = 1.0, progress: Progress | None = None) -> ExactScores:
        """What computes exact scores, expanded at the run in which every example has this weight."""
        self._refuse_store()
        s = self.settings
        return ExactScores(
            run.learner,
            run.batches,
            at=weight,
            checkpoints=s.replay_checkpoints,
            memory=s.replay_memory,
            progress=progress,
        )

    def fit(self, run: TrainedRun, *, weight: float | None = None, progress: Progress | None = None) -> Scorer:
        """The scorer of this method for this run (of a method at alpha: for its run at `weight`)."""
        if self.spec.where == "path":
            return self.fit_to(run, path(run, self.settings.checkpoints), progress)
        if self.spec.where == "alpha":
            return fit_at_weight(
                lambda state: self.fit_to(run, state, progress, weight), run.learner, run.batches, self._weight(weight)
            )
        return self.fit_to(run, run.state, progress)

    def fit_to(
        self,
        run: TrainedRun,
        state: TrainState | Sequence[TrainState],
        progress: Progress | None = None,
        weight: float | None = None,
    ) -> Scorer:
        """The scorer at a given state (of a run in which every example has `weight`), or at the mean over several."""
        s, name = self.settings, self.spec.name
        self._refuse_store()
        if self.spec.compressed:
            return self.influence(run.n, weight).fit(run.learner, state, run.train, progress)
        if name in ("none", "gradient_dot", "cosine"):
            return self._uncompressed(run).fit(run.learner, state, run.train, progress)  # type: ignore[arg-type]
        if name == "tracin":
            return self._tracin(run, progress)
        if name == "trak":
            return self._trak(run, progress)
        if name in BASELINES:
            return BASELINES[name](run, s)
        assert name in PACKAGES, name
        with contained():
            return PACKAGES[name](run, s)

    def influence(self, n: int, weight: float | None = None) -> Influence:
        """The influence function of a method on compressed gradients, for n training examples."""
        s, compressor = self.settings, self.compressor or self.spec.compressor()
        ours = compressor.for_run(fold_in(s.seed, Attribution.MASKS, s.mask_seed), min(n, s.pca_examples))
        folder = slug(self.spec.word if weight is None else f"{self.spec.word}_{weight:g}")
        store = None if s.store is None else Path(s.store).expanduser() / folder
        return Influence(
            ours, s.curvature, s.labels, s.batch, seed=s.seed, store=store, memory=_memory(s.replay_memory)
        )

    def _refuse_store(self) -> None:
        if self.settings.store is not None and not self.spec.storable:
            raise UserError(
                f"store={self.settings.store} keeps compressed gradients, as of dropout:4096, not what {self.spec.word} looks at: "
                "leave store out"
            )

    def damping(self, run: TrainedRun, scorer: Scorer) -> float:
        """The damping in the scorer's units."""
        if self.settings.damping != "run":
            return float(self.settings.damping)
        if scorer.scale is None:
            raise UserError(f"damping=run is for influence functions, not for {self.spec.word}: give a number")
        return run_damping(run.learner, run.batches) / scorer.scale

    def _weight(self, weight: float | None) -> float:
        if (weight is None) == (self.spec.where == "alpha"):
            raise UserError(
                f"{self.spec.word} looks at the run in which every example has one weight: give weight=0.5"
                if weight is None
                else f"{self.spec.word} looks at the run itself: leave out weight={weight:g}, or name {self.spec.plain}:alpha"
            )
        return 1.0 if weight is None else weight

    def _uncompressed(self, run: TrainedRun) -> Influence | KernelInfluence:
        s, name, memory = self.settings, self.spec.name, _memory(self.settings.replay_memory)
        if name != "none":
            return KernelInfluence("identity", batch_size=s.batch, cosine=name == "cosine", memory=memory)
        if run.state.params.numel() <= s.none_primal:  # the matrix [P, P] itself; labels are enumerated where asked for
            return Influence(Uncompressed(), s.curvature, s.labels, s.batch, seed=s.seed, memory=memory)
        if s.labels is None and s.curvature == "gauss_newton":
            log.warning(
                "none: kernels of %d rows for one drawn label each, not for every class: labels=2 draws more", run.n
            )
        return KernelInfluence(s.curvature, 1 if s.labels is None else s.labels, s.batch, seed=s.seed, memory=memory)

    def _tracin(self, run: TrainedRun, progress: Progress | None) -> Scorer:
        assert self.spec.count is not None
        trajectory = checkpoints(run.learner, run.batches, self.spec.count)
        return tracin(run.learner, trajectory, run.train, progress=progress)

    def _trak(self, run: TrainedRun, progress: Progress | None) -> Scorer:
        if run.routine is None:
            raise UserError("trak trains models of its own: give the run a routine, TrainedRun(..., routine=...)")
        assert self.spec.count is not None
        s = self.settings
        models = [run.routine.train(run.train, fold_in(s.seed, Attribution.MODELS, i)) for i in range(self.spec.count)]
        compressor = Gaussian(min(s.trak_k, run.state.params.numel()))
        return TRAK(compressor).fit(models, run.train)


def method(word: str | Compressor, settings: MethodSettings | None = None, **overrides: object) -> Method:
    """The attribution method of a name, as on the command line; or an influence function on one's own compressor.

    `method("dropout:4096:path", damping=3.0)(run, queries)` gives scores [n_train, n_query].

    Args:
        word: `exact`, `none`, `gradient_dot`, `cosine`, `dropout:k`, `factor_dropout:k`, `gaussian:k`,
            `factor_gaussian:k`, `sjlt:k`, `dropout_sjlt:k`, `pca:k`, `factor_pca:k`, each also with `:alpha` (at the run in which
            every example has one weight) and influence functions with `:path` (means along the run);
            `tracin:checkpoints`, `trak:models`, `random`, `bm25`, another package's name, a file of scores; or an object that is a
            `Compressor`.
        settings: all settings at once; `overrides` change single ones (`damping=`, `labels=`, ...).
        **overrides: single settings, by name.

    Raises:
        UserError: no such method or setting.
    """
    chosen = MethodSettings() if settings is None else settings
    if unknown := overrides.keys() - {setting.name for setting in fields(MethodSettings)}:
        known = ", ".join(setting.name for setting in fields(MethodSettings))
        raise UserError(f"no setting {', '.join(sorted(unknown))} of a method; there are: {known}")
    chosen = replace(chosen, **overrides)  # type: ignore[arg-type]
    if isinstance(word, str):
        return Method(MethodSpec.parse(word), chosen)
    return Method(MethodSpec(word.name, OWN), chosen, word)


def _memory(given: str | int | None) -> int:
    """What the gradients of queries that are scored together may take, in bytes."""
    return MEMORY if given is None else parse_bytes(given)


def path(run: TrainedRun, count: int) -> list[TrainState]:
    """States along the run, the last one its end."""
    return [state for state, _ in checkpoints(run.learner, run.batches, count)]
