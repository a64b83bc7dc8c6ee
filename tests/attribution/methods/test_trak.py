"""TracIn and TRAK against their formulas written down for softmax regression."""

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.attribution import TRAK, Uncompressed, checkpoints, scores, tracin
from metagradient.errors import UserError

N, Q, C, P = 12, 3, 3, 15


def data(n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 4, generator=g, dtype=torch.float64), "y": torch.randint(C, (n,), generator=g)}


TRAIN, QUERIES = data(N, 0), data(Q, 1)
BATCHES = mg.Batches(TRAIN, mg.epoch_plan(N, 4, 2, seed=0))


def learner(seed: int = 0) -> mg.Classifier:
    torch.manual_seed(seed)
    return mg.Classifier(models.linear((4,), C).double(), mg.SGD(0.5), mg.Cosine(0.3, len(BATCHES)))


def gradients(state: mg.TrainState, examples: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(loss gradients [n, P], probabilities of the labels [n])."""
    weight, bias = state.params[: 4 * C].view(C, 4), state.params[4 * C :]
    p = (examples["x"] @ weight.T + bias).softmax(1)
    delta = p - torch.nn.functional.one_hot(examples["y"], C)
    rows = torch.cat([(delta.unsqueeze(2) * examples["x"].unsqueeze(1)).flatten(1), delta], dim=1)
    return rows, p.gather(1, examples["y"].unsqueeze(1)).squeeze(1)


def test_checkpoints_lie_on_the_run_and_spend_all_of_its_learning_rate() -> None:
    model = learner()
    found = checkpoints(model, BATCHES, 4)
    assert torch.equal(found[-1][0].params, mg.train(model, BATCHES).params)
    assert torch.equal(found[1][0].params, mg.train(model, BATCHES, stop=3).params)
    assert sum(rate for _, rate in found) == pytest.approx(sum(model.schedule(t) for t in range(6)))
    with pytest.raises(UserError, match="not 7"):
        checkpoints(model, BATCHES, 7)


def test_tracin_is_the_sum_of_gradient_products_over_checkpoints() -> None:
    model = learner()
    trajectory = checkpoints(model, BATCHES, 3)
    expected = torch.zeros(N, Q, dtype=torch.float64)
    own = torch.zeros(N, dtype=torch.float64)
    for state, rate in trajectory:
        g = gradients(state, TRAIN)[0]
        expected += rate / (1 - 0.5) * g @ gradients(state, QUERIES)[0].T / N
        own += rate / (1 - 0.5) * g.square().sum(1) / N
    scorer = tracin(model, trajectory, TRAIN)
    torch.testing.assert_close(scores(scorer, QUERIES, 1.0), expected)
    torch.testing.assert_close(scorer.self_influence(1.0), own)


def test_trak_is_its_formula_averaged_over_models() -> None:
    pairs = [(m := learner(seed), mg.train(m, BATCHES)) for seed in (0, 1)]
    damping = 0.1
    terms, own_doubts, doubts = [], [], []
    for _, state in pairs:
        (g, p), (gq, pq) = gradients(state, TRAIN), gradients(state, QUERIES)
        phi, phi_q = -g / (1 - p).unsqueeze(1), -gq / (1 - pq).unsqueeze(1)  # of log(p / (1 - p))
        second = phi.T @ phi / N
        second.diagonal().add_(damping * second.trace() / P)
        terms.append(phi @ torch.linalg.solve(second, phi_q.T) / N)
        own_doubts.append(1 - p)
        doubts.append(1 - pq)
    expected = torch.stack(terms).mean(0) * torch.stack(own_doubts).mean(0).unsqueeze(1) * torch.stack(doubts).mean(0)
    found = TRAK(Uncompressed(), batch_size=5).fit(pairs, TRAIN)
    torch.testing.assert_close(scores(found, QUERIES, damping), expected)
