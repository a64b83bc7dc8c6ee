"""`Update`: the optimizer's rule with its schedule, as it acts on training states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from metagradient.training.state import TrainState
from metagradient.training.updates.optimizers import Optimizer, Scalar
from metagradient.training.updates.schedules import Schedule


@dataclass(frozen=True, eq=False)
class Update:
    """How a gradient moves a training state: an optimizer, its learning rates, and where its weight decay acts.

    The step applies it to the gradient of its batch. Whoever has a gradient from elsewhere (an approximate one, a
    tangent) applies the same rule to it.

    Attributes:
        optimizer: the update rule.
        schedule: step t -> learning rate.
        decay_mask: [P] factors of the weight decay, or None where it touches all parameters alike.
    """

    optimizer: Optimizer
    schedule: Schedule
    decay_mask: Tensor | None = None

    def hyper(self, t: int) -> dict[str, Scalar]:
        """The learning rate of step t and the optimizer's other settings."""
        return {"learning_rate": self.schedule(t), **self.optimizer.hyper()}

    def start(self, params: Tensor, buffers: Tensor) -> TrainState:
        """The state before the first step: parameters [P], empty slots, buffers [N]."""
        return TrainState(params, self.optimizer.init(params.detach()), buffers)

    def apply(
        self, state: TrainState, gradient: Tensor, t: int, hyper: Mapping[str, Scalar] | None = None
    ) -> TrainState:
        """The state after step t's update with `gradient` [P]; its buffers are the old ones.

        Args:
            state: the state s_t; stacked runs, [R, P], are updated together.
            gradient: what the optimizer receives, without weight decay.
            t: the step, from 0.
            hyper: settings in place of `hyper(t)`.
        """
        settings = self.hyper(t) if hyper is None else hyper
        params, slots = self.optimizer.update(state.params, gradient, state.slots, t, settings, self.decay_mask)
        return TrainState(params, slots, state.buffers)
