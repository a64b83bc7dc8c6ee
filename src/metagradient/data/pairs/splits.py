"""Pairs of an image and a text as the experiments see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from metagradient.data.origins import Origin
from metagradient.data.pairs.texts import TextEncoder
from metagradient.data.splits import Table


@dataclass(frozen=True)
class PairSplits:
    """A pool of pairs to choose from and to train on, and validation and test pairs that the model is for.

    Attributes:
        name: of the data set.
        train: the pool, {"x": float32 [n, C, H, W] in [0, 1]; "y": int64 [n, length], the text's tokens, 0 behind its end;
            "pair": int64 [n], equal where two pairs are the same and no negatives of each other}. validation and test likewise.
        encoder: texts -> tokens, for prompts.
        captions: by split, the texts in words, [n].
        sources: by split, where each pair is from: a folder, an artist's style; "" where that is not known.
        concepts: by split, what each image shows, by one name in all sources; "" where that is not known.
        target: the source of validation and test pairs, of which the pool has none; "" where all are of the same sources.
        oracle: bool [n], the pairs of the pool that whoever made the data would choose; None where that is not known.
        source: the user's own file or folder, as it was given; empty for data of other origin.
        origins: by split, where in the source its pairs stand; empty where there is no source.
    """

    name: str
    train: Table
    validation: Table
    test: Table
    encoder: TextEncoder
    captions: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, tuple[str, ...]]
    concepts: Mapping[str, tuple[str, ...]]
    target: str = ""
    oracle: Tensor | None = None
    source: str = ""
    origins: Mapping[str, Origin] = field(default_factory=dict)

    kind: Literal["pairs"] = "pairs"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one image: (C, H, W)."""
        return tuple(self.train["x"].shape[1:])

    @property
    def vocab(self) -> int:
        """The number of tokens, the padding 0 included."""
        return self.encoder.vocab

    @property
    def length(self) -> int:
        """Tokens of the longest text."""
        return self.encoder.length
