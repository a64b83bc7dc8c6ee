"""The methods that `attribution` compares: from a word such as `dropout:4096` to scores on disk."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient import attribution as at
from metagradient.attribution.compression.compressors import Compress, Pass
from metagradient.attribution.gradients.hooks import Parameter
from metagradient.attribution.gradients.pieces import Piece
from metagradient.errors import UserError
from metagradient.evaluation import check_scores, recipe
from metagradient.studies.attribution.other_packages import PEERS, contained
from metagradient.studies.attribution.task import Task
from metagradient.studies.attribution.words import ALPHA, COMPRESSORS, PATH, WORDS, plain_word, slug, unit
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)

States = mg.TrainState | Sequence[mg.TrainState]
"""The end of a run, or states along it."""


@dataclass(eq=False)
class Outcome:
    """A method's scores [n, q] by drop fraction (the same ones unless it expands at alpha), and what they cost.

    seconds: of everything but the tuning; compression: of one pass of the compressor over the training examples;
    damping: the one used for each drop fraction.
    """

    name: str
    scores: dict[float, Tensor]
    files: list[Path]
    seconds: float
    runs: float
    k: int | None = None
    compression: float | None = None
    damping: dict[float, float] = field(default_factory=dict)
    scorer: at.Scorer | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Timed:
    """A compressor that knows how long it took."""

    inner: at.Compressor
    clock: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "examples": 0.0, "k": 0.0})

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


class Methods:
    """Runs the methods one after the other; `judge(scores [n, held out], drops)` is what dampings are tuned for.

    At alpha, a method looks for each share removed at the run in which the weight of every example is the share kept.
    Along the path, gradients and curvature are means over the run's checkpoints.
    """

    def __init__(
        self,
        cfg: DictConfig,
        task: Task,
        judge: Callable[[Tensor, Sequence[float]], float],
        folder: Path,
        progress: mg.training.run.Progress,
    ) -> None:
        self.cfg, self.task, self.judge, self.folder, self.progress = cfg, task, judge, folder, progress
        self.drops: Sequence[float] = list(cfg.drop) or [0.0]  # nothing is judged: one set of scores all the same
        self._first, self._states = True, list[mg.TrainState]()

    def __call__(self, word: str) -> Outcome:
        if Path(word).suffix in (".npy", ".safetensors"):
            found = check_scores(at.read_scores(word), self.task.n, len(next(iter(self.task.queries.values()))))
            return Outcome(Path(word).stem, dict.fromkeys(self.drops, found), [Path(word)], 0.0, 0.0)
        plain = plain_word(word)
        name, _, argument = plain.partition(":")
        if plain == "exact":
            return self._exact(word)
        if plain in ("none", "gradient_dot", "cosine"):
            return self._scored(word, lambda state: self._uncompressed(plain, state), tuned=plain == "none")
        if word in PEERS:
            return self._peer(word)
        if argument.isdigit() and int(argument) > 0:
            count = int(argument)
            if name in COMPRESSORS:
                return self._compressed(word, COMPRESSORS[name](count))
            if name == "tracin" and word == plain:
                return self._scored(word, lambda _: self._tracin(count), tuned=False, runs=1.0)
            if name == "trak" and word == plain:
                return self._scored(word, lambda _: self._trak(count), tuned=True, runs=float(count))
        raise UserError(f"methods: no method '{word}'; there are: {', '.join(WORDS)}")

    # -- exact ------------------------------------------------------------------------------------------------------------

    def _exact(self, word: str) -> Outcome:
        t, replay, alpha = self.task, self.cfg.replay, word.endswith(ALPHA)
        scores, files, spent, start = {}, [], 0.0, perf_counter()
        for drop in self.drops if alpha else self.drops[:1]:
            method = at.ExactScores(
                t.learner,
                t.batches,
                at=1 - drop if alpha else 1.0,
                checkpoints=replay.checkpoints,
                memory=replay.memory,
                storage=mg.make_storage(replay.storage, replay.folder),
                at_once=self.cfg.queries_per_replay,
                progress=self.progress,
            )
            file = self._file(f"exact_{1 - drop:g}" if alpha else word, repr(method.at))
            if not file.complete:
                for block, cost in method.columns(t.queries, start=file.done):
                    file.write_columns(block, cost)
            spent += file.cost
            scores[drop] = file.scores
            files.append(file.path)
        if not alpha:
            scores = dict.fromkeys(self.drops, scores[self.drops[0]])
        return Outcome(word, scores, files, perf_counter() - start, spent)

    # -- influence --------------------------------------------------------------------------------------------------------

    def _compressed(self, word: str, compressor: at.Compressor) -> Outcome:
        cfg = self.cfg
        if isinstance(compressor, at.PCA):
            compressor = dataclasses.replace(compressor, examples=max(compressor.k, min(self.task.n, cfg.pca_examples)))
        else:
            compressor = dataclasses.replace(compressor, seed=fold_in(cfg.seed, 8, cfg.mask_seed))  # type: ignore[type-var]
        timed = Timed(compressor)
        method = at.Influence(timed, cfg.curvature, cfg.labels, cfg.batch, seed=cfg.seed)
        outcome = self._scored(word, lambda state: self._fit(method, state), tuned=True)
        outcome.k = int(timed.clock["k"])
        outcome.compression = timed.clock["seconds"] / timed.clock["examples"] * self.task.n
        return outcome

    def _fit(self, method: at.Influence | at.KernelInfluence, state: States) -> at.Scorer:
        return method.fit(self.task.learner, state, self.task.train, self.progress)  # type: ignore[arg-type]

    def _uncompressed(self, name: str, state: States) -> at.Scorer:
        cfg = self.cfg
        size = self.task.state.params.numel()
        if name != "none":
            return self._fit(at.KernelInfluence("identity", batch_size=cfg.batch, cosine=name == "cosine"), state)
        if size <= cfg.none_primal:  # the matrix [P, P] itself; labels are enumerated where asked for
            primal = at.Influence(at.Uncompressed(), cfg.curvature, cfg.labels, cfg.batch, seed=cfg.seed)
            return self._fit(primal, state)
        labels = 1 if cfg.labels is None else cfg.labels  # 0 is refused
        if cfg.labels is None and cfg.curvature == "gauss_newton":
            log.warning(
                "none: kernels of %d rows for one drawn label each, not for every class: labels=2 draws more",
                self.task.n,
            )
        return self._fit(at.KernelInfluence(cfg.curvature, labels, cfg.batch, seed=cfg.seed), state)

    def _tracin(self, count: int) -> at.Scorer:
        t = self.task
        momentum = getattr(t.learner.optimizer, "momentum", 0.0)
        return at.tracin(t.learner, at.checkpoints(t.learner, t.batches, count), t.train, momentum, self.progress)

    def _trak(self, count: int) -> at.Scorer:
        models = [self.task.routine.train(self.task.train, fold_in(self.cfg.seed, 9, i)) for i in range(count)]
        return at.TRAK(at.Gaussian(min(self.cfg.trak_k, self.task.state.params.numel()))).fit(models, self.task.train)

    def _peer(self, word: str) -> Outcome:
        start = perf_counter()
        with contained():
            scorer, k = PEERS[word](self.task, self.cfg)
        fitting = perf_counter() - start
        outcome = self._scored(word, lambda _: scorer, tuned=True)
        return dataclasses.replace(outcome, seconds=outcome.seconds + fitting, k=k, scorer=None)

    def _scored(self, word: str, fit: Callable[[States], at.Scorer], *, tuned: bool, runs: float = 0.0) -> Outcome:
        """Fit, tune the damping on the held-out queries, stream the scores of the others to disk."""
        t = self.task
        if word.endswith(PATH):
            return self._judged(word, self.drops, lambda: fit(self._path()), tuned, runs + 1)
        if not word.endswith(ALPHA):
            return self._judged(word, self.drops, lambda: fit(t.state), tuned, runs)

        def at_weight(weight: float) -> Callable[[], at.Scorer]:
            return lambda: at.fit_at_weight(fit, t.learner, t.batches, weight)

        parts = [
            self._judged(f"{word}_{1 - drop:g}", [drop], at_weight(1 - drop), tuned, runs + 1) for drop in self.drops
        ]
        return Outcome(
            word,
            {drop: s for part in parts for drop, s in part.scores.items()},
            [file for part in parts for file in part.files],
            sum(part.seconds for part in parts),
            sum(part.runs for part in parts),
            damping={drop: c for part in parts for drop, c in part.damping.items()},
        )

    def _path(self) -> list[mg.TrainState]:
        """States along the run."""
        if not self._states:
            t = self.task
            self._states = [state for state, _ in at.checkpoints(t.learner, t.batches, self.cfg.checkpoints)]
        return self._states

    def _judged(
        self, name: str, drops: Sequence[float], fit: Callable[[], at.Scorer], tuned: bool, runs: float
    ) -> Outcome:
        t = self.task
        start = perf_counter()
        scorer = fit()
        scorer.prepare()  # before the tuning, which is not timed, would do it
        seconds = perf_counter() - start
        damping = self._damping(scorer, drops) if tuned else 1.0
        start = perf_counter()
        deciding = ("curvature", "labels", "mask_seed", "batch", "checkpoints", "none_primal", "pca_examples", "trak_k")
        file = self._file(name, f"{damping} {[self.cfg[key] for key in deciding]}")
        if not file.complete:
            for (block,) in scorer.chunks(t.queries, [damping], file.done):
                file.write_rows(block)
        seconds += perf_counter() - start
        passes = scorer.passes * t.n / max(1, int((t.batches.plan >= 0).sum()))  # over the data, in trainings
        scores = dict.fromkeys(drops, file.scores)
        shown = dict.fromkeys(drops, damping) if tuned else {}
        return Outcome(name, scores, [file.path], seconds, runs + passes, damping=shown, scorer=scorer)

    def _damping(self, scorer: at.Scorer, drops: Sequence[float]) -> float:
        """The damping given, the run's own, or the one whose scores of the held-out queries predict their losses best."""
        if self.cfg.damping == "run":
            assert scorer.scale is not None  # `check` has refused methods without
            return at.run_damping(self.task.learner, self.task.batches) / scorer.scale
        if self.cfg.damping is not None:
            return float(self.cfg.damping)
        grid = list(self.cfg.dampings)
        together = torch.cat(list(scorer.chunks(self.task.held_out, grid)), dim=1)
        values = [self.judge(s, drops) if bool(torch.isfinite(s).all()) else -1.0 for s in together]
        best = max(range(len(grid)), key=values.__getitem__)
        if best in (0, len(grid) - 1) and len(grid) > 1:
            log.warning("the best damping, %g, lies at the edge of dampings=%s: widen them", grid[best], grid)
        return float(grid[best])

    def _file(self, name: str, what: str) -> at.ScoreFile:
        """scores.safetensors for the first method, scores_<method>.safetensors for the others."""
        stem = "scores" if self._first else f"scores_{slug(name)}"
        self._first = False
        t = self.task
        about = f"{recipe(t.learner, t.batches, t.queries)} {name} {what}"
        queries = len(next(iter(t.queries.values())))
        return at.ScoreFile(self.folder / f"{stem}.safetensors", t.n, queries, about, unit(name, self.cfg.curvature))
