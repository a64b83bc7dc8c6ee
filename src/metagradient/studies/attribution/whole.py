"""What `attribution` tells of a whole set, and of each training example alone."""

from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor

from metagradient.attribution.methods.spec import slug
from metagradient.data import Splits, TextSplits
from metagradient.evaluation import linear_datamodeling_score
from metagradient.reporting import Record
from metagradient.studies.attribution.methods import Outcome
from metagradient.studies.examples import identities, told

_SHOWN = 5


def tell(
    record: Record,
    cfg: DictConfig,
    splits: Splits | TextSplits,
    outcomes: Sequence[Outcome],
    truth: Mapping[float, tuple[Tensor, Tensor]],
) -> None:
    """aggregate_scores.csv and self_influence.csv, where they were asked for.

    The scores for the queries together are judged by the queries' mean loss. truth: the rows kept [R, n] and the queries'
    losses [R, q], by the share removed.
    """
    names, cells = identities(splits, "train")
    if cfg.self_influence:
        alone = {name: values for outcome in outcomes for name, values in outcome.alone.items()}
        record.csv("self_influence", [*names, *alone], _columns(cells, alone))
    if cfg.aggregate is None:
        return
    together = {name: values for outcome in outcomes for name, values in outcome.aggregate.items()}
    record.csv("aggregate_scores", [*names, *together], _columns(cells, together))
    name, first = next(iter(together.items()))
    order = first.argsort(descending=True)
    ends = [
        *enumerate(order[:_SHOWN].tolist(), 1),
        *((-r, i) for r, i in enumerate(order.flip(0)[:_SHOWN].tolist(), 1)),
    ]
    said = told(splits, "train", [i for _, i in ends])
    record.table(
        "aggregate_top",
        ["rank", "train_index", "train_is", f"score of {name}"],
        [[rank, i, said[i].words, float(first[i])] for rank, i in ends],
        f"training examples that help {cfg.aggregate} as a whole most, and harm them most",
    )
    if cfg.aggregate == "queries":  # the retrainings measured these
        _judge(record, outcomes, truth)


def _judge(record: Record, outcomes: Sequence[Outcome], truth: Mapping[float, tuple[Tensor, Tensor]]) -> None:
    """How well the scores for the set predict its mean loss after removals."""
    for outcome in outcomes:
        if not outcome.aggregate:
            continue
        parts = list(outcome.aggregate.values())  # at alpha one for each share removed, else one for all
        for place, (drop, (kept, losses)) in enumerate(truth.items()):
            scores = parts[place if len(parts) > 1 else 0].unsqueeze(1).to(losses.dtype)
            lds = linear_datamodeling_score(scores, kept, losses.mean(1, keepdim=True), resamples=0)
            record.result({f"lds_aggregate_{slug(outcome.name)}_drop{drop:g}": lds.mean})


def _columns(cells: Sequence[list[int | str]], values: Mapping[str, Tensor]) -> list[list[int | str | float]]:
    """Rows of a table: what each example is joined by, then a column for each name."""
    found = torch.stack(list(values.values()), dim=1).tolist()
    return [[*own, *row] for own, row in zip(cells, found, strict=True)]
