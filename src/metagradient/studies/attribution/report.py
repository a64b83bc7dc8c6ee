"""What `attribution` shows: scores against retrainings, wrong labels and sources found, predictions flipped."""

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from metagradient.attribution.methods.spec import COMPRESSORS, slug
from metagradient.data import Splits, TextSplits
from metagradient.evaluation import (
    MEASURES,
    GroundTruth,
    brittleness,
    example_losses_of,
    hard_labels,
    inspection_curve,
    leave_one_out_correlation,
    mislabel_auc,
    query_loss_difference,
    random_removals,
    source_precision,
    take,
    with_every_label,
)
from metagradient.reporting import Progress, Record
from metagradient.reporting.figures import attribution as attribution_figures
from metagradient.streams import Attribution
from metagradient.studies import setup
from metagradient.studies.attribution.methods import Outcome
from metagradient.studies.attribution.task import Task, cache
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in

_FLIPPED = 12  # queries whose most helpful examples are removed


def tell(
    record: Record, cfg: DictConfig, task: Task, outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]]
) -> None:
    """The table of all methods, and their metrics."""
    table = []
    for outcome in outcomes:
        own = [row for row in rows if row["method"] == outcome.name]
        cells = [f"{row['lds']:.3f} ({row['low']:.2f} - {row['high']:.2f})" for row in own]
        compression = None if outcome.compression is None else round(outcome.compression, 3)
        dampings = " / ".join(f"{c:g}" for c in dict.fromkeys(outcome.damping.values())) or None
        table.append([outcome.name, *cells, dampings, outcome.k, compression, round(outcome.seconds, 2)])
        key = slug(outcome.name)
        record.result({f"lds_{key}_drop{row['drop']:g}": row["lds"] for row in own})
        record.result({f"seconds_{key}": outcome.seconds})
        if task.seconds is not None:
            record.result({f"trainings_of_time_{key}": outcome.seconds / task.seconds})
        record.cost(training_runs=outcome.runs)
    columns = ["method", *(f"LDS, {100 * drop:g}% removed" for drop in cfg.drop)]
    record.table("attribution", [*columns, "damping", "k", "compress s", "seconds"], table)
    if rows:
        record.csv("lds", list(rows[0]), [list(row.values()) for row in rows])


def compressors_of(rows: Sequence[dict[str, Any]], drop: float | None) -> list[dict[str, Any]]:
    """The points of the Pareto figure. Without methods at alpha or along the path: they take more than the timed pass."""
    return [
        {"compressor": name, "k": row["k"], "seconds": row["compression"], "bytes": 4 * row["k"], "lds": row["lds"]}
        for row in rows
        if row["drop"] == drop
        and (name := row["method"].partition(":")[0]) in COMPRESSORS
        and not row["method"].endswith((":alpha", ":path"))
    ]


def draw(
    record: Record,
    cfg: DictConfig,
    task: Task,
    splits: Splits | TextSplits,
    outcomes: Sequence[Outcome],
    rows: Sequence[dict[str, Any]],
) -> None:
    """lds.png, pareto.png where compressors were compared; and how well the model does."""
    if rows:
        record.figure("lds", attribution_figures.lds_bars(rows))
    most = max(cfg.drop, default=None)
    points = compressors_of(rows, most)
    if len(points) > 2:
        others = {r["method"]: r["lds"] for r in rows if r["drop"] == most and r["method"] in ("none", "gradient_dot")}
        record.figure("pareto", attribution_figures.pareto_figure(points, others))

    if not isinstance(splits, TextSplits):
        measure = MEASURES[splits.task]
        record.result({f"test_{measure.name}": measure(task.learner, task.state, splits.test)})


def left_out(record: Record, cfg: DictConfig, kept: Tensor, losses: Tensor, outcomes: Sequence[Outcome]) -> None:
    """Scores of single examples against the losses without them; a method at alpha by its scores for the smallest share."""
    rows = []
    for outcome in outcomes:
        found = leave_one_out_correlation(outcome.scores[min(outcome.scores)], kept, losses, seed=cfg.seed)
        rows.append([outcome.name, *(f"{c.mean:.3f} ({c.low:.2f} - {c.high:.2f})" for c in found)])
        for name, c in zip(("spearman", "pearson"), found, strict=True):
            record.result({f"leave_one_out_{name}_{slug(outcome.name)}": c.mean})
    record.table("leave_one_out", ["method", f"Spearman, {len(kept)} single examples", "Pearson"], rows)


