"""TwoTower: unit embeddings, cosine similarities, a temperature that learns."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metagradient.models import TwoTower


def towers(temperature: float = 0.5) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(nn.Linear(6, 4), nn.Linear(3, 4), temperature)


def test_logits_are_cosines_over_the_temperature() -> None:
    model = towers()
    images, texts = torch.randn(5, 6), torch.randn(7, 3)
    left, right, scale = model(images, texts)
    torch.testing.assert_close(left.norm(dim=1), torch.ones(5))
    cosines = F.cosine_similarity(model.left(images)[:, None], model.right(texts)[None], dim=-1)
    torch.testing.assert_close(scale * left @ right.T, cosines / 0.5)


def test_the_length_of_a_feature_does_not_matter() -> None:
    model = towers()
    model.left.bias.data.zero_()
    x, t = torch.randn(5, 6), torch.randn(5, 3)
    torch.testing.assert_close(model(x, t)[0], model(10 * x, t)[0])


def test_the_temperature_gets_a_gradient() -> None:
    model = towers()
    left, right, scale = model(torch.randn(4, 6), torch.randn(4, 3))
    F.cross_entropy(scale * left @ right.T, torch.arange(4)).backward()
    assert model.log_scale.grad is not None
    assert model.log_scale.grad != 0


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be positive; got 0; .*temperature=0\.07"):
        towers(0)
