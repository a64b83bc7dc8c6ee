"""Which training data should I have used? Metagradient descent on the weights or counts of training examples.

The examples' loss weights (or their counts) are moved along the exact gradient of the loss on trusted validation
examples through the whole training run. Part of the validation rows steers, the rest chooses the metastep; the model
is then retrained from scratch with fresh seeds on the chosen data and the test rows are looked at once.
"""

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchmetrics.functional.classification import binary_f1_score

from metagradient.descent import Reading, SelectionProblem, select_by_loss
from metagradient.evaluation import Retraining, accuracy, example_losses_of, join, mean_cross_entropy, take
from metagradient.experiments import _setup
from metagradient.reporting import Progress, Record, figures
from metagradient.training.random import fold_in, generator


def run(cfg: DictConfig, record: Record) -> float:
    _setup.prepare(cfg)
    splits = instantiate(cfg.data)
    routine = _setup.classifier_routine(cfg, splits)
    train, validation, truth = splits.train, splits.validation, splits.truth
    order = torch.randperm(len(validation["y"]), generator=generator(cfg.seed, 1))
    held_rows, steer_rows = order.split([held := round(cfg.held_out * len(order)), len(order) - held])
    steer, held_out = take(validation, steer_rows), take(validation, held_rows)

    def f1(kept: torch.Tensor) -> dict[str, float]:
        if truth is None:
            return {}
        clean = {"f1_clean": ~truth.wrong, "f1_not_redrawn": ~truth.redrawn}
        return {name: float(binary_f1_score(kept.int(), mask.int())) for name, mask in clean.items()}

    with Progress() as progress:
        # 1. Descend: train, replay, move the weights; every metastep with a fresh initialisation and order.
        readings: list[Reading] = []

        def on_metastep(reading: Reading) -> None:
            readings.append(reading)
            record.curve(reading.metastep, {**reading.values, **f1(reading.kept)})

        problem = SelectionProblem(
            train,
            steer,
            score=lambda learner, state: {
                "held_out_loss": mean_cross_entropy(learner, state, held_out),
                "held_out_accuracy": accuracy(learner, state, held_out),
            },
            routine=routine,
            fit=_setup.TrainerFit(cfg, progress),
            seed=fold_in(cfg.seed, 2),
            folder=record.directory,
        )
        method = instantiate(cfg.method, _convert_="all")
        chosen = method.run(problem, on_metastep=on_metastep, progress=progress.callback())

        # 2. Judge: retrain from scratch on each choice of data, with the same fresh seeds for all.
        tests = {"test": splits.test, **splits.extra_tests}
        judge = Retraining(routine, [fold_in(cfg.seed, 3, i) for i in range(cfg.retrainings)])
        data, weights = chosen.apply(train)
        choices = {"all data": (train, None), "validation only": (validation, None)}
        if truth is not None:
            choices["oracle (correct labels)"] = (take(train, ~truth.wrong), None)
        kept_by_loss, dropped = _filter_by_loss(cfg, train, validation, judge, progress)
        choices[f"high-loss filter, {dropped:.0%} dropped"] = (take(train, kept_by_loss), None)
        choices["metagradient: learned weights"] = (data, weights)
        choices["metagradient: kept rows only"] = (take(train, chosen.kept), None)
        ones = None if weights is None else torch.cat([weights, torch.ones(len(validation["y"]))])
        choices["metagradient: learned weights + validation"] = (join(data, validation), ones)
        rows = {
            name: judge.accuracies(*choice, tests)
            for name, choice in progress.track(choices.items(), "retraining on each choice")
        }

    # 3. Tell.
    record.cost(training_runs=chosen.cost + judge.runs)
    every_f1 = {
        f"high-loss filter, {dropped:.0%} dropped": f1(kept_by_loss),
        "metagradient: learned weights": f1(chosen.kept),
    }
    columns = [*(f"{name} accuracy" for name in tests), *f1(chosen.kept)]
    table = [[name, *row.values(), *every_f1.get(name, dict.fromkeys(f1(chosen.kept))).values()] for name, row in rows.items()]
    record.table("test_accuracy_of_each_choice", ["trained on", *columns], table)
    result = {"chosen_metastep": chosen.metastep, "share_kept": float(chosen.kept.float().mean()), **f1(chosen.kept)}
    keys = {
        "metagradient: learned weights": "",
        "metagradient: kept rows only": "_kept_only",
        "metagradient: learned weights + validation": "_with_validation",
        "all data": "_all_data",
        "oracle (correct labels)": "_oracle",
        "validation only": "_validation_only",
        f"high-loss filter, {dropped:.0%} dropped": "_loss_filter",
    }
    for name, row in rows.items():
        result[f"test_accuracy{keys[name]}"] = row["test"]
        if "official" in row:
            result[f"test_accuracy_official{keys[name]}"] = row["official"]
    record.result(result)
    record.csv("selection", ["index", "weight", "kept"], zip(range(problem.n), chosen.weights.tolist(), chosen.kept.tolist(), strict=True))
    _draw(record, splits, chosen, readings, {"all data": rows["all data"]["test"], "retrained": result["test_accuracy"]})
    return result["test_accuracy"]


def _filter_by_loss(cfg, train, validation, judge, progress):  # type: ignore[no-untyped-def]
    """The cheap heuristic: drop the examples on which a trained model's loss is highest; fraction by validation."""
    learner, state = judge.routine.train(train, fold_in(cfg.seed, 4))
    losses = example_losses_of(learner, state, train)
    judge.runs += 1
    options = {}
    for fraction in progress.track(cfg.filter_fractions, "high-loss filter"):
        kept = select_by_loss(losses, fraction)
        options[fraction] = judge.accuracies(take(train, kept), None, {"validation": validation})["validation"]
    best = max(options, key=lambda fraction: options[fraction])
    return select_by_loss(losses, best), best


def _draw(record, splits, chosen, readings, references):  # type: ignore[no-untyped-def]
    wrong = None if splits.truth is None else splits.truth.wrong
    record.figure("weights", figures.weight_histogram(chosen.weights, wrong))
    series = {key: [r.values[key] for r in readings] for key in readings[0].values}
    record.figure(
        "metasteps",
        figures.metastep_curves(
            [r.metastep for r in readings],
            {"steering objective": series["objective"], "held-out loss": series["held_out_loss"]},
            {"held-out accuracy": series["held_out_accuracy"]},
            references=references,
            chosen=chosen.metastep,
        ),
    )
    lowest = chosen.weights.argsort(stable=True)[:12]
    given, true = splits.train["y"][lowest].tolist(), (splits.train["y"] if wrong is None else splits.truth.y)[lowest].tolist()
    captions = [splits.classes[a] if a == b else f"{splits.classes[a]} → {splits.classes[b]}" for a, b in zip(given, true, strict=True)]
    title = "most down-weighted: given label → true label"
    record.figure(
        "most_down_weighted",
        figures.image_grid(splits.train["x"][lowest], captions, [a != b for a, b in zip(given, true, strict=True)], title=title),
    )


if __name__ == "__main__":
    from metagradient.cli import launch

    launch("selection")
