"""Labels and inputs as people bring them: read as what they mean, or refused in one line that says what to give."""

import logging

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.attribution.gradients.targets import drawn, enumerated
from metagradient.errors import UserError
from metagradient.evaluation import accuracy, mean_cross_entropy
from metagradient.learners.supervised import say_once
from metagradient.training.sources import examples_of

N = 8
X, Y = torch.randn(N, 4), torch.arange(N) % 3
HOT = nn.functional.one_hot(Y)


def train(x: Tensor, y: Tensor, ignore_index: int | None = None, **names: Tensor) -> Tensor:
    torch.manual_seed(0)
    learner = mg.Classifier(nn.Linear(4, 3), ignore_index=ignore_index)
    examples = names or {"x": x, "y": y}
    return mg.train(learner, mg.Batches(examples, mg.epoch_plan(N, 4, 2, seed=0))).params


@pytest.mark.parametrize(
    "y", [Y.to(dtype) for dtype in (torch.uint8, torch.int8, torch.int32, torch.float32, torch.float16)] + [Y[:, None]]
)
def test_class_numbers_of_any_type_are_the_same_labels(y: Tensor) -> None:
    assert torch.equal(train(X, y), train(X, Y))


def test_truth_values_are_two_classes() -> None:
    assert torch.equal(train(X, Y > 0), train(X, (Y > 0).long()))


@pytest.mark.parametrize("hot", [HOT, HOT.float(), HOT.bool()])
def test_one_hot_labels_are_their_classes(hot: Tensor) -> None:
    torch.testing.assert_close(train(X, hot), train(X, Y), atol=1e-6, rtol=1e-6)


