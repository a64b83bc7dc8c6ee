"""Batch normalisation of a batch whose rows several processes run."""

from __future__ import annotations

import torch
from torch import Tensor

from metagradient.distributed import copy, reduce
from metagradient.training.random import Part


def normalised_over(
    part: Part, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows x [B_r, C, ...] of this process normalised by the whole batch, and its mean and unbiased variance [C].

    With the mean m_r and the sum of squared deviations q_r of the n_r values of each process, n = sum n_r,
    mean = sum n_r m_r / n and variance = sum (q_r + n_r (m_r - mean)^2) / n, whatever the sizes of the m_r. Differentiable any
    number of times, with one call between processes, and in as few passes over x as there can be.
    """
    group, dims = part.group, [d for d in range(x.dim()) if d != 1]
    shape = (1, -1) + (1,) * (x.dim() - 2)
    own_mean = x.mean(dims)
    centred = x - own_mean.view(shape)
    own = torch.stack([own_mean, (centred * centred).sum(dims)])
    nothing = torch.zeros_like(own)
    placed = torch.stack([own if rank == group.rank else nothing for rank in range(group.size)])
    (found,) = copy(group, *reduce(group, placed))  # [W, 2, C]
    counts = x.new_tensor([rows * (x[0, 0].numel()) for rows in group.shares(part.total)]).unsqueeze(1)
    count = counts.sum()
    mean = (counts * found[:, 0]).sum(0) / count
    # Of a process without rows nothing counts, though it runs one.
    squares = ((counts > 0) * found[:, 1] + counts * (found[:, 0] - mean).square()).sum(0)
    scale = torch.rsqrt(squares / count + eps)
    scale = scale if weight is None else scale * weight
    shift = (own_mean - mean) * scale if bias is None else (own_mean - mean) * scale + bias
    return centred * scale.view(shape) + shift.view(shape), mean, squares / (count - 1)
