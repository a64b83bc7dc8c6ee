"""Choices of data by attribution: the rows that would help the target most, as LESS and influence functions see it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import metagradient as mg
from metagradient.attribution import MethodSettings, MethodSpec, TrainedRun, checkpoints, less, method
from metagradient.evaluation import Retraining, take
from metagradient.studies.selection.task import Choice, Search
from metagradient.training.batches import Fields


def trained_run(search: Search, routine: mg.Routine, train: Fields, seed: int) -> TrainedRun:
    """A training on the whole pool, which attribution asks about."""
    batches = routine.batches(train, seed)
    learner = routine.learner(seed, len(batches))
    learner.configure_for(batches)
    run = TrainedRun.of(learner, batches, search.progress.callback())
    return TrainedRun(learner=learner, batches=batches, state=run.state, routine=routine)


def less_scores(search: Search, run: TrainedRun, targets: Fields) -> tuple[Tensor, float]:
    """LESS scores [n] of the pool, and what they cost in trainings."""
    s = search.cfg.rivals
    trajectory = checkpoints(run.learner, run.batches, s.checkpoints)
    scores = less(
        run.learner,
        trajectory,
        run.train,
        targets,
        steps=len(run.batches),
        k=s.coordinates,
        seed=search.seed,
        progress=search.progress.callback("rivals"),
    )
    return scores, 1 + s.checkpoints * _pass(run)


def influence_scores(search: Search, run: TrainedRun, targets: Fields) -> tuple[Tensor, float]:
    """Scores [n] of the pool for the mean loss of the targets by `rivals.influence`, and what they cost in trainings."""
    name = _that_fits(search.cfg.rivals.influence, run.state.params.numel())
    settings = MethodSettings(checkpoints=search.cfg.rivals.checkpoints, seed=search.seed, labels=1, batch=64)
    scores = method(name, settings).aggregate(run, targets, progress=search.progress.callback("rivals"))
    states = search.cfg.rivals.checkpoints if name.endswith(":path") else 1
    return scores, 1 + 2 * states * _pass(run)  # curvature and scores


def _that_fits(name: str, parameters: int) -> str:
    """A method by name, that keeps as many coordinates as there are parameters at most."""
    spec = MethodSpec.parse(name)
    if not spec.compressed or spec.count is None or spec.count <= parameters:
        return name
    return name.replace(f":{spec.count}", f":{parameters}", 1)


def best_share(
    search: Search, train: Fields, validation: Fields, scores: Tensor, shares: Sequence[float]
) -> tuple[Tensor, float]:
    """(kept [n], share): the rows of highest score; the share is the one whose models do best on validation rows."""
    worths, report = {}, search.progress.callback("rivals")
    for done, share in enumerate(shares):
        report("shares", done, len(shares))
        worths[share] = worth(search.tuner, take(train, top(scores, share)), validation)
    report("shares", len(shares), len(shares))
    best = max(worths, key=lambda share: worths[share])
    return top(scores, best), best


def worth(tuner: Retraining, examples: Fields, validation: Fields) -> float:
    """How well models trained on these examples do on validation rows."""
    return tuner.accuracies(examples, None, {"": validation})[""]


def top(scores: Tensor, share: float) -> Tensor:
    """bool [n]: the share of the rows that has the highest scores, at least one of them."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[: max(1, round(share * len(scores)))]] = True
    return kept


def random_rows(n: int, count: int, rng: torch.Generator) -> Tensor:
    """bool [n]: so many of n rows."""
    kept = torch.zeros(n, dtype=torch.bool)
    kept[torch.randperm(n, generator=rng)[:count]] = True
    return kept


def rival(label: str, share: float, train: Fields, kept: Tensor, cost: float) -> Choice:
    """A choice of rows, named with its share."""
    return Choice(f"{label}, best {share:.0%}", take(train, kept), None, kept, cost)


def _pass(run: TrainedRun) -> float:
    """A pass of gradients over the pool, in trainings."""
    return run.n / run.batches.plan.numel()
