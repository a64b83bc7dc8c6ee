"""Training as torch itself does it (modules, `backward`, `torch.optim`), and its derivative by central differences.

Nothing of the package is used, and no module is changed: batch norms write their running statistics, fused kernels run.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

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
