"""`Metaparameter`: an input of training that it is differentiated in, and the hooks through which one enters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from metagradient.training.batches import Batch
from metagradient.training.model import Model
from metagradient.training.updates.optimizers import Scalar


@dataclass(frozen=True, eq=False)
class Metaparameter:
    """A differentiable input `z` of training. `name` is the key of its gradient."""

    value: Tensor
    name: str = "metaparameter"

    @property
    def first_step(self) -> int:
        """The first step that reads the value: the replay need not go back further. -1: the initial state does."""
        return 0

    @property
    def only_step(self) -> int | None:
        """The one step that reads the value; None where several do, or the initial state."""
        return None

    def part(self, learner: Model, rows: int) -> tuple[Metaparameter, float, float]:
        """The same with about `rows` rows of what it goes through in its `only_step`, by `on_gradient`, to be tried; and how many
        times as much memory and time the whole takes."""
        return self, 1.0, 1.0

    def with_value(self, value: Tensor) -> Self:
        return replace(self, value=value)

    def leaf(self, like: Tensor) -> Self:
        """The same value as a differentiable leaf on `like`'s device, in its dtype."""
        return self.with_value(self.value.detach().to(like.device, like.dtype).clone().requires_grad_())

    def check(self, examples: int, steps: int) -> None:
        """Refuse, with a UserError, a run of `steps` steps over `examples` examples that the value does not fit."""

    def on_start(self, params: Tensor) -> Tensor:
        """The initial parameters [P]."""
        return params

    def on_batch(self, batch: Batch, t: int) -> Batch:
        """The examples that step t reads."""
        return batch

    def on_weights(self, weights: Tensor, batch: Batch, t: int) -> Tensor:
        """The per-example loss weights [B]."""
        return weights

    def on_gradient(self, gradient: Tensor, learner: Model, params: Tensor, buffers: Tensor, t: int) -> Tensor:
        """The loss gradient [P] that the optimizer receives."""
        return gradient

    def on_hyper(self, hyper: Mapping[str, Scalar], t: int) -> Mapping[str, Scalar]:
        """Learning rate, weight decay and the optimizer's other settings."""
        return hyper
