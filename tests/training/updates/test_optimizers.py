"""Our update rules have torch.optim's forward values; what torch cannot differentiate is tested in tests/replay."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient.errors import UserError

STEPS = 12
Theirs = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def gradients() -> Tensor:
    """[STEPS, P]: of any scale, and sometimes exactly zero."""
    g = torch.Generator().manual_seed(3)
    out = torch.randn(STEPS, 20, generator=g, dtype=torch.float64) * torch.logspace(-3, 2, 20, dtype=torch.float64)
    out[4:6, :5] = 0
    return out


def ours(optimizer: mg.Optimizer, rates: list[float]) -> Tensor:
    """[STEPS, P]: the parameters after each step."""
    params = torch.linspace(-1, 1, 20, dtype=torch.float64)
    slots, path = optimizer.init(params), []
    for t, gradient in enumerate(gradients()):
        hyper = {"learning_rate": rates[t], **optimizer.hyper(0)}
        params, slots = optimizer.update(params, gradient, slots, t, hyper)
        path.append(params)
    return torch.stack(path)


def theirs(make: Theirs, rates: list[float]) -> Tensor:
    params = torch.linspace(-1, 1, 20, dtype=torch.float64).requires_grad_()
    optimizer, path = make([params]), []
    for t, gradient in enumerate(gradients()):
        optimizer.param_groups[0]["lr"] = rates[t]
        params.grad = gradient.clone()
        optimizer.step()
        path.append(params.detach().clone())
    return torch.stack(path)


def sgd(**settings: Any) -> Theirs:
    return lambda params: torch.optim.SGD(params, lr=1.0, **settings)


def adam(**settings: Any) -> Theirs:
    return lambda params: torch.optim.Adam(params, lr=1.0, **settings)


def adamw(**settings: Any) -> Theirs:
    return lambda params: torch.optim.AdamW(params, lr=1.0, **settings)


@pytest.mark.parametrize("rates", [[0.1] * STEPS, [0.3 / (t + 1) for t in range(STEPS)]], ids=["constant", "falling"])
@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        (mg.SGD(), sgd()),
        (mg.SGD(momentum=0.9), sgd(momentum=0.9)),
        (mg.SGD(momentum=0.9, nesterov=True), sgd(momentum=0.9, nesterov=True)),
        (mg.SGD(weight_decay=0.2), sgd(weight_decay=0.2)),
        (mg.SGD(momentum=0.9, weight_decay=0.2), sgd(momentum=0.9, weight_decay=0.2)),
        (mg.SGD(0.9, True, 0.2), sgd(momentum=0.9, nesterov=True, weight_decay=0.2)),
        (mg.Adam(eps_root=0.0), adam()),
        (mg.Adam((0.5, 0.7), eps=1e-3, eps_root=0.0), adam(betas=(0.5, 0.7), eps=1e-3)),
        (mg.Adam(eps_root=0.0, weight_decay=0.2), adam(weight_decay=0.2)),
        (mg.AdamW(eps_root=0.0), adamw()),
        (mg.AdamW(eps_root=0.0, weight_decay=0.3), adamw(weight_decay=0.3)),
        (mg.AdamW(eps_root=0.0, weight_decay=0.0), adam()),
    ],
    ids=lambda value: "theirs" if callable(value) else str(value),
)
def test_forward_values_are_those_of_torch_optim(optimizer: mg.Optimizer, make: Theirs, rates: list[float]) -> None:
    torch.testing.assert_close(ours(optimizer, rates), theirs(make, rates), rtol=1e-12, atol=1e-14)


def test_eps_root_is_added_under_the_square_root() -> None:
    """After one step m^ = g and v^ = g^2, so the update has a closed form; torch knows no such epsilon."""
    g = torch.tensor([0.0, 1e-3, -2.0], dtype=torch.float64)
    optimizer, zero = mg.Adam(eps=1e-8, eps_root=1e-4), torch.zeros(3, dtype=torch.float64)
    params, _ = optimizer.update(zero, g, optimizer.init(zero), 0, {"learning_rate": 0.5, **optimizer.hyper(0)})
    torch.testing.assert_close(params, -0.5 * g / ((g**2 + 1e-4).sqrt() + 1e-8), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "optimizer", [mg.SGD(weight_decay=0.1), mg.Adam(weight_decay=0.1), mg.AdamW(weight_decay=0.1)], ids=str
)
def test_the_decay_mask_says_which_coordinates_decay(optimizer: mg.Optimizer) -> None:
    params = torch.linspace(1, 2, 6, dtype=torch.float64)
    mask = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.float64)
    gradient, hyper = torch.full_like(params, 0.3), {"learning_rate": 0.1, **optimizer.hyper(0)}
    slots = optimizer.init(params)
    masked, _ = optimizer.update(params, gradient, slots, 0, hyper, mask)
    everywhere, _ = optimizer.update(params, gradient, slots, 0, hyper)
    nowhere, _ = optimizer.update(params, gradient, slots, 0, {**hyper, "weight_decay": 0.0})
    assert torch.equal(masked, torch.where(mask.bool(), everywhere, nowhere))
    assert not torch.equal(everywhere, nowhere)


@pytest.mark.parametrize(
    "optimizer",
    [mg.SGD(weight_decay=0.1), mg.SGD(0.9, True, 0.1), mg.Adam(weight_decay=0.1), mg.AdamW(weight_decay=0.1)],
    ids=str,
)
def test_settings_given_as_tensors_are_those_given_as_numbers(optimizer: mg.Optimizer) -> None:
    params, gradient = torch.linspace(-1, 1, 9, dtype=torch.float64), torch.linspace(3, -1, 9, dtype=torch.float64)
    mask = (params > 0).double()
    slots = tuple(x + 0.1 for x in optimizer.init(params))
    hyper = {"learning_rate": 0.1, **optimizer.hyper(0)}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in hyper.items()}
    numbers = optimizer.update(params, gradient, slots, 3, hyper, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_tensors = optimizer.update(params, gradient, slots, 3, tensors, mask)
    torch.testing.assert_close(as_tensors, numbers, rtol=1e-14, atol=1e-14)


def test_an_update_writes_into_nothing_it_was_given() -> None:
    for optimizer in (mg.SGD(0.9, True, 0.1), mg.AdamW()):
        params, gradient = torch.ones(4), torch.full((4,), 0.5)
        slots = optimizer.init(params)
        given = (params, gradient, *slots)
        before = [x.clone() for x in given]
        optimizer.update(params, gradient, slots, 0, {"learning_rate": 0.1, **optimizer.hyper(0)})
        assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mg.SGD(momentum=-0.1), "momentum must be >= 0, not -0.1"),
        (lambda: mg.SGD(weight_decay=float("nan")), "weight_decay must be >= 0, not nan"),
        (lambda: mg.SGD(nesterov=True), "nesterov needs momentum > 0"),
        (lambda: mg.Adam(eps_root=-1e-8), "eps_root must be >= 0, not -1e-08"),
        (lambda: mg.AdamW(betas=(0.9, 1.0)), r"betas must be two numbers in \[0, 1\), not \(0.9, 1.0\)"),
    ],
)
def test_bad_settings_are_one_line_that_says_what_to_set(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}[^\n]*set learner\.optimizer\.[^\n]*$"):
        make()
