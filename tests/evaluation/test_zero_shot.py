"""Retrieval and class prompts, counted by hand."""

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError
from metagradient.evaluation import class_accuracy, retrieval
from metagradient.models import TwoTower

N = 12


class Told(nn.Module):
    """Embeddings that the data say: images are vectors, texts are the numbers of vectors."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors, self.scale = nn.Parameter(vectors, requires_grad=False), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, self.vectors[y[:, 0]], self.scale


def told(n: int = N) -> tuple[mg.ContrastiveLearner, dict[str, Tensor]]:
    torch.manual_seed(0)
    learner = mg.ContrastiveLearner(Told(nn.functional.normalize(torch.randn(n, 3), dim=1)))
    return learner, {"x": nn.functional.normalize(torch.randn(n, 3), dim=1), "y": torch.arange(n)[:, None]}


def test_retrieval_among_all_is_the_share_of_largest_own_similarities() -> None:
    learner, pairs = told()
    logits = 2 * pairs["x"] @ learner.model.vectors.T  # type: ignore[operator, union-attr]
    rows = [all(logits[i, i] >= logits[i, j] for j in range(N)) for i in range(N)]
    columns = [all(logits[i, i] >= logits[j, i] for j in range(N)) for i in range(N)]
    found = retrieval(learner, mg.initial_state(learner), pairs, among=100)
    assert (found.text, found.image) == (sum(rows) / N, sum(columns) / N)
    losses = learner.losses(mg.Batch(0, torch.arange(N), pairs))
    assert found.loss == pytest.approx(float(losses.mean().detach()), rel=1e-6)


def test_groups_of_one_half_of_a_pair_of_pairs_and_chance() -> None:
    """Among two, an image decides between two texts: the mean over all pairs of pairs, in the limit of many groupings."""
    learner, pairs = told()
    logits = pairs["x"] @ learner.model.vectors.T  # type: ignore[operator, union-attr]
    wins = [float(logits[i, i] > logits[i, j]) for i in range(N) for j in range(N) if i != j]
    state = mg.initial_state(learner)
    found = retrieval(learner, state, pairs, among=2, groupings=3000)
    assert found.text == pytest.approx(sum(wins) / len(wins), abs=0.01)
    assert retrieval(learner, state, pairs, 5, 3, seed=1) == retrieval(learner, state, pairs, 5, 3, seed=1)
    assert retrieval(learner, state, pairs, 5, 3, seed=1) != retrieval(learner, state, pairs, 5, 3, seed=2)


def test_equal_texts_are_all_right() -> None:
    learner, _ = told(4)
    one = {"x": learner.model.vectors.detach()[[0, 0, 2, 3]], "y": torch.tensor([[0], [0], [2], [3]])}  # type: ignore[operator, union-attr]
    state = mg.initial_state(learner)
    assert retrieval(learner, state, one).text == 0.75
    assert retrieval(learner, state, one | {"pair": torch.tensor([0, 0, 2, 3])}).text == 1.0


def test_a_class_is_the_mean_of_its_prompts() -> None:
    vectors = nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [-1, 0.1], [-1, -0.1]]), dim=1)
    learner = mg.ContrastiveLearner(Told(vectors))
    prompts = torch.tensor([[[0], [1]], [[2], [3]]])  # the diagonal, and the left
    images = torch.tensor([[1.0, 0.2], [-0.3, 1], [-1, 0.2], [-0.1, -1]])
    labels = torch.tensor([0, 0, 1, 1])
    assert class_accuracy(learner, mg.initial_state(learner), images, labels, prompts) == 1.0
    assert class_accuracy(learner, mg.initial_state(learner), images, 1 - labels, prompts) == 0.0


def test_what_cannot_be_asked_is_told() -> None:
    classifier = mg.Classifier(nn.Linear(3, 2))
    state = mg.initial_state(classifier)
    with pytest.raises(UserError, match="has no embed"):
        retrieval(classifier, state, {"x": torch.zeros(4, 3), "y": torch.zeros(4)})
    learner = mg.ContrastiveLearner(TwoTower(nn.Linear(3, 2), nn.Linear(3, 2)))
    with pytest.raises(UserError, match="among 1 of 4 pairs"):
        retrieval(learner, mg.initial_state(learner), {"x": torch.zeros(4, 3), "y": torch.zeros(4, 3)}, among=1)
