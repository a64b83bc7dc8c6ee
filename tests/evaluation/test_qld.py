"""The query loss difference is that of models trained without each query's own top examples."""

from pathlib import Path

import pytest
import torch

import metagradient as mg
from metagradient import models
from metagradient.errors import UserError
from metagradient.evaluation import GroundTruth, example_losses_of, query_loss_difference, random_removals

N = 20
G = torch.Generator().manual_seed(0)
DATA = {"x": torch.randn(N, 4, generator=G), "y": torch.arange(N) % 3}
QUERIES = {"x": torch.randn(5, 4, generator=G), "y": torch.arange(5) % 3}
SCORES = torch.randn(N, 5, generator=torch.Generator().manual_seed(4))


def truth(folder: Path | None = None, at_once: int = 3) -> GroundTruth:
    torch.manual_seed(0)
    learner = mg.Classifier(models.mlp((4,), 3, hidden=(5,)), mg.SGD(0.9), 0.2)
    batches = mg.Batches(DATA, mg.epoch_plan(N, 6, 2, seed=0))
    return GroundTruth(learner, batches, QUERIES, folder=folder, at_once=at_once)


def test_it_is_the_rise_of_each_query_by_hand() -> None:
    this = truth()
    random = random_removals(this, 0.15, runs=4, seed=0)
    found = query_loss_difference(this, SCORES, random)
    assert random.removed == 3
    whole = example_losses_of(this.learner, mg.train(this.learner, this.batches), QUERIES)
    rises = []
    for q in range(5):
        weights = torch.ones(N)
        weights[SCORES[:, q].argsort(descending=True)[:3]] = 0
        state = mg.train(this.learner, this.batches, [mg.DataWeights(weights)])
        rises.append(float(example_losses_of(this.learner, state, QUERIES)[q] - whole[q]))
    torch.testing.assert_close(found.rise, torch.tensor(rises), rtol=1e-4, atol=1e-6)
    assert found.mean == pytest.approx(sum(rises) / 5 - float(random.rise.mean()), abs=1e-6)
    assert found.low < found.mean < found.high
    assert this.runs == 1 + 4 + 5


def test_true_effects_score_higher_than_noise_and_their_opposite_lower() -> None:
    this = truth(at_once=25)
    single = ~torch.eye(N, dtype=torch.bool)
    effects = this.losses(single) - this.losses(torch.ones(1, N, dtype=torch.bool))  # [n, q]
    random = random_removals(this, 0.1, runs=5, seed=0)
    best, noise, worst = (query_loss_difference(this, s, random).mean for s in (effects, SCORES, -effects))
    assert worst < min(0.0, noise)
    assert best > max(0.0, noise)


def test_retrainings_are_kept(tmp_path: Path) -> None:
    for runs in (10, 0):
        this = truth(tmp_path)
        query_loss_difference(this, SCORES, random_removals(this, 0.1, runs=4, seed=0), resamples=0)
        assert this.runs == runs


def test_what_cannot_be_judged_is_told() -> None:
    with pytest.raises(UserError, match="at least one retraining, not 0"):
        random_removals(truth(), 0.1, runs=0, seed=0)
    random = random_removals(truth(), 0.1, runs=1, seed=0)
    with pytest.raises(UserError, match="transposed"):
        query_loss_difference(truth(), SCORES.T, random)
