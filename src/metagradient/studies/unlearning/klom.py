"""KLOM: do the method's models, over many seeds, say of each example what retrained models say?"""

from collections.abc import Iterable

import torch
from omegaconf import DictConfig
from torch import Tensor

import metagradient as mg
from metagradient.data import Splits
from metagradient.evaluation import klom, margins, take, train_batched
from metagradient.reporting import Progress
from metagradient.streams import Unlearning
from metagradient.studies.unlearning.judging import handed_out
from metagradient.studies.unlearning.recording import DTYPES, storage
from metagradient.training.random import fold_in
from metagradient.unlearning import Method, Request, record


def klom_table(
    cfg: DictConfig,
    routine: mg.Routine,
    splits: Splits,
    present: Tensor,
    method: Method,
    request: Request,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Mean KLOM on asked, kept and test examples: of the method's models, the untouched ones, and retrained ones.

    All three against one set of retrained models, every model from a seed of its own. The retrained models' row is the
    estimator's bias: what a perfect answer would read with so few models.
    """
    if not cfg.klom.models:
        return {}
    after = request.apply(present)
    parts = {
        "asked": take(splits.train, request.rows[: cfg.klom.examples]),
        "kept": take(splits.train, (present & after).nonzero().flatten()[: cfg.klom.examples]),
        "test": take(splits.test, torch.arange(min(cfg.klom.examples, len(splits.test["y"])))),
    }
    sizes = [len(examples["y"]) for examples in parts.values()]

    def seen(learner: mg.Learner, states: Iterable[mg.TrainState]) -> Tensor:
        """Margins [N, n] of all parts."""
        return torch.stack([torch.cat([margins(learner, s, x) for x in parts.values()]) for s in states])

    streams = (Unlearning.KLOM_METHOD, Unlearning.KLOM_PERFECT, Unlearning.KLOM_TRUTH)
    seeds = [[fold_in(cfg.seed, stream, i) for i in range(cfg.klom.models)] for stream in streams]
    truth, found = seen(*retrained(routine, splits, after, seeds[2], progress)), dict[str, Tensor]()
    untouched, answers = [], []
    for seed in progress.track(seeds[0], "KLOM: the method on runs of other seeds", stage="klom"):
        batches = routine.batches(splits.train, seed)
        dtype = DTYPES[cfg.history.dtype]
        learner, bar = routine.learner(seed, len(batches)), progress.callback()
        run = record(learner, batches, present, storage=storage(cfg), dtype=dtype, progress=bar)
        untouched.append(run.final)
        answers.append(handed_out(cfg, method(run, request).state, seed))
        run.history.free()
    found["method"], found["original"] = seen(run.learner, answers), seen(run.learner, untouched)
    found["retrained"] = seen(*retrained(routine, splits, after, seeds[1], progress))
    scores = {name: klom(margin, truth).split(sizes) for name, margin in found.items()}
    return {name: {part: float(x.mean()) for part, x in zip(parts, row, strict=True)} for name, row in scores.items()}


def retrained(
    routine: mg.Routine, splits: Splits, members: Tensor, seeds: list[int], progress: Progress
) -> tuple[mg.Learner, list[mg.TrainState]]:
    """Models trained on the members [n] bool only, one of each seed, all at once: the other rows weigh nothing."""
    batches = [routine.batches(splits.train, seed) for seed in seeds]
    learners = [routine.learner(seed, len(b)) for seed, b in zip(seeds, batches, strict=True)]
    learner = learners[0]
    learner.normalize = "kept"
    states = train_batched(
        learner,
        batches[0] if routine.batch_size is None else batches,
        members.to(torch.get_default_dtype()).expand(len(seeds), -1),
        mg.TrainState.stack([mg.initial_state(each) for each in learners]),
        progress=progress.callback(),
    )
    return learner, [mg.TrainState.of([x[i] for x in states.tensors()]) for i in range(len(seeds))]


def klom_runs(cfg: DictConfig, each: float) -> float:
    """The trainings behind `klom_table`: three of each seed, and the method; `each`: one of them and the method."""
    return cfg.klom.models * (2 + each)
