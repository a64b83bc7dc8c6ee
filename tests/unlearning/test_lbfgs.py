"""The compact product is the BFGS matrix that one would write down."""

import pytest
import torch
from torch import Tensor

from metagradient.unlearning import Guard, SecantPairs


def _problem(p: int = 7, m: int = 4) -> tuple[Tensor, list[Tensor]]:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(p, p, generator=g, dtype=torch.float64)
    return root @ root.T + torch.eye(p, dtype=torch.float64), list(torch.randn(m, p, generator=g, dtype=torch.float64))


def _dense(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """BFGS's recursion from sigma I, sigma of the last pair."""
    s, y = pairs[-1]
    b = (y @ s) / (s @ s) * torch.eye(len(s), dtype=s.dtype)
    for s, y in pairs:
        bs = b @ s
        b = b - torch.outer(bs, bs) / (s @ bs) + torch.outer(y, y) / (y @ s)
    return b


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_the_compact_product_is_the_dense_matrix(most: int) -> None:
    hessian, steps = _problem()
    memory = SecantPairs(most)
    for s in steps:
        assert memory.push(s, hessian @ s)
    b = _dense([(s, hessian @ s) for s in steps[-most:]])
    for v in torch.eye(7, dtype=torch.float64):
        torch.testing.assert_close(memory.product(v), b @ v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_the_last_secant_equation_holds(most: int) -> None:
    hessian, steps = _problem()
    memory = SecantPairs(most)
    for s in steps:
        memory.push(s, hessian @ s)
        torch.testing.assert_close(memory.product(s), hessian @ s, rtol=1e-9, atol=1e-9)


def test_pairs_without_positive_curvature_are_refused() -> None:
    memory = SecantPairs(2)
    s = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for y in (-s, torch.zeros(2).double(), torch.full((2,), torch.nan).double()):
        assert not memory.push(s, y)
    assert not memory.push(torch.zeros(2).double(), s)
    assert len(memory) == 0


def test_two_equal_pairs_count_as_one() -> None:
    hessian, (s, *_) = _problem()
    memory = SecantPairs(2)
    memory.push(s, hessian @ s)
    memory.push(s, hessian @ s)
    assert torch.isfinite(memory.product(s)).all()
    torch.testing.assert_close(memory.product(s), hessian @ s, rtol=1e-8, atol=1e-8)


def test_the_guard_looks_at_growth_and_curvature() -> None:
    s = torch.tensor([1.0, 0.0], dtype=torch.float64)
    memory = SecantPairs(1)
    memory.push(s, 2 * s)  # |s| = 1, curvature 2
    guard = Guard(curvature=1.5, growth=1.5)
    for length, product, accepted in [(1.4, 2.9, True), (1.6, 1.0, False), (1.0, 2.9, True), (1.0, 3.1, False)]:
        v = torch.tensor([0.0, length], dtype=torch.float64)
        assert guard.accepts(v, v / length * product, memory) is accepted
    assert not guard.accepts(v, v * torch.nan, memory)
    assert not guard.accepts(v * torch.nan, v, memory)
