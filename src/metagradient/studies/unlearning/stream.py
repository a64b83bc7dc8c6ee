"""A stream of requests: one after the other, each to the run that the last one left; now and then the truth."""

import logging
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from omegaconf import DictConfig

from metagradient.data import Splits
from metagradient.errors import UserError
from metagradient.evaluation import MEASURES, distance
from metagradient.reporting import Progress, Record
from metagradient.reporting.figures.distances import path_distances
from metagradient.streams import Unlearning
from metagradient.studies.saved import save_model
from metagradient.studies.unlearning.judging import Judged, handed_out, timed
from metagradient.studies.unlearning.recording import storage
from metagradient.studies.unlearning.rows import amount
from metagradient.training.random import generator
from metagradient.unlearning import Method, RecordedRun, Request, Retrain, Served, stored, stream

log = logging.getLogger(__name__)


def requests_of(cfg: DictConfig, n: int) -> list[Request]:
    """`stream.requests` disjoint random sets: additions where add.* asks for them, deletions where delete.* does,
    both in turn where both do."""
    kinds = [kind for kind in ("delete", "add") if amount(cfg[kind], n, kind)]
    sizes = {kind: amount(cfg[kind], n, kind) for kind in kinds}
    if not kinds:
        raise UserError("a stream needs requests of at least one row: set delete.count=1 or add.count=1")
    order, requests = torch.randperm(n, generator=generator(cfg.seed, Unlearning.STREAM)), []
    for i in range(cfg.stream.requests):
        kind = kinds[i % len(kinds)]
        rows, order = order[: sizes[kind]], order[sizes[kind] :]
        if len(order) == 0:
            raise UserError(f"{cfg.stream.requests} requests take all {n} rows: set a smaller delete.count")
        requests.append(Request(kind, rows.sort().values))  # type: ignore[arg-type]
    return requests


def serve(
    cfg: DictConfig,
    record: Record,
    start: RecordedRun,
    method: Method,
    requests: list[Request],
    splits: Splits,
    progress: Progress,
) -> float:
    """All requests; after every `judge_every` a judgement. Both are kept as they come, so that a killed stream goes on."""
    folder = Path(cfg.run_folder or record.directory) / "stream"
    if not cfg.run_folder and not cfg.resume:
        shutil.rmtree(folder, ignore_errors=True)
    noise = f"_{cfg.output_noise:g}" if cfg.output_noise else ""  # a stream served before may be judged with another
    of = "" if cfg.run_folder else record.asked
    judged, learner = Judged(folder / f"judged{noise}.json", of), start.learner
    if cfg.run_folder and judged.damaged:
        raise UserError(f"{judged.file} is damaged: remove it, and the stream is judged where it stands, not before")
    method(start, requests[0])  # warm-up

    def begin() -> Iterator[Served]:
        return stream(method, start, requests, folder, storage=lambda: storage(cfg), progress=progress.callback())

    served, every = begin(), cfg.stream.judge_every
    try:
        first = next(served)
        lost = {*range(every, first.done, every)} - {int(row["requests"]) for row in judged.rows}
        damage = f"{judged.file} lacks judgements" if lost else ""  # of models that are gone
    except UserError as error:
        if cfg.run_folder or not stored.exists(folder):
            raise
        damage = str(error)
    if damage and not cfg.run_folder:
        log.warning("%s; the stream is served again from its first request", damage)
        shutil.rmtree(folder)
        judged, served = Judged(judged.file, of), begin()
        first = next(served)
    bar = progress.bar("requests", len(requests), patience=0, stage="requests")
    told = 0
    for state in chain([first], served):
        bar.update(state.done)
        due = state.done % cfg.stream.judge_every == 0 or state.done == len(requests)
        if due and state.done not in [row["requests"] for row in judged.rows]:
            judged.add(_judge(cfg, state, splits, progress))
        for row in judged.rows[told:]:
            record.curve(int(row["requests"]), row)
        told = len(judged.rows)
    rows = judged.rows
    mean = sum(row["retrain_seconds"] for row in rows) / len(rows)
    overall = mean * len(requests) / state.seconds
    record.table("stream", list(rows[0]), [list(row.values()) for row in rows])
    record.result({key: rows[-1][key] for key in rows[0] if key != "speedup"} | {"speedup": overall})
    record.answer(
        f"After {len(requests)} requests the model is {rows[-1]['error_ratio']:.3g} times nearer to the retrained one than the untouched "
        f"model, in 1 / {overall:.2g} of the retrainings' time."
    )
    record.figure(
        "stream",
        path_distances(
            [int(row["requests"]) for row in rows],
            {
                "untouched model": [row["distance_original_to_retrained"] for row in rows],
                "after the requests": [row["distance_to_retrained"] for row in rows],
            },
            xlabel="requests served",
        ),
    )
    record.cost(training_runs=1 + len(rows) + len(requests) / rows[-1]["gradient_saving"])
    save_model(record, learner, handed_out(cfg, state.run.final, state.done))
    return float(rows[-1]["error_ratio"])


def _judge(cfg: DictConfig, state: Served, splits: Splits, progress: Progress) -> dict[str, float]:
    """The stream's model beside a timed retraining on what is now the training set."""
    learner, nothing = state.run.learner, Request("delete", torch.empty(0, dtype=torch.int64))
    measure = MEASURES[splits.task]
    truth, took = timed(Retrain(), state.run, nothing, progress)
    new = handed_out(cfg, state.run.final, state.done)
    moved, error = distance(state.original, truth.state), distance(new, truth.state)
    return {
        "requests": state.done,
        "distance_to_retrained": error,
        "distance_original_to_retrained": moved,
        "error_ratio": moved / error if error else float("inf"),
        "speedup": took / (state.seconds / state.done),
        "gradient_saving": truth.gradients * state.done / state.gradients,
        "agreement": measure.agreement(learner, new, truth.state, splits.test),
        f"test_{measure.name}": measure(learner, new, splits.test),
        f"test_{measure.name}_retrained": measure(learner, truth.state, splits.test),
        "retrain_seconds": took,
        "rows": int(state.run.present.sum()),
    }
