"""Texts without class labels, as language models read them: three splits of tokens, and what is known of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from metagradient.data.language.tokenizers import Tokenizer
from metagradient.data.origins import Origin

Table = Mapping[str, Tensor]
"""tokens [n, L] and, where not all of them but the first are targets, mask and labels [n, L]."""


@dataclass(frozen=True, eq=False)
class AnswerTruth:
    """Which training rows were given a wrong response on purpose.

    Attributes:
        wrong: bool [n].
        right: what the response of each should have been; empty where it is, and where there is none.
    """

    wrong: Tensor
    right: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TextSplits:
    """Rows of tokens in three splits, and where they come from.

    A table holds `tokens` int64 [n, L] and, of rows of different length, `mask` bool [n, L] (True: the row's own tokens, a
    prefix) and `labels` int64 [n, L]: `tokens` where a token is to be predicted from those before it, -100 in prompts and
    padding and of the first token. A table of tokens alone has all of them but the first for targets. L is that of all
    tables.

    Attributes:
        name: of the data set.
        train: the table that is trained on.
        validation: a table that choices are made on.
        test: a table of queries.
        tokenizer: of the tokens.
        sources: int64 [n_train], the number of the source that a training row came from; -1 where it is unknown.
        query_sources: int64 [n_test], likewise of the test rows.
        source_names: by number; empty where they have no names.
        truth: about the training rows' responses; None where nothing was planted.
        choices: "validation" and "test", where these are multiple choice: one row for every option, in the order of the
            split's questions, with `question` int64 [m] and `right` bool [m] beside tokens, mask and labels. The split's own
            table holds the right options.
        kind: what the examples are.
        files: of each source, the user's own file or folder, as it was given; empty for data of other origin.
        origins: by split, where in the file of its source each row stands; empty where there are none.
        corpus: a table of other texts, which a model may have read before it is tuned.
    """

    name: str
    train: Table
    validation: Table
    test: Table
    tokenizer: Tokenizer
    sources: Tensor
    query_sources: Tensor
    source_names: tuple[str, ...] = ()
    truth: AnswerTruth | None = None
    choices: Mapping[str, Table] = field(default_factory=dict)
    kind: Literal["text"] = "text"
    files: tuple[str, ...] = ()
    origins: Mapping[str, Origin] = field(default_factory=dict)
    corpus: Table | None = None

    def describe(self, tokens: Tensor, mask: Tensor | None = None) -> list[str]:
        """Rows [m, L] as strings, without their padding where `mask` [m, L] is given; line breaks are shown as a mark."""
        own = tokens if mask is None else [row[kept] for row, kept in zip(tokens, mask, strict=True)]
        return [self.tokenizer.decode(row.tolist()).replace("\n", "⏎") for row in own]
