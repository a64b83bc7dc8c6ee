"""The methods that `attribution` compares: fitted, tuned, and their scores written to disk."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient import attribution as at
from metagradient.attribution.compression.compressors import Compress, Pass
from metagradient.attribution.gradients.hooks import Parameter
from metagradient.attribution.gradients.pieces import Piece
from metagradient.attribution.methods.named import path
from metagradient.attribution.methods.packages import PackageScorer
from metagradient.attribution.methods.spec import slug
from metagradient.attribution.scoring.scorers import write_scores
from metagradient.evaluation import check_scores, run_digest
from metagradient.studies.attribution.task import Task
from metagradient.training.batches import Fields

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Outcome:
    """A method's scores [n, q] by drop fraction (the same ones unless it expands at alpha), and what they cost.

    Attributes:
        seconds: of everything but the tuning.
        compression: of one pass of the compressor over the training examples;.
        damping: the one used for each drop fraction.
        aggregate: scores [n] for a whole set, where asked for; by name, with the share kept of a method at alpha.
        alone: self-influence [n] by name, likewise, and of one method in any case.
    """

    name: str
    scores: dict[float, Tensor]
    files: list[Path]
    seconds: float
    runs: float
    k: int | None = None
    compression: float | None = None
    damping: dict[float, float] = field(default_factory=dict)
    aggregate: dict[str, Tensor] = field(default_factory=dict)
    alone: dict[str, Tensor] = field(default_factory=dict)

    @property
    def self_influence(self) -> Tensor | None:
        """How much each training example's own loss would rise without it, [n]; None where it was not computed."""
        return next(iter(self.alone.values()), None)


@dataclass(frozen=True)
class Timed:
    """A compressor that knows how long it took."""

    inner: at.Compressor
    clock: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "examples": 0.0, "k": 0.0})

    @property
    def name(self) -> str:
        return self.inner.name

    def __repr__(self) -> str:
        return repr(self.inner)  # a store tells compressors by how they print

    def for_run(self, seed: int, examples: int) -> Self:
        return replace(self, inner=self.inner.for_run(seed, examples))

    def bind(self, parameters: Sequence[Parameter], like: Tensor, fit: Pass) -> Compress:
        bound = self.inner.bind(parameters, like, fit)
        self.clock["k"] = bound.k

        def compress(pieces: Sequence[Piece]) -> Tensor:
            start = perf_counter()
            features = bound(pieces)
            self.clock["seconds"] += perf_counter() - start
            self.clock["examples"] += len(features)
            return features

        return Compress(bound.k, compress)


def settings_of(cfg: DictConfig) -> at.MethodSettings:
    """The methods' settings in a configuration."""
    names = (
        "curvature",
        "labels",
        "batch",
        "checkpoints",
        "seed",
        "mask_seed",
        "none_primal",
        "pca_examples",
        "trak_k",
        "store",
    )
    return at.MethodSettings(
        **{name: cfg[name] for name in names},
        damping="run" if cfg.damping == "run" else 1.0,
        replay_checkpoints=cfg.replay.checkpoints,
        replay_memory=cfg.replay.memory,
    )


