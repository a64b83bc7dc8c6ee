"""Metaparameters of the training examples: their loss weights, and what is added to their inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.batches import Batch
from metagradient.training.metaparameters.metaparameter import Metaparameter


@dataclass(frozen=True, eq=False)
class DataWeights(Metaparameter):
    """Per-example loss weights w [n]: step t minimises the weighted mean of w_i l_i over its batch.

    They act at steps `start <= t < stop`: all steps by default, from step k with `start=k`, only step k with
    `start=k, stop=k + 1`; weight 1 elsewhere. With `differentiate_from=k` they act as before, but only what they do
    from step k on is differentiated: a truncated metagradient, whose replay is that much shorter.

    A value [R, n] holds the weights of R stacked runs.
    """

    name: str = "weights"
    start: int = 0
    stop: int | None = None
    differentiate_from: int = 0

    @property
    def first_step(self) -> int:
        return max(self.start, self.differentiate_from)

    def check(self, examples: int, steps: int) -> None:
        if self.value.dim() not in (1, 2) or self.value.shape[-1] != examples:
            raise UserError(
                f"DataWeights needs one weight for each of the {examples} examples, not {list(self.value.shape)}"
            )

    def on_weights(self, weights: Tensor, batch: Batch, t: int) -> Tensor:
        if t < self.start or (self.stop is not None and t >= self.stop):
            return weights
        value = self.value.detach() if t < self.differentiate_from else self.value
        if batch.index.dim() == 1:
            return weights * value.index_select(-1, batch.index)
        return weights * value.expand(len(batch.index), -1).gather(1, batch.index)


@dataclass(frozen=True, eq=False)
class InputPerturbation(Metaparameter):
    """Tensors added to the inputs of chosen examples: x_i + value[j] for i = index[j], at every step (after augmentation).

    value: [m, *input shape]; index: [m] distinct rows of the training set; input_field: the batch's field.
    """

    name: str = "inputs"
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    input_field: str = "x"

    def __post_init__(self) -> None:
        if len(self.index) != len(self.value) or len(self.index.unique()) != len(self.index):
            raise UserError(
                f"InputPerturbation needs one distinct training row for each of its {len(self.value)} tensors, "
                f"not {len(self.index)} rows, {len(self.index.unique())} of them distinct"
            )
        order = self.index.argsort()
        object.__setattr__(self, "_sorted", self.index[order])
        object.__setattr__(self, "_order", order)

    def check(self, examples: int, steps: int) -> None:
        if len(self.index) and not (int(self.index.min()) >= 0 and int(self.index.max()) < examples):
            raise UserError(
                f"InputPerturbation names rows {int(self.index.min())} .. {int(self.index.max())}, but the training set "
                f"has rows 0 .. {examples - 1}"
            )

    def on_batch(self, batch: Batch, t: int) -> Batch:
        if len(self.index) == 0:
            return batch
        rows, order = self._sorted.to(batch.index.device), self._order.to(batch.index.device)  # type: ignore[attr-defined]
        slot = torch.searchsorted(rows, batch.index).clamp(max=len(rows) - 1)
        hit = (rows[slot] == batch.index).nonzero().flatten()
        if len(hit) == 0:
            return batch
        if not batch[self.input_field].is_floating_point():
            raise UserError(
                f"{self.input_field} is {str(batch[self.input_field].dtype).removeprefix('torch.')}, which cannot be moved by small "
                f"steps: give it as numbers, of bytes {self.input_field}.float() / 255"
            )
        shift = self.value.index_select(0, order[slot[hit]])
        return batch.replace(**{self.input_field: batch[self.input_field].index_add(0, hit, shift)})
