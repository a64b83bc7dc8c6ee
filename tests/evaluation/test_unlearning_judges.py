"""The judges of unlearning, on models whose verdict is known."""

import math

import pytest
import torch
from torch import nn

import metagradient as mg
from metagradient.errors import UserError
from metagradient.evaluation import agreement, distance, klom, margins, membership_auc


def _fixed(weight: list[list[float]]) -> tuple[mg.Classifier, mg.TrainState]:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    learner = mg.Classifier(layer)
    return learner, mg.initial_state(learner)


def test_margins_are_log_odds_and_clipped() -> None:
    learner, state = _fixed([[1.0], [0.0], [0.0]])
    found = margins(learner, state, {"x": torch.tensor([[0.0], [math.log(4)], [1e4]]), "y": torch.tensor([0, 0, 1])})
    torch.testing.assert_close(found, torch.tensor([math.log(0.5), math.log(2), -100.0]))


def test_agreement_and_distance() -> None:
    learner, a = _fixed([[1.0], [0.0]])
    b = mg.TrainState(torch.tensor([0.0, 1.0]), (), a.buffers)
    x = torch.tensor([[1.0], [-1.0], [2.0]])
    assert agreement(learner, a, a, {"x": x, "y": torch.zeros(3).long()}) == 1
    assert agreement(learner, a, b, {"x": x, "y": torch.zeros(3).long()}) == 0
    assert distance(a, b) == pytest.approx(math.sqrt(2))


def test_membership_auc_counts_pairs() -> None:
    learner, state = _fixed([[1.0], [0.0]])  # the loss at label 0 falls with x
    asked = {"x": torch.tensor([[3.0], [1.0], [60.0]]), "y": torch.zeros(3).long()}
    unseen = {"x": torch.tensor([[2.0], [0.0]]), "y": torch.zeros(2).long()}
    assert membership_auc(learner, state, asked, unseen) == pytest.approx(5 / 6)
    assert membership_auc(learner, state, unseen, asked) == pytest.approx(1 / 6)


def test_klom_of_the_same_margins_is_zero_and_of_disjoint_ones_is_large() -> None:
    margin = torch.randn(12, 30)
    assert klom(margin, margin).abs().max() < 1e-12
    apart = klom(margin + 100, margin)
    # The retrained models' mass lies where the others have the floor.
    assert apart.min() > math.log(1 / 20 / 1e-5) - 1


def test_klom_of_two_bins_by_hand() -> None:
    retrained = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    unlearned = torch.tensor([[0.0], [1.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert klom(unlearned, retrained).item() == pytest.approx(expected, abs=1e-3)


def test_klom_does_not_care_about_the_margins_scale() -> None:
    a, b = torch.randn(9, 5).double(), torch.randn(7, 5).double()
    torch.testing.assert_close(klom(a, b), klom(4 * a + 3, 4 * b + 3))


def test_klom_needs_several_models() -> None:
    with pytest.raises(UserError, match=r"klom\.models"):
        klom(torch.zeros(1, 5), torch.zeros(4, 5))
