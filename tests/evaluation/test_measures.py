"""Measures by what is predicted, against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor, nn
from torch.utils.data import Dataset

import metagradient as mg
from metagradient.evaluation import MEASURES, Retraining, accuracy, hard_labels, margins, mean_cross_entropy
from metagradient.training.sources import examples_of

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def state_of(learner: mg.Learner) -> mg.TrainState:
    return mg.initial_state(learner)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e5])
def test_r2_is_that_of_scikit_learn_in_any_units(scale: float) -> None:
    y = scale * (X @ torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0]]) + 7)
    learner = mg.Regressor(nn.Linear(3, 2), center=7 * scale, scale=scale)
    found = MEASURES["numbers"](learner, state_of(learner), {"x": X, "y": y})
    assert found == pytest.approx(r2_score(y.double(), learner(X).detach().double()), abs=1e-4)


def test_r2_of_one_row_or_of_equal_numbers_is_none() -> None:
    learner = mg.Regressor(nn.Linear(3, 1))
    for y in (X[:1, 0], torch.ones(5)):
        assert math.isnan(MEASURES["numbers"](learner, state_of(learner), {"x": X[: len(y)], "y": y}))


@pytest.mark.parametrize("labels", [1, 4])
def test_label_accuracy_counts_every_label(labels: int) -> None:
    y = (torch.rand(40, labels, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    learner = mg.MultiLabel(nn.Linear(3, labels))
    want = accuracy_score(y.flatten(), (learner(X) > 0).flatten())
    assert MEASURES["labels"](learner, state_of(learner), {"x": X, "y": y}) == pytest.approx(want)


def test_rows_of_a_data_set_are_measured_as_tensors_are() -> None:
    y = torch.where(X[:, 0] > 0.5, -1, (X[:, 1] > 0).long())
    learner = mg.Classifier(nn.Linear(3, 2), ignore_index=-1)
    rows = examples_of([{"x": x, "y": label} for x, label in zip(X, y, strict=True)])
    state, held = state_of(learner), {"x": X, "y": y}
    assert MEASURES["classes"](learner, state, rows) == MEASURES["classes"](learner, state, held)
    assert mean_cross_entropy(learner, state, rows) == mean_cross_entropy(learner, state, held)


def test_rows_of_a_data_set_are_read_once_for_outputs_and_targets() -> None:
    class Rows(Dataset[dict[str, Tensor]]):
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, row: int) -> dict[str, Tensor]:
            self.read.append(row)
            return {"x": X[row], "y": torch.tensor(row % 2 - (row == 3))}

    learner, rows = mg.Classifier(nn.Linear(3, 2), ignore_index=-1), Rows()
    state, examples = state_of(learner), examples_of(rows)
    for measure in (MEASURES["classes"], mean_cross_entropy, accuracy, margins):
        rows.read.clear()
        measure(learner, state, examples)
        assert rows.read == list(range(len(X)))


def test_soft_labels_count_as_their_largest_share() -> None:
    shares = torch.rand(40, 3, generator=torch.Generator().manual_seed(2)).softmax(1)
    learner, classes = mg.Classifier(nn.Linear(3, 3)), MEASURES["classes"]
    hard = {"x": X, "y": hard_labels(shares)}
    assert classes(learner, state_of(learner), {"x": X, "y": shares}) == classes(learner, state_of(learner), hard)


@pytest.mark.parametrize("task", MEASURES)
def test_a_model_agrees_with_itself(task: str) -> None:
    kind = {"classes": mg.Classifier, "numbers": mg.Regressor, "labels": mg.MultiLabel}[task]
    torch.manual_seed(0)
    learner: mg.Learner = kind(nn.Linear(3, 2))
    state = state_of(learner)
    other = mg.TrainState(-state.params, (), state.buffers)
    fields = {"x": X}
    assert MEASURES[task].agreement(learner, state, state, fields) == 1
    assert MEASURES[task].agreement(learner, state, other, fields) < 0.5


def test_retrainings_are_measured_by_what_they_predict() -> None:
    fields = {"x": X, "y": X @ torch.tensor([1.0, -1.0, 2.0])}
    routine = mg.Routine(lambda s: mg.Regressor(nn.Linear(3, 1), mg.SGD(), s), lambda n: mg.Constant(0.1), steps=60)
    judge = Retraining(routine, [0, 1], measure=MEASURES["numbers"])
    assert judge.accuracies(fields, None, {"t": fields})["t"] > 0.95
