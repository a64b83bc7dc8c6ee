"""Update rules against their formulas and against torch.optim."""

import pytest
import torch

from metagradient.descent import Adam, Clipped, Raw, Sigmoid, Sign
from metagradient.errors import UserError


def test_adam_is_torchs_adam() -> None:
    x = torch.randn(7, dtype=torch.float64)
    theirs = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    rule, memory = Adam(step=0.1), {}
    for t in range(5):
        gradient = torch.sin(x * (t + 1))
        theirs.grad = torch.sin(theirs.detach() * (t + 1))
        x, memory = rule.update(x, gradient, memory, t, 5)
        optimizer.step()
    torch.testing.assert_close(x, theirs.detach(), rtol=1e-12, atol=0)


def test_sign_steps_shrink_linearly_to_zero() -> None:
    x, gradient = torch.zeros(3), torch.tensor([2.0, -0.1, 0.0])
    moved = [Sign(step=0.4).update(x, gradient, {}, t, 4)[0] for t in range(4)]
    assert torch.equal(torch.stack(moved), torch.tensor([0.4, 0.3, 0.2, 0.1]).outer(torch.tensor([-1.0, 1.0, 0.0])))


def test_clipped_is_the_gradient_where_small_and_the_sign_where_large() -> None:
    gradient = torch.tensor([0.1, -0.1, 3.8])  # mean |g| = 4 / 3
    x, _ = Clipped(step=1.0, clip=2.0, decay=False).update(torch.zeros(3), gradient, {}, 0, 1)
    torch.testing.assert_close(x, torch.tensor([-0.075, 0.075, -2.0]))


def test_a_rejection_halves_the_step() -> None:
    gradient = torch.tensor([1.0])
    assert Sign(0.4, decay=False).update(torch.zeros(1), gradient, {}, 0, 1, scale=0.5)[0].item() == pytest.approx(-0.2)


def test_steps_must_be_positive() -> None:
    for rule in (Sign, Clipped, Adam):
        with pytest.raises(UserError, match=r"method\.update\.step"):
            rule(step=0.0)


def test_weight_maps_start_where_every_example_is_kept() -> None:
    for weight_map, start in ((Raw(), 1.0), (Sigmoid(), 0.5)):
        x = weight_map.start(4)
        assert torch.equal(weight_map.weights(x), torch.full((4,), start))
        assert bool(weight_map.kept(x).all())
    assert torch.equal(Raw().project(torch.tensor([-0.3, 0.2])), torch.tensor([0.0, 0.2]))
