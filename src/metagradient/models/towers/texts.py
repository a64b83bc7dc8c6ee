"""Texts as vectors: token numbers [n, length], 0 behind a text's end, to [n, outputs]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metagradient.models.towers.transformer import blocks


class BagOfWords(nn.Module):
    """The mean embedding of a text's tokens, and one hidden layer: their order does not matter.

    Args:
        vocab: number of tokens, the padding 0 included.
        outputs: width of the result.
        width: of a token's embedding.
        hidden: of the layer in between.
    """

    def __init__(self, vocab: int, outputs: int = 64, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, outputs] of tokens [n, length]."""
        return self.head(_mean(self.tokens(tokens), tokens != 0))


class TextTransformer(nn.Module):
    """A transformer over a text's tokens, in both directions; its states are averaged over the tokens that are there.

    Args:
        vocab: number of tokens, the padding 0 included.
        outputs: width of the result.
        length: tokens of the longest text.
        width: of the states; a multiple of heads.
        layers: number of blocks.
        heads: of the attention.

    Raises:
        ValueError: `heads` does not divide `width`, or a text is longer than `length`.
    """

    def __init__(
        self, vocab: int, outputs: int = 64, length: int = 32, width: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.length = length
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = blocks(layers, width, heads, "model.text_heads")
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, outputs] of tokens [n, length]."""
        if tokens.shape[1] > self.length:
            raise ValueError(f"this tower reads at most {self.length} tokens; got {tokens.shape[1]}")
        said = tokens != 0
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, said)
        return self.head(_mean(self.norm(x), said))


def _mean(x: Tensor, there: Tensor) -> Tensor:
    """[n, width]: the mean over the tokens that are there; of an empty text 0."""
    weight = there.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
