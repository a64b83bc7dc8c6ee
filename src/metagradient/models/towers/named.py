"""Two towers by name and by the data's sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from metagradient.models.classifiers import mlp
from metagradient.models.options import pick
from metagradient.models.resnet import resnet9
from metagradient.models.towers.images import VisionTransformer
from metagradient.models.towers.texts import BagOfWords, TextTransformer
from metagradient.models.two_tower import TwoTower


def image_text_model(
    input_shape: Sequence[int],
    vocab: int,
    length: int,
    image: str = "resnet9",
    text: str = "bag_of_words",
    outputs: int = 64,
    image_options: Mapping[str, Any] | None = None,
    text_options: Mapping[str, Any] | None = None,
    temperature: float = 0.07,
    bias: float | None = None,
) -> TwoTower:
    """An image tower and a text tower.

    Args:
        input_shape: (channels, H, W) of the images.
        vocab: number of tokens, the padding 0 included.
        length: tokens of the longest text.
        image: resnet9, vit or mlp.
        text: bag_of_words or transformer.
        outputs: the common width.
        image_options: further arguments of the image tower: {"width": 8}, {"patch": 4, "layers": 4}.
        text_options: of the text tower: {"hidden": 128}.
        temperature: of `TwoTower`, like bias.
        bias: see temperature.

    Raises:
        ValueError: an unknown tower, or options that it does not take.
    """
    left = _built("image", pick("image", image, _IMAGES), image_options, input_shape, outputs)
    right = _built("text", pick("text", text, _TEXTS), text_options, vocab, outputs, length)
    return TwoTower(left, right, temperature, bias)


def _built(name: str, tower: Callable[..., nn.Module], options: Mapping[str, Any] | None, *sizes: Any) -> nn.Module:
    try:
        return tower(*sizes, **(options or {}))
    except TypeError as error:
        raise ValueError(f"model.{name}_options={dict(options or {})}: {error}") from error


_IMAGES: dict[str, Callable[..., nn.Module]] = {
    "resnet9": lambda shape, outputs, **own: resnet9(shape, outputs, **{"width": 8, "logit_scale": 1.0, **own}),
    "vit": VisionTransformer,
    "mlp": mlp,
}
_TEXTS: dict[str, Callable[..., nn.Module]] = {
    "bag_of_words": lambda vocab, outputs, length, **own: BagOfWords(vocab, outputs, **own),
    "transformer": TextTransformer,
}
