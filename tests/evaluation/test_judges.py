"""Judges measure what they say."""

import torch
from torch import nn

import metagradient as mg
from metagradient.evaluation import Retraining, accuracy, example_losses_of, filter_by_loss, join, take


def _routine(steps: int = 20) -> mg.Routine:
    return mg.Routine(
        lambda schedule: mg.Classifier(nn.Linear(2, 2), mg.SGD(), schedule),
        schedule=lambda steps: mg.Constant(0.5),
        batch_size=None,
        steps=steps,
    )


def _line(n: int, seed: int) -> dict[str, torch.Tensor]:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "y": (x[:, 0] > 0).long()}


def test_accuracy_and_losses_by_hand_in_any_chunks() -> None:
    learner, state = _routine().train(_line(50, 0), seed=1)
    test = _line(33, 2)
    with torch.no_grad(), learner.evaluating(state):
        logits = learner(test["x"])
    assert accuracy(learner, state, test, chunk=7) == (logits.argmax(1) == test["y"]).float().mean().item()
    expected = nn.functional.cross_entropy(logits, test["y"], reduction="none")
    torch.testing.assert_close(example_losses_of(learner, state, test, chunk=5), expected)


def test_retraining_is_the_mean_over_its_seeds_and_counts_its_runs() -> None:
    train, test = _line(40, 3), _line(500, 4)
    judge = Retraining(_routine(20), seeds=[1, 2, 3], unit=20)
    mean = judge.accuracies(train, None, {"t": test})["t"]
    singles = [accuracy(*_routine().train(train, seed), test) for seed in (1, 2, 3)]
    assert abs(mean - sum(singles) / 3) < 1e-7
    assert judge.runs == 3


def test_weight_zero_is_absence_under_kept_normalisation() -> None:
    """Full batch, mean over the weight sum: a zero weight and a missing row give the same model."""
    train = _line(30, 5)
    mask = torch.arange(30) % 3 > 0
    routine = mg.Routine(
        lambda schedule: mg.Classifier(nn.Linear(2, 2), mg.SGD(), schedule, normalize="kept"),
        schedule=lambda steps: mg.Constant(0.5),
        steps=20,
    )
    _, weighted = routine.train(train, 0, mask.float())
    _, without = routine.train(take(train, mask), 0)
    torch.testing.assert_close(weighted.params, without.params)


def test_the_filter_drops_flipped_labels() -> None:
    train, validation = _line(200, 6), _line(200, 7)
    wrong = torch.arange(200) < 60
    train["y"] = torch.where(wrong, 1 - train["y"], train["y"])
    judge = Retraining(_routine(100), seeds=[0])
    kept, dropped = filter_by_loss(judge, train, validation, [0.1, 0.3, 0.5], seed=9)
    assert int((~kept).sum()) == round(dropped * 200)
    assert wrong[~kept].float().mean() > 0.8


def test_join_appends_rows() -> None:
    a, b = _line(3, 0), _line(2, 1)
    assert torch.equal(join(a, b)["x"], torch.cat([a["x"], b["x"]]))
