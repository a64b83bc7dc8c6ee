"""Sequences of tokens as fields of a batch, and which of their tokens are to be predicted.

`tokens` int64 [B, L]; `mask` bool [B, L], which tokens are a row's own (rows are padded at their end; without it all are);
`labels` int64 [B, L], the tokens themselves where they are targets and an ignored number elsewhere (without it every token
is one). Token j is predicted from those before it, so the first is never a target.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that is not to be predicted."""

WEIGHTS = "token_weights"
"""The field of the weights [B, L] of the tokens' losses."""


def target_mask(fields: Mapping[str, Tensor], ignore_index: int = IGNORED) -> Tensor:
    """bool [B, L]: which tokens are to be predicted."""
    tokens = fields["tokens"]
    there = fields["labels"] != ignore_index if "labels" in fields else torch.ones_like(tokens, dtype=torch.bool)
    if "mask" in fields:
        there = there & fields["mask"].bool()
    first = torch.arange(tokens.shape[-1], device=there.device) > 0
    return there & first


def target_counts(fields: Mapping[str, Tensor], ignore_index: int = IGNORED) -> Tensor:
    """int64 [B]: how many tokens of each row are to be predicted."""
    return target_mask(fields, ignore_index).sum(-1)
