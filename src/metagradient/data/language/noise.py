"""Wrong responses on purpose, with the truth kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from metagradient.data.language.fitting import Candidate, Fitted, Fitting
from metagradient.data.language.splits import AnswerTruth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerNoise:
    """Give a share of the training rows each other's responses.

    Attributes:
        kind: "shuffled_answers".
        fraction: share of the training rows, in [0, 1].

    Raises:
        ValueError: an unknown kind, or a fraction outside [0, 1].
    """

    kind: str = "shuffled_answers"
    fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.kind != "shuffled_answers":
            raise ValueError(
                f"data.noise.kind must be shuffled_answers, got {self.kind!r}; set data.noise.kind=shuffled_answers"
            )
        number = isinstance(self.fraction, int | float) and not isinstance(self.fraction, bool)
        if not number or not 0 <= self.fraction <= 1:
            raise ValueError(
                f"data.noise.fraction must lie in [0, 1]; got {self.fraction}; set for example data.noise.fraction=0.2"
            )

    def apply(
        self, rows: Sequence[Fitted], fitting: Fitting, rng: np.random.Generator
    ) -> tuple[list[Fitted], AnswerTruth]:
        """The rows, of which `fraction` have the response of another, and the truth about them.

        Of round(fraction n) rows in random order each takes the next one's response, the last the first's. A row that says the
        same then, or no longer fits, keeps its own.

        Args:
            rows: n rows.
            fitting: says which rows can be used.
            rng: of the rows.
        """
        chosen = rng.permutation(len(rows))[: round(self.fraction * len(rows))]
        found, wrong, right = list(rows), torch.zeros(len(rows), dtype=torch.bool), [""] * len(rows)
        for i, other in zip(chosen, np.roll(chosen, -1), strict=True):
            own, foreign = (rows[j].candidate.conversation.response for j in (i, other))
            changed = fitting.of(_answered(rows[i].candidate, foreign))
            if isinstance(changed, Fitted) and foreign.strip() != own.strip():
                found[i], wrong[i], right[i] = changed, True, own
        if (kept := len(chosen) - int(wrong.sum())) > 0:
            log.info(
                "data.noise: %d of %d rows keep their own response: the other is the same, or too long",
                kept,
                len(chosen),
            )
        return found, AnswerTruth(wrong, tuple(right))


def _answered(row: Candidate, response: str) -> Candidate:
    """The row with another response, which need be none of its options."""
    return replace(row, conversation=replace(row.conversation.answered(response), options=()))
