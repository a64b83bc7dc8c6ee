"""TracIn: gradient products summed over checkpoints of a run."""

from __future__ import annotations

from collections.abc import Sequence

from metagradient.attribution.scoring.kernel import KernelInfluence
from metagradient.attribution.scoring.scorers import Weighted
from metagradient.errors import UserError
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batches, Fields
from metagradient.training.run import Progress, train
from metagradient.training.state import TrainState


def checkpoints(learner: Learner, batches: Batches, count: int) -> list[tuple[TrainState, float]]:
    """Train once: the states after each of `count` equal parts of the run, and the learning rates spent in that part."""
    steps = len(batches)
    if not 1 <= count <= steps:
        raise UserError(f"the number of checkpoints must lie in [1, {steps}], the steps of the run, not {count}")
    found: list[tuple[TrainState, float]] = []
    state: TrainState | None = None
    for part in range(count):
        start, stop = part * steps // count, (part + 1) * steps // count
        state = train(learner, batches, state=state, start=start, stop=stop)
        found.append((state, sum(float(learner.schedule(t)) for t in range(start, stop))))
    return found


def tracin(
    learner: Learner,
    trajectory: Sequence[tuple[TrainState, float]],
    examples: Fields,
    progress: Progress | None = None,
) -> Weighted:
    """TracIn: score = sum over checkpoints of (learning rates spent) / (1 - momentum) (1/n) g_i . g_q, in nats.

    A step on a batch of B moves the query's loss by eta / B g_i . g_q for each of its examples, and an example is in a
    share B / n of the steps. Source: Pruthi et al. 2020, arXiv 2002.08484.

    Raises:
        UserError: the optimizer is not SGD, whose steps are no multiple of the gradient.
    """
    optimizer = learner.update.sgd
    if optimizer is None:
        raise UserError(
            f"tracin knows how far a gradient moves the parameters under plain SGD, not {learner.update.described()}: use "
            "gradient_dot, or train with learner=sgd"
        )
    scorers = [KernelInfluence("identity").fit(learner, state, examples, progress) for state, _ in trajectory]
    return Weighted(scorers, [rates / (1 - optimizer.momentum) for _, rates in trajectory])
