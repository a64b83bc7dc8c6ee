"""Judges of a model that was to forget: how close is it to the one that never knew?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from metagradient.errors import UserError
from metagradient.evaluation.classification import example_losses_of, hard_labels, outputs_and_targets, outputs_of
from metagradient.learners.learner import Learner
from metagradient.training.batches import Fields
from metagradient.training.state import TrainState

CLIP, BINS, FLOOR = 100.0, 20, 1e-5


def distance(a: TrainState, b: TrainState) -> float:
    """The Euclidean distance of two models' parameters."""
    return float((a.params - b.params).norm())


def margins(learner: Learner, state: TrainState, examples: Fields, chunk: int = 2048) -> Tensor:
    """logit_y - logsumexp(other logits) of each example, clipped to [-100, 100]; [n], on the CPU."""
    logits, targets = outputs_and_targets(learner, state, examples, chunk)
    y = hard_labels(targets).unsqueeze(1)
    others = logits.scatter(1, y, -torch.inf).logsumexp(dim=1)
    return (logits.gather(1, y).squeeze(1) - others).clamp(-CLIP, CLIP)


def agreement(learner: Learner, a: TrainState, b: TrainState, examples: Fields) -> float:
    """The share of examples to which two models give the same class."""
    first, second = (outputs_of(learner, state, examples).argmax(1) for state in (a, b))
    return float((first == second).float().mean())


def membership_auc(learner: Learner, state: TrainState, asked: Fields, unseen: Fields) -> float:
    """How well a low loss tells the examples asked about from unseen ones: the area under the ROC curve, chance .5.

    A model that forgot perfectly need not score .5: the examples asked about may be easier or harder than the unseen
    ones. What it should score is what a retrained model does, so compare it with that.
    """
    losses = [example_losses_of(learner, state, examples) for examples in (asked, unseen)]
    member = torch.cat([torch.full((len(part),), i) for part, i in zip(losses, (1, 0), strict=True)])
    # float64 ranks: binary_auroc squashes what leaves [0, 1] by a sigmoid, in which large float32 losses tie.
    ranks = torch.cat(losses).double().argsort().argsort().double()
    return float(binary_auroc(1 - (ranks + 0.5) / len(ranks), member))


def klom(unlearned: Tensor, retrained: Tensor) -> Tensor:
    """KL divergence of margins of each example, [n], in nats; 0 is a perfect imitation of retraining.

    unlearned [N, n], retrained [M, n]: margins of N unlearned and M retrained models, which differ in their seeds. Each
    example's margins are counted in 20 bins shared by both sets, a probability below 1e-5 is taken as 1e-5, and the
    divergence is KL(retrained || unlearned).

    With few models this is biased upwards: two sets of retrained models give the level to compare with.
    Source: Georgiev et al., Attribute-to-Delete, arXiv 2410.23232.
    """
    if unlearned.shape[1:] != retrained.shape[1:] or len(unlearned) < 2 or len(retrained) < 2:
        raise UserError(
            f"KLOM compares margins [N, n] and [M, n] with N, M >= 2, not {list(unlearned.shape)} and "
            f"{list(retrained.shape)}: set klom.models=10"
        )
    both = torch.cat([unlearned, retrained]).double()
    low, high = both.amin(0), both.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    p, q = (_histogram((sample.double() - low) / width) for sample in (retrained, unlearned))
    return (p * (p / q).log()).sum(dim=0)


def _histogram(unit: Tensor) -> Tensor:
    """Shares [BINS, n] of samples [N, n] in [0, 1], none below the floor."""
    place = (unit * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(BINS, unit.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, place, torch.ones_like(unit))
    share = (counts / len(unit)).clamp(min=FLOOR)
    return share / share.sum(dim=0)
