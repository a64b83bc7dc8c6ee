"""Cross entropy of a linear map onto a large vocabulary, differentiable twice, without the logits ever being held.

With logits v = W h of a position and its target y: loss = logsumexp(v) - v_y. Its gradient in v is g (p - e_y) for a
cotangent g, with p = softmax(v). The pull of that gradient's own cotangents (u of h, U of W) goes through
a = W u + U h, the logits' tangent: d/dg = E_p[a] - a_y, d/dv = g p (a - E_p[a]). All of it is computed a few positions at a
time, so that no tensor of positions x vocabulary outlives its chunk, in neither derivative.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 2**22
"""Numbers of a temporary of one chunk, about: positions x vocabulary."""


def linear_cross_entropy(h: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of logits h W^T, in nats.

    Args:
        h: what the output map reads, [N, D].
        weight: W, [V, D].
        y: targets, int64 [N].

    Returns:
        [N].
    """
    losses: Tensor = _Losses.apply(h, weight, y)  # type: ignore[no-untyped-call]
    return losses


def _chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, CHUNK // vocabulary)
    return (slice(start, start + step) for start in range(0, positions, step))


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros_like(like)


class _Losses(torch.autograd.Function):
    """(h, W, y) -> losses [N]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        parts = []
        for c in _chunks(len(h), len(weight)):
            logits = h[c] @ weight.T
            parts.append(logits.logsumexp(1) - logits.gather(1, y[c, None]).squeeze(1))
        return _joined(parts, h[:, 0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        h, weight, y = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return _Pull.apply(h, weight, y, g), None, None  # type: ignore[no-untyped-call]
        return *_PullBoth.apply(h, weight, y, g), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, on_h: Tensor | None, on_weight: Tensor | None, _: None) -> Tensor:
        h, weight, y = ctx.saved_tensors
        parts = []
        for c in _chunks(len(h), len(weight)):
            a = _tangent(h[c], weight, None if on_h is None else on_h[c], on_weight)
            parts.append(((h[c] @ weight.T).softmax(1) * a).sum(1) - a.gather(1, y[c, None]).squeeze(1))
        return _joined(parts, h[:, 0])


def _tangent(h: Tensor, weight: Tensor, u: Tensor | None, on_weight: Tensor | None) -> Tensor:
    """W u + U h, [n, V]."""
    from_h = None if u is None else u @ weight.T
    from_weight = None if on_weight is None else h @ on_weight.T
    if from_h is None or from_weight is None:
        found = from_h if from_weight is None else from_weight
        return h.new_zeros(len(h), len(weight)) if found is None else found
    return from_h + from_weight


def _residual(h: Tensor, weight: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """p, and p - e_y, [n, V]."""
    p = (h @ weight.T).softmax(1)
    return p, p - torch.nn.functional.one_hot(y, len(weight)).to(p.dtype)


class _Pull(torch.autograd.Function):
    """(h, W, y, g) -> the cotangent of h alone, for a W that is not trained."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor, y: Tensor, g: Tensor) -> Tensor:
        parts = []
        for c in _chunks(len(h), len(weight)):
            parts.append(g[c, None] * ((h[c] @ weight.T).softmax(1) @ weight - weight[y[c]]))
        return _joined(parts, h)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        h, weight, y, g = ctx.saved_tensors
        on_h, on_g = [], []
        for c in _chunks(len(h), len(weight)):
            a = u[c] @ weight.T
            p = (h[c] @ weight.T).softmax(1)
            mean = (p * a).sum(1)
            on_g.append(mean - a.gather(1, y[c, None]).squeeze(1))
            on_h.append(g[c, None] * ((p * (a - mean[:, None])) @ weight))
        return _joined(on_h, h), None, None, _joined(on_g, g)


class _PullBoth(torch.autograd.Function):
    """(h, W, y, g) -> the cotangents of h and of W."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        parts, on_weight = [], torch.zeros_like(weight)
        for c in _chunks(len(h), len(weight)):
            d = g[c, None] * _residual(h[c], weight, y[c])[1]
            parts.append(d @ weight)
            on_weight = on_weight + d.T @ h[c]
        return _joined(parts, h), on_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor, on_gradient: Tensor) -> Any:
        h, weight, y, g = ctx.saved_tensors
        on_h, on_g, on_weight = [], [], torch.zeros_like(weight)
        for c in _chunks(len(h), len(weight)):
            a = _tangent(h[c], weight, u[c], on_gradient)
            p, residual = _residual(h[c], weight, y[c])
            mean = (p * a).sum(1)
            on_g.append(mean - a.gather(1, y[c, None]).squeeze(1))
            q, d = g[c, None] * p * (a - mean[:, None]), g[c, None] * residual
            on_h.append(q @ weight + d @ on_gradient)
            on_weight = on_weight + q.T @ h[c] + d.T @ u[c]
        return _joined(on_h, h), on_weight, None, _joined(on_g, g)
