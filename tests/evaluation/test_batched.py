"""Trainings at once are the trainings one by one."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient import models
from metagradient.errors import UserError
from metagradient.evaluation import example_losses_of, losses_of_runs, train_batched
from metagradient.training.run import NonFiniteLoss

N, RUNS = 12, 5
DATA = {
    "x": torch.randn(N, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "y": torch.arange(N) % 3,
}
PLAN = mg.epoch_plan(N, 5, 3, seed=1)
WEIGHTS = torch.rand(RUNS, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64).round(decimals=1)


def learner(model: nn.Module | None = None, optimizer: mg.Optimizer | None = None, **settings: str) -> mg.Learner:
    torch.manual_seed(2)
    model = models.mlp((1, 3, 3), 3, hidden=(4,)) if model is None else model
    return mg.Classifier(model.double(), optimizer or mg.SGD(0.9), mg.Cosine(0.3, len(PLAN)), **settings)  # type: ignore[arg-type]


def assert_same(stacked: mg.TrainState, singles: Sequence[mg.TrainState]) -> None:
    for a, b in zip(stacked.tensors(), mg.TrainState.stack(singles).tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def singles(model: mg.Learner, weights: Tensor) -> list[mg.TrainState]:
    return [mg.train(model, mg.Batches(DATA, PLAN), [mg.DataWeights(w)]) for w in weights]


@pytest.mark.parametrize("optimizer", [mg.SGD(0.9, nesterov=True, weight_decay=0.1), mg.AdamW()], ids=str)
@pytest.mark.parametrize("normalize", ["batch", "kept"])
@pytest.mark.parametrize("at_once", [2, 50])
def test_runs_on_weights_of_their_own(optimizer: mg.Optimizer, normalize: str, at_once: int) -> None:
    model = learner(optimizer=optimizer, normalize=normalize)
    together = train_batched(model, mg.Batches(DATA, PLAN), WEIGHTS, at_once=at_once)
    assert_same(together, singles(model, WEIGHTS))


@pytest.mark.parametrize("normalize", ["batch", "kept"])
def test_a_run_without_weight_in_a_batch_skips_it_alone(normalize: str) -> None:
    """Where the divisor is the weight sum: no momentum, no decay for this run, and none of its neighbours notices."""
    model = learner(optimizer=mg.SGD(0.9, weight_decay=0.1), normalize=normalize)
    weights = torch.ones(2, N, dtype=torch.float64)
    weights[0, PLAN[2][PLAN[2] >= 0]] = 0
    assert_same(train_batched(model, mg.Batches(DATA, PLAN), weights), singles(model, weights))


def test_runs_with_initialisations_and_orders_of_their_own() -> None:
    model = learner()
    learners = [mg.Classifier(models.mlp((1, 3, 3), 3, hidden=(4,)).double(), mg.SGD(0.9), 0.3) for _ in range(RUNS)]
    orders = [mg.Batches(DATA, mg.epoch_plan(N, 5, 3, seed=s), seed=s) for s in range(RUNS)]
    start = mg.TrainState.stack([mg.initial_state(each) for each in learners])
    expected = [
        mg.train(model, order, [mg.DataWeights(w)], state=start[r])
        for r, (order, w) in enumerate(zip(orders, WEIGHTS, strict=True))
    ]
    assert_same(train_batched(model, orders, WEIGHTS, start), expected)
    with pytest.raises(UserError, match="the same number of runs"):
        train_batched(model, orders[:3], WEIGHTS, start)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Dropout(0.4), nn.Linear(5, 3)),
    ],
    ids=["conv and batch norm", "dropout"],
)
def test_what_does_not_batch_is_trained_one_by_one(model: nn.Module) -> None:
    single = learner(model)
    together = train_batched(single, mg.Batches(DATA, PLAN), WEIGHTS)
    assert_same(together, singles(single, WEIGHTS))
    losses = losses_of_runs(single, together, DATA)
    torch.testing.assert_close(losses[1], example_losses_of(single, together[1], DATA))


def test_losses_of_runs_are_those_of_each_run() -> None:
    model = learner()
    together = train_batched(model, mg.Batches(DATA, PLAN), WEIGHTS)
    expected = torch.stack([example_losses_of(model, together[r], DATA) for r in range(RUNS)])
    torch.testing.assert_close(losses_of_runs(model, together, DATA, chunk=5), expected)


def test_one_run_that_diverges_is_not_hidden_by_the_others() -> None:
    weights = WEIGHTS.clone()
    weights[3] = 1e200
    with pytest.raises(NonFiniteLoss, match=r"learner\.learning_rate"):
        train_batched(learner(), mg.Batches(DATA, PLAN), weights)
