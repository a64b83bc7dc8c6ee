"""Which training data should I have used? Metagradient descent on the weights or counts of training examples.

The examples' loss weights (or their counts) are moved along the exact gradient of the loss on trusted validation
examples through the whole training run. Part of the validation rows steers, the rest chooses the metastep; models
are then retrained from scratch with fresh seeds on the chosen data, and the test rows are looked at once.
"""

import dataclasses
import functools
import statistics

from omegaconf import DictConfig

from metagradient.descent import DescentProblem, Reading
from metagradient.evaluation import Retraining
from metagradient.intervals import deviation
from metagradient.reporting import Progress, Record
from metagradient.streams import Selection
from metagradient.studies import setup, smoothness, stages
from metagradient.studies.saved import save_model
from metagradient.studies.selection.task import Search
from metagradient.studies.selection.tasks import make_task
from metagradient.studies.selection.texts import Texts
from metagradient.studies.trainer import TrainerFit
from metagradient.training.random import fold_in


def run(cfg: DictConfig, record: Record) -> float:
    setup.prepare(cfg, "selection")
    task = make_task(cfg)
    method = setup.build(cfg.method, _convert_="all")
    record.scratch("descent.*", "refit", "replay-*")
    with Progress(stages.selection(cfg, method, isinstance(task, Texts))) as progress:
        pretraining = task.prepare(progress)
        # 1. Descend: train, replay, move the weights; every metastep with a fresh initialisation and order.
        readings: list[Reading] = []

        def on_metastep(reading: Reading) -> None:
            readings.append(reading)
            record.curve(reading.metastep, reading.values | ({} if reading.kept is None else task.found(reading.kept)))

        problem = DescentProblem(
            task.train,
            task.steer,
            score=task.score,
            routine=task.routine,
            fit=TrainerFit(cfg, progress, record.directory),
            seed=fold_in(cfg.seed, Selection.DESCENT),
            folder=record.directory,
            resume=setup.folder(cfg.resume),
        )
        smoothness.at_the_start(cfg, record, progress, task.routine, task.train, "weights")
        chosen = method.run(problem, on_metastep=on_metastep, progress=progress.callback("descent"))
        search_cost = chosen.cost
        if cfg.refit and chosen.metastep > 0:  # the same way again, steered by all validation rows
            (folder := record.directory / "refit").mkdir(exist_ok=True)
            everything = dataclasses.replace(
                problem, steer=task.validation, folder=folder, resume=problem.resume and folder
            )
            chosen = method.run(everything, progress=progress.callback("refit"), stop=chosen.metastep)
            search_cost += chosen.cost
        task.leave(record, chosen)

        # 2. Judge: retrain from scratch on every choice of data, with the same fresh seeds for all.
        unit = len(task.routine.batches(task.train, 0))
        fresh, others = (
            [fold_in(cfg.seed, stream, i) for i in range(cfg.retrainings)]
            for stream in (Selection.JUDGE, Selection.TUNER)
        )
        judge = Retraining(task.routine, fresh, unit, progress.callback())
        tuner = Retraining(task.routine, others, unit, progress.callback(), task.worth)
        choices = {
            **task.rivals(Search(cfg, cfg.seed, tuner, progress, chosen)),
            **task.chosen(chosen),
        }
        choices[""] = dataclasses.replace(choices[""], cost=search_cost)
        save = functools.partial(save_model, record)
        results = {
            key: judge.each(choice.examples, choice.weights, task.judged, keep=None if key else save)
            for key, choice in progress.track(choices.items(), "retraining on each choice", stage="choices")
        }

    # 3. Tell.
    measures, known = list(results[""]), list(task.found(chosen.kept))
    table = []
    for key, choice in choices.items():
        found = {} if choice.kept is None else task.found(choice.kept)
        means = {name: statistics.fmean(values) for name, values in results[key].items()}
        table.append([choice.label, *means.values(), *(found.get(name) for name in known), choice.cost])
        for name, values in results[key].items():
            stem = f"{name}_{key}" if key else name
            record.result({stem: means[name], f"{stem}_sd": deviation(values)})
    record.table(f"{task.headline}_of_each_choice", ["trained on", *measures, *known, "cost"], table)
    kept = {"chosen_metastep": chosen.metastep, "share_kept": float(chosen.kept.float().mean())}
    record.result({**kept, **task.found(chosen.kept)})
    record.cost(training_runs=search_cost + judge.runs + tuner.runs + pretraining / unit)
    headline = {key: statistics.fmean(found[task.headline]) for key, found in results.items()}
    record.answer(task.answer(headline, chosen, search_cost))
    task.draw(record, chosen, readings, {"test, all data": headline["all_data"], "test, retrained": headline[""]})
    return headline[""]


if __name__ == "__main__":
    from metagradient.cli.command import launch

    launch("selection")
