"""The methods that `attribution` compares: from a word such as `dropout:4096` to scores on disk."""

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from metagradient.experiments import _setup
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient import attribution as at
from metagradient.attribution.compressors import Compress, Pass
from metagradient.attribution.hooks import Parameter
from metagradient.attribution.pieces import Piece
from metagradient.data import Splits, TextSplits
from metagradient.errors import UserError
from metagradient.evaluation import check_scores, recipe, take
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)

COMPRESSORS = {
    "dropout": at.Dropout,
    "factor_dropout": at.FactorDropout,
    "gaussian": at.Gaussian,
    "factor_gaussian": at.FactorGaussian,
    "sjlt": at.SJLT,
    "dropout_sjlt": at.DropoutSJLT,
    "pca": at.PCA,
}
WORDS = ["exact", "exact:alpha", *(f"{name}:k" for name in COMPRESSORS), "none", "gradient_dot", "cosine"]
WORDS += ["tracin:checkpoints", "trak:models", "dattri_trak", "a path to .npy or .safetensors"]


@dataclass(frozen=True, eq=False)
class Task:
    """A trained run and what is asked about it: `queries` are scored and judged, `held_out` only choose the damping.

    retrain: seed -> another model of the same routine and its final state.
    seconds: that one plain training took.
    """

    learner: mg.Learner
    batches: mg.Batches
    state: mg.TrainState
    train: Fields
    held_out: Fields
    queries: Fields
    retrain: Callable[[int], tuple[mg.Learner, mg.TrainState]]
    seconds: float

    @property
    def n(self) -> int:
        return self.batches.n_examples


def make_task(cfg: DictConfig) -> tuple[Task, Splits | TextSplits]:
    """The run that is asked about, trained, and its data."""
    splits = _setup.build(cfg.data)
    text = isinstance(splits, TextSplits)
    routine = _setup.language_routine(cfg, splits) if text else _setup.classifier_routine(cfg, splits)
    batches = routine.batches(splits.train, cfg.seed)
    learner = routine.learner(cfg.seed, len(batches))
    for name, wanted, there in (("queries", cfg.queries, splits.test), ("held_out", cfg.held_out, splits.validation)):
        if wanted > (rows := len(next(iter(there.values())))):
            raise UserError(f"{name}={wanted}, but there are only {rows} such rows: lower it, or raise data")
    held_out = take(splits.validation, torch.arange(cfg.held_out))
    queries = take(splits.test, torch.arange(cfg.queries))
    mg.train(learner, batches, stop=min(20, len(batches)))  # warm
    start = perf_counter()
    state = mg.train(learner, batches)
    seconds = perf_counter() - start

    def retrain(seed: int) -> tuple[mg.Learner, mg.TrainState]:
        return routine.train(splits.train, seed)

    return Task(learner, batches, state, splits.train, held_out, queries, retrain, seconds), splits


def slug(name: str) -> str:
    """A method's name as part of a key or a file name."""
    return re.sub(r"[^\w.]+", "_", name).strip("_")


