"""Two encoders into one space: the shape of CLIP."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TwoTower(nn.Module):
    """Two encoders into one space of unit vectors, and a learnable temperature for their similarities.

    `left` and `right` map their own inputs to [n, width] with one common width. Similarities are
    `exp(log_scale) <left_i, right_j>`; exp(log_scale) starts at 1 / temperature, and the logarithm keeps it
    positive.

    Raises:
        ValueError: a temperature that is not positive.

    Source: CLIP, arXiv 2103.00020.
    """

    def __init__(self, left: nn.Module, right: nn.Module, temperature: float = 0.07) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(
                f"model.temperature must be positive; got {temperature}; set for example model.temperature=0.07"
            )
        self.left = left
        self.right = right
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The unit embeddings [n, width] of both sides, and the scale [] of their similarities."""
        return F.normalize(self.left(left), dim=-1), F.normalize(self.right(right), dim=-1), self.log_scale.exp()
