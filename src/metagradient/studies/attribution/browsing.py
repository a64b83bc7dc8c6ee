"""What `attribution` leaves to look at and to join: the top examples of every query, row names, and a page to browse."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from metagradient.data import Splits, TextSplits
from metagradient.evaluation import MEASURES, outputs_of
from metagradient.reporting import Record
from metagradient.reporting.figures import Passage, text_figure
from metagradient.reporting.figures import attribution as attribution_figures
from metagradient.reporting.pages.report import (
    Distribution,
    Histogram,
    Queries,
    Query,
    Ranking,
    Scored,
    Tab,
    report_page,
)
from metagradient.studies.attribution.methods import Outcome
from metagradient.studies.attribution.task import Task
from metagradient.studies.attribution.tokens import TokenScores, by_tokens
from metagradient.studies.examples import identities, told

_SHOWN, _EACH = 6, 5  # queries of the figure, and helpful and harmful examples of each
_PRINTED = 12  # rows of top_examples on the terminal
_SUSPECTS = 200
_COUNTED = 2**20  # scores in the histogram of all of them


def leave(
    record: Record,
    top: int,
    task: Task,
    splits: Splits | TextSplits,
    outcomes: Sequence[Outcome],
    by_token: TokenScores | None = None,
) -> None:
    """Of the first method: top_examples.csv and .png, train_rows.csv and query_rows.csv, report.html.

    Args:
        record: of the run.
        top: helpful and harmful training examples of each query.
        task: the run that was asked about.
        splits: its data; the queries are the first test examples.
        outcomes: of all methods; the first that knows self-influence ranks suspects by it.
        by_token: exact scores of the training texts' tokens, which the page shades; None: it shades the queries' losses alone.
    """
    scores = next(iter(outcomes[0].scores.values()))
    n, asked = scores.shape
    top = min(top, n)
    helped, harmed = (scores.topk(top, dim=0, largest=largest).indices.T for largest in (True, False))  # [q, top]
    suspicions = _suspects(outcomes, scores)
    suspects = {name: suspicion.topk(min(_SUSPECTS, n)) for name, (_, suspicion) in suspicions.items()}
    rows = [helped.flatten(), harmed.flatten(), *(found.indices for found in suspects.values())]
    wanted = torch.cat(rows).unique().tolist()
    train, queries = told(splits, "train", wanted), told(splits, "test", range(asked))
    words = "A label that is known to be wrong is red, with the right one behind it."
    if isinstance(splits, TextSplits):
        train, queries = by_tokens(splits, task, train, queries)
        words = "Above a response that is known to be wrong, red, is what it should be. Grey tokens are the prompt. A query's tokens are shaded by their loss"
        words += "." if by_token is None else "; those of training texts by their exact score for it, blue ones help."
    else:
        said = splits.target_names(MEASURES[splits.task].verdict(outputs_of(task.learner, task.state, task.queries)))
        queries = {i: replace(one, place=(*one.place, ("said", said[i]))) for i, one in queries.items()}

    def ranked(rows: Tensor, q: int) -> list[Scored]:
        return [(train[i], float(scores[i, q])) for i in rows[q].tolist()]

    shown = [
        Query(
            queries[q],
            ranked(helped, q),
            ranked(harmed, q),
            Histogram.of(scores[:, q].numpy()),
            {} if by_token is None else by_token.of([*helped[q].tolist(), *harmed[q].tolist()], q),
        )
        for q in range(asked)
    ]
    _figure(record, splits, task, shown[:_SHOWN], min(top, _EACH))
    _tables(record, splits, shown)
    some = scores.flatten()[:: -(-scores.numel() // _COUNTED)]
    rankings = [
        Ranking(
            name,
            f"Training examples by {suspicions[name][0]}. Wrong labels gather at the top.",
            [(train[i], value) for value, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)],
        )
        for name, found in suspects.items()
    ]
    bars = [("all scores", Histogram.of(some.numpy()))]
    tabs: tuple[Tab, ...] = (
        Queries("queries", "Test examples; choose one, search, or go on with the arrow keys.", shown),
        *rankings,
        Distribution("scores", "Bars grow with the logarithm of the count.", bars),
    )
    page = report_page(
        f"{outcomes[0].name}: which training examples helped, and which harmed",
        f"A score, in {_unit(outcomes[0], splits)}, is the predicted rise of the query's loss when the training example is removed: positive ones "
        f"help, negative ones harm. {words}",
        tabs,
    )
    record.page(page)


def _suspects(outcomes: Sequence[Outcome], scores: Tensor) -> dict[str, tuple[str, Tensor]]:
    """How suspect each training example's label is, [n]: by tab, in words and in numbers."""
    found = {}
    knowing = next((outcome for outcome in outcomes if outcome.self_influence is not None), None)
    if knowing is not None and knowing.self_influence is not None:
        words = f"self-influence ({knowing.name}): how much their own loss would rise without them"
        found["suspects by self-influence"] = (words, knowing.self_influence)
    found["suspects by harm"] = (f"their mean harm to the queries ({outcomes[0].name})", -scores.mean(1))
    return found


