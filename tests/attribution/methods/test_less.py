"""LESS against its definition, written down from single backward passes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metagradient as mg
from metagradient.attribution import checkpoints, less
from metagradient.errors import UserError

N, M = 6, 4
B1, B2, EPS, ROOT = 0.8, 0.95, 1e-8, 1e-6


def run(optimizer: mg.Optimizer | None = None) -> tuple[mg.Learner, mg.Batches, dict[str, Tensor]]:
    torch.manual_seed(0)
    learner = mg.Classifier(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), optimizer, mg.Cosine(0.1, 6))
    data = {"x": torch.randn(N, 3), "y": torch.arange(N) % 3}
    targets = {"x": torch.randn(M, 3), "y": torch.arange(M) % 3}
    return learner.double(), mg.Batches(data, torch.arange(12).view(6, 2) % N), targets


def as_doubles(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in fields.items()}


def gradient(learner: mg.Learner, params: Tensor, fields: dict[str, Tensor], i: int) -> Tensor:
    """Of one example alone, from the functional call."""
    names = dict(learner.model.named_parameters())
    leaf = params.detach().clone().requires_grad_()
    values, start = {}, 0
    for name, p in names.items():
        values[name] = leaf[start : start + p.numel()].view(p.shape)
        start += p.numel()
    logits = torch.func.functional_call(learner.model, values, (fields["x"][i : i + 1],))
    (found,) = torch.autograd.grad(F.cross_entropy(logits, fields["y"][i : i + 1]), leaf)
    return found


@pytest.mark.parametrize("subtasks", [None, torch.tensor([0, 1, 1, 0])])
def test_scores_are_those_of_the_definition(subtasks):
    learner, batches, targets = run(mg.Adam((B1, B2), EPS, ROOT))
    batches = mg.Batches(as_doubles(dict(batches.examples)), batches.plan)
    targets = as_doubles(targets)
    trajectory = checkpoints(learner, batches, 3)
    found = less(learner, trajectory, batches.examples, targets, subtasks, steps=6, k=10**6, batch=4)
    groups = torch.zeros(M, dtype=torch.int64) if subtasks is None else subtasks
    expected = torch.zeros(int(groups.max()) + 1, N, dtype=torch.float64)
    for t, (state, rate) in zip((2, 4, 6), trajectory, strict=True):
        m, v = state.slots
        for s in range(len(expected)):
            asked = torch.stack([gradient(learner, state.params, targets, j) for j in range(M) if groups[j] == s])
            for i in range(N):
                g = gradient(learner, state.params, dict(batches.examples), i)
                first = (B1 * m + (1 - B1) * g) / (1 - B1 ** (t + 1))
                second = (B2 * v + (1 - B2) * g**2) / (1 - B2 ** (t + 1))
                step = first / ((second + ROOT).sqrt() + EPS)
                expected[s, i] += rate * F.cosine_similarity(asked.mean(0), step, dim=0)
    torch.testing.assert_close(found.double(), expected.max(0).values, rtol=1e-5, atol=1e-6)


def test_kept_coordinates_rank_like_all_of_them():
    learner, batches, targets = run(mg.AdamW((B1, B2), EPS, ROOT))
    batches = mg.Batches(as_doubles(dict(batches.examples)), batches.plan)
    trajectory, targets = checkpoints(learner, batches, 2), as_doubles(targets)
    whole = less(learner, trajectory, batches.examples, targets, steps=6, k=31)
    part = torch.stack(
        [less(learner, trajectory, batches.examples, targets, steps=6, k=15, seed=seed) for seed in range(20)]
    )
    assert float(torch.corrcoef(torch.stack([whole, part.mean(0)]))[0, 1]) > 0.9


def test_other_optimizers_are_refused():
    learner, batches, targets = run(mg.SGD())
    with pytest.raises(UserError, match="set learner=adam"):
        less(learner, [], batches.examples, targets, steps=6)
