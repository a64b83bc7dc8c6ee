"""What the poisoning experiment measures on the poisons: victims, defences, and how it all looks."""

import dataclasses
import logging
from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

import metagradient as mg
from metagradient import attribution as at
from metagradient.data import RandomShift, Splits
from metagradient.descent import DescentProblem, Poisons
from metagradient.errors import UserError
from metagradient.evaluation import (
    Retraining,
    accuracy,
    example_losses_of,
    filter_by_suspicion,
    hard_labels,
    mean_cross_entropy,
    neighbour_distances,
    take,
)
from metagradient.files import replacing
from metagradient.reporting import Progress, Record, figures
from metagradient.streams import Poisoning
from metagradient.studies import setup
from metagradient.studies.trainer import TrainerFit
from metagradient.training.batches import Fields
from metagradient.training.random import fold_in

log = logging.getLogger(__name__)


def check(cfg: DictConfig, splits: Splits) -> None:
    """Refuse at once what the defences would refuse after the attacks.

    Raises:
        UserError: a defence that cannot be built, or that moves images out of their frame.
    """
    setup.build(cfg.defender, _convert_="all")
    augment = setup.build(cfg.augmentation)
    if isinstance(augment, RandomShift) and splits.kind == "image" and augment.pixels >= min(splits.input_shape[-2:]):
        height, width = splits.input_shape[-2:]
        raise UserError(
            f"augmentation.pixels={augment.pixels} moves images of {height}x{width} out of their frame: set augmentation.pixels=1"
        )


def save(record: Record, splits: Splits, poisons: Poisons, share: float, first: bool) -> None:
    """poisons.safetensors and poison_index.csv; with the share in their names for all but the first."""
    name = "" if first else f"_{share:g}"
    tensors = {"images": poisons.images.contiguous(), "index": poisons.index}
    with replacing(record.artifact_path(f"poisons{name}.safetensors")) as draft:
        save_file(tensors, draft)
    labels = hard_labels(splits.train["y"][poisons.index]).tolist()
    record.csv(f"poison_index{name}", ["index", "label"], zip(poisons.index.tolist(), labels, strict=True))


def defend(
    cfg: DictConfig, splits: Splits, routine: mg.Routine, poisoned: Fields, is_poison: Tensor, progress: Progress
) -> tuple[list[list[object]], float]:
    """Rows (defence, test accuracy, share dropped, share of poisons dropped, AUROC) and the trainings spent.

    A defender has the poisoned training rows and the validation rows, and does not know which are poisons. What
    share to drop is chosen on the validation rows, with seeds of its own.
    """
    unit = len(routine.batches(poisoned, 0))
    judge = Retraining(routine, [fold_in(cfg.seed, Poisoning.VICTIMS, i) % 2**31 for i in range(cfg.victims)], unit)
    tuner = Retraining(routine, [fold_in(cfg.seed, Poisoning.TUNER, 0) % 2**31], unit)
    extra = 0.0
    learner, state = tuner.train(poisoned, fold_in(cfg.seed, Poisoning.SUSPECT) % 2**31)
    suspicions = {
        "high-loss filter": example_losses_of(learner, state, poisoned),
        "k-NN outlier filter": neighbour_distances(poisoned),
        "influence filter": _harm(learner, state, poisoned, splits.validation, cfg.influence),
    }
    defender = setup.build(cfg.defender, _convert_="all")
    trusted = DescentProblem(
        poisoned,
        splits.validation,
        score=lambda learner, state: {"held_out_loss": mean_cross_entropy(learner, state, splits.validation)},
        routine=routine,
        fit=TrainerFit(cfg, progress),
        seed=fold_in(cfg.seed, Poisoning.DEFENDER),
    )
    chosen = defender.run(trusted, progress=progress.callback("defender"))
    extra += chosen.cost
    suspicions["metagradient weights, lowest dropped"] = -chosen.weights

    def test(examples: Fields, weights: Tensor | None = None, by: Retraining = judge) -> float:
        return by.accuracies(examples, weights, {"test": splits.test})["test"]

    rows: list[list[object]] = [["none", test(poisoned), 0.0, 0.0, None]]
    for name, suspicion in progress.track(suspicions.items(), "defences", stage="defences"):
        kept, dropped = filter_by_suspicion(
            tuner, poisoned, splits.validation, suspicion, cfg.filter_fractions, name, progress.callback()
        )
        caught = float((~kept[is_poison]).float().mean())
        separates = float(binary_auroc(suspicion.argsort().argsort().float() / len(suspicion), is_poison.int()))
        rows.append([name, test(take(poisoned, kept)), dropped, caught, separates])
    data, weights = chosen.apply(poisoned)
    rows.append(["metagradient weights, as learned", test(data, weights), None, None, rows[-1][-1]])
    augment = setup.build(cfg.augmentation)
    augmented = Retraining(dataclasses.replace(routine, augment=augment), judge.seeds, unit)
    if isinstance(augment, RandomShift) and splits.kind != "image":
        log.info("augmentation: RandomShift is for images, so this defence is left out")
    else:
        name = f"augmentation: {type(augment).__name__}"
        rows.append([name, test(poisoned, by=augmented), 0.0, 0.0, None])
    rows.append(["the validation rows alone", test(splits.validation), 1.0, 1.0, None])
    rows.append(["oracle: poisons dropped", test(take(poisoned, ~is_poison)), cfg.shares[0], 1.0, None])
    return rows, judge.runs + tuner.runs + augmented.runs + extra


