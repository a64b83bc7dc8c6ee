"""Training as torch itself does it (modules, `backward`, `torch.optim`), and its derivative: by central differences, or unrolled.

Nothing of the package is used. For differences no module is changed: batch norms write their running statistics, fused kernels run.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Losses = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""(model, fields of a batch) -> [B]."""


def trained(
    model: nn.Module,
    losses: Losses,
    data: dict[str, Tensor],
    plan: Sequence[Sequence[int]],
    weights: Tensor,
    rate: float,
    momentum: float = 0.0,
) -> nn.Module:
    """A copy of the model after one step of SGD for each row of the plan, on weighted losses divided by the batch's size."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate, momentum=momentum)
    for row in plan:
        optimizer.zero_grad()
        of_rows = losses(model, {name: field[list(row)] for name, field in data.items()})
        ((weights[list(row)] * of_rows).sum() / len(row)).backward()
        optimizer.step()
    return model


def objective(model: nn.Module, losses: Losses, data: dict[str, Tensor]) -> Tensor:
    """The mean loss in evaluation mode."""
    with torch.no_grad():
        return losses(model.eval(), data).mean()


def slope(value: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, h: float = 1e-3) -> float:
    """The directional derivative by the five-point central difference; its error is of order h^4."""
    f = [float(value(at + k * h * direction)) for k in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)


def unrolled(
    model: nn.Module,
    losses: Losses,
    data: dict[str, Tensor],
    plan: Sequence[Sequence[int]],
    weights: Tensor,
    rate: float,
    momentum: float,
    held_out: dict[str, Tensor],
) -> Tensor:
    """The mean held-out loss, in training mode, of a run whose every step stays in one graph, connected to the weights.

    Each parameter becomes a plain attribute of its module, a tensor that is replaced after each step. Statistics are written
    as torch writes them, outside the graph; a loss in training mode does not read them.
    """
    model = copy.deepcopy(model).train()
    places = [
        (owner, key)
        for owner in model.modules()
        for key, p in owner._parameters.items()
        if p is not None and p.requires_grad
    ]
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    start: dict[int, Tensor] = {}
    for owner, key in places:
        p = owner._parameters.pop(key)
        assert p is not None
        owners.setdefault(id(p), []).append((owner, key))
        start[id(p)] = p.detach().requires_grad_()
    current, memory = dict(start), {i: torch.zeros_like(p) for i, p in start.items()}

    def put() -> None:
        for i, where in owners.items():
            for owner, key in where:
                setattr(owner, key, current[i])

    with sdpa_kernel(SDPBackend.MATH), _twice_differentiable():
        put()
        for row in plan:
            of_rows = losses(model, {name: field[list(row)] for name, field in data.items()})
            loss = (weights[list(row)] * of_rows).sum() / len(row)
            found = torch.autograd.grad(loss, list(current.values()), create_graph=True, allow_unused=True)
            for i, g in zip(current, found, strict=True):
                memory[i] = momentum * memory[i] + (0 if g is None else g)
                current[i] = current[i] - rate * memory[i]
            put()
        return losses(model, held_out).mean()


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Hard sigmoid and hard swish from clamps, whose kernels have no second derivative; weight norm from its definition, whose
    kernel has a wrong one."""
    before = F.hardsigmoid, F.hardswish, torch._weight_norm
    F.hardsigmoid = lambda x, inplace=False: (x / 6 + 0.5).clamp(0, 1)
    F.hardswish = lambda x, inplace=False: x * (x / 6 + 0.5).clamp(0, 1)
    torch._weight_norm = lambda v, g, dim=0: (
        v * (g / v.square().sum([d for d in range(v.dim()) if d != dim], keepdim=True).sqrt())
    )
    try:
        yield
    finally:
        F.hardsigmoid, F.hardswish, torch._weight_norm = before
