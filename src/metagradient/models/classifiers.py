"""The two smallest classifiers: a linear map and a multilayer perceptron over flattened inputs."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from metagradient.models.options import ACTIVATIONS, Scale, pick
from metagradient.models.transposed import TransposedLinear


def linear(input_shape: Sequence[int], classes: int, zero_init: bool = False) -> nn.Sequential:
    """Softmax regression: `logits = W x + b` on the flattened input.

    Maps [n, *input_shape] to [n, classes]. `zero_init` starts from W = 0, b = 0: the loss is convex, so the
    start matters little, and a zero start takes one source of randomness out of a comparison.
    """
    layer = TransposedLinear(math.prod(input_shape), classes)
    if zero_init:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


def mlp(
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (128,),
    activation: str = "gelu",
    logit_scale: float = 1.0,
) -> nn.Sequential:
    """A multilayer perceptron on the flattened input, one activation after every hidden layer.

    Maps [n, *input_shape] to [n, classes]; the logits are multiplied by `logit_scale`. Activations: gelu,
    relu, sigmoid, tanh; ReLU's kinks make training less smooth in the data, so GELU is the default.

    Raises:
        ValueError: an unknown activation.
    """
    act = pick("activation", activation, ACTIVATIONS)
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), act()]
    layers.append(TransposedLinear(widths[-1], classes))
    if logit_scale != 1.0:
        layers.append(Scale(logit_scale))
    return nn.Sequential(*layers)
