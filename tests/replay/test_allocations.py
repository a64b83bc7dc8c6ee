"""Bytes of tensors that are alive, counted as they are made."""

import gc

import torch
from torch import Tensor

from metagradient.replay.trial.allocations import Allocations

MB = 4 * 10**6  # a million floats


def test_what_is_made_is_counted_until_it_is_freed() -> None:
    given = torch.ones(10**6, requires_grad=True)
    with Allocations() as count:
        doubled = given * 2  # kept by its square
        square = (doubled * doubled).sum()
        assert count.alive == MB + 4
        assert count.peak == 2 * MB + 4
        (gradient,) = torch.autograd.grad(square, given)
        assert count.peak >= 3 * MB
        del doubled, square
        assert count.alive == MB
        del gradient
        assert count.alive == 0


def test_views_count_once_and_hold_their_storage() -> None:
    with Allocations() as count:
        x: Tensor | None = torch.zeros(10**6)
        assert x is not None
        view = x.view(1000, 1000)[3:5]
        x.add_(1)
        assert count.alive == MB
        x = None
        assert count.alive == MB
        del view
        gc.collect()
        assert count.alive == 0


def test_what_was_there_before_is_not_counted() -> None:
    given = torch.zeros(10**6)
    with Allocations() as count:
        given.add_(1)
        _ = given.view(1000, 1000).T, given.detach()
        assert count.alive == count.peak == 0
