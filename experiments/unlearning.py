"""What would the model be without these examples? DeltaGrad and its baselines, judged by retraining.

A run is trained and recorded step by step. Then it is asked to forget (or learn) sets of examples, each set a request
of its own: the method answers, a retraining from the same first state says what is true, and both are timed in turn.

`metagradient unlearning experiment=mnist_logistic delete.fraction=0.01` (the paper's setting, one thread, a minute):
DeltaGrad is 3.2 times as fast as retraining and leaves 1/50 of the way to go, the median over ten sets of 600 rows (the
worst 1/43). On the default preset, 1300 digits, a retraining takes .2 s and nothing is saved: the run says so.
"""

import logging
import statistics

import torch
from omegaconf import DictConfig

from metagradient.reporting import Progress, Record
from metagradient.studies import routines, setup, stages
from metagradient.studies.examples import identities
from metagradient.studies.saved import save_model
from metagradient.studies.unlearning import frontier, stream
from metagradient.studies.unlearning.figures import draw
from metagradient.studies.unlearning.judging import Judged, ask, handed_out, judge
from metagradient.studies.unlearning.klom import klom_runs, klom_table
from metagradient.studies.unlearning.recording import recorded
from metagradient.studies.unlearning.rows import check, to_add, to_delete
from metagradient.unlearning import WORTHWHILE, DeltaGrad, Request, predicted_saving

log = logging.getLogger(__name__)


def run(cfg: DictConfig, record: Record) -> float:
    setup.prepare(cfg, "unlearning")
    splits = setup.classification(cfg)
    check(cfg, splits)
    routine = routines.classifier_routine(cfg, splits)
    method = setup.build(cfg.method, _convert_="all")
    n = len(splits.train["y"])
    record.scratch("judged*.json", "stream")

    with Progress(stages.unlearning(cfg)) as progress:
        # 1. Train, and keep every step; rows that will be added later are in the plan, but absent.
        present = torch.ones(n, dtype=torch.bool)
        queue = stream.requests_of(cfg, n) if cfg.stream.requests else []
        new = [] if queue else to_add(cfg, n)
        for rows in [*new, *(request.rows for request in queue if request.kind == "add")]:
            present[rows] = False
        trained = recorded(cfg, routine, splits, present, progress)
        if queue:
            return stream.serve(cfg, record, trained, method, queue, splits, progress)

        # 2. Ask, after a warm-up on the first request: the method and a retraining in turn.
        kind = "add" if new else "delete"
        requests = [Request(kind, rows) for rows in new or to_delete(cfg, trained, splits, progress)]
        if isinstance(method, DeltaGrad):
            saving = predicted_saving(method, trained, requests[0])
            record.result({"predicted_saving": saving, "retrain_instead": saving < WORTHWHILE})
            if saving < WORTHWHILE:
                log.warning("DeltaGrad would be %.2fx as fast as retraining: too little, retrain instead", saving)
        warm = method(trained, requests[0])
        save_model(record, trained.learner, handed_out(cfg, warm.state, 0))
        judged = Judged(record.directory / "judged.json", record.asked, resume=bool(cfg.resume))
        for i, request in enumerate(progress.track(requests, f"requests to {kind}", stage="requests")):
            if i == len(judged.rows):  # else an interrupted run has been here
                answer = ask(method, trained, request, i, cfg, progress)
                judged.add(judge(trained, answer, splits))
            record.curve(i, judged.rows[i])
        if cfg.frontier.periods:
            record.cost(frontier.compare(cfg, record, trained, method, requests, progress))
        klom = klom_table(cfg, routine, splits, present, method, requests[0], progress)

    # 3. Tell: medians over the requests; accuracies and losses are means.
    rows, names = judged.rows, list(judged.rows[0])
    record.csv("requests", names, [list(row.values()) for row in rows])
    header, told = identities(splits, "train")
    for i, request in enumerate(requests):
        record.csv(f"rows_{i}", header, [told[row] for row in request.rows.tolist()])
    middle = {name: statistics.median(row[name] for row in rows) for name in names}
    spread = [min(row[name] for row in rows) for name in names], [max(row[name] for row in rows) for name in names]
    asked = f"{len(rows)} requests to {kind} {len(requests[0].rows)} of {int(present.sum())} rows"
    record.table(
        "requests_summary",
        ["", "median", "lowest", "highest"],
        [[name, middle[name], low, high] for name, low, high in zip(names, *spread, strict=True)],
        title=asked,
    )
    record.answer(
        f"{asked}: the answer is {middle['error_ratio']:.3g} times nearer to the retrained model than the untouched one (median; "
        f"lowest {spread[0][names.index('error_ratio')]:.3g}), in 1 / {middle['speedup']:.2g} of a retraining's time."
    )
    record.result({**middle, "error_ratio_lowest": spread[0][names.index("error_ratio")]})
    if klom:
        record.table("klom", ["models", "asked", "kept", "test"], [[name, *row.values()] for name, row in klom.items()])
        record.result({f"klom_{name}_{part}": v for name, row in klom.items() for part, v in row.items()})
    draw(cfg, record, trained, method, requests[0], rows)
    each = [1 + 1 / row["gradient_saving"] for row in rows]  # a retraining, and the method's share of gradients
    record.cost(training_runs=1 + sum(each) + klom_runs(cfg, each[0]))
    return middle["error_ratio"]


if __name__ == "__main__":
    from metagradient.cli.command import launch

    launch("unlearning")
