"""A language model in two parts: the states of its positions, and the linear map from them to the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 4096
"""Vocabularies from this size on are worth a loss without logits."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A model whose logits are `states(tokens) @ head.weight.T`.

    Attributes:
        states: tokens [B, L] -> what the head reads, [B, L, D].
        head: without a bias.
    """

    states: Callable[[Tensor], Tensor]
    head: nn.Linear

    @property
    def watched(self) -> bool:
        """Whether somebody waits for calls of the head (a hook), which must then be called as a module."""
        return bool(self.head._forward_hooks or self.head._forward_pre_hooks)


def parts_of(model: nn.Module, tokens: Tensor) -> Parts | None:
    """The two parts of a model of a large vocabulary; None where there are none, or where together they give other logits.

    Models of transformers (also with adapters of peft) are divided, and any that has methods or modules `states` and `head`.

    Args:
        model: tokens [B, L] -> logits [B, L, V], or an object that holds them as `logits`.
        tokens: a few to compare by.
    """
    found = _of_transformers(model) if hasattr(model, "get_output_embeddings") else _of_own(model)
    if found is None or type(found.head) is not nn.Linear or found.head.bias is not None:
        return None
    if found.head.out_features < LARGE:
        return None
    with torch.no_grad():
        whole, divided = logits_of(model(tokens)), found.head(found.states(tokens))
    near = 1e-8 if whole.dtype == torch.float64 else 1e-4
    return found if torch.allclose(whole, divided, rtol=near, atol=near) else None


def logits_of(output: Any) -> Tensor:
    """What a model gave: logits, or an object that holds them."""
    return output if isinstance(output, Tensor) else output.logits


def _of_own(model: Any) -> Parts | None:
    states, head = getattr(model, "states", None), getattr(model, "head", None)
    return Parts(states, head) if callable(states) and isinstance(head, nn.Linear) else None


def _of_transformers(model: Any) -> Parts | None:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body, head = getattr(inner, getattr(inner, "base_model_prefix", "") or "_", None), inner.get_output_embeddings()
    if body is None or body is inner or not isinstance(head, nn.Linear):
        return None
    return Parts(_Body(body), head)


@dataclass(frozen=True, eq=False)
class _Body:
    """A model of transformers without its head, as a function that can be sent to other processes."""

    module: nn.Module

    def __call__(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.module(input_ids=tokens, use_cache=False).last_hidden_state
        return found
