"""`Model`: all that a training run needs of what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from metagradient.distributed import Group
from metagradient.training.batches import Batch, Batches
from metagradient.training.state import Layout
from metagradient.training.updates import Update

LossGradient = tuple[Tensor, Tensor, Tensor]
"""(gradient [P], buffers [N], loss []); of R stacked runs [R, P], [R, N], [R]."""


@dataclass(frozen=True)
class Needs:
    """What the losses need so that they can be replayed.

    Attributes:
        foreign_randomness: they draw from torch's global generators, which must be forked and seeded at each step.
        math_attention: they reach a fused attention kernel, which has no second derivative.
        substitutes: they call functions that are computed by other formulas (`substitutes.SUBSTITUTES`), or may; as long as
            nothing is known, yes.
        eager: modules were handed to `torch.compile`, whose graphs cannot be differentiated twice.
    """

    foreign_randomness: bool = False
    math_attention: bool = False
    substitutes: bool = True
    eager: bool = False


class Differentiate(Protocol):
    """How the loss gradient of a step is computed: `steps.loss_gradient`, or a compiled equivalent."""

    def __call__(
        self,
        learner: Any,
        params: Tensor,
        buffers: Tensor,
        batch: Batch,
        coefficients: Tensor | None,
        t: int,
        *,
        tape: bool,
    ) -> LossGradient:
        """The gradient of sum_i c_i l_i (c: [B] or [R, B], None for the mean), the buffers after the forward pass, and that loss."""
        ...


class Accumulate(Differentiate, Protocol):
    """The same, `size` rows at a time."""

    @property
    def size(self) -> int:
        """Rows that are run together."""
        ...


class Model(Protocol):
    """A function of flat vectors with per-example losses, and the update that trains it.

    `learners.Learner` is one, a LightningModule; nothing on this floor needs Lightning.
    """

    @property
    def layout(self) -> Layout:
        """Where the flat vectors lie in the modules."""
        ...

    @property
    def update(self) -> Update:
        """How a gradient moves the parameters."""
        ...

    @property
    def normalize(self) -> Literal["batch", "kept"]:
        """What the weighted mean loss divides by: the batch size, or the sum of the weights."""
        ...

    @property
    def needs(self) -> Needs:
        """What `probe` found."""
        ...

    @property
    def graphs(self) -> Differentiate | None:
        """The compiled loss gradient, or None for the plain one."""
        ...

    @property
    def micro_batches(self) -> Accumulate | None:
        """The loss gradient a few rows at a time, or None for the whole batch at once."""
        ...

    @property
    def group(self) -> Group:
        """The processes that share each batch."""
        ...

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each example, [B]."""
        ...

    def running(self, params: Tensor, buffers: Tensor, seed: int | None, t: int) -> AbstractContextManager[None]:
        """Inside, the modules compute with these vectors and with the randomness of step t."""
        ...

    def probe(self, batches: Batches) -> None:
        """Find out, before a run, what the losses need."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules, as of `nn.Module`."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules with their names, as of `nn.Module`."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters with their names, as of `nn.Module`."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Training mode, as of `nn.Module`."""
        ...


@runtime_checkable
class Embedding(Protocol):
    """What a learner has besides whose losses see the whole batch, and see of each row no more than some features.

    `losses(batch)` is `losses_of(embed(batch), batch)`. So a batch that does not fit into memory is embedded a few rows at
    a time, and keeps its whole contrast (`MicroBatches`).
    """

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """Features [B, ...], row by row: no row's depend on another row."""
        ...

    def losses_of(self, features: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The loss of each row, [B], from the features of all; draws no random numbers."""
        ...
