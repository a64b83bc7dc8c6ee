"""`Classifier`: cross entropy of logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metagradient.errors import UserError
from metagradient.learners.supervised import (
    Supervised,
    described,
    readable,
    refuse_infinite,
    rows_where,
    say_once,
    targets_of,
)
from metagradient.training.batches import Batch, Batches, Fields
from metagradient.training.updates import Optimizer, Schedule

_READS = (
    "a Classifier reads class numbers [n] or [n, 1], whole and from 0, or shares of the classes [n, C] that sum to 1"
)


class Classifier(Supervised):
    """Cross entropy (in nats) of a model's logits: fields `x` and `y` of the batch.

    model: [B, ...] -> logits [B, C].

    y: class numbers [B] or [B, 1] of any type (whole floats too), or one-hot and soft labels [B, C], C > 1, whose rows sum
    to 1. Strings and numbers with gaps become class numbers by `metagradient.data.class_numbers`.

    Args:
        label_smoothing: a in the target (1 - a) onehot(y) + a / C of the training loss, as in
            `torch.nn.functional.cross_entropy`; in evaluation mode (objectives, validation) labels are taken as they are.
        ignore_index: a class number that stands for no label: the loss of such a row is 0, and a mean over examples leaves it
            out (in a training step it counts as a row of the batch, as one of weight 0 does).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        learning_rate: float | Schedule | None = None,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, optimizer, learning_rate, **settings)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing lies in [0, 1), not {label_smoothing}: set learner.label_smoothing=0.1")
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index
        self._outputs: int | None = None

    def logits(self, batch: Batch) -> Tensor:
        """[B, C]: the loss is their cross entropy."""
        return self.outputs(batch.x)

    def has_label(self, examples: Fields | Batch) -> Tensor | None:
        """[n] bool, the examples that have a label; None: all of them."""
        return None if self.ignore_index is None else targets_of(examples).flatten() != self.ignore_index

    def losses(self, batch: Batch) -> Tensor:
        # Class by class: a softmax along rows of B numbers, and products that fold when many cotangents are pulled.
        log_probabilities = F.log_softmax(self.outputs(batch.x).T, dim=0)
        if self._outputs is None:
            self._outputs = len(log_probabilities)
        self.check_read(batch)
        try:
            losses = self._cross_entropy(log_probabilities, batch.y)
        except (RuntimeError, IndexError):
            if readable(batch.y):
                self.check_values(batch.y.detach(), batch.index)
            raise
        if self.training and self.label_smoothing:
            losses = (1 - self.label_smoothing) * losses - self.label_smoothing * log_probabilities.mean(dim=0)
        there = self.has_label(batch)
        return losses if there is None else torch.where(there, losses, 0)

    def _cross_entropy(self, log_probabilities: Tensor, y: Tensor) -> Tensor:
        """[B], of log probabilities [C, B]."""
        if y.dim() == 2 and y.shape[1] > 1:
            return -(y.T * log_probabilities).sum(dim=0)
        classes = y.reshape(-1).long()
        if self.ignore_index is not None:
            classes = torch.where(classes == self.ignore_index, 0, classes)
        return -log_probabilities.gather(0, classes.unsqueeze(0)).squeeze(0)

    def probe(self, batches: Batches) -> None:
        try:
            super().probe(batches)
        except (RuntimeError, IndexError, UserError):
            self._refuse_large(batches.examples.get("y"))
            raise
        self._refuse_large(batches.examples.get("y"))

    def _refuse_large(self, y: Tensor | None) -> None:
        """Labels beyond the model's outputs, of which it has as many as its first forward pass gave."""
        if self._outputs is None or not isinstance(y, Tensor) or not len(y):
            return
        if y.dim() == 2 and y.shape[1] > 1:
            if y.shape[1] != self._outputs:
                raise UserError(f"{described(y)}, and the model has {self._outputs} outputs: give it {y.shape[1]}")
        elif (highest := max((int(c) for c in y.unique() if c != self.ignore_index), default=0)) >= self._outputs:
            raise UserError(
                f"labels go up to {highest}, but the model has {self._outputs} outputs, for classes 0 to {self._outputs - 1}: give "
                "it more, or number the classes without gaps (metagradient.data.class_numbers(y)[0])"
            )

    def check_targets(self, y: Tensor) -> None:
        if y.dim() not in (1, 2) or y.dtype.is_complex:
            raise UserError(f"{described(y)}: {_READS}")
        if isinstance(y, Tensor):
            self.check_values(y, torch.arange(len(y)))
            self._tell_ignored(y)

    def check_values(self, y: Tensor, rows: Tensor) -> None:
        refuse_infinite(y, rows)
        if y.dim() == 2 and y.shape[1] > 1:
            self._check_shares(y, rows)
        else:
            self._check_classes(y.flatten(), rows)
        self._refuse_large(y)

    def _tell_ignored(self, y: Tensor) -> None:
        if self.ignore_index is None or not len(y):
            return
        ignored = int((y == self.ignore_index).sum())
        if ignored == len(y):
            raise UserError(f"every label is {self.ignore_index}, which ignore_index leaves out: nothing is left")
        if ignored:
            say_once(f"{ignored} of {len(y)} rows have the label {self.ignore_index} and are ignored")

    def _check_shares(self, y: Tensor, rows: Tensor) -> None:
        if self.ignore_index is not None:
            raise UserError(f"{described(y)}, and ignore_index={self.ignore_index} is a class number: leave it out")
        negative, apart = (y < 0).any(1), (y.double().sum(1) - 1).abs() > 1e-3
        if bool(negative.any() or apart.any()):
            why = "sum to another number than 1" if bool(apart.any()) else "are negative"
            raise UserError(
                f"{described(y)}, and {rows_where(apart if bool(apart.any()) else negative, rows)} {why}: {_READS}; several labels at once "
                "are for mg.MultiLabel, numbers for mg.Regressor"
            )

    def _check_classes(self, y: Tensor, rows: Tensor) -> None:
        if y.is_floating_point() and bool((y % 1 != 0).any()):
            raise UserError(
                f"{described(y)} with fractions in {rows_where(y % 1 != 0, rows)}: {_READS}; numbers to be predicted are for mg.Regressor"
            )
        if self.ignore_index is not None:
            y = y[y != self.ignore_index]
        if len(y) and int(y.min()) < 0:
            low = int(y.min())
            raise UserError(
                f"labels must be class numbers from 0, and {int((y == low).sum())} are {low}: leave these rows out, or give "
                f"Classifier(ignore_index={low})"
            )
