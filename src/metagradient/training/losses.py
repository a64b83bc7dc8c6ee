"""The losses of a batch, computed with given vectors: at once, or a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metagradient.training.batches import Batch
from metagradient.training.model import Embedding, Model
from metagradient.training.random import part_of_batch, part_within


def losses_and_buffers(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, t: int) -> tuple[Tensor, Tensor]:
    """The losses [B] (of R stacked runs: [R, B]), and the buffers that the forward pass left."""
    return computed_with(learner, params, buffers, batch, t, learner.losses)


def computed_with(
    learner: Model,
    params: Tensor,
    buffers: Tensor,
    batch: Batch,
    t: int,
    function: Callable[..., Any],
    *inputs: Tensor,
) -> tuple[Any, Tensor]:
    """`function(batch, *inputs)` computed with these vectors, and the buffers that it left.

    Of R stacked runs each output has a leading [R], which the inputs have as well.
    """

    def run(params: Tensor, buffers: Tensor, batch: Batch, inputs: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
        with learner.running(params, buffers, batch.seed, t):
            return function(batch, *inputs), learner.layout.buffers(like=params)

    if params.dim() == 1:
        return run(params, buffers, batch, inputs)

    def of_one(
        params: Tensor, buffers: Tensor, index: Tensor, fields: dict[str, Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[Any, Tensor]:
        return run(params, buffers, Batch(batch.t, index, fields, batch.seed), inputs)

    own = 0 if batch.index.dim() == 2 else None
    return torch.func.vmap(of_one, in_dims=(0, 0, own, own, 0))(params, buffers, batch.index, batch.fields, inputs)


def losses_in_parts(learner: Model, params: Tensor, buffers: Tensor, batch: Batch, t: int, size: int) -> Tensor:
    """The losses [B] of a batch whose rows are run `size` at a time: of an `Embedding` with its whole contrast."""
    if size >= len(batch):
        return computed_with(learner, params, buffers, batch, t, learner.losses)[0]
    function = learner.embed if isinstance(learner, Embedding) else learner.losses
    found = []
    for start in range(0, len(batch), size):
        stop = min(start + size, len(batch))
        with part_of_batch(part_within(start, stop, len(batch), batch.fields)):
            found.append(computed_with(learner, params, buffers, rows_of(batch, start, stop), t, function)[0])
    if not isinstance(learner, Embedding):
        return torch.cat(found)
    features = [torch.cat(column) for column in zip(*found, strict=True)]
    return computed_with(learner, params, buffers, batch, t, contrast(learner), *features)[0]


def contrast(learner: Embedding) -> Callable[..., Tensor]:
    """`losses_of` as a function of the batch and of each of the features."""
    return lambda batch, *features: learner.losses_of(features, batch)


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Rows start .. stop - 1, of each of R stacked runs where the batch is theirs."""
    dim, n = batch.index.dim() - 1, stop - start
    fields = {name: x.narrow(dim, start, n) for name, x in batch.fields.items()}
    return Batch(batch.t, batch.index.narrow(dim, start, n), fields, batch.seed)


def see_each_other(losses: Callable[[Tensor], Tensor], rows: Tensor) -> bool:
    """Whether the losses of `rows` change where the rows are taken in two parts."""
    if len(rows) < 2:
        return False
    return differ(losses(rows), torch.cat([losses(part) for part in rows.tensor_split(2)]))


def differ(together: Tensor, apart: Tensor) -> bool:
    """Whether two computations of the same losses differ by more than rounding."""
    near = 1e-8 if together.dtype == torch.float64 else 1e-4  # kernels round otherwise for other numbers of rows
    return not torch.allclose(together, apart, rtol=near, atol=near / 10, equal_nan=True)
