"""Filters of pools of pairs that people use: by a model's own score, by texts, by images like the target's, by source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import metagradient as mg
from metagradient.data import PairSplits
from metagradient.data.pairs.texts import words_of
from metagradient.errors import UserError
from metagradient.evaluation import embeddings, take
from metagradient.replay.objectives import mean_loss
from metagradient.streams import Selection as Streams
from metagradient.studies.selection.influence import best_share, rival, top, worth
from metagradient.studies.selection.task import Choice, Search
from metagradient.training.batches import Batches, Fields
from metagradient.training.metaparameters import CandidateWeights
from metagradient.training.random import fold_in
from metagradient.training.run import run_mode


@dataclass(frozen=True, eq=False)
class PoolModel:
    """A model that was trained on the whole pool.

    Attributes:
        images: embeddings of the pool's images [n, D]; texts likewise.
        cost: trainings that it took.
    """

    learner: mg.Learner
    state: mg.TrainState
    batches: Batches
    images: Tensor
    texts: Tensor
    cost: float


def pool_model(search: Search, routine: mg.Routine, pool: Fields) -> PoolModel:
    """Trained as every contender is, with a seed of its own."""
    seed = fold_in(search.seed, Streams.FILTER)
    batches = routine.batches(pool, seed)
    learner, state = routine.train(pool, seed, progress=search.progress.callback("filter"))
    images, texts, _ = embeddings(learner, state, pool)
    return PoolModel(learner, state, batches, images, texts, 1 + _pass(len(images), batches))


def best_filter(search: Search, splits: PairSplits, model: PoolModel) -> tuple[Choice, list[list[object]]]:
    """The filter whose models find most validation texts, among all filters and their thresholds; and a row for each.

    Rows: the filter, its validation accuracy, the share that it keeps. What leaves less than a batch is no filter.
    """
    pool, before, size = splits.train, search.tuner.runs, model.batches.plan.shape[1]
    options = [*_options(search, splits, model), *_sources(search, splits)]
    options = [(label, kept) for label, kept in options if int(kept.sum()) >= min(size, len(kept))]
    if not options:
        raise UserError("no filter leaves a batch of pairs: set pairs.shares=[0.5], or a smaller learner.batch_size")
    report = search.progress.callback("filter")
    rows: list[list[object]] = []
    for done, (label, kept) in enumerate(options):
        rows.append([label, worth(search.tuner, take(pool, kept), splits.validation), float(kept.float().mean())])
        report("filters", done + 1, len(options))
    best = max(range(len(options)), key=lambda i: float(str(rows[i][1])))
    label, kept = options[best]
    cost = model.cost + search.tuner.runs - before
    return Choice(f"best filter: {label}", take(pool, kept), None, kept, cost), rows


def influence_filter(search: Search, splits: PairSplits, model: PoolModel, steer: Fields) -> Choice:
    """The share of highest influence that does best on validation pairs."""
    scores, before = influence(model, splits.train, steer, search.seed), search.tuner.runs
    kept, best = best_share(search, splits.train, splits.validation, scores, search.cfg.pairs.shares)
    cost = model.cost + _pass(len(scores), model.batches) + search.tuner.runs - before
    return rival("influence", best, splits.train, kept, cost)


def influence(model: PoolModel, pool: Fields, steer: Fields, seed: int) -> Tensor:
    """[n]: of each pair, how much a step on its own loss lowers the steering loss phi at the end of training: grad phi . grad l_i.

    The pairs are contrasted in chunks of the batch size. The steering gradient is scaled as the optimizer would scale it
    where it keeps second moments (Adam: divided by their square root).
    """
    learner, state = model.learner, model.state
    leaf = state.leaf()
    with torch.enable_grad(), learner.evaluating(leaf):
        (direction,) = torch.autograd.grad(mean_loss(steer)(learner), leaf.params)
    if isinstance(learner.optimizer, mg.Adam | mg.AdamW):
        direction = direction / ((state.slots[1] + learner.optimizer.eps_root).sqrt() + learner.optimizer.eps)
    with run_mode(learner, model.batches), torch.enable_grad():
        n, size = len(model.images), model.batches.plan.shape[1]
        z = CandidateWeights(
            state.params.new_zeros(n, requires_grad=True), step=0, candidates=pool, chunk=size, seed=seed
        )
        total = z.on_gradient(torch.zeros_like(state.params), learner, leaf.params, state.buffers, 0)
        (slopes,) = torch.autograd.grad(total, z.value, direction)
    return slopes.cpu()


def _options(search: Search, splits: PairSplits, model: PoolModel) -> Iterator[tuple[str, Tensor]]:
    """(label, kept [n]) by a score that a pair has by itself."""
    s = search.cfg.pairs
    target, _, _ = embeddings(model.learner, model.state, splits.validation)
    own, near = (
        (model.images * model.texts).sum(1),
        torch.cat([(x @ target.T).amax(1) for x in model.images.split(4096)]),
    )
    for share in s.shares:
        yield f"CLIP score of the pool's model, best {share:.0%}", top(own, share)
        yield f"images nearest to the target's, {share:.0%}", top(near, share)
    said = [words_of(caption) for caption in splits.captions["train"]]
    known = {word for caption in splits.captions["validation"] for word in words_of(caption)}
    for most in s.caption_words:
        yield f"captions of at most {most} words", torch.tensor([0 < len(words) <= most for words in said])
    for least in s.caption_known:
        shares = [sum(word in known for word in words) / max(len(words), 1) for words in said]
        yield f"captions with {least:.0%} of their words in the target's", torch.tensor(shares) >= least


def _sources(search: Search, splits: PairSplits) -> list[tuple[str, Tensor]]:
    """(label, kept [n]) without the sources whose absence did best on validation: one of them, two, ..."""
    sources = splits.sources["train"]
    names = sorted(set(sources))
    most = min(search.cfg.pairs.dropped_sources, len(names) - 1)
    if most < 1:
        return []
    without = {name: torch.tensor([source != name for source in sources]) for name in names}
    ranked = sorted(names, key=lambda name: -_once(search, take(splits.train, without[name]), splits.validation))
    found, kept = [], torch.ones(len(sources), dtype=torch.bool)
    for count in range(most):
        kept = kept & without[ranked[count]]
        found.append((f"without {', '.join(ranked[: count + 1])}", kept))
    return found


def _once(search: Search, examples: Fields, validation: Fields) -> float:
    """`worth` of one model."""
    tuner = search.tuner
    return tuner.measure(*tuner.train(examples, tuner.seeds[0]), validation)


def _pass(n: int, batches: Batches) -> float:
    """A forward pass over n pairs, in trainings."""
    return n / (3 * batches.plan.numel())
