"""`Update`: the optimizer's rule with its schedule, as it acts on training states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metagradient.training.state import TrainState
from metagradient.training.updates.optimizers import SGD, Optimizer, Scalar
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
        clip_value: first, each coordinate of the gradient is cut to [-clip_value, clip_value].
        clip_norm: then the gradient g becomes g min(1, clip_norm / (||g|| + 1e-6)), as `torch.nn.utils.clip_grad_norm_`.
        average: with a decay d here, a last slot holds the exponential average of the parameters, a_1 = theta_1,
            a <- d a + (1 - d) theta, at which a finished run is read.
    """

    optimizer: Optimizer
    schedule: Schedule
    decay_mask: Tensor | None = None
    clip_value: float | None = None
    clip_norm: float | None = None
    average: float | None = None

    @property
    def sgd(self) -> SGD | None:
        """The optimizer where it is SGD and nothing else acts on the gradient or the result, so that updates are linear."""
        plain = self.clip_value is None and self.clip_norm is None and self.average is None
        return self.optimizer if plain and isinstance(self.optimizer, SGD) else None

    def described(self) -> str:
        """All but the schedule and the mask in words, the same in each process."""
        extra = {"clip_value": self.clip_value, "clip_norm": self.clip_norm, "average": self.average}
        return "; ".join([repr(self.optimizer), *(f"{k}={v}" for k, v in extra.items() if v is not None)])

    def hyper(self, t: int) -> dict[str, Scalar]:
        """The learning rate of step t and the optimizer's other settings."""
        return {"learning_rate": self.schedule(t), **self.optimizer.hyper(t)}

    def start(self, params: Tensor, buffers: Tensor) -> TrainState:
        """The state before the first step: parameters [P], empty slots, buffers [N]."""
        slots = self.optimizer.init(params.detach())
        return TrainState(params, slots if self.average is None else (*slots, params), buffers)

    def apply(
        self, state: TrainState, gradient: Tensor, t: int, hyper: Mapping[str, Scalar] | None = None
    ) -> TrainState:
        """The state after step t's update with `gradient` [P]; its buffers are the old ones.

        Args:
            state: the state s_t; stacked runs, [R, P], are updated together.
            gradient: what the optimizer receives, without weight decay and before it is clipped.
            t: the step, from 0.
            hyper: settings in place of `hyper(t)`.
        """
        settings = self.hyper(t) if hyper is None else hyper
        gradient = self._clipped(gradient)
        if self.average is None:
            params, slots = self.optimizer.update(state.params, gradient, state.slots, t, settings, self.decay_mask)
            return TrainState(params, slots, state.buffers)
        *slots_, average = state.slots
        params, slots = self.optimizer.update(state.params, gradient, tuple(slots_), t, settings, self.decay_mask)
        average = params if t == 0 else self.average * average + (1 - self.average) * params
        return TrainState(params, (*slots, average), state.buffers)

    def read(self, state: TrainState) -> TrainState:
        """The state at which a finished run is read: where there is an average, that, without slots (and then itself)."""
        if self.average is None or not state.slots:
            return state
        return TrainState(state.slots[-1], (), state.buffers)

    def _clipped(self, gradient: Tensor) -> Tensor:
        if self.clip_value is not None:
            gradient = gradient.clamp(-self.clip_value, self.clip_value)
        if self.clip_norm is not None:
            norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
            gradient = gradient * (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return gradient
