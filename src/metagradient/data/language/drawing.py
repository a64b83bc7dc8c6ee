"""Which rows are for training, validation and test: of a pool, or of a pool and a source of held-out questions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from metagradient.data.language.fitting import Candidate, Fitted, Fitting
from metagradient.data.language.sources import Rows
from metagradient.data.own.rows import NAMES, Shares, divide

log = logging.getLogger(__name__)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, those that are given twice with their number behind them."""
    counts = Counter(names)
    return [f"{name} {i}" if counts[name] > 1 else name for i, name in enumerate(names)]


def candidates(several: Sequence[Rows], first: int = 0) -> list[Candidate]:
    """All rows of some sources, which are numbered from `first`."""
    return [
        Candidate(said, source, int(rows.places[i]), None if rows.ids is None else str(rows.ids[i]))
        for source, rows in enumerate(several, start=first)
        for i, said in enumerate(rows.conversations)
    ]


def divided(pool: Sequence[Rows], shares: Shares) -> dict[str, list[Candidate]]:
    """The pool's rows by split, in random order; sources that are divided already keep their splits.

    Raises:
        ValueError: too few rows.
    """
    rows = candidates(pool)
    given = None
    if any(each.given is not None for each in pool):
        own = [np.full(len(each.places), "train", dtype=object) if each.given is None else each.given for each in pool]
        given = np.concatenate(own)
    whole = Shares(None, shares.validation, shares.test, seed=shares.seed)  # rows that cannot be used are not yet known
    places = divide(np.zeros(len(rows)), whole, given=given)
    return {split: [rows[i] for i in places[split]] for split in NAMES}


def drawn_apart(pool: Sequence[Rows], asked: Sequence[Rows], rng: np.random.Generator) -> dict[str, list[Candidate]]:
    """The rows to train on and those of the held-out questions, each in random order."""
    rows = {"train": candidates(pool), "test": candidates(asked, first=len(pool))}
    return {split: [some[i] for i in rng.permutation(len(some))] for split, some in rows.items()}


def take_all(fitting: Fitting, drawn: Mapping[str, Sequence[Candidate]]) -> dict[str, list[Fitted]]:
    """All validation and test rows that can be used; how many is told where not all can."""
    found = {split: fitting.take(drawn[split], None)[0] for split in ("validation", "test")}
    for split, rows in found.items():
        if len(rows) < len(drawn[split]):
            log.warning("%d of the %d %s rows can be used", len(rows), len(drawn[split]), split)
    return found


def take_in_turn(fitting: Fitting, questions: Sequence[Candidate], shares: Shares) -> dict[str, list[Fitted]]:
    """Test rows, then validation rows, of held-out questions.

    Raises:
        ValueError: fewer rows that can be used than were asked for.
    """
    found, rest = {}, questions
    for split, size in (("test", shares.test), ("validation", shares.validation)):
        wanted = round(size * len(questions)) if size < 1 else int(size)
        found[split], rest = fitting.take(rest, wanted)
        if (got := len(found[split])) < wanted:
            why = f" ({fitting.reasons})" if fitting.reasons else ""
            raise ValueError(
                f"data.target has {len(questions)} rows{why}: {got} are left for data.{split}={size}; set data.{split}={got}, or a larger "
                "data.length"
            )
    return found
