"""`Supervised`: what learners of inputs `x` and targets `y` have in common, and how odd fields are told."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.learner import Learner, ModelLearner
from metagradient.training.batches import Batches, Fields
from metagradient.training.sources import take

log = logging.getLogger(__name__)

_NAMED = 5  # rows of a list


class Supervised(ModelLearner):
    """A model of inputs: fields `x` and `y` of the batch. Inputs in bytes (uint8) are divided by 255.

    Subclasses say what targets they read (`check_targets`) and what each example's loss is (`losses`).
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)

    def outputs(self, x: Tensor) -> Tensor:
        """What the model gives for inputs [B, ...]."""
        return self.model(x if x.dtype != torch.uint8 else x.to(next(self.model.parameters()).dtype) / 255)

    def check_targets(self, y: Tensor) -> None:
        """Refuse targets [n, ...] that the loss cannot read.

        Raises:
            UserError: names the field, its dtype and shape, and what is expected.
        """
        raise NotImplementedError

    def probe(self, batches: Batches) -> None:
        """As ever, after a look at all inputs and targets.

        Raises:
            UserError: fields that are none of this learner's, named with what to do.
        """
        if self._needs is None:
            self._check_fields(batches.examples)
        super().probe(batches)

    def _check_fields(self, examples: Fields) -> None:
        own = type(self).__name__
        if "x" not in examples or "y" not in examples:
            raise UserError(
                f"a {own} reads the fields x and y, and the examples have {', '.join(sorted(examples))}: name them so, or "
                "subclass Learner and read your own in losses(batch)"
            )
        for name in ("x", "y"):
            if not hasattr(examples[name], "is_floating_point"):
                raise UserError(
                    f"field {name} is a {type(examples[name]).__name__}, and a {own} reads tensors: give torch.as_tensor(...), or of "
                    "words metagradient.data.class_numbers(...)[0]"
                )
        if examples["x"].dtype == torch.uint8:
            say_once("inputs are bytes (uint8): divided by 255")
        self.check_targets(examples["y"])


def with_labels(learner: Learner, examples: Fields) -> Fields:
    """The examples that have a label; all of them but for those that a classifier's `ignore_index` leaves out."""
    has_label = getattr(learner, "has_label", None)
    there: Tensor | None = None if has_label is None else has_label(examples)
    return examples if there is None else take(examples, there)


def described(y: Any) -> str:
    """`field y is float32 [8, 2]`."""
    return f"field y is {str(y.dtype).removeprefix('torch.')} {list(y.shape)}"


def rows_where(odd: Tensor) -> str:
    """`rows 3, 7`: the first rows [n] that are odd."""
    rows = odd.nonzero().flatten().tolist()
    return f"row{'s'[: len(rows) > 1]} {', '.join(map(str, rows[:_NAMED]))}{', ...' if len(rows) > _NAMED else ''}"


def refuse_infinite(y: Tensor) -> None:
    """Refuse numbers that are NaN or infinite.

    Raises:
        UserError: names the rows.
    """
    if y.is_floating_point() and not bool(y.isfinite().all()):
        odd = ~y.isfinite().flatten(1).all(1) if y.dim() > 1 else ~y.isfinite()
        raise UserError(f"{described(y)} and not finite in {rows_where(odd)}: leave these rows out")


@cache
def say_once(message: str) -> None:
    """Log a line the first time that this process has it to say."""
    log.info("%s", message)
