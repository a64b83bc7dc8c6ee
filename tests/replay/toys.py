"""Small problems that the replay's tests share: examples, plans, learners, and a few ways of looking at them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError
from metagradient.training.batches import Augment

N, INPUTS, CLASSES = 10, 4, 3
ROWS = [[3, 1, 4, 0], [5, 9, 2, 6], [7, 8, 0], [1, 2, 5, 9], [], [4, 3], [6, 7, 8, 1], [0, 2, 9, 5], [8, 4, 6, 3]]
"""Nine batches: two of them short and one empty."""

PLANS = ("tape", "all", "sqrt", "tree(3)", "binomial(2)", "binomial(3,2)", "every(4)", "auto")


def examples(n: int = N, shape: Sequence[int] = (INPUTS,), seed: int = 0) -> dict[str, Tensor]:
    """Gaussian inputs and random labels, in float64."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    return {"x": x, "y": torch.randint(CLASSES, (n,), generator=g)}


def batches(
    data: Mapping[str, Tensor], rows: Sequence[Sequence[int]] = ROWS, augment: Augment | None = None
) -> mg.Batches:
    return mg.Batches(data, mg.given_plan(rows), seed=7, augment=augment)


def mlp(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    middle = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), *middle, nn.Linear(5, CLASSES)).double()


def conv_net(dropout: float = 0.0) -> nn.Sequential:
    """Convolution, batch norm, activation, mean, linear; for images [B, 1, 4, 4]."""
    torch.manual_seed(1)
    last = [nn.Dropout(dropout)] if dropout else []
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, momentum=0.3), nn.Softplus(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), *last, nn.Linear(3, CLASSES)).double()


def relative(x: Tensor, y: Tensor) -> float:
    """|x - y| / |y|."""
    return float((x.detach().cpu() - y.detach().cpu()).norm() / y.detach().cpu().norm())


def slope(phi: Callable[[Tensor], float], z: Tensor, direction: Tensor, h: float = 1e-4) -> float:
    """d phi(z + s direction) / ds at 0: the central difference of fourth order."""
    near = phi(z + h * direction) - phi(z - h * direction)
    far = phi(z + 2 * h * direction) - phi(z - 2 * h * direction)
    return (8 * near - far) / (12 * h)


def trained_objective(
    learner: mg.Learner, data: mg.Batches, z: Sequence[mg.Metaparameter], objective: Callable[[mg.Learner], Tensor]
) -> float:
    """Train in the bare loop and evaluate: nothing of the replay."""
    with torch.no_grad(), learner.evaluating(mg.train(learner, data, z)):
        return float(objective(learner))


def assert_slope(
    gradient: Tensor,
    learner: mg.Learner,
    data: mg.Batches,
    z: Sequence[mg.Metaparameter],
    name: str,
    objective: Callable[[mg.Learner], Tensor],
    tolerance: float = 1e-6,
) -> None:
    """Along a direction with every coordinate in it, the gradient agrees with central differences of whole runs."""
    (m,) = [m for m in z if m.name == name]
    noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    direction = gradient / gradient.norm() + 0.5 * noise / noise.norm()

    def phi(value: Tensor) -> float:
        return trained_objective(learner, data, [m.with_value(value) if o is m else o for o in z], objective)

    expected = slope(phi, m.value.double(), direction)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=tolerance)


def fit(learner: mg.Learner, data: Any, *callbacks: Callback, ckpt_path: Any = None, **settings: Any) -> Trainer:
    """A silent `Trainer(max_epochs=1).fit`."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "max_epochs": 1,
    }
    trainer = Trainer(callbacks=list(callbacks), **(quiet | settings))
    trainer.fit(learner, data, ckpt_path=ckpt_path)
    return trainer


def smallest_memory(attempt: Callable[[int], object]) -> int:
    """The bytes that the refusal of a budget of one byte names as the smallest that work."""
    with pytest.raises(UserError) as refusal:
        attempt(1)
    found = re.search(r"smallest that works is replay\.memory=(\d+)(B|KiB|MiB)", str(refusal.value))
    assert found is not None, refusal.value
    return int(found[1]) * {"B": 1, "KiB": 2**10, "MiB": 2**20}[found[2]]


def same_bits(a: mg.TrainState, b: mg.TrainState) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
