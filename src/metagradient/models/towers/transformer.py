"""Transformer blocks without a causal order, whose every operation has a second derivative."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Attention among the tokens that are there, then a perceptron on each: pre-norm, GELU, no dropout."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for linear in (self.out, self.mlp[2]):  # what writes into the residual stream, as GPT-2 begins
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=1 / math.sqrt(2 * layers * linear.in_features))

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """x [n, t, width] -> the same shape; `there` bool [n, t]: tokens that are attended to (None: all)."""
        x = x + self._attention(self.norm1(x), there)
        return x + self.mlp(self.norm2(x))

    def _attention(self, x: Tensor, there: Tensor | None) -> Tensor:
        # [n, t, 3, heads, width / heads] -> three of [n, heads, t, width / heads]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: fused scaled_dot_product_attention has no second derivative.
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        if there is not None:  # a large negative number, not -inf: an empty text would have nothing to attend to
            scores = scores.masked_fill(~there[:, None, None, :], torch.finfo(scores.dtype).min)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


def blocks(layers: int, width: int, heads: int, setting: str) -> nn.ModuleList:
    """`layers` blocks.

    Raises:
        ValueError: `heads` does not divide `width`; named by `setting`.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"{setting}={heads} must divide the width {width}: set for example {setting}=1")
    return nn.ModuleList(Block(width, heads, layers) for _ in range(layers))
