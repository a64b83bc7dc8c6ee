"""ResNet-9: each switch changes the graph as it claims, and nothing else."""

from typing import Any

import pytest
import torch
from torch import nn

from metagradient.models import ResNet9, resnet9


def small(**switches: Any) -> ResNet9:
    torch.manual_seed(0)
    return ResNet9(width=4, **switches)


def kinds(model: nn.Module) -> list[type[nn.Module]]:
    layers = (nn.Conv2d, nn.BatchNorm2d, nn.GELU, nn.ReLU, nn.AvgPool2d, nn.MaxPool2d, nn.Linear)
    return [type(m) for m in model.modules() if isinstance(m, layers)]


def test_eight_convolutions_and_one_linear_map_make_nine() -> None:
    convolutions = [m for m in ResNet9().modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 128, 128, 256, 512, 512, 512]
    assert all(c.bias is None for c in convolutions)
    # 3x3 kernels, scale and shift of every normalisation, 512 x 10 output weights
    kernels = 9 * (3 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512)
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert sum(p.numel() for p in ResNet9().parameters()) == kernels + norms + 5120


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_reads_images_from_digits_to_cifar(shape: tuple[int, ...]) -> None:
    logits = resnet9(shape, classes=7, width=8)(torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("switch", "gone", "come"),
    [
        ({"pooling": "max"}, nn.AvgPool2d, nn.MaxPool2d),
        ({"activation": "relu"}, nn.GELU, nn.ReLU),
    ],
)
def test_pooling_and_activation_swap_one_kind_of_layer(
    switch: dict[str, str], gone: type[nn.Module], come: type[nn.Module]
) -> None:
    assert kinds(small(**switch)) == [come if kind is gone else kind for kind in kinds(small())]


def test_norm_placement_swaps_norm_and_activation_in_every_stage() -> None:
    before, after = kinds(small(norm="before")), kinds(small(norm="after"))
    swap = {nn.GELU: nn.BatchNorm2d, nn.BatchNorm2d: nn.GELU}
    assert before[:3] == [nn.Conv2d, nn.BatchNorm2d, nn.GELU]
    assert after == [swap.get(kind, kind) for kind in before]


def test_logit_scale_multiplies_the_logits() -> None:
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(small(logit_scale=0.1)(x), 0.1 * small(logit_scale=1.0)(x))


def test_the_pooling_switch_also_decides_the_last_pooling() -> None:
    """A 16x16 image leaves 2x2 features: their mean with avg, their maximum with max."""
    for pooling, reduce in (("avg", torch.mean), ("max", torch.amax)):
        model = small(pooling=pooling).eval()
        x = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(model(x), model.head(reduce(model.stages(x), (2, 3))))


@pytest.mark.parametrize("switch", ["pooling", "activation", "norm"])
def test_an_unknown_choice_is_refused_with_the_override_that_works(switch: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.{switch} must be one of .*got 'tanh'; .*model\.{switch}="):
        small(**{switch: "tanh"})


def test_a_too_small_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8x8 pixels; got 4x8"):
        small()(torch.rand(1, 3, 4, 8))
