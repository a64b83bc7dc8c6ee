"""What the schedule experiment asks of a recipe: a loss while it is searched, and fresh seeds once it is found."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import metagradient as mg
from metagradient.data import Splits
from metagradient.descent import DescentProblem, Recipe
from metagradient.descent.schedule_baselines import Trainable, Trial
from metagradient.evaluation import MEASURES, Measure, mean_cross_entropy
from metagradient.intervals import deviation, standard_error
from metagradient.reporting import Progress, Record
from metagradient.reporting.figures import descent as descent_figures
from metagradient.streams import Schedules
from metagradient.training.random import fold_in

OURS, GRID, RANDOM, TPE, FREE = "metagradient", "grid", "random search", "TPE", "schedule-free SGD"
FLAT = "flat, where we began"
KEYS = {OURS: "", GRID: "_grid_best", RANDOM: "_random", TPE: "_tpe", FREE: "_schedule_free", FLAT: "_flat"}


@dataclass
class Searcher:
    """One searcher's way: trials in order with the compute spent after each and the test loss of its model."""

    trials: list[Trial] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    tests: list[float] = field(default_factory=list)

    def best(self, count: int) -> list[Trial]:
        """The `count` trials with the lowest validation loss."""
        return sorted(self.trials, key=lambda trial: trial.loss)[:count]

    def incumbents(self) -> list[float]:
        """The test loss of what would have been chosen on validation after each trial; only drawn."""
        chosen = [min(range(i + 1), key=lambda j: self.trials[j].loss) for i in range(len(self.trials))]
        return [self.tests[i] for i in chosen]


@dataclass(frozen=True)
class Judge:
    """Trains recipes; never knows where they come from. Every training here counts 1 in `Judge.spent`."""

    problem: DescentProblem
    splits: Splits
    seed: int
    spent: list[float] = field(default_factory=lambda: [0.0])

    def losses(self, recipe: Trainable, seed: int) -> tuple[float, float, float]:
        """(validation loss, test loss, test accuracy or R2) of one training; infinite losses where it diverges."""
        self.spent[0] += 1
        try:
            learner, state = recipe.train(self.problem, seed)
        except mg.NonFiniteLoss:
            return torch.inf, torch.inf, 0.0
        found = [mean_cross_entropy(learner, state, rows) for rows in (self.splits.validation, self.splits.test)]
        found = [loss if loss < torch.inf else torch.inf for loss in found]  # nan is worse than anything
        return found[0], found[1], MEASURES[self.splits.task](learner, state, self.splits.test)

    def follow(
        self, name: str, trials: Iterable[Trial], tests: list[float], total: int, progress: Progress
    ) -> Searcher:
        """Let a searcher run, one training for each trial."""
        way = Searcher()
        for trial in progress.track(trials, name, total, stage=name):
            way.trials.append(trial)
            way.spent.append(float(len(way.trials)))
        way.tests = tests[-len(way.trials) :] if way.trials else []
        return way

    def choose(self, finalists: Sequence[Trainable], seeds: int) -> Trainable:
        """The finalist with the lowest mean validation loss over fresh seeds, the same for all."""
        fresh = [fold_in(self.seed, Schedules.FINALISTS, i) % 2**31 for i in range(seeds)]
        return min(finalists, key=lambda recipe: statistics.fmean(self.losses(recipe, s)[0] for s in fresh))

    def test(self, recipe: Trainable, seeds: int, stretch: int = 1) -> tuple[list[float], list[float]]:
        """(test losses, test accuracies) over fresh seeds that no search has seen."""
        judge = self
        if stretch > 1 and isinstance(recipe, Recipe):
            routine = self.problem.routine
            longer: dict[str, Any] = {
                k: None if (v := getattr(routine, k)) is None else stretch * v for k in ("epochs", "steps")
            }
            problem = dataclasses.replace(self.problem, routine=dataclasses.replace(routine, **longer))
            judge, recipe = Judge(problem, self.splits, self.seed), recipe.stretched(stretch)
        found = [judge.losses(recipe, fold_in(self.seed, Schedules.TEST, i) % 2**31)[1:] for i in range(seeds)]
        self.spent[0] += 0 if judge is self else stretch * judge.spent[0]
        return [loss for loss, _ in found], [share for _, share in found]


def summary(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """[mean, sd, mean difference to the reference of the same seeds, its standard error]."""
    differences = [a - b for a, b in zip(losses, reference, strict=True)]
    return [
        statistics.fmean(losses),
        deviation(losses),
        statistics.fmean(differences),
        standard_error(differences),
    ]


def tell(
    record: Record,
    losses: Mapping[str, list[float]],
    accuracies: Mapping[str, list[float]],
    longer: Mapping[str, list[float]],
    spent: Mapping[str, float],
    finals: int,
    measure: Measure,
) -> None:
    """The table of test losses, and the results; `finals`: trainings that each searcher's finalists took.

    `accuracies` are what the `measure` says.
    """
    rows: list[list[object]] = []
    for name, values in losses.items():
        runs = spent[name] + finals if name in spent else 0.0
        rows.append([name, runs, *summary(values, losses[GRID]), statistics.fmean(accuracies[name])])
        record.result({f"test_loss{KEYS[name]}": statistics.fmean(values)})
        record.result({f"test_loss{KEYS[name]}_sd": deviation(values)})
    for name, values in longer.items():
        rows.append([f"{name}, stretched", None, *summary(values, longer[GRID]), None])
        record.result({f"test_loss_stretched{KEYS[name]}": statistics.fmean(values)})
    columns = ["schedule", "training runs", "test loss", "sd", "against the grid's", "standard error"]
    columns.append(f"test {measure.title}")
    record.table("test_losses", columns, rows)
    own, grid, flat = (statistics.fmean(losses[name]) for name in (OURS, GRID, FLAT))
    record.answer(
        f"The schedule found by metagradients ends at a test loss of {own:.4g} {measure.loss_unit} (standard deviation {deviation(losses[OURS]):.2g} "
        f"over {len(losses[OURS])} seeds), the best of the grid at {grid:.4g}, the flat one at {flat:.4g}."
    )


def save(record: Record, best: Trainable) -> None:
    """schedule.csv: what the found recipe does at each step."""
    assert isinstance(best, Recipe)
    columns = {"step": range(len(best.rates)), "learning_rate": best.rates.tolist()}
    if best.momentum is not None:
        columns["momentum"] = best.momentum.tolist()
    if best.weight_decay is not None:
        columns["weight_decay"] = [float(best.weight_decay)] * len(best.rates)
    record.csv("schedule", list(columns), zip(*columns.values(), strict=True))


def draw(
    record: Record, path: Sequence[torch.Tensor], chosen: Mapping[str, Trainable], ways: Mapping[str, Searcher]
) -> None:
    """schedule_by_metastep.png, found_against_grid.png, test_loss_against_compute.png."""
    record.figure("schedule_by_metastep", descent_figures.schedules_figure([rates.tolist() for rates in path]))
    shown = {"found by metagradients": chosen[OURS], "best of the grid": chosen[GRID]}
    pair = {name: recipe.rates.tolist() for name, recipe in shown.items() if isinstance(recipe, Recipe)}
    record.figure("found_against_grid", descent_figures.pair_figure(pair))
    lines = {name: (way.spent, way.incumbents()) for name, way in ways.items()}
    record.figure("test_loss_against_compute", descent_figures.compute_figure(lines))