def sources(record: Record, cfg: DictConfig, task: Task, splits: TextSplits, outcomes: Sequence[Outcome]) -> None:
    """Source identification: of the top rows of each query whose source is known, how many are of that source?"""
    asked = splits.query_sources[: len(task.queries["tokens"])]
    queries = (asked >= 0).nonzero().flatten()
    sizes = (splits.sources[:, None] == asked[queries]).sum(0)
    k = min(cfg.source_top or max(1, int(sizes.min())), task.n)
    chance = float(sizes.double().mean()) / task.n
    found = {
        o.name: source_precision(next(iter(o.scores.values()))[:, queries], splits.sources, asked[queries], k)
        for o in outcomes
    }
    record.table(
        "sources_found",
        ["method", f"of the top {k}, from the query's source", "chance"],
        [[*x, chance] for x in found.items()],
    )
    record.result({f"source_precision_{slug(name)}": value for name, value in found.items()})
    record.result({"source_precision_chance": chance})


def differences(record: Record, cfg: DictConfig, task: Task, outcomes: Sequence[Outcome]) -> float:
    """The query loss difference of each method; the trainings that this took."""
    settings, rows = cfg.qld, []
    asked = take(task.queries, torch.arange(settings.queries))
    with Progress() as progress:
        truth = _truth(record, cfg, task, asked, progress)
        seed = fold_in(cfg.seed, Attribution.RANDOM_REMOVALS)
        random = random_removals(truth, settings.share, settings.randoms, seed)
        for outcome in progress.track(list(outcomes), "removing the most helpful"):
            scores = outcome.scores[min(outcome.scores)][:, : settings.queries]  # at alpha: of the smallest share
            found = query_loss_difference(truth, scores, random, seed=cfg.seed)
            rows.append([outcome.name, found.mean, f"{found.low:.3g} - {found.high:.3g}", float(found.rise.mean())])
            record.result({f"qld_{slug(outcome.name)}_top{settings.share:g}": found.mean})
            if outcome is outcomes[0]:
                record.result({"qld": found.mean, "qld_low": found.low, "qld_high": found.high})
    record.result({"qld_random": float(random.rise.mean())})
    title = (
        f"rise of a query's loss, nats, without its top {random.removed} rows, beyond that without as many random ones"
    )
    record.table("query_loss_difference", ["method", "QLD", "95 % interval", "rise alone"], rows, title)
    return truth.runs


def mislabelled(record: Record, task: Task, wrong: Tensor, outcomes: Sequence[Outcome]) -> None:
    """Who finds the wrong labels, or texts' wrong responses: self-influence, harm to held-out queries, or the training loss alone."""
    suspicions = {"training loss": example_losses_of(task.learner, task.state, task.train)}
    for outcome in outcomes:
        suspicions |= {f"{name}: self-influence": alone for name, alone in outcome.alone.items()}
        suspicions[f"{outcome.name}: harm to the queries"] = -next(iter(outcome.scores.values())).mean(1)
    found = {name: mislabel_auc(suspicion, wrong) for name, suspicion in suspicions.items()}
    record.table("wrong_labels_found", ["ranked by", "AUC"], [[name, round(value, 4)] for name, value in found.items()])
    record.result({f"mislabel_auc_{slug(name)}": value for name, value in found.items()})
    own = [value for name, value in found.items() if "self-influence" in name] or list(found.values())[1:]
    record.result({"mislabel_auc": own[0]})
    curves = {f"{name} ({found[name]:.3f})": inspection_curve(s, wrong) for name, s in suspicions.items()}
    record.figure("inspection", attribution_figures.inspection_figure(curves, float(wrong.float().mean())))


def brittle(record: Record, cfg: DictConfig, task: Task, classes: int, outcomes: Sequence[Outcome]) -> float:
    """Remove the most helpful examples of some queries and retrain; the trainings that this took."""
    few = torch.arange(min(_FLIPPED, len(task.queries["y"])))
    asked, rows = with_every_label(take(task.queries, few), classes), []
    with Progress() as progress:
        truth = _truth(record, cfg, task, asked, progress)
        for outcome in progress.track(list(outcomes), "removing the most helpful"):
            scores = next(iter(outcome.scores.values()))[:, few]
            found = brittleness(truth, scores, hard_labels(task.queries["y"][few]), list(cfg.brittleness))
            for size, rise in zip(found.sizes, found.rise, strict=True):
                rows.append([outcome.name, size, float((found.smallest <= size).float().mean()), float(rise.mean())])
    record.table("most_helpful_removed", ["method", "removed", "share of predictions flipped", "mean rise, nats"], rows)
    return truth.runs


def _truth(record: Record, cfg: DictConfig, task: Task, queries: Fields, progress: Progress) -> GroundTruth:
    """Retrainings of the run that are asked about some queries."""
    return GroundTruth(
        task.learner,
        task.batches,
        queries,
        folder=cache() if cfg.keep_retrainings else record.directory / "retrainings",
        owner=str(record.directory.absolute()),
        at_once=cfg.at_once,
        workers=setup.workers(cfg),
        progress=progress.callback(),
    )
