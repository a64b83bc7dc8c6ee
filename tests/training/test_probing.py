"""What makes a run no function of its inputs, or cuts a derivative, is found before the run, under every plan."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError

Losses = Callable[["Odd", Tensor, Tensor], Tensor]


class Odd(mg.Learner):
    """A linear classifier whose losses are given from outside."""

    def __init__(self, losses: Losses) -> None:
        super().__init__(mg.SGD(), 0.1)
        torch.manual_seed(0)
        self.net, self.given, self.calls = nn.Linear(4, 3), losses, 0
        self.own = np.random.default_rng(0)

    def losses(self, batch: mg.Batch) -> Tensor:
        return self.given(self, batch.x, batch.y)


def plain(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(learner.net(x), y, reduction="none")


def python_randomness(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    return plain(learner, x * (1 + 0.1 * random.random()), y)


def numpy_randomness(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    return plain(learner, x + 0.1 * torch.from_numpy(np.random.randn(*x.shape)).float(), y)  # noqa: NPY002


def own_generator(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    return plain(learner, x * learner.own.uniform(0.9, 1.1), y)


def counter(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    learner.calls += 1
    return plain(learner, x, y) * learner.calls


def item(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    losses = plain(learner, x, y)
    return losses / losses.mean().item()


def as_float(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    return plain(learner, x, y) * float(learner.net.weight.norm())


def autocast(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return plain(learner, x, y).float()


def cast(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    return plain(learner, (x.half() * 2).float(), y)


def batches() -> mg.Batches:
    g = torch.Generator().manual_seed(1)
    data = {"x": torch.randn(12, 4, generator=g), "y": torch.randint(3, (12,), generator=g)}
    return mg.Batches(data, mg.epoch_plan(12, 4, 2, seed=0))


@pytest.mark.parametrize("plan", ["tape", "sqrt"])
@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (python_randomness, "Python's or NumPy's global generator"),
        (numpy_randomness, "Python's or NumPy's global generator"),
        (own_generator, "differ when they are computed a second time"),
        (counter, "differ when they are computed a second time"),
        (item, r"\.item\(\)"),
        (as_float, r"\.__float__\(\)"),
        (autocast, "compute in bfloat16"),
        (cast, "compute in float16"),
    ],
)
def test_what_would_be_silently_wrong_is_refused_before_the_run(losses: Losses, says: str, plan: str) -> None:
    objective = mg.mean_loss({"x": torch.zeros(2, 4), "y": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(UserError, match=says):
        mg.metagradient(Odd(losses), batches(), mg.DataWeights(torch.ones(12)), objective, checkpoints=plan)


def logged(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    losses = plain(learner, x, y)
    learner.calls = int(losses.detach().mean().item() * 0) + (losses.argmax().item() >= 0)  # what logging does
    return losses


def torch_randomness(learner: Odd, x: Tensor, y: Tensor) -> Tensor:
    return plain(learner, x + 0.1 * torch.randn_like(x), y)


@pytest.mark.parametrize("losses", [plain, logged, torch_randomness])
def test_what_is_right_is_not(losses: Losses) -> None:
    """Numbers of detached tensors and of indices, and torch's own generators, which are seeded at each step."""
    learner = Odd(losses)
    results = [
        mg.metagradient(
            learner,
            batches(),
            mg.DataWeights(torch.ones(12)),
            lambda learner: learner.net.weight.sum(),
            checkpoints=plan,
        )
        for plan in ("tape", "sqrt")
    ]
    torch.testing.assert_close(results[0]["weights"], results[1]["weights"])


def test_python_and_numpy_are_left_as_they_were() -> None:
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    mg.train(Odd(torch_randomness), batches())
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002
