"""`Supervised`: what learners of inputs `x` and targets `y` have in common, and how odd fields are told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.learners.learner import Learner, ModelLearner
from metagradient.training.batches import Batch, Batches, Fields
from metagradient.training.sources import in_order, take

log = logging.getLogger(__name__)

_NAMED = 5  # rows of a list
_READ = 256  # rows of a data set that are read at once


class Supervised(ModelLearner):
    """A model of inputs: fields `x` and `y` of the batch. Inputs in bytes (uint8) are divided by 255.

    Subclasses say what targets they read (`check_targets`) and what each example's loss is (`losses`).
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)

    def outputs(self, x: Tensor) -> Tensor:
        """What the model gives for inputs [B, ...]."""
        outputs = self.model(x if x.dtype != torch.uint8 else x.to(next(self.model.parameters()).dtype) / 255)
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"the model gives a {type(outputs).__name__}: let its forward return the tensor of outputs [B, ...] alone"
            )
        if outputs.shape[:1] != x.shape[:1]:
            raise UserError(
                f"the model gives {list(outputs.shape)} for {len(x)} rows of inputs: a row of outputs is needed for each"
            )
        return outputs

    _reads = False  # targets that are read row by row, which are checked in each batch

    def check_targets(self, y: Tensor) -> None:
        """Refuse targets [n, ...] that the loss cannot read; those that are read row by row by their shape alone.

        Raises:
            UserError: names the field, its dtype and shape, and what is expected.
        """
        raise NotImplementedError

    def check_values(self, y: Tensor, rows: Tensor) -> None:
        """Refuse targets [B, ...] of some rows [B] by their values, as `check_targets` does.

        Raises:
            UserError: likewise.
        """
        raise NotImplementedError

    def check_read(self, batch: Batch) -> None:
        """Check the targets of a batch whose rows have just been read; nothing where all of them are known before a run."""
        if self._reads and readable(batch.y):
            self.check_values(batch.y.detach(), batch.index)

    def probe(self, batches: Batches) -> None:
        """As ever, after a look at all inputs and targets.

        Raises:
            UserError: fields that are none of this learner's, named with what to do.
        """
        if self._needs is None:
            self._check_fields(batches.examples)
        self._reads = not isinstance(batches.examples["y"], Tensor)
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


def labelled(learner: Learner, examples: Fields | Batch) -> Tensor | None:
    """[n] bool, the examples that have a label; None: all of them, but for a classifier with an `ignore_index`."""
    has_label = getattr(learner, "has_label", None)
    there: Tensor | None = None if has_label is None else has_label(examples)
    return there


def with_labels(learner: Learner, examples: Fields) -> Fields:
    """The examples that have a label (see `labelled`)."""
    there = labelled(learner, examples)
    return examples if there is None else take(examples, there)


def targets_of(examples: Fields | Batch) -> Tensor:
    """The targets of all examples; of a data set whose rows are read, without holding the other fields."""
    y: Any = examples["y"]
    if isinstance(y, Tensor):
        return y
    assert isinstance(examples, Mapping)
    return torch.cat([fields["y"] for _, fields in in_order(examples, _READ)])


def described(y: Any) -> str:
    """`field y is float32 [8, 2]`."""
    return f"field y is {str(y.dtype).removeprefix('torch.')} {list(y.shape)}"


def readable(y: Tensor) -> bool:
    """Whether values can be looked at: not those that stand for others, in `vmap` or where code is traced."""
    return type(y) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(y)


def rows_where(odd: Tensor, rows: Tensor) -> str:
    """`rows 3, 7`: the first of the rows [n] that are odd [n]."""
    named = rows.to(odd.device)[odd].tolist()
    return f"row{'s'[: len(named) > 1]} {', '.join(map(str, named[:_NAMED]))}{', ...' if len(named) > _NAMED else ''}"


def refuse_infinite(y: Tensor, rows: Tensor) -> None:
    """Refuse numbers that are NaN or infinite.

    Raises:
        UserError: names the rows.
    """
    if y.is_floating_point() and not bool(y.isfinite().all()):
        odd = ~y.isfinite().flatten(1).all(1) if y.dim() > 1 else ~y.isfinite()
        raise UserError(f"{described(y)} and not finite in {rows_where(odd, rows)}: leave these rows out")


@cache
def say_once(message: str) -> None:
    """Log a line the first time that this process has it to say."""
    log.info("%s", message)
