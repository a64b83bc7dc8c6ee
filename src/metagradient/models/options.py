"""Named options of a model, refused with the override that mends them."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class Scale(nn.Module):
    """Multiply by a constant.

    Scaled down, the logits of a convolutional net make its training smoother in the data (arXiv 2503.13751).
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """`factor * x`, of x's shape."""
        return self.factor * x

    def extra_repr(self) -> str:
        """The factor, for `print(model)`."""
        return str(self.factor)


def pick(option: str, value: str, allowed: Mapping[str, T]) -> T:
    """The entry of `allowed` that `model.<option>=value` names.

    Raises:
        ValueError: not one of the allowed values, which are named.
    """
    if value not in allowed:
        names = ", ".join(allowed)
        fix = f"model.{option}={next(iter(allowed))}"
        raise ValueError(f"model.{option} must be one of {names}; got {value!r}; set for example {fix}")
    return allowed[value]