def replays_of(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """How exact scores replay: where checkpoints lie, which positions are saved in `folder`, and queries in one replay."""
    return {
        "storage": mg.make_storage(cfg.replay.storage, cfg.replay.folder),
        "save_to": None if cfg.replay.save_every is None else folder,
        "save_every": cfg.replay.save_every or 0.0,
        "at_once": cfg.queries_per_replay,
    }


class Methods:
    """Runs the methods one after the other; `judge(scores [n, held out], drops)` is what dampings are tuned for.

    At alpha, a method looks for each share removed at the run in which the weight of every example is the share kept.
    Along the path, gradients and curvature are means over the run's checkpoints. Where labels are known to be wrong
    (`mislabelled`), methods that look at the end give self-influence unasked.
    """

    def __init__(
        self,
        cfg: DictConfig,
        task: Task,
        judge: Callable[[Tensor, Sequence[float]], float],
        folder: Path,
        progress: mg.training.run.Progress,
        mislabelled: bool = False,
    ) -> None:
        self.cfg, self.task, self.judge, self.folder, self.progress = cfg, task, judge, folder, progress
        self.settings = settings_of(cfg)
        self.mislabelled = mislabelled
        self.drops: Sequence[float] = list(cfg.drop) or [0.0]  # nothing is judged: one set of scores all the same
        self._suspected = False
        self._first, self._states = True, list[mg.TrainState]()

    def __call__(self, spec: at.MethodSpec) -> Outcome:
        """Scores of one method, on disk and in the outcome."""
        if spec.name == "file":
            found = check_scores(at.read_scores(spec.word), self.task.n, len(next(iter(self.task.queries.values()))))
            return Outcome(Path(spec.word).stem, dict.fromkeys(self.drops, found), [Path(spec.word)], 0.0, 0.0)
        settings = self.settings if spec.storable else replace(self.settings, store=None)
        if spec.name == "exact":
            return self._exact(spec, settings)
        timed = Timed(spec.compressor()) if spec.compressed else None
        method = at.Method(spec, settings, timed)
        outcome = self._scored(method)
        if timed is not None:
            outcome.k = int(timed.clock["k"])
            if timed.clock["examples"]:  # none where batches have fewer rows than there are processes
                outcome.compression = timed.clock["seconds"] / timed.clock["examples"] * self.task.n
        return outcome

    def _exact(self, spec: at.MethodSpec, settings: at.MethodSettings) -> Outcome:
        alpha = spec.where == "alpha"
        outcome = Outcome(spec.word, {}, [], 0.0, 0.0)
        for drop in self.drops if alpha else self.drops[:1]:
            start = perf_counter()
            weight = 1 - drop if alpha else 1.0
            exact = replace(
                at.Method(spec, settings).exact(self.task, weight, self.progress),
                **replays_of(self.cfg, self.folder),
            )
            name = f"exact_{1 - drop:g}" if alpha else spec.word
            file = self._file(spec, name, repr(exact.at))
            if not file.complete:
                for block, cost in exact.columns(self.task.queries, start=file.done):
                    file.write_columns(block, cost)
            outcome.seconds += perf_counter() - start
            outcome.runs += file.cost + self._whole(outcome, name, exact)
            outcome.scores[drop] = file.scores
            outcome.files.append(file.path)
        if not alpha:
            outcome.scores = dict.fromkeys(self.drops, outcome.scores[self.drops[0]])
        return outcome

    def _whole(self, outcome: Outcome, name: str, exact: at.ExactScores) -> float:
        """The score for a whole set and self-influence, where asked for: kept as they come, since they are replays; their cost."""
        cost = 0.0
        if self.task.whole is not None:
            kept = self._scratch("aggregate", name, repr(exact.at), self.task.whole)
            if not kept.complete:
                found, spent = exact.aggregate(self.task.whole)
                kept.write_rows(found.unsqueeze(1), spent)
            outcome.aggregate[name] = kept.scores[:, 0]
            cost += kept.cost
        if self.cfg.self_influence:
            kept = self._scratch("self_influence", name, repr(exact.at), {})
            if not kept.complete:
                for found, spent in exact.self_influence(kept.done):
                    kept.write_rows(found.unsqueeze(1), spent)
            outcome.alone[name] = kept.scores[:, 0]
            cost += kept.cost
        return cost

    def _scored(self, method: at.Method) -> Outcome:
        """Fit, tune the damping on the held-out queries, stream the scores of the others to disk."""
        spec, task = method.spec, self.task
        if spec.where == "path":
            return self._judged(
                method, spec.word, self.drops, lambda: method.fit_to(task, self._path(), self.progress), 1
            )
        if spec.where == "end":
            runs = {"tracin": 1.0, "trak": float(spec.count or 0)}.get(spec.name, 0.0)
            return self._judged(method, spec.word, self.drops, lambda: method.fit(task, progress=self.progress), runs)

        def at_weight(weight: float) -> Callable[[], at.Scorer]:
            return lambda: method.fit(task, weight=weight, progress=self.progress)

        parts = [
            self._judged(method, f"{spec.word}_{1 - drop:g}", [drop], at_weight(1 - drop), 1) for drop in self.drops
        ]
        return Outcome(
            spec.word,
            {drop: s for part in parts for drop, s in part.scores.items()},
            [file for part in parts for file in part.files],
            sum(part.seconds for part in parts),
            sum(part.runs for part in parts),
            damping={drop: c for part in parts for drop, c in part.damping.items()},
            aggregate={name: s for part in parts for name, s in part.aggregate.items()},
            alone={name: s for part in parts for name, s in part.alone.items()},
        )

    def _path(self) -> list[mg.TrainState]:
        """States along the run, trained once for all methods."""
        if not self._states:
            self._states = path(self.task, self.cfg.checkpoints)
        return self._states

    def _judged(
        self, method: at.Method, name: str, drops: Sequence[float], fit: Callable[[], at.Scorer], runs: float
    ) -> Outcome:
        t, spec = self.task, method.spec
        start = perf_counter()
        scorer = fit()
        scorer.prepare()  # before the tuning, which is not timed, would do it
        seconds = perf_counter() - start
        damping = self._damping(method, scorer, drops) if spec.damped else 1.0
        start = perf_counter()
        deciding = ("curvature", "labels", "mask_seed", "batch", "checkpoints", "none_primal", "pca_examples", "trak_k")
        file = self._file(spec, name, f"{damping} {[self.cfg[key] for key in deciding]}")
        write_scores(file, scorer, t.queries, damping)
        seconds += perf_counter() - start
        passes = scorer.passes * t.n / max(1, int((t.batches.plan >= 0).sum()))  # over the data, in trainings
        shown = dict.fromkeys(drops, damping) if spec.damped else {}
        outcome = Outcome(name, dict.fromkeys(drops, file.scores), [file.path], seconds, runs + passes, damping=shown)
        if isinstance(scorer, PackageScorer):
            outcome.k = scorer.k
        if t.whole is not None and spec.additive:
            outcome.aggregate[name] = scorer.aggregate(t.whole, damping).cpu()
        suspecting = spec.where != "alpha" and (
            self.mislabelled or not self._suspected
        )  # one ranks the page's suspects
        if spec.reflexive and (self.cfg.self_influence or suspecting):
            outcome.alone[name] = scorer.self_influence(damping).cpu()
            self._suspected = True
        return outcome

    def _damping(self, method: at.Method, scorer: at.Scorer, drops: Sequence[float]) -> float:
        """The damping given, the run's own, or the one whose scores of the held-out queries predict their losses best."""
        if self.cfg.damping == "run":
            return method.damping(self.task, scorer)
        if self.cfg.damping is not None:
            return float(self.cfg.damping)
        grid = list(self.cfg.dampings)
        together = torch.cat(list(scorer.chunks(self.task.held_out, grid)), dim=1)
        values = [self.judge(s, drops) if bool(torch.isfinite(s).all()) else -1.0 for s in together]
        best = max(range(len(grid)), key=values.__getitem__)
        if best in (0, len(grid) - 1) and len(grid) > 1:
            log.warning("the best damping, %g, lies at the edge of dampings=%s: widen them", grid[best], grid)
        return float(grid[best])

    def _scratch(self, kind: str, name: str, what: str, asked: Fields) -> at.ScoreFile:
        """One number for each training example, that a run which is cut short finds again."""
        t = self.task
        about = f"{run_digest(t.learner, t.batches, asked)} {kind} {name} {what}"
        return at.ScoreFile(self.folder / f"{kind}_{slug(name)}.progress", t.n, 1, about)

    def _file(self, spec: at.MethodSpec, name: str, what: str) -> at.ScoreFile:
        """scores.safetensors for the first method, scores_<method>.safetensors for the others."""
        stem = "scores" if self._first else f"scores_{slug(name)}"
        self._first = False
        t = self.task
        about = f"{run_digest(t.learner, t.batches, t.queries)} {name} {what}"
        queries = len(next(iter(t.queries.values())))
        return at.ScoreFile(self.folder / f"{stem}.safetensors", t.n, queries, about, spec.unit(self.cfg.curvature))
