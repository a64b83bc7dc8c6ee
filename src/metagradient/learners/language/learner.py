"""`LanguageModel`: next-token cross entropy."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.learners.language.cross_entropy import linear_cross_entropy
from metagradient.learners.language.heads import Parts, logits_of, parts_of
from metagradient.learners.learner import ModelLearner
from metagradient.learners.supervised import readable, rows_where, say_once
from metagradient.training.batches import Batch, Batches, Fields
from metagradient.training.random import whole_batch
from metagradient.training.sources import in_order
from metagradient.training.tokens import IGNORED, WEIGHTS, target_counts, target_mask
from metagradient.training.updates import Optimizer, Schedule

_READ = 256  # rows of a data set that are looked at together
_TOKENS = 2**14  # of rows that are run together where nothing is trained
_TOKENS_WITH_GRAPH = 2**11  # the same where activations are kept: 2 MB a token in a model of 135M parameters


class LanguageModel(ModelLearner):
    """Next-token cross entropy of each sequence (nats): l_i = (1 / L_i) sum_j u_ij l_ij over its L_i target tokens.

    Fields (see `training.tokens`): `tokens` [B, L], and where there are `mask` [B, L] (rows are padded at their end) and `labels`
    [B, L] (only tokens whose label is not `ignore_index` are targets). What is no target, padding above all, changes no loss,
    no score and no norm. u are the weights of `TokenWeights`, else 1. A row without a target has loss 0, and a mean
    over examples leaves it out.

    model: tokens [B, L] -> logits [B, L, V], or an object that holds them as `logits`: models of transformers, with adapters of
    peft or without, are taken as they are. It must be causal: what follows a token, padding too, must not change its logits.

    Of large vocabularies the logits are never held (`linear_cross_entropy`), where the model can be divided.

    Args:
        reduction: "mean" over the target tokens, or their "sum" (L_i = 1 above).
        ignore_index: the label of tokens that are no targets.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule | None = None,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        ignore_index: int = IGNORED,
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, learning_rate, **settings)
        if reduction not in ("mean", "sum"):
            raise UserError(f"reduction is mean or sum, not {reduction!r}")
        self.reduction, self.ignore_index = reduction, ignore_index
        self._parts: Parts | None = None

    def logits(self, batch: Batch) -> Tensor:
        """[B, L - 1, V]: of the tokens from the second on."""
        return logits_of(self.model(batch.tokens[:, :-1]))

    def next_logits(self, batch: Batch) -> Tensor:
        """[B, V]: of the token that follows the last of each row."""
        batch = _without_padding(batch)
        parts, tokens = self._parts, batch.tokens
        rows = torch.arange(len(tokens), device=tokens.device)
        last = batch["mask"].sum(1) - 1 if "mask" in batch.fields else rows * 0 + tokens.shape[1] - 1
        if parts is None or parts.watched:
            return logits_of(self.model(tokens))[rows, last]
        return F.linear(parts.states(tokens)[rows, last], parts.head.weight)

    def has_label(self, examples: Fields | Batch) -> Tensor | None:
        """[n] bool, the examples with a target; None: all of them."""
        fields = examples.fields if isinstance(examples, Batch) else examples
        if "labels" not in fields and "mask" not in fields:
            return None
        if all(isinstance(x, Tensor) for x in fields.values()):
            return target_counts(fields, self.ignore_index) > 0
        return torch.cat([target_counts(part, self.ignore_index) > 0 for _, part in in_order(fields, _READ)])

    def rows_at_once(self, examples: Fields) -> int:
        """So many that they have some ten thousand tokens."""
        return max(1, _TOKENS // examples["tokens"].shape[1])

    def rows_with_graph(self, examples: Fields) -> int:
        """So many, where the derivative of their losses is taken, that they have two thousand tokens."""
        return max(1, _TOKENS_WITH_GRAPH // examples["tokens"].shape[1])

    def position_weights(self, batch: Batch) -> Tensor:
        """[B, L - 1]: the factors of the tokens' losses in the example's, 0 where there is no target."""
        there = target_mask(batch.fields, self.ignore_index)[:, 1:]
        weights = there.to(next(self.model.parameters()).dtype)
        if self.reduction == "mean":
            weights = weights / there.sum(1, keepdim=True).clamp(min=1)
        return weights * batch[WEIGHTS][:, 1:] if WEIGHTS in batch.fields else weights

    def losses(self, batch: Batch) -> Tensor:
        batch = _without_padding(batch)
        weights = self.position_weights(batch)
        parts, tokens = self._parts, batch.tokens
        if parts is None or parts.watched or not readable(tokens):
            logits = self.logits(batch)
            return (F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none") * weights).sum(dim=1)
        rows, positions = target_mask(batch.fields, self.ignore_index)[:, 1:].nonzero(as_tuple=True)
        places = rows * (tokens.shape[1] - 1) + positions
        states = parts.states(tokens[:, :-1]).flatten(0, 1).index_select(0, places)
        losses = linear_cross_entropy(states, parts.head.weight, tokens[rows, positions + 1])
        weighted = losses * weights.flatten().index_select(0, places)
        return weights.new_zeros(len(batch)).index_add(0, rows, weighted)

    def token_losses(self, batch: Batch) -> Tensor:
        """[B, L]: the loss of each token, 0 of those that are no targets."""
        there = target_mask(batch.fields, self.ignore_index)
        logits = self.logits(batch)
        losses = F.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], reduction="none")
        return F.pad(torch.where(there[:, 1:], losses, 0), (1, 0))

    def probe(self, batches: Batches) -> None:
        """As ever, after a look at all sequences.

        Raises:
            UserError: fields that are none of this learner's, named with what to do.
        """
        if self._needs is None:
            self._check_fields(batches.examples)
            self._parts = self._divided(batches)
        super().probe(batches)

    def _divided(self, batches: Batches) -> Parts | None:
        tokens = batches(0).tokens[:1, :8]
        if tokens.shape[-1] < 2:
            return None
        device = next(self.model.parameters()).device
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            return parts_of(self.model, tokens.to(device))
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _check_fields(self, examples: Fields) -> None:
        if "tokens" not in examples:
            raise UserError(
                f"a LanguageModel reads the field tokens (and mask, labels), and the examples have {', '.join(sorted(examples))}: name "
                "them so, or subclass Learner and read your own in losses(batch)"
            )
        empty = odd = wrong = 0
        told: Tensor | None = None
        total = 0
        for rows, part in in_order(examples, _READ):
            tokens = part["tokens"]
            if tokens.dim() != 2 or tokens.is_floating_point():
                raise UserError(
                    f"field tokens is {str(tokens.dtype).removeprefix('torch.')} {list(tokens.shape)}, and a LanguageModel reads token "
                    "numbers [n, L]"
                )
            total += len(rows)
            none = target_counts(part, self.ignore_index) == 0
            empty += int(none.sum())
            here = rows[none.cpu()]
            told = here if told is None else torch.cat([told, here])[:9]
            if "mask" in part:
                mask = part["mask"].bool()
                odd += int((mask[:, 1:] & ~mask[:, :-1]).any(1).sum())
            if "labels" in part:
                there = target_mask(part, self.ignore_index)
                wrong += int((there & (part["labels"] != tokens)).any(1).sum())
        if odd:
            raise UserError(f"{odd} rows have padding before or between their tokens: pad at the end, mg.Padding(...)")
        if wrong:
            raise UserError(
                f"{wrong} rows have labels that are other numbers than their tokens: label j is token j, or {self.ignore_index} where it "
                "is not to be predicted (they are not shifted)"
            )
        if empty == total:
            raise UserError(f"no row has a token to predict: every label is {self.ignore_index} or padding")
        if empty and told is not None:
            named = rows_where(torch.ones(len(told), dtype=torch.bool), told)
            say_once(f"{empty} of {total} rows have no token to predict and contribute nothing: {named}")


def _without_padding(batch: Batch) -> Batch:
    """The batch cut to its longest row, where rows can be looked at; a part of a batch to the longest row of the whole, so that
    dropout draws the same."""
    mask = batch.fields.get("mask")
    if mask is None or not readable(mask) or mask.dim() != 2:
        return batch
    mask = (whole_batch() or batch.fields)["mask"]
    longest = max(2, int(mask.any(0).sum()))
    width = mask.shape[1]
    if longest >= width:
        return batch
    per_token = ("tokens", "mask", "labels", WEIGHTS)
    return batch.replace(**{name: batch[name][:, :longest] for name in per_token if name in batch.fields})
