"""Cotangents of inputs from those of outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pulled(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor]:
    """Cotangents of the inputs, zeros where an input does not matter."""
    live = [(x, on) for x, on in zip(outputs, cotangents, strict=True) if x.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(
        torch.autograd.grad(
            [x for x, _ in live], wanted, [on for _, on in live], create_graph=create_graph, materialize_grads=True
        )
        if live
        else [torch.zeros_like(x) for x in wanted]
    )
    return [next(found) if x.requires_grad else torch.zeros_like(x) for x in inputs]
