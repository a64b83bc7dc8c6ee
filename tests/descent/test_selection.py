"""Descent on data weights and counts, on a problem small enough to know the answer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient.descent import CountSelection, DescentProblem, DescentState, Raw, Reading, WeightSelection
from metagradient.errors import UserError


def blobs(n: int, seed: int) -> dict[str, Tensor]:
    """Three well separated classes in the plane."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=rng)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    return {"x": centres[y] + torch.randn(n, 2, generator=rng), "y": y}


def make_problem(folder: Path | None = None, wrong_share: float = 0.3) -> tuple[DescentProblem, Tensor]:
    train, validation = blobs(60, 1), blobs(60, 2)
    wrong = torch.arange(60) < wrong_share * 60
    train["y"] = torch.where(wrong, (train["y"] + 1) % 3, train["y"])
    routine = mg.Routine(
        lambda schedule: mg.Classifier(torch.nn.Linear(2, 3), mg.SGD(), schedule, normalize="kept"),
        schedule=lambda steps: mg.Constant(0.5),
        batch_size=20,
        epochs=4,
    )

    def score(learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        with torch.no_grad(), learner.evaluating(state):
            return {"held_out_loss": float(mg.mean_loss(blobs(60, 3))(learner))}

    return DescentProblem(train, validation, score, routine, mg.metagradient, seed=5, folder=folder), wrong


def test_wrong_labels_lose_their_weight() -> None:
    problem, wrong = make_problem()
    readings: list[Reading] = []
    chosen = WeightSelection(metasteps=8).run(problem, on_metastep=readings.append)
    assert len(readings) == 9
    assert readings[-1].values["objective"] < readings[0].values["objective"]
    assert chosen.weights[wrong].mean() < 0.3 * chosen.weights[~wrong].mean()


@pytest.mark.parametrize("swap", [None, 6])
def test_counts_of_wrong_labels_fall(swap: int | None) -> None:
    problem, wrong = make_problem()
    method = CountSelection(metasteps=15, probability=0.4, surrogate=0.5, swap=swap, shard=0.7)
    chosen = method.run(problem)
    assert chosen.counts
    assert chosen.weights[wrong].mean() < 0.6 * chosen.weights[~wrong].mean()
    if swap is not None:
        assert chosen.weights.sum() == problem.n  # the budget is fixed
    examples, weights = chosen.apply(problem.train)
    assert weights is None
    assert len(examples["y"]) == int(chosen.weights.sum())


def test_the_chosen_metastep_has_the_lowest_held_out_loss() -> None:
    problem, _ = make_problem()
    readings: list[Reading] = []
    chosen = WeightSelection(metasteps=6).run(problem, on_metastep=readings.append)
    best = min(readings, key=lambda r: r.values["held_out_loss"])
    assert chosen.metastep == best.metastep
    assert torch.equal(chosen.weights, best.weights)


def test_stop_gives_the_weights_of_that_metastep() -> None:
    problem, _ = make_problem()
    readings: list[Reading] = []
    method = WeightSelection(metasteps=6)
    method.run(problem, on_metastep=readings.append)
    assert torch.equal(method.run(problem, stop=4).weights, readings[4].weights)


def test_a_diverging_metastep_is_rejected_and_the_step_halved(caplog: pytest.LogCaptureFixture) -> None:
    problem, _ = make_problem()
    calls = []

    def fit(
        learner: mg.Learner, batches: mg.Batches, z: Sequence[mg.Metaparameter], objective: mg.Objective
    ) -> mg.Metagradients:
        calls.append(z[0].value.clone())
        if len(calls) == 3:
            raise mg.NonFiniteLoss("the training loss is nan at step 3", 3)
        return mg.metagradient(learner, batches, z, objective)

    chosen = WeightSelection(metasteps=5).run(dataclasses.replace(problem, fit=fit))
    assert "is rejected" in caplog.text
    assert torch.equal(calls[3], calls[1])  # back to the last good weights
    assert bool(torch.isfinite(chosen.weights).all())


def test_two_bad_metasteps_in_a_row_do_not_end_the_descent() -> None:
    problem, _ = make_problem()
    calls: list[Tensor] = []

    def fit(
        learner: mg.Learner, batches: mg.Batches, z: Sequence[mg.Metaparameter], objective: mg.Objective
    ) -> mg.Metagradients:
        calls.append(z[0].value.clone())
        if len(calls) in (2, 3):
            raise mg.NonFiniteLoss("the training loss is nan at step 3", 3)
        return mg.metagradient(learner, batches, z, objective)

    WeightSelection(metasteps=5).run(dataclasses.replace(problem, fit=fit))
    assert torch.equal(calls[2], calls[0])
    assert torch.equal(calls[3], calls[0])
    assert not torch.equal(calls[4], calls[0])


@pytest.mark.parametrize(("swap", "shard"), [(80, 0.3), (5, 1.0), (30, 0.9)])
def test_a_fixed_budget_stays_fixed(swap: int, shard: float) -> None:
    problem, _ = make_problem()
    readings: list[Reading] = []
    CountSelection(metasteps=4, swap=swap, shard=shard).run(problem, on_metastep=readings.append)
    assert {float(r.weights.sum()) for r in readings} == {float(problem.n)}
    assert len({tuple(r.weights.tolist()) for r in readings}) > 1


def test_seeds_are_averaged_and_counted() -> None:
    problem, wrong = make_problem()
    one, three = WeightSelection(metasteps=2), WeightSelection(metasteps=2, seeds_per_metastep=3)
    assert three.run(problem).cost == pytest.approx(3 * one.run(problem).cost)
    assert three.run(problem).weights[wrong].mean() < three.run(problem).weights[~wrong].mean()


def test_truncated_replay_costs_less_and_agrees_where_it_looks() -> None:
    """`differentiate_from=k` gives the exact gradient's part from step k on: the full one less the first k steps'."""
    problem, _ = make_problem()
    batches = problem.routine.batches(problem.train, 0)
    learner = problem.routine.learner(0, len(batches)).double()
    weights = torch.rand(problem.n, dtype=torch.float64) + 0.5
    objective = mg.mean_loss(problem.steer)
    full = mg.metagradient(learner, batches, mg.DataWeights(weights), objective)["weights"]
    late = mg.metagradient(learner, batches, mg.DataWeights(weights, differentiate_from=7), objective)
    # The same run with weights split by step: rows of the early part enter through a metaparameter of their own.
    early = _Early(weights, name="early")
    rest = mg.DataWeights(weights, start=7, name="late")
    both = mg.metagradient(learner, batches, [early, rest], objective)
    torch.testing.assert_close(both["early"] + both["late"], full)
    torch.testing.assert_close(both["late"], late["weights"])
    assert late.cost < mg.metagradient(learner, batches, mg.DataWeights(weights), objective).cost


class _Early(mg.DataWeights):
    def on_weights(self, weights: Tensor, batch: mg.Batch, t: int) -> Tensor:
        return weights * self.value.index_select(0, batch.index) if t < 7 else weights


def test_the_state_survives_a_save_and_a_load(tmp_path: Path) -> None:
    problem, _ = make_problem(folder=tmp_path)
    WeightSelection(metasteps=3, weights=Raw()).run(problem)
    state = DescentState.load(tmp_path / "descent.safetensors")
    assert state.metastep == 4
    state.save(tmp_path / "again")
    again = DescentState.load(tmp_path / "again")
    assert torch.equal(state.x, again.x)
    assert state.best_x is not None
    assert again.best_x is not None
    assert torch.equal(state.best_x, again.best_x)
    for name in ("metastep", "best_score", "best_metastep", "accepted_objective", "scale", "cost", "history"):
        assert getattr(state, name) == getattr(again, name)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"not a state")
    with pytest.raises(UserError, match="cannot be read"):
        DescentState.load(tmp_path / "bad")


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"method\.metasteps"):
        WeightSelection(metasteps=0)
    with pytest.raises(UserError, match=r"method\.probability"):
        CountSelection(probability=1.5)
    with pytest.raises(UserError, match=r"method\.replay_from"):
        WeightSelection(replay_from=1.0)


