"""Schedule search: its space against interpolation by hand, its gradient against finite differences, its baselines."""

import math
from pathlib import Path

import pytest
import torch
from test_selection import blobs
from torch import Tensor

import metagradient as mg
from metagradient.descent import DescentProblem, Family, Recipe, RecipeSpace, ScheduleSearch, Sign
from metagradient.descent.loop import Loop, Measured
from metagradient.descent.schedule import hat_functions
from metagradient.descent.schedule_baselines import (
    ScheduleFree,
    geometric,
    grid,
    grid_search,
    random_search,
    rise_and_fall,
    schedule_free_search,
    tpe_search,
)
from metagradient.descent.state import DescentState
from metagradient.errors import UserError
from metagradient.training.random import fold_in


def double(examples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": examples["x"].double(), "y": examples["y"]}


def make_problem(folder: Path | None = None) -> DescentProblem:
    routine = mg.Routine(
        lambda schedule: mg.Classifier(
            torch.nn.Linear(2, 3), mg.SGD(momentum=0.5, weight_decay=1e-3), schedule
        ).double(),
        batch_size=20,
        epochs=4,
    )

    def score(learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        with torch.no_grad(), learner.evaluating(state):
            return {"held_out_loss": float(mg.mean_loss(double(blobs(60, 3)))(learner))}

    return DescentProblem(double(blobs(60, 1)), double(blobs(60, 2)), score, routine, mg.metagradient, 5, folder)


@pytest.mark.parametrize(("knots", "steps"), [(1, 7), (4, 10), (4, 3), (5, 5), (2, 1)])
def test_rates_are_those_of_the_knot_schedule(knots: int, steps: int) -> None:
    """The library's `Knots` and `LearningRates` interpolate the same numbers on their own."""
    x = torch.linspace(-3, 1, knots) ** 2 / 4 - 2
    rates = RecipeSpace(knots).recipe(x, steps).rates
    schedule = mg.Knots(x.exp().tolist(), steps, log=True)
    assert rates.tolist() == pytest.approx([schedule(t) for t in range(steps)], rel=1e-5)
    assert hat_functions(knots, steps).sum(1).tolist() == pytest.approx([1.0] * steps)


def test_momentum_and_weight_decay_are_found_behind_the_knots() -> None:
    space = RecipeSpace(3, momentum=True, weight_decay=True)
    x = space.start(0.1, 0.9, 5e-4)
    recipe = space.recipe(x, 4)
    assert recipe.rates.tolist() == pytest.approx([0.1] * 4)
    assert recipe.momentum is not None
    assert recipe.momentum.tolist() == pytest.approx([0.9] * 4)
    assert float(recipe.weight_decay) == pytest.approx(5e-4)
    assert [m.name for m in recipe.metaparameters()] == ["learning_rates", "momentum", "weight_decay"]


def test_the_first_step_follows_the_sign_of_finite_differences() -> None:
    """In every number of the largest space: three knots, momentum, weight decay."""
    problem, seen = make_problem(), list[Tensor]()
    space = RecipeSpace(3, momentum=True, weight_decay=True)
    method = ScheduleSearch(metasteps=1, start=0.05, space=space, update=Sign(step=0.01))
    method.run(problem, on_metastep=lambda m, v, x: seen.append(x.clone()))
    before, after = seen[0].double(), seen[1].double()
    seed, h = fold_in(problem.seed, 0, 0) % 2**31, 1e-4

    def loss(x: Tensor) -> float:
        learner, final = space.recipe(x, 12).train(problem, seed)
        with torch.no_grad(), learner.evaluating(final):
            return float(mg.mean_loss(problem.steer)(learner))

    for i in range(5):
        shift = torch.zeros(5, dtype=torch.float64)
        shift[i] = h
        slope = loss(before + shift) - loss(before - shift)
        assert float((after - before)[i]) == pytest.approx(-0.01 if slope > 0 else 0.01, rel=1e-3)


def test_a_bad_flat_schedule_is_mended() -> None:
    problem, objectives = make_problem(), list[float]()
    found = ScheduleSearch(metasteps=10, start=0.001).run(
        problem, on_metastep=lambda m, v, x: objectives.append(v["objective"])
    )
    assert min(objectives) < 0.7 * objectives[0]
    assert len(found.finalists) == 3
    assert found.cost == pytest.approx(10 * 3 + 1)


def test_averaged_iterates_are_the_mean_of_the_accepted() -> None:
    xs: list[Tensor] = []

    def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
        return Measured({"objective": 1.0}, 0.0, torch.ones(2) if differentiate else None, 1.0)

    def move(state: DescentState, gradient: Tensor) -> None:
        xs.append(state.x)
        state.x = state.x + torch.tensor([1.0, float(state.metastep) ** 2])

    state = Loop(metasteps=8, average_from=0.5).descend(torch.zeros(2), measure, move, seed=0)
    torch.testing.assert_close(state.mean_x, torch.stack(xs[4:]).mean(0))


def test_shapes_rise_to_the_peak_and_fall() -> None:
    one = rise_and_fall(100, 0.5, 0.3)
    expected = [mg.OneCycle(0.5, 100, warmup=0.3)(t) for t in range(100)]
    assert one.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    cosine = rise_and_fall(100, 0.5, 0.0, 0.0, 0.0, linear=True)
    assert cosine.tolist() == pytest.approx([mg.Cosine(0.5, 100)(t) for t in range(100)], abs=1e-6)
    warm = rise_and_fall(100, 1.0, 0.5, 0.0, 0.0, linear=True)
    assert warm[:50].tolist() == pytest.approx([t / 50 for t in range(50)], abs=1e-6)
    assert geometric(0.1, 10.0, 3) == pytest.approx([0.1, 1.0, 10.0])
    assert len(grid(10, [0.1, 1.0], [0.0, 0.5])) == 8


def test_searchers_spend_what_they_are_given() -> None:
    """On a toy loss, the distance of the peak from .3 in log: every trial is one evaluation, the loss is its own."""
    calls: list[Recipe] = []

    def evaluate(recipe: Recipe) -> float:
        calls.append(recipe)
        return abs(math.log(float(recipe.rates.max()) / 0.3))

    trials = list(random_search(evaluate, Family(), 20, 15, seed=1))
    assert len(trials) == len(calls) == 15
    assert trials[3].loss == evaluate(trials[3].recipe)
    again = list(random_search(evaluate, Family(), 20, 15, seed=1))
    assert [t.loss for t in again] == [t.loss for t in trials]
    assert all(0.005 < float(t.recipe.rates.max()) <= 3.0 for t in trials)
    best = min(grid_search(evaluate, grid(20, [0.01, 0.3, 3.0], [0.0])), key=lambda t: t.loss)
    assert "peak 0.3" in best.name


def test_tpe_closes_in_where_optuna_is_installed() -> None:
    pytest.importorskip("optuna")

    def evaluate(recipe: Recipe) -> float:
        return abs(math.log(float(recipe.rates.max()) / 0.3))

    losses = [t.loss for t in tpe_search(evaluate, Family(), 20, 30, seed=1)]
    assert sum(losses[20:]) < sum(losses[:10])


def test_a_stretched_recipe_repeats_each_step() -> None:
    recipe = Recipe(torch.tensor([1.0, 2.0]), torch.tensor([0.9, 0.8]))
    longer = recipe.stretched(2)
    assert longer.rates.tolist() == [1.0, 1.0, 2.0, 2.0]
    assert longer.momentum is not None
    assert longer.momentum.tolist() == pytest.approx([0.9, 0.9, 0.8, 0.8])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"space\.knots"):
        RecipeSpace(0)
    with pytest.raises(UserError, match=r"family\.peak"):
        Family(peak=(1.0, 0.1))
    with pytest.raises(UserError, match=r"average_from"):
        ScheduleSearch(average_from=2.0)
    with pytest.raises(UserError, match="flat learning rate"):
        ScheduleSearch(start=0.0).run(make_problem())


def test_schedule_free_is_what_its_paper_says() -> None:
    """The package against the recursion written out: y = (1 - b) z + b x, z <- z - r_t g(y), x <- average of z."""
    pytest.importorskip("schedulefree")
    problem, rate, momentum = make_problem(), 0.3, 0.9
    learner, state = ScheduleFree(rate, warmup=0.25, momentum=momentum).train(problem, seed=3)
    batches = problem.routine.batches(problem.train, 3)
    like = problem.routine.learner(3, len(batches))
    x = z = mg.initial_state(like).params
    weights, warm = 0.0, round(0.25 * len(batches))
    for t in range(len(batches)):
        y = ((1 - momentum) * z + momentum * x).detach().requires_grad_()
        with like.evaluating(mg.TrainState.of([y])):
            loss = like.losses(batches(t)).mean()
        (g,) = torch.autograd.grad(loss, y)
        r = rate * min(1.0, (t + 1) / max(warm, 1))
        g = g + 1e-3 * y.detach()
        z = z - r * g
        largest = rate if t >= warm else r
        weights += largest**2
        x = x + largest**2 / weights * (z - x)
    assert torch.allclose(state.params, x, rtol=1e-9, atol=1e-12)
    assert float(mg.mean_loss(problem.steer)(learner).detach()) < 1.1  # the parameters are in the module, too


def test_schedule_free_search_tries_what_it_is_given() -> None:
    pytest.importorskip("schedulefree")
    family = Family(peak=(0.01, 0.1), warmup=(0.1, 0.2))
    trials = list(schedule_free_search(lambda trial: 1.0, family, runs=20, seed=0))
    found = [trial.recipe for trial in trials]
    assert all(isinstance(r, ScheduleFree) and 0.1 <= r.rate <= 1 and 0.1 <= r.warmup <= 0.2 for r in found)
    assert len({r.rate for r in found if isinstance(r, ScheduleFree)}) == 20