def test_soft_labels_have_the_cross_entropy_of_torch() -> None:
    shares, x = torch.rand(N, 3, dtype=torch.float64).softmax(1), X.double()
    learner = mg.Classifier(nn.Linear(4, 3).double(), label_smoothing=0.1)
    batch = mg.Batch(0, torch.arange(N), {"x": x, "y": shares})
    want = nn.functional.cross_entropy(learner(x), shares, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(learner.losses(batch), want)


def test_rows_that_are_ignored_are_in_no_loss_and_no_objective(caplog: pytest.LogCaptureFixture) -> None:
    """They weigh nothing: the run is that of weights 0, the objective that of the others alone."""
    y, there = torch.where(Y == 1, -100, Y), Y != 1
    torch.manual_seed(0)
    plain = mg.Classifier(nn.Linear(4, 3))
    batches = mg.Batches({"x": X, "y": Y}, mg.epoch_plan(N, 4, 2, seed=0))
    want = mg.train(plain, batches, (mg.DataWeights(there.float()),))
    say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        torch.testing.assert_close(train(X, y, ignore_index=-100), want.params)
    assert "3 of 8 rows have the label -100 and are ignored" in caplog.text
    learner = mg.Classifier(nn.Linear(4, 3), ignore_index=-100)
    rest = {"x": X[there], "y": Y[there]}
    assert torch.equal(mg.mean_loss({"x": X, "y": y})(learner), mg.mean_loss(rest)(learner))
    state = mg.initial_state(learner)
    for judge in (accuracy, mean_cross_entropy):
        assert judge(learner, state, {"x": X, "y": y}) == judge(learner, state, rest)


def test_rows_that_are_ignored_have_no_curvature() -> None:
    """Their loss is 0 whatever the model says, and so is its Gauss-Newton matrix; that of the others is as ever."""
    y = torch.where(Y == 1, -100, Y)
    batch = mg.Batch(0, torch.arange(N), {"x": X, "y": y})
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    others = Y != 1
    kept = mg.Batch(0, batch.index[:1].expand(int(others.sum())), {"x": X[others], "y": Y[others]})
    for target in (enumerated, drawn(3, seed=0)):
        found = target(mg.Classifier(model, ignore_index=-100), batch)
        assert not bool(found[:, ~others].any())
        torch.testing.assert_close(found[:, others], target(mg.Classifier(model), kept))


def test_bytes_are_divided_by_255_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    pixels = (255 * X.sigmoid()).byte()
    say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        assert torch.equal(train(pixels, Y), train(pixels.float() / 255, Y))
        train(pixels, Y)
    assert caplog.text.count("divided by 255") == 1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y + 0.5, r"field y is float32 \[8\] with fractions in rows 0, 1, 2, 3, 4, \.\.\.: .*mg\.Regressor"),
        (X, Y[:, None, None], r"field y is int64 \[8, 1, 1\]: a Classifier reads class numbers \[n\]"),
        (X, HOT + HOT.roll(1, 1) * (Y == 2)[:, None], r"rows 2, 5 sum to another number than 1.*mg\.MultiLabel"),
        (X, torch.where(Y == 1, torch.nan, Y.float()), r"not finite in rows 1, 4, 7"),
        (X, Y - 1, r"3 are -1: .*ignore_index=-1"),
        (X, torch.where(Y == 0, -100, Y), r"3 are -100: .*ignore_index=-100"),
        (X, torch.tensor([0, 1, 5, 0, 1, 5, 0, 1]), r"labels go up to 5, but the model has 3 outputs.*class_numbers"),
        (X, HOT[:, :2] + (Y == 2)[:, None] * HOT.new_tensor([1, 0]), r"\[8, 2\], and the model has 3 outputs"),
        (X, [str(int(y)) for y in Y], r"field y is a list.*class_numbers"),
    ],
)
def test_what_is_no_label_is_told(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(x, y)


@pytest.mark.parametrize(
    ("odd", "message"),
    [(5.0, "labels go up to 5"), (0.5, "with fractions in row 6"), (-1.0, "1 are -1"), (torch.nan, "finite in row 6")],
)
def test_labels_of_a_data_set_are_checked_as_they_are_read(odd: float, message: str) -> None:
    y = torch.where(torch.arange(N) == 6, odd, Y.float())
    rows = examples_of([{"x": x, "y": label} for x, label in zip(X, y, strict=True)])
    plan = torch.arange(N).view(4, 2)  # row 6 is not in the batch that is probed
    with pytest.raises(UserError, match=message):
        mg.train(mg.Classifier(nn.Linear(4, 3)), mg.Batches(rows, plan))


@pytest.mark.parametrize("odd", [5, -1])
def test_a_label_of_an_objective_that_the_model_has_not_is_told(odd: int) -> None:
    learner = mg.Classifier(nn.Linear(4, 3))
    batches = mg.Batches({"x": X, "y": Y}, mg.epoch_plan(N, 4, 2, seed=0))
    with pytest.raises(UserError, match=f"labels .*{odd}"):
        mg.metagradient(learner, batches, mg.DataWeights(torch.ones(N)), mg.mean_loss({"x": X, "y": Y * 0 + odd}))


def test_a_label_that_is_ignored_may_be_large() -> None:
    train(X, torch.where(Y == 0, 255, Y), ignore_index=255)


def test_nothing_but_ignored_rows_is_no_training_set() -> None:
    with pytest.raises(UserError, match="every label is 7"):
        train(X, torch.full((N,), 7), ignore_index=7)


def test_other_fields_are_named() -> None:
    with pytest.raises(UserError, match="the examples have images, labels"):
        train(X, Y, images=X, labels=Y)


def test_bytes_are_not_moved_by_small_steps() -> None:
    moved = mg.InputPerturbation(torch.zeros(N, 4), index=torch.arange(N))
    batches = mg.Batches({"x": (255 * X.sigmoid()).byte(), "y": Y}, mg.epoch_plan(N, 4, 2, seed=0))
    with pytest.raises(UserError, match=r"x is uint8.*x\.float\(\) / 255"):
        mg.train(mg.Classifier(nn.Linear(4, 3)), batches, (moved,))


def test_an_objective_over_no_rows_says_so() -> None:
    learner = mg.Classifier(nn.Linear(4, 3))
    with pytest.raises(UserError, match="a mean over no examples"):
        mg.metagradient(
            learner,
            mg.Batches({"x": X, "y": Y}, mg.epoch_plan(N, 4, 2, seed=0)),
            mg.DataWeights(torch.ones(N)),
            mg.mean_loss({"x": X[:0], "y": Y[:0]}),
        )
