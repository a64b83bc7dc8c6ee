"""Images as vectors by a vision transformer: [n, channels, H, W] to [n, outputs]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metagradient.models.towers.transformer import blocks


class VisionTransformer(nn.Module):
    """A ViT over square patches, with learned positions; its states are averaged over the patches.

    Args:
        input_shape: (channels, H, W); `patch` divides H and W.
        outputs: width of the result.
        patch: pixels of a patch's side.
        width: of the states; a multiple of heads.
        layers: number of blocks.
        heads: of the attention.

    Raises:
        ValueError: `heads` does not divide `width`, or `patch` the image.

    Source: arXiv 2010.11929; mean in place of a class token: arXiv 2205.01580.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int = 64,
        patch: int = 4,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        channels, height, across = input_shape
        if patch < 1 or height % patch or across % patch:
            raise ValueError(
                f"patch={patch} must divide the images' {height}x{across} pixels: set model.image_options.patch=4"
            )
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.positions = nn.Parameter(0.02 * torch.randn(height // patch * (across // patch), width))
        self.blocks = blocks(layers, width, heads, "model.heads")
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs, bias=False)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width))

    def forward(self, images: Tensor) -> Tensor:
        """[n, outputs] of images [n, channels, H, W]."""
        p = self.patch
        # [n, C, H / p, p, W / p, p] -> [n, H / p, W / p, C, p, p] -> [n, patches, C p p]
        patches = images.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = self.embed(patches) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