@pytest.mark.parametrize("field", ["train", "steer"])
def test_a_descent_goes_on_only_with_the_examples_that_it_began_with(tmp_path: Path, field: str) -> None:
    problem, _ = make_problem(tmp_path)
    WeightSelection(metasteps=1).run(problem)
    resumed = dataclasses.replace(problem, folder=None, resume=tmp_path)
    WeightSelection(metasteps=1).run(resumed)
    examples = {name: x.flip(0) for name, x in getattr(problem, field).items()}
    with pytest.raises(UserError, match="other training or steering examples"):
        WeightSelection(metasteps=1).run(dataclasses.replace(resumed, **{field: examples}))


def test_a_descent_goes_on_only_with_the_routine_that_it_began_with(tmp_path: Path) -> None:
    problem, _ = make_problem(tmp_path)
    WeightSelection(metasteps=1).run(problem)
    resumed = dataclasses.replace(problem, folder=None, resume=tmp_path)
    for change in ({"schedule": lambda steps: mg.Constant(0.01)}, {"epochs": 3, "steps": None}):
        routine = dataclasses.replace(problem.routine, **change)
        with pytest.raises(UserError, match="another model or optimizer"):
            WeightSelection(metasteps=1).run(dataclasses.replace(resumed, routine=routine))


def test_candidates_that_are_not_weighed_do_not_move_and_the_others_move_as_ever():
    problem, _ = make_problem()
    x = torch.ones(60)
    everything, _, _ = CountSelection(probability=1.0)._gradient(problem, x, 3)
    some, result, _ = CountSelection(probability=1.0, weighed=25)._gradient(problem, x, 3)
    weighed = some != 0
    assert int(weighed.sum()) == 25
    torch.testing.assert_close(some[weighed], everything[weighed])
    other, _, _ = CountSelection(probability=1.0, weighed=25)._gradient(problem, x, 4)
    assert not torch.equal(other != 0, weighed)
    _, all_of_them, _ = CountSelection(probability=1.0)._gradient(problem, x, 3)
    # A pass over 35 rows more at two thirds of a step for 20 rows, in trainings of 12 steps.
    assert all_of_them.cost - result.cost == pytest.approx(2 / 3 * 35 / 20 / 12)


def test_no_count_rises_above_its_bound():
    problem, _ = make_problem()
    found = CountSelection(metasteps=6, probability=1.0, most=2).run(problem)
    assert float(found.weights.max()) == 2