@dataclass(eq=False)
class Outcome:
    """A method's scores [n, q] by drop fraction (the same ones unless it expands at alpha), and what they cost.

    seconds: of everything but the tuning; compression: of one pass of the compressor over the training examples.
    """

    name: str
    scores: dict[float, Tensor]
    files: list[Path]
    seconds: float
    runs: float
    k: int | None = None
    compression: float | None = None
    damping: float | None = None
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
    """Runs the methods one after the other; `judge(scores [n, held out])` is what the damping is tuned for."""

    def __init__(
        self,
        cfg: DictConfig,
        task: Task,
        judge: Callable[[Tensor], float],
        folder: Path,
        progress: mg.training.run.Progress,
    ) -> None:
        self.cfg, self.task, self.judge, self.folder, self.progress = cfg, task, judge, folder, progress
        self._first = True

    def __call__(self, word: str) -> Outcome:
        match = re.fullmatch(r"(\w+)(?::(\w+))?", word.replace(" ", ""))
        name, argument = (match[1], match[2]) if match else ("", None)
        if Path(word).suffix in (".npy", ".safetensors"):
            found = check_scores(at.read_scores(word), self.task.n, len(next(iter(self.task.queries.values()))))
            return Outcome(Path(word).stem, dict.fromkeys(self.cfg.drop, found), [Path(word)], 0.0, 0.0)
        if name == "exact" and argument in (None, "alpha"):
            return self._exact(word, argument == "alpha")
        if name in ("none", "gradient_dot", "cosine") and argument is None:
            return self._scored(word, lambda: self._uncompressed(name), tuned=name == "none")
        if name == "dattri_trak" and argument is None:
            return self._peer(word)
        if argument is not None and argument.isdigit() and int(argument) > 0:
            count = int(argument)
            if name in COMPRESSORS:
                return self._compressed(word, COMPRESSORS[name](count))
            if name == "tracin":
                return self._scored(word, lambda: self._tracin(count), tuned=False, runs=1.0)
            if name == "trak":
                return self._scored(word, lambda: self._trak(count), tuned=True, runs=float(count))
        raise UserError(f"methods: no method '{word}'; there are: {', '.join(WORDS)}")

    # -- exact ------------------------------------------------------------------------------------------------------------

    def _exact(self, word: str, alpha: bool) -> Outcome:
        t, replay = self.task, self.cfg.replay
        scores, files, spent, start = {}, [], 0.0, perf_counter()
        for drop in self.cfg.drop if alpha else self.cfg.drop[:1]:
            method = at.ExactScores(
                t.learner,
                t.batches,
                at=1 - drop if alpha else 1.0,
                checkpoints=replay.checkpoints,
                memory=replay.memory,
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
            scores = dict.fromkeys(self.cfg.drop, scores[self.cfg.drop[0]])
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
        outcome = self._scored(word, lambda: self._fit(method), tuned=True)
        outcome.k = int(timed.clock["k"])
        outcome.compression = timed.clock["seconds"] / timed.clock["examples"] * self.task.n
        return outcome

    def _fit(self, method: at.Influence | at.KernelInfluence) -> at.Scorer:
        return method.fit(self.task.learner, self.task.state, self.task.train, self.progress)

    def _uncompressed(self, name: str) -> at.Scorer:
        cfg = self.cfg
        if name != "none":
            return self._fit(at.KernelInfluence("identity", batch_size=cfg.batch, cosine=name == "cosine"))
        parameters = self.task.state.params.numel()
        if parameters <= cfg.none_primal:  # the matrix [P, P] itself, with the labels enumerated where asked for
            return self._fit(at.Influence(at.Uncompressed(), cfg.curvature, cfg.labels, cfg.batch, seed=cfg.seed))
        return self._fit(at.KernelInfluence(cfg.curvature, cfg.labels or 1, cfg.batch, seed=cfg.seed))

    def _tracin(self, count: int) -> at.Scorer:
        t = self.task
        momentum = getattr(t.learner.optimizer, "momentum", 0.0)
        return at.tracin(t.learner, at.checkpoints(t.learner, t.batches, count), t.train, momentum, self.progress)

    def _trak(self, count: int) -> at.Scorer:
        models = [self.task.retrain(fold_in(self.cfg.seed, 9, i)) for i in range(count)]
        return at.TRAK(at.Gaussian(min(self.cfg.trak_k, self.task.state.params.numel()))).fit(models, self.task.train)

    def _peer(self, word: str) -> Outcome:
        from metagradient.experiments._attribution_peers import dattri_trak

        start, file = perf_counter(), self._file(word, str(self.cfg.trak_k))
        if not file.complete:
            file.write_columns(dattri_trak(self.task, self.cfg.batch, self.cfg.trak_k))
        scores = dict.fromkeys(self.cfg.drop, file.scores)
        return Outcome(word, scores, [file.path], perf_counter() - start, 2 / 3, k=self.cfg.trak_k)

    def _scored(self, word: str, fit: Callable[[], at.Scorer], *, tuned: bool, runs: float = 0.0) -> Outcome:
        """Fit, tune the damping on the held-out queries, stream the scores of the others to disk."""
        start = perf_counter()
        scorer = fit()
        seconds = perf_counter() - start
        damping = self._tune(scorer) if tuned else 1.0
        start = perf_counter()
        file = self._file(word, f"{word} {damping} {self.cfg.curvature} {self.cfg.labels} {self.cfg.mask_seed}")
        if not file.complete:
            for (block,) in _rows(scorer, self.task.queries, damping, file.done):
                file.write_rows(block)
        seconds += perf_counter() - start
        passes = 2 * self.task.n / max(1, int((self.task.batches.plan >= 0).sum()))  # over the data, in trainings
        scores = dict.fromkeys(self.cfg.drop, file.scores)
        shown = damping if tuned else None
        return Outcome(word, scores, [file.path], seconds, runs + passes, damping=shown, scorer=scorer)

    def _tune(self, scorer: at.Scorer) -> float:
        """The damping whose scores of the held-out queries predict their retrained losses best."""
        if self.cfg.damping is not None:
            return float(self.cfg.damping)
        grid = list(self.cfg.dampings)
        together = torch.cat(list(scorer.chunks(self.task.held_out, grid)), dim=1)
        values = [self.judge(scores) if bool(torch.isfinite(scores).all()) else -1.0 for scores in together]
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
        return at.ScoreFile(self.folder / f"{stem}.safetensors", t.n, queries, about)


def _rows(scorer: at.Scorer, queries: Fields, damping: float, start: int) -> Iterator[Tensor]:
    yield from scorer.chunks(queries, [damping], start)