def _harm(learner: mg.Learner, state: mg.TrainState, train: Fields, trusted: Fields, settings: DictConfig) -> Tensor:
    """How much the trusted rows' mean loss would fall without each training example, by influence functions [n]."""
    size = len(state.params)
    compressor = at.Uncompressed() if size <= settings.k else at.Dropout(settings.k)
    scorer = at.Influence(compressor).fit(learner, state, train)
    return -torch.cat([chunk[0].mean(1) for chunk in scorer.chunks(trusted, [settings.damping])])


def draw(
    record: Record,
    splits: Splits,
    poisons: Poisons,
    curve: list[dict[str, float]],
    levels: Mapping[str, float],
    name: str,
) -> None:
    """before_after.png and metasteps.png, of one share."""
    changed = (poisons.images - splits.train["x"][poisons.index]).flatten(1).abs().mean(1)
    shown = changed.argsort(descending=True, stable=True)[:: max(1, len(changed) // 10)][:10]
    rows = poisons.index[shown]
    labels = splits.target_names(splits.train["y"][rows])
    before, after = splits.train["x"][rows], poisons.images[shown]
    if splits.kind == "image":
        title = "training images before (above) and after (below), with their unchanged labels"
        pair = torch.cat([before, after])
        figure = figures.image_grid(pair, labels * 2, columns=len(rows), title=title)
    else:
        moved = [_changes(splits, old, new) for old, new in zip(before, after, strict=True)]
        title = "the features of training rows that were moved most, with their unchanged labels"
        figure = figures.text_figure([figures.Passage(title, labels, moved)])
    record.figure(f"before_after{name}", figure)
    record.figure(
        f"metasteps{name}",
        figures.metastep_curves(
            [int(row["metastep"]) for row in curve],
            {"loss on the steering rows": [-row["objective"] for row in curve]},
            {"held-out": [row["held_out_accuracy"] for row in curve], "test": [row["test_accuracy"] for row in curve]},
            references=levels,
            chosen=poisons.metastep,
        ),
    )


def _changes(splits: Splits, before: Tensor, after: Tensor, most: int = 5) -> str:
    """The columns of a row [F] that changed most, before and after."""
    columns = (after - before).abs().topk(min(most, len(before))).indices.tolist()
    return ", ".join(f"{splits.feature(i)}: {before[i]:.3g} → {after[i]:.3g}" for i in columns)


def scores(held_out: Fields, test: Fields) -> object:
    """Accuracy of each metastep's model on the held-out rows, which choose, and on the test rows, which are only drawn."""
    return lambda learner, state: {
        "held_out_accuracy": accuracy(learner, state, held_out),
        "test_accuracy": accuracy(learner, state, test),
    }
