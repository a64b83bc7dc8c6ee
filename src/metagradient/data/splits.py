"""A data set as the experiments see it: three splits, and the truth where labels were corrupted."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metagradient.data.corruption import LabelNoise, LabelTruth
from metagradient.data.origins import Origin

Table = dict[str, Tensor]
"""x [n, ...] and y [n, ...] of n examples."""

Task = Literal["classes", "numbers", "labels"]
"""What is to be predicted: one class, one or several numbers, or which of several labels are there."""

Kind = Literal["image", "table", "text"]
"""What a data set's examples are, for whoever shows them."""

_TOLD = 5  # features of a row of a table that are named


@dataclass(frozen=True)
class Splits:
    """Training, validation and test examples with targets.

    Attributes:
        name: of the data set.
        train: {"x": float32 [n, C, H, W] in [0, 1] for images, [n, F] for tables, int64 [n, L] for texts; "y":
            int64 [n], or as `task` says}. validation and test likewise.
        classes: the classes' names, by label; of labels their names; of numbers ().
        extra_tests: further test sets by name: "official" is the data set's own.
        truth: about the training labels; None where none was corrupted.
        kind: what the examples are.
        features: names of a table's columns; empty: x0, x1, ...
        categories: of each of a table's columns that holds codes, the values behind the codes 1, 2, ... (0: unknown); () of
            the others. Empty: no column does.
        source: the user's own file or folder, as it was given; empty for data of other origin.
        columns: of the source, those that tell what an example is; empty where there are none, or too many.
        arrays: of a source of arrays, the names of those that were read: inputs, targets and, where there are, ids.
        origins: by split, where in the source its examples stand; empty where there is no source.
        scaling: mean and deviation of inputs that were standardised.
        task: what is predicted. "classes": y as above, or float32 [n, C] of the classes' shares (soft labels); "numbers": y
            float32 [n] or [n, k]; "labels": y float32 [n, C] of 0 and 1, or probabilities.
    """

    name: str
    train: Table
    validation: Table
    test: Table
    classes: tuple[str, ...]
    extra_tests: dict[str, Table] = field(default_factory=dict)
    truth: LabelTruth | None = None
    kind: Kind = "image"
    features: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    source: str = ""
    columns: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    origins: dict[str, Origin] = field(default_factory=dict)
    scaling: tuple[Tensor, Tensor] | None = None
    task: Task = "classes"

    def feature(self, column: int) -> str:
        """The name of a table's column."""
        return self.features[column] if self.features else f"x{column}"

    def describe(self, x: Tensor) -> list[str]:
        """Rows [m, F] of a table in words: of each, the features furthest from the training mean in standard deviations."""
        rows, train = x.flatten(1), self.train["x"].flatten(1)
        mean, deviation = train.mean(0), train.std(0)
        apart = (rows - mean).abs() / torch.where(deviation > 0, deviation, torch.inf)
        chosen = apart.topk(min(_TOLD, rows.shape[1])).indices.sort().values
        return [
            ", ".join(f"{self.feature(int(i))} = {self._value(int(i), float(row[int(i)]))}" for i in places)
            for row, places in zip(rows, chosen, strict=True)
        ]

    def _value(self, column: int, value: float) -> str:
        known = self.categories[column] if self.categories else ()
        if not known:
            return f"{value:.3g}"
        return known[int(value) - 1] if value >= 1 else "unknown"

    def shown(self, x: Tensor) -> Tensor:
        """Inputs [m, ...] as they were before they were standardised, to be looked at."""
        if self.scaling is None:
            return x
        mean, deviation = self.scaling
        return x * deviation.to(x) + mean.to(x)

    def target_names(self, y: Tensor) -> list[str]:
        """Targets [m, ...] in words: the class, the number or numbers, or the labels that are there."""
        if self.task == "numbers":
            return ["; ".join(map(_shortest, row)) for row in y.reshape(len(y), -1).cpu().numpy()]
        if self.task == "labels":
            there = [[name for name, v in zip(self.classes, row, strict=True) if v > 0.5] for row in y.tolist()]
            return ["; ".join(names) or "none" for names in there]
        return [self.classes[c] for c in (y.argmax(1) if y.dim() == 2 else y).tolist()]

    @property
    def outputs(self) -> int:
        """What a model must give for each example: a logit for each class or label, or the numbers themselves."""
        return len(self.classes) or self.train["y"][:1].numel()

    @property
    def category_sizes(self) -> tuple[int, ...]:
        """Of each column the number of its codes, the unknown one included; 0 of numbers. Empty: no column holds codes."""
        return tuple(len(known) + 1 if known else 0 for known in self.categories)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input: (C, H, W)."""
        return tuple(self.train["x"].shape[1:])

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)


def _shortest(number: np.floating) -> str:
    """The shortest text that gives a number of its precision back."""
    ordinary = number == 0 or 1e-4 <= abs(number) < 1e9
    return np.format_float_positional(number, trim="-") if ordinary else str(number)


def draw(available: int, wanted: Mapping[str, int | None], seed: int, source: str) -> dict[str, Tensor]:
    """Disjoint random row numbers [n] for each split, drawn from `seed` alone.

    `wanted` gives each split's size; None, allowed for the last, takes the rest.
    Validation may be empty. Raises ValueError for any other size below 1 and when there are fewer rows than wanted.
    """
    for split, size in wanted.items():
        least = 0 if split == "validation" else 1
        if size is not None and size < least:
            raise ValueError(f"data.{split} must be at least {least}; got {size}; set for example data.{split}=100")
    total = sum(1 if size is None else size for size in wanted.values())
    if total > available:
        asked = " + ".join(f"data.{split}={'1 or more' if size is None else size}" for split, size in wanted.items())
        largest = max(wanted, key=lambda split: wanted[split] or 0)
        fits = (wanted[largest] or 1) - (total - available)
        fix = f"; set for example data.{largest}={fits}" if fits > 0 else ""
        raise ValueError(f"{asked} is {total} rows, but {source} has {available}{fix}")
    order = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(available))
    rows: dict[str, Tensor] = {}
    start = 0
    for split, size in wanted.items():
        stop = available if size is None else start + size
        rows[split] = order[start:stop]
        start = stop
    return rows


def corrupt(splits: Splits, noise: LabelNoise | None, seed: int) -> Splits:
    """The same splits with noisy training labels and the truth about them; validation and test stay clean."""
    if noise is None or noise.fraction == 0:
        return splits
    if splits.train["y"].is_floating_point():
        raise ValueError("data.noise flips class numbers, and these targets are none: set data.noise.fraction=0")
    # A stream of its own: changing the noise leaves the splits as they were.
    y, truth = noise.apply(splits.train["y"], splits.num_classes, np.random.default_rng([seed, 1]))
    return replace(splits, train=splits.train | {"y": y}, truth=truth)


def standardise(splits: Splits) -> Splits:
    """The same splits with inputs of mean 0 and variance 1 per channel, by the training set's statistics.

    A channel that does not vary is only centred.
    """
    x = splits.train["x"]
    over = [0, *range(2, x.ndim)]
    mean, std = x.mean(over, keepdim=True), x.std(over, keepdim=True)
    std = torch.where(std > 0, std, 1)

    def scaled(table: Table) -> Table:
        return table | {"x": (table["x"] - mean) / std}

    return replace(
        splits,
        scaling=(mean, std),
        train=scaled(splits.train),
        validation=scaled(splits.validation),
        test=scaled(splits.test),
        extra_tests={name: scaled(table) for name, table in splits.extra_tests.items()},
    )
