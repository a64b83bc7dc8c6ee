"""Labels and inputs as people bring them: read, or refused in one line that says what to give."""

import pytest
import torch
from torch import Tensor, nn

import metagradient as mg
from metagradient.errors import UserError

N = 8
X, Y = torch.randn(N, 4), torch.arange(N) % 3


def train(x: Tensor, y: Tensor, **names: Tensor) -> Tensor:
    torch.manual_seed(0)
    learner = mg.Classifier(nn.Linear(4, 3))
    examples = names or {"x": x, "y": y}
    return mg.train(learner, mg.Batches(examples, mg.epoch_plan(N, 4, 2, seed=0))).params


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_small_integers_are_labels(dtype: torch.dtype) -> None:
    assert torch.equal(train(X, Y.to(dtype)), train(X, Y))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y.float(), r"not float32 \[8\]: give y\.flatten\(\)\.long\(\)"),
        (X, Y[:, None], r"not int64 \[8, 1\]: give y\.flatten"),
        (X, nn.functional.one_hot(Y), r"not int64 \[8, 3\]: give y\.argmax\(1\)"),
        (X, Y - 1, "3 are -1: leave these rows out"),
        (X, torch.where(Y == 0, -100, Y), "3 are -100"),
        (X, torch.tensor([0, 1, 5, 0, 1, 5, 0, 1]), r"labels go up to 5, but the model has 3 outputs.*return_inverse"),
        ((255 * X.sigmoid()).byte(), Y, r"bytes \(uint8\).*x\.float\(\) / 255"),
    ],
)
def test_what_is_no_label_is_told(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(x, y)


def test_other_fields_are_named() -> None:
    with pytest.raises(UserError, match="the examples have images, labels"):
        train(X, Y, images=X, labels=Y)


def test_an_objective_over_no_rows_says_so() -> None:
    learner = mg.Classifier(nn.Linear(4, 3))
    with pytest.raises(UserError, match="a mean over no examples"):
        mg.metagradient(
            learner,
            mg.Batches({"x": X, "y": Y}, mg.epoch_plan(N, 4, 2, seed=0)),
            mg.DataWeights(torch.ones(N)),
            mg.mean_loss({"x": X[:0], "y": Y[:0]}),
        )
