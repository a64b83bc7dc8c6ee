"""The momentum as a metaparameter, against central differences of whole runs."""

import pytest
import torch
import toys

import metagradient as mg
from metagradient.errors import UserError


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("knots", [None, 3])
def test_momentum_gradients_are_slopes(nesterov: bool, knots: int | None) -> None:
    data = toys.batches(toys.examples())
    learner = mg.Classifier(toys.mlp(), mg.SGD(momentum=0.5, nesterov=nesterov), 0.3)
    value = torch.linspace(0.3, 0.8, knots or len(data), dtype=torch.float64)
    z = mg.Momentum(value, steps=None if knots is None else len(data))
    objective = mg.mean_loss(toys.examples(seed=3))
    for plan in ("tape", "binomial(2)"):
        gradient = mg.metagradient(learner, data, z, objective, checkpoints=plan)["momentum"]
        toys.assert_slope(gradient, learner, data, [z], "momentum", objective)


def test_the_optimizers_own_momentum_gives_the_same_run() -> None:
    data = toys.batches(toys.examples())
    ours = mg.train(
        mg.Classifier(toys.mlp(), mg.SGD(momentum=0.5), 0.3),
        data,
        [mg.Momentum(torch.full((len(data),), 0.9, dtype=torch.float64))],
    )
    theirs = mg.train(mg.Classifier(toys.mlp(), mg.SGD(momentum=0.9), 0.3), data)
    torch.testing.assert_close(ours.params, theirs.params, rtol=1e-7, atol=0)


def test_an_optimizer_without_momentum_is_refused() -> None:
    data = toys.batches(toys.examples())
    with pytest.raises(UserError, match=r"learner\.optimizer\.momentum"):
        mg.train(
            mg.Classifier(toys.mlp(), mg.SGD(), 0.3),
            data,
            [mg.Momentum(torch.full((len(data),), 0.9, dtype=torch.float64))],
        )
