"""Two encoders into one space: the shape of CLIP."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TwoTower(nn.Module):
    """Two encoders into one space of unit vectors, and a learnable temperature for their similarities.

    `left` and `right` map their own inputs to [n, width] with one common width. Similarities are
    `exp(log_scale) <left_i, right_j>`; exp(log_scale) starts at 1 / temperature, and the logarithm keeps it
    positive. With a `bias`, a learnable number that is added to every similarity and starts there, `forward` gives it as
    a fourth: SigLIP's loss wants one (-10, with temperature 0.1).

    Raises:
        ValueError: a temperature that is not positive.

    Source: CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343.
    """

    def __init__(self, left: nn.Module, right: nn.Module, temperature: float = 0.07, bias: float | None = None) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(
                f"model.temperature must be positive; got {temperature}; give for example temperature=0.07"
            )
        self.left = left
        self.right = right
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        """The unit embeddings [n, width] of both sides, the scale [] of their similarities and, where there is one, the bias []."""
        a, b = F.normalize(self.left(left), dim=-1), F.normalize(self.right(right), dim=-1)
        return (a, b, self.log_scale.exp()) if self.bias is None else (a, b, self.log_scale.exp(), self.bias)
