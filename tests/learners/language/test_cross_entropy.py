"""The loss without logits against torch's own, first and second derivative, however the positions are divided."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from metagradient.learners.language import cross_entropy
from metagradient.learners.language.cross_entropy import linear_cross_entropy


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 30)  # two positions at a time


def inputs():
    rng = torch.Generator().manual_seed(0)
    h = torch.randn(7, 5, dtype=torch.float64, generator=rng, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, generator=rng, requires_grad=True)
    return h, weight, torch.randint(11, (7,), generator=rng)


def plain(h, weight, y):
    return F.cross_entropy(h @ weight.T, y, reduction="none")


def test_values_and_both_derivatives_are_those_of_the_plain_loss():
    h, weight, y = inputs()
    g, u, on = torch.randn_like(h[:, 0]), torch.randn_like(h), torch.randn_like(weight)
    found = []
    for loss in (linear_cross_entropy, plain):
        values = loss(h, weight, y)
        scale = g.clone().requires_grad_()
        first = torch.autograd.grad((values * scale).sum(), (h, weight), create_graph=True)
        second = torch.autograd.grad((first[0] * u).sum() + (first[1] * on).sum(), (h, weight, scale))
        found.append([values, *first, *second])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_head_that_is_not_trained_and_no_positions():
    h, weight, y = inputs()
    assert gradcheck(lambda h: linear_cross_entropy(h, weight.detach(), y), h, check_batched_grad=True)
    assert gradgradcheck(lambda h: linear_cross_entropy(h, weight.detach(), y), h, check_batched_grad=True)
    none = linear_cross_entropy(h[:0], weight, y[:0])
    assert none.shape == (0,)
    assert [float(x.abs().sum()) for x in torch.autograd.grad(none.sum(), (h, weight))] == [0, 0]


def test_tangents_and_many_cotangents_at_once():
    h, weight, y = inputs()
    assert gradcheck(
        lambda h, w: linear_cross_entropy(h, w, y), (h, weight), check_forward_ad=True, check_batched_grad=True
    )
    assert gradgradcheck(lambda h, w: linear_cross_entropy(h, w, y), (h, weight), check_batched_grad=True)


def test_no_tensor_of_positions_times_vocabulary_is_made(monkeypatch):
    """Neither forwards, nor in the gradient, nor in the gradient's own."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 2 * 4096)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    h = torch.randn(64, 4, requires_grad=True)
    weight, y = torch.randn(4096, 4), torch.randint(4096, (64,))
    with Watch():
        (first,) = torch.autograd.grad(linear_cross_entropy(h, weight, y).sum(), h, create_graph=True)
        torch.autograd.grad(first.square().sum(), h)
    assert largest <= 4 * 4096  # of the 64 x 4096 that all logits would be
