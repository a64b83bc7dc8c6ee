"""Linear and MLP classifiers: they compute what their docstrings say."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from metagradient.models import linear, mlp


def test_linear_is_a_matrix_product_plus_bias() -> None:
    model = linear((2, 3), classes=4)
    x = torch.randn(5, 2, 3)
    _, layer = model
    torch.testing.assert_close(model(x), x.reshape(5, 6) @ layer.weight.T + layer.bias)


def test_zero_init_predicts_every_class_alike() -> None:
    torch.testing.assert_close(linear((1, 8, 8), 10, zero_init=True)(torch.randn(3, 1, 8, 8)), torch.zeros(3, 10))


@pytest.mark.parametrize(
    ("name", "function"),
    [("gelu", F.gelu), ("relu", F.relu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh)],
)
def test_mlp_is_its_formula(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = mlp((1, 2, 3), classes=4, hidden=[7, 5], activation=name, logit_scale=0.5)
    (w1, b1), (w2, b2), (w3, b3) = zip(*[iter(model.parameters())] * 2, strict=True)
    x = torch.randn(6, 1, 2, 3)
    h = function(function(x.flatten(1) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(model(x), 0.5 * (h @ w3.T + b3))


def test_mlp_without_hidden_layers_is_linear() -> None:
    torch.manual_seed(0)
    shallow = mlp((3,), 2, hidden=())
    torch.manual_seed(0)
    assert torch.equal(shallow(torch.ones(1, 3)), linear((3,), 2)(torch.ones(1, 3)))


def test_unknown_activation_is_refused_with_the_override_that_works() -> None:
    with pytest.raises(ValueError, match=r"must be one of gelu, relu, .* got 'swish'; .* model\.activation=gelu"):
        mlp((3,), 2, activation="swish")