def _tables(record: Record, splits: Splits | TextSplits, shown: Sequence[Query]) -> None:
    """train_rows.csv, query_rows.csv, top_examples.csv; and some of the last on the terminal, but of images."""
    for name, split, count in (("train_rows", "train", None), ("query_rows", "test", len(shown))):
        header, rows = identities(splits, split, count)  # type: ignore[arg-type]
        record.csv(name, header, rows)
    asked, found = shown[0].example, shown[0].helped[0][0]
    header = ["query", "query_is", "rank", "train_index", "train_is", "score"]
    header += [f"{whose}_{name}" for whose, one in (("query", asked), ("train", found)) for name, _ in one.place]
    table: list[list[Any]] = []
    for query in shown:
        for sign, side in ((1, query.helped), (-1, query.harmed)):
            for rank, (one, score) in enumerate(side, start=1):  # 1: the most helpful; -1: the most harmful
                own = [query.example.index, query.example.words, sign * rank, one.index, one.words, score]
                table.append([*own, *(said for example in (query.example, one) for _, said in example.place)])
    if splits.kind != "image":
        record.table("top_examples", header, few(table, len(shown)))
    record.csv("top_examples", header, table)


def few(table: Sequence[list[Any]], queries: int) -> list[list[Any]]:
    """Rows (query, its words, rank, ...) for the terminal: at most 12, of the first queries the ends of their rankings."""
    ranks = _PRINTED // (2 * min(_SHOWN, queries))
    return [row for row in table if row[0] < _SHOWN and abs(row[2]) <= ranks]


def _figure(record: Record, splits: Splits | TextSplits, task: Task, shown: Sequence[Query], each: int) -> None:
    """top_examples.png."""
    found = [[*query.helped[:each], *query.harmed[:each]] for query in shown]
    wrong = [[bool(one.truth) for one, _ in side] for side in found]
    if splits.kind == "image":
        rows = torch.tensor([[one.index for one, _ in side] for side in found])
        captions = [query.example.label for query in shown]
        labels = [[one.label for one, _ in side] for side in found]
        grid = attribution_figures.top_examples_figure(
            _seen(splits, task.queries["x"][: len(shown)]),
            captions,
            _seen(splits, task.train["x"][rows]),
            labels,
            wrong,
        )
    else:
        passages = [
            Passage(
                f"query: {query.example.words}", [f"{s:+.2g}" for _, s in side], [one.words for one, _ in side], flags
            )
            for query, side, flags in zip(shown, found, wrong, strict=True)
        ]
        grid = text_figure(passages, "of each query the training examples that help most, then those that harm most")
    record.figure("top_examples", grid, folder="artifacts")


def _seen(splits: Splits | TextSplits, x: Tensor) -> Tensor:
    """Images [..., C, H, W] as they were before they were standardised."""
    assert isinstance(splits, Splits)
    return splits.shown(x.flatten(0, -4)).view_as(x)


def _unit(outcome: Outcome, splits: Splits | TextSplits) -> str:
    """What the scores on disk say that they are; a file of the user's need not say it."""
    file, said = outcome.files[0], None
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            said = (opened.metadata() or {}).get("unit")
    if said != "nats":
        return "the method's own unit"
    return said if isinstance(splits, TextSplits) else MEASURES[splits.task].loss_unit
