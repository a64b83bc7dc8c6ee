"""Wrong labels on purpose, with the truth kept."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_KINDS = ("symmetric", "pairwise", "redraw")


@dataclass(frozen=True)
class LabelTruth:
    """What a corruption did to the training labels.

    y        [n] int64, the true labels
    redrawn  [n] bool, the rows it chose; one whose redraw gave the true class back is among them
    given    [n] int64, the labels the training set now carries
    """

    y: Tensor
    redrawn: Tensor
    given: Tensor

    @property
    def wrong(self) -> Tensor:
        """[n] bool: the label differs from the truth."""
        return self.given != self.y


@dataclass(frozen=True)
class LabelNoise:
    """Corrupt exactly `round(fraction * n)` training labels, on rows drawn at random.

    Attributes:
        kind: "symmetric": another class, uniformly; "pairwise": the next class, (y + 1) mod classes; "redraw": any class
            uniformly, the true one included: the noise of the hyper-cleaning benchmark, which leaves one redrawn label in
            `classes` correct.
        fraction: share of the training labels, in [0, 1].

    Raises:
        ValueError: an unknown kind, or a fraction outside [0, 1].
    """

    kind: str = "symmetric"
    fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"data.noise.kind must be one of {', '.join(_KINDS)}; got {self.kind!r}; "
                "set for example data.noise.kind=symmetric"
            )
        if not 0 <= self.fraction <= 1:
            raise ValueError(
                f"data.noise.fraction must lie in [0, 1]; got {self.fraction}; set for example data.noise.fraction=0.4"
            )

    def apply(self, y: Tensor, classes: int, rng: np.random.Generator) -> tuple[Tensor, LabelTruth]:
        """The corrupted labels [n] of `y` [n] (left as it is), and the truth about them."""
        rows = torch.from_numpy(rng.permutation(len(y))[: round(self.fraction * len(y))])
        given = y.clone()
        if self.kind == "redraw":
            given[rows] = torch.from_numpy(rng.integers(classes, size=len(rows)))
        else:
            shift = rng.integers(1, classes, size=len(rows)) if self.kind == "symmetric" else np.int64(1)
            given[rows] = (y[rows] + torch.as_tensor(shift)) % classes
        redrawn = torch.zeros(len(y), dtype=torch.bool)
        redrawn[rows] = True
        return given, LabelTruth(y, redrawn, given)
