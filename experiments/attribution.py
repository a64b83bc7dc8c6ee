"""Which training examples made the model say this? Exact scores by replay beside compressed influence functions.

A score is the predicted rise of a query's loss, in nats, when a training example is removed. All methods are judged by the
same models, retrained without some of the examples (linear datamodeling score); held-out queries choose the dampings.

`metagradient attribution experiment=mnist_mlp` (109,386 parameters, one seed), LDS with 1 % / 10 % / 50 % removed: exact scores
expanded at the share kept .985 / .968 / .939; influence function .385 / .388 / .328 uncompressed, .349 / .364 / .323 on 8192
coordinates (mean of five masks), .395 / .427 / .368 on them along the run; gradient products .095 / .134 / .179.
"""

import logging
from collections.abc import Sequence
from time import perf_counter

from omegaconf import DictConfig
from torch import Tensor

from metagradient.data import TextSplits
from metagradient.evaluation import GroundTruth, join, linear_datamodeling_score
from metagradient.reporting import Progress, Record
from metagradient.studies import setup, smoothness, stages
from metagradient.studies.attribution import browsing, race, report, tokens, whole
from metagradient.studies.attribution.checks import check, check_run
from metagradient.studies.attribution.methods import Methods
from metagradient.studies.attribution.task import cache, make_task, removals
from metagradient.studies.saved import save_model

log = logging.getLogger(__name__)


def run(cfg: DictConfig, record: Record) -> float | None:
    setup.prepare(cfg, "attribution")
    workers = setup.workers(cfg)
    specs = check(cfg)
    task, splits = make_task(cfg)
    check_run(cfg, specs, task)
    folder = setup.folder(cfg.resume) or record.directory
    record.scratch("artifacts/*.progress", "artifacts/replay-*", "retrainings")

    with Progress(stages.attribution(cfg)) as progress:
        if cfg.checkpoint is None:
            smoothness.at_the_start(cfg, record, progress, task.routine, task.train, "weights")

        # 1. The truth: models retrained without some of the examples, once for all methods.
        truth = GroundTruth(
            task.learner,
            task.batches,
            join(task.held_out, task.queries),
            folder=cache() if cfg.keep_retrainings else folder / "retrainings",
            owner=str(folder.absolute()),
            at_once=cfg.at_once,
            workers=workers,
            progress=progress.callback(),
        )
        start = perf_counter()
        tuned = len(next(iter(task.held_out.values())))
        kept, held_out, judged = removals(cfg, task.n), dict[float, Tensor](), dict[float, Tensor]()
        for drop in progress.track(list(kept), "retraining without some examples", stage="retrainings"):
            losses = truth.losses(kept[drop])
            held_out[drop], judged[drop] = losses[:, :tuned], losses[:, tuned:]

        if truth.runs and not truth.found:  # on disk: what a retraining cost beside a single run
            assert task.seconds is not None  # without a training of ours there are no retrainings
            share = (perf_counter() - start) / truth.runs / task.seconds
            record.result({"retrainings_share_of_a_loop": share, "seconds_training": task.seconds})

        def quality(scores: Tensor, drops: Sequence[float]) -> float:
            """What dampings are tuned for: the mean LDS of the held-out queries."""
            found = [linear_datamodeling_score(scores, kept[d], held_out[d], resamples=0).mean for d in drops]
            return sum(found) / len(found)

        # 2. The methods, and 3. their judgement.
        mislabelled = splits.truth is not None and bool(splits.truth.wrong.any())
        methods = Methods(cfg, task, quality, folder / "artifacts", progress.callback(), mislabelled)
        outcomes, rows = [], []
        for spec in progress.track(specs, "methods", stage="methods"):
            outcome = methods(spec)
            outcomes.append(outcome)
            for drop in cfg.drop:
                lds = linear_datamodeling_score(outcome.scores[drop], kept[drop], judged[drop], seed=cfg.seed)
                row = {"method": outcome.name, "drop": drop, "lds": lds.mean, "low": lds.low, "high": lds.high}
                row |= {"damping": outcome.damping.get(drop), "k": outcome.k, "compression": outcome.compression}
                rows.append(row)
            told = [f"LDS {row['lds']:.3f} at {row['drop']:g}" for row in rows if row["method"] == outcome.name]
            log.info("%s: %s", outcome.name, ", ".join(told) or "not judged")

        by_token = None
        if cfg.token_scores:
            by_token = tokens.score_tokens(cfg, task, folder / "artifacts", progress.callback("tokens"))
            record.cost(training_runs=by_token.cost)

        if cfg.race.methods:
            race.race(record, cfg, task, progress.track)

    # 4. Tell.
    save_model(record, task.learner, task.state)
    report.tell(record, cfg, task, outcomes, rows)
    record.cost(training_runs=(cfg.checkpoint is None) + truth.runs)
    report.draw(record, cfg, task, splits, outcomes, rows)
    browsing.leave(record, cfg.top, task, splits, outcomes, by_token)
    if by_token is not None and isinstance(splits, TextSplits):
        tokens.tell(record, splits)
    whole.tell(record, cfg, splits, outcomes, {drop: (kept[drop], judged[drop]) for drop in cfg.drop})
    if cfg.leave_one_out:
        report.left_out(record, cfg, kept[0], judged[0], outcomes)
    if mislabelled and splits.truth is not None:
        report.mislabelled(record, task, splits.truth.wrong, outcomes)
    if isinstance(splits, TextSplits):
        if len(splits.sources.unique()) > 1 and bool((splits.query_sources[: cfg.queries] >= 0).any()):
            report.sources(record, cfg, task, splits, outcomes)
    elif cfg.brittleness:
        record.cost(training_runs=report.brittle(record, cfg, task, len(splits.classes), outcomes))
    if cfg.qld.queries:
        record.cost(training_runs=report.differences(record, cfg, task, outcomes))
    if not rows:
        record.answer(
            f"Scores of {len(outcomes)} method{'s'[: len(outcomes) > 1]} for {cfg.queries} queries; positive: removing the example raises the loss."
        )
        return None
    headline = rows[len(cfg.drop) - 1]
    record.result({"lds": headline["lds"], "lds_low": headline["low"], "lds_high": headline["high"]})
    record.answer(
        f"Scores of {headline['method']} predict what removing {headline['drop']:.3g} of the rows does with a linear datamodeling "
        f"score of {headline['lds']:.3f} (95 % interval {headline['low']:.3f} to {headline['high']:.3f}); positive scores help."
    )
    return float(headline["lds"])


if __name__ == "__main__":
    from metagradient.cli.command import launch

    launch("attribution")
