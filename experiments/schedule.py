"""Which learning-rate schedule should I have used? Found by gradient, against tuning at equal compute.

Log learning rates at a few knots are moved along exact metagradients of the held-out loss, from a flat schedule, each
metastep with a fresh initialisation and order. A grid of one-cycle and cosine schedules, random search and Optuna's TPE
spend as many training runs. Finalists of every searcher are chosen on validation rows; the test rows are used once, with
fresh seeds.

`metagradient schedule -m seed=0,1,2,3,4` (MLP on digits, 200 steps; 100 training runs each; five fresh seeds): test loss
.241 flat, .119 found, .112 best of the grid, .109 random search, .111 TPE: +.007 (standard error .008 over the five
searches) against the grid, no better than tuning two or four numbers.
"""

import dataclasses
import statistics

import torch
from omegaconf import DictConfig

import metagradient as mg
from metagradient.descent import DescentProblem, Recipe
from metagradient.descent import schedule_baselines as baselines
from metagradient.descent.schedule_baselines import Trainable, Trial
from metagradient.evaluation import MEASURES, mean_cross_entropy, take
from metagradient.intervals import deviation
from metagradient.reporting import Progress, Record
from metagradient.streams import Schedules
from metagradient.studies import routines, schedule, setup, smoothness, stages
from metagradient.studies.schedule import FLAT, FREE, GRID, OURS, RANDOM, TPE
from metagradient.studies.trainer import TrainerFit
from metagradient.training.random import fold_in, generator


def run(cfg: DictConfig, record: Record) -> float:
    setup.prepare(cfg, "schedule")
    splits = setup.classification(cfg)
    routine = routines.classifier_routine(cfg, splits)
    order = torch.randperm(len(splits.validation["y"]), generator=generator(cfg.seed, Schedules.HELD_OUT))
    held = setup.share(cfg.held_out, len(order), "held_out")
    held_out, steer = take(splits.validation, order[:held]), take(splits.validation, order[held:])
    method = setup.build(cfg.method, _convert_="all")
    steps = len(routine.batches(splits.train, 0))
    peaks = baselines.geometric(cfg.grid.low, cfg.grid.high, cfg.grid.peaks)
    recipes = baselines.grid(steps, peaks, list(cfg.grid.warmups))
    family = setup.build(cfg.family)

    if cfg.schedule_free:
        baselines.ScheduleFree.check(routine.learner(0, steps))
    equals = (RANDOM, TPE, FREE) if cfg.schedule_free else (RANDOM, TPE)
    record.scratch("descent.*", "replay-*")
    with Progress(stages.schedule(cfg, method, (GRID, len(recipes)), equals)) as progress:
        # 1. Descend: from a flat schedule, along metagradients through whole runs.
        problem = DescentProblem(
            splits.train,
            steer,
            score=lambda learner, state: {
                "held_out_loss": mean_cross_entropy(learner, state, held_out),
                "test_loss": mean_cross_entropy(learner, state, splits.test),  # drawn, never chosen by
            },
            routine=routine,
            fit=TrainerFit(cfg, progress, record.directory),
            seed=fold_in(cfg.seed, Schedules.DESCENT),
            folder=record.directory,
            resume=setup.folder(cfg.resume),
        )
        flat = method.space.recipe(method.flat(routine), steps)
        begins = dataclasses.replace(routine, schedule=lambda steps: mg.Constant(method.start))
        smoothness.at_the_start(cfg, record, progress, begins, splits.train, "schedule")
        judge = schedule.Judge(problem, splits, cfg.seed)
        ways, path = {OURS: schedule.Searcher()}, list[torch.Tensor]()
        per_metastep = 3.0 * method.seeds_per_metastep

        def on_metastep(metastep: int, values: dict[str, float], x: torch.Tensor | None) -> None:
            record.curve(metastep, values)
            rates = torch.full((steps,), torch.nan) if x is None else method.space.recipe(x, steps).rates
            path.append(rates)
            ways[OURS].trials.append(Trial(f"metastep {metastep}", Recipe(rates), values["held_out_loss"]))
            ways[OURS].tests.append(values["test_loss"])
            ways[OURS].spent.append(per_metastep * (metastep + 1))

        found = method.run(problem, on_metastep=on_metastep, progress=progress.callback("descent"))

        # 2. Tune: the baselines, each with one training a trial; random search and TPE with our number of runs.
        tests: list[float] = []

        def evaluate(recipe: Trainable) -> float:
            loss, test, _ = judge.losses(recipe, fold_in(cfg.seed, Schedules.REFERENCE, len(tests)) % 2**31)
            tests.append(test)
            return loss

        runs = round(found.cost)
        searches = {
            GRID: (baselines.grid_search(evaluate, recipes), len(recipes)),
            RANDOM: (baselines.random_search(evaluate, family, steps, runs, cfg.seed), runs),
            TPE: (baselines.tpe_search(evaluate, family, steps, runs, cfg.seed), runs),
        }
        if cfg.schedule_free:
            searches[FREE] = (baselines.schedule_free_search(evaluate, family, runs, cfg.seed), runs)
        for name, (trials, total) in searches.items():
            way = judge.follow(name, trials, tests, total, progress)
            if way.trials:
                ways[name] = way

        # 3. Choose each searcher's best on validation rows, then test once.
        ours = [method.space.recipe(x, steps) for x in found.finalists][: cfg.finalists]
        chosen: dict[str, Trainable] = {FLAT: flat}
        for name, way in progress.track(ways.items(), "finalists", stage="finalists"):
            finalists: list[Trainable] = (
                [*ours] if name == OURS else [trial.recipe for trial in way.best(cfg.finalists)]
            )
            chosen[name] = judge.choose(finalists, cfg.finalist_seeds)
        losses, accuracies = {}, {}
        for name, recipe in progress.track(chosen.items(), "test with fresh seeds", stage="test"):
            losses[name], accuracies[name] = judge.test(recipe, cfg.retrainings)
        kinds = (OURS, GRID) if cfg.stretch > 1 else ()
        longer = {name: judge.test(chosen[name], cfg.retrainings, cfg.stretch)[0] for name in kinds}

    # 4. Tell.
    measure = MEASURES[splits.task]
    spent = {name: way.spent[-1] for name, way in ways.items()} | {OURS: found.cost}
    record.cost(training_runs=found.cost + judge.spent[0])
    record.result({"chosen_metastep": found.metastep, f"test_{measure.name}": statistics.fmean(accuracies[OURS])})
    record.result({f"test_{measure.name}_sd": deviation(accuracies[OURS])})
    schedule.save(record, chosen[OURS])
    schedule.tell(record, losses, accuracies, longer, spent, cfg.finalists * cfg.finalist_seeds, measure)
    schedule.draw(record, path, chosen, ways)
    return statistics.fmean(losses[OURS])


if __name__ == "__main__":
    from metagradient.cli.command import launch

    launch("schedule")
