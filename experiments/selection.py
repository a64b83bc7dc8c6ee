"""Which training data should I have used? Metagradient descent on the weights or counts of training examples.

The examples' loss weights (or their counts) are moved along the exact gradient of the loss on trusted validation
examples through the whole training run. Part of the validation rows steers, the rest chooses the metastep; models
are then retrained from scratch with fresh seeds on the chosen data, and the test rows are looked at once.
"""

import dataclasses
import functools
import logging

import torch
from omegaconf import DictConfig
from torchmetrics.functional.classification import binary_f1_score

from metagradient.descent import DescentProblem, Reading
from metagradient.evaluation import MEASURES, Retraining, filter_by_loss, join, mean_cross_entropy, take
from metagradient.reporting import Progress, Record
from metagradient.streams import Selection
from metagradient.studies import routines, setup, smoothness, stages
from metagradient.studies.saved import save_model
from metagradient.studies.selection import draw, gain, leave
from metagradient.studies.trainer import TrainerFit
from metagradient.training.random import fold_in, generator

log = logging.getLogger(__name__)


def run(cfg: DictConfig, record: Record) -> float:
    setup.prepare(cfg, "selection")
    splits = setup.classification(cfg)
    routine = routines.classifier_routine(cfg, splits)
    method = setup.build(cfg.method, _convert_="all")
    if splits.source and cfg.data.get("split") is None:
        log.info(
            "the validation rows decide which training rows are wanted, so they must be right; a column of data.split=COLUMN, or a source "
            "that is divided already, says which they are"
        )
    measure = MEASURES[splits.task]
    train, validation, truth = splits.train, splits.validation, splits.truth
    order = torch.randperm(len(validation["y"]), generator=generator(cfg.seed, Selection.HELD_OUT))
    held = setup.share(cfg.held_out, len(order), "held_out")
    held_out, steer = take(validation, order[:held]), take(validation, order[held:])

    def f1(kept: torch.Tensor) -> dict[str, float]:
        """Kept examples against both readings of clean: the label is correct; the row was not redrawn."""
        clean = {} if truth is None else {"f1_clean": ~truth.wrong, "f1_not_redrawn": ~truth.redrawn}
        return {name: float(binary_f1_score(kept.int(), mask.int())) for name, mask in clean.items()}

    record.scratch("descent.*", "refit")
    with Progress(stages.selection(cfg, method)) as progress:
        # 1. Descend: train, replay, move the weights; every metastep with a fresh initialisation and order.
        readings: list[Reading] = []

        def on_metastep(reading: Reading) -> None:
            readings.append(reading)
            record.curve(reading.metastep, reading.values | ({} if reading.kept is None else f1(reading.kept)))

        problem = DescentProblem(
            train,
            steer,
            score=lambda learner, state: {
                "held_out_loss": mean_cross_entropy(learner, state, held_out),
                f"held_out_{measure.name}": measure(learner, state, held_out),
            },
            routine=routine,
            fit=TrainerFit(cfg, progress),
            seed=fold_in(cfg.seed, Selection.DESCENT),
            folder=record.directory,
            resume=setup.folder(cfg.resume),
        )
        smoothness.at_the_start(cfg, record, progress, routine, train, "weights")
        chosen = method.run(problem, on_metastep=on_metastep, progress=progress.callback("descent"))
        search_cost = chosen.cost
        if cfg.refit and chosen.metastep > 0:  # the same way again, steered by all validation rows
            (folder := record.directory / "refit").mkdir(exist_ok=True)
            everything = dataclasses.replace(problem, steer=validation, folder=folder, resume=problem.resume and folder)
            chosen = method.run(everything, progress=progress.callback("refit"), stop=chosen.metastep)
            search_cost += chosen.cost

        leave(record, splits, chosen)

        # 2. Judge: retrain from scratch on every choice of data, with the same fresh seeds for all.
        unit = len(routine.batches(train, 0))
        fresh, others = (
            [fold_in(cfg.seed, stream, i) for i in range(cfg.retrainings)]
            for stream in (Selection.JUDGE, Selection.TUNER)
        )
        save = functools.partial(save_model, record)
        judge = Retraining(routine, fresh, unit, progress.callback(), measure)
        tuner = Retraining(routine, others, unit, progress.callback(), measure)
        by_loss, dropped = filter_by_loss(
            tuner,
            train,
            validation,
            cfg.filter_fractions,
            fold_in(cfg.seed, Selection.FILTER),
            progress.callback("filter"),
        )
        data, weights = chosen.apply(train)
        ones = None if weights is None else torch.cat([weights, torch.ones(len(validation["y"]))])
        kept = take(train, chosen.kept)
        correct = chosen.kept if truth is None else ~truth.wrong
        choices = {
            "all_data": ("all data", train, None),
            "oracle": ("oracle: correct labels only", take(train, correct), None),
            "validation_only": ("validation only", validation, None),
            "loss_filter": (f"high-loss filter, {dropped:.0%} dropped", take(train, by_loss), None),
            "": (f"metagradient: learned {chosen.unit}", data, weights),
            "kept_only": ("metagradient: kept rows", kept, None),
            "with_validation": ("metagradient: kept rows + validation", join(kept, validation), None),
            "weights_with_validation": (f"metagradient: {chosen.unit} + validation", join(data, validation), ones),
        }
        if truth is None:
            del choices["oracle"]
        tests = {"test": splits.test, **splits.extra_tests}
        accuracies = {
            key: judge.accuracies(examples, w, tests, keep=None if key else save)
            for key, (_, examples, w) in progress.track(choices.items(), "retraining on each choice", stage="choices")
        }

    # 3. Tell.
    found = {"": f1(chosen.kept), "loss_filter": f1(by_loss)}
    table = [
        [label, *accuracies[key].values(), *found.get(key, dict.fromkeys(found[""])).values()]
        for key, (label, _, _) in choices.items()
    ]
    record.table(f"{measure.name}_of_each_choice", ["trained on", *tests, *found[""]], table)
    for key, row in accuracies.items():
        for name, value in row.items():
            parts = [f"test_{measure.name}", "" if name == "test" else name, key]
            record.result({"_".join(filter(None, parts)): value})
    record.result({"chosen_metastep": chosen.metastep, "share_kept": float(chosen.kept.float().mean()), **found[""]})
    record.cost(training_runs=search_cost + judge.runs + tuner.runs)
    final = accuracies[""]["test"]
    plain, kept_only = (accuracies[key]["test"] for key in ("all_data", "kept_only"))
    record.answer(
        f"Trained on the learned {chosen.unit} the test {measure.title} is {final:.3f}, on all data {plain:.3f}, "
        f"on the validation rows alone {accuracies['validation_only']['test']:.3f}; the descent cost {search_cost:.0f} trainings.{gain(final, kept_only, plain)}"
    )
    draw(record, splits, chosen, readings, {"test, all data": accuracies["all_data"]["test"], "test, retrained": final})
    return final


if __name__ == "__main__":
    from metagradient.cli.command import launch

    launch("selection")
