"""Poisoning on problems small enough for finite differences, and its peer against its own definition."""

from pathlib import Path

import pytest
import torch
from test_selection import blobs
from torch import Tensor

import metagradient as mg
from metagradient.descent import (
    DescentProblem,
    GradientCancelling,
    PixelPoisoning,
    Poisons,
    Sign,
    gradient_cancelling,
    poison_rows,
)
from metagradient.descent.poisoning import noise_poisons, soft_error
from metagradient.errors import UserError
from metagradient.training.random import fold_in

ROWS = torch.tensor([2, 7, 11, 30, 45])


def in_range(n: int, seed: int) -> dict[str, Tensor]:
    """Blobs squeezed into [0, 1], in float64."""
    examples = blobs(n, seed)
    return {"x": (examples["x"].double() / 10 + 0.5).clamp(0, 1), "y": examples["y"]}


def make_problem(folder: Path | None = None) -> DescentProblem:
    routine = mg.Routine(
        lambda schedule: mg.Classifier(torch.nn.Linear(2, 3), mg.SGD(momentum=0.5), schedule).double(),
        schedule=lambda steps: mg.Constant(2.0),
        batch_size=20,
        epochs=4,
    )
    held_out = in_range(90, 3)

    def score(learner: mg.Learner, state: mg.TrainState) -> dict[str, float]:
        with torch.no_grad(), learner.evaluating(state):
            return {"held_out_accuracy": float((learner(held_out["x"]).argmax(1) == held_out["y"]).double().mean())}

    return DescentProblem(in_range(60, 1), in_range(60, 2), score, routine, mg.metagradient, seed=5, folder=folder)


def steering_loss(problem: DescentProblem, images: Tensor, seed: int) -> float:
    """Train on the poisons in the bare loop, and look."""
    learner, final = problem.routine.train(Poisons(ROWS, images).apply(problem.train), seed)
    with torch.no_grad(), learner.evaluating(final):
        return float(mg.mean_loss(problem.steer)(learner))


def test_the_first_step_follows_the_sign_of_finite_differences() -> None:
    problem, seen = make_problem(), list[Tensor]()
    PixelPoisoning(metasteps=1, update=Sign(step=0.01)).run(
        problem, ROWS, on_metastep=lambda m, v, x: seen.append(x.clone())
    )
    before, after = seen
    seed, h = fold_in(problem.seed, 0, 0) % 2**31, 1e-5
    for i in range(len(ROWS)):
        for j in range(2):
            shift = torch.zeros_like(before)
            shift[i, j] = h
            slope = steering_loss(problem, before + shift, seed) - steering_loss(problem, before - shift, seed)
            assert float((after - before)[i, j]) == pytest.approx(0.01 if slope > 0 else -0.01)


def test_it_harms_within_the_rules() -> None:
    problem = make_problem()
    before = {k: v.clone() for k, v in problem.train.items()}
    poisons = PixelPoisoning(metasteps=12, update=Sign(step=0.2), settle=0.5).run(problem, ROWS)
    assert all(torch.equal(problem.train[k], before[k]) for k in before)  # the clean data are left alone
    poisoned = poisons.apply(problem.train)
    untouched = ~poisons.mask(60)
    assert torch.equal(poisoned["y"], before["y"])
    assert torch.equal(poisoned["x"][untouched], before["x"][untouched])
    assert float(poisons.images.min()) >= 0
    assert float(poisons.images.max()) <= 1
    clean = before["x"][ROWS]
    noise = noise_poisons(problem.train, ROWS, 0).images
    seeds = (100, 101, 102)  # fresh
    harm = [sum(steering_loss(problem, x, s) for s in seeds) / 3 for x in (clean, noise, poisons.images)]
    assert harm[2] > harm[0] + 0.03
    assert harm[2] > harm[1]


def test_the_soft_error_is_one_minus_the_probability_of_the_truth() -> None:
    problem = make_problem()
    learner, final = problem.routine.train(problem.train, 0)
    with learner.evaluating(final):
        p = torch.softmax(learner(problem.steer["x"]), 1)
        expected = (1 - p[torch.arange(60), problem.steer["y"]]).mean()
        torch.testing.assert_close(soft_error(problem.steer)(learner), expected)


def test_a_killed_attack_goes_on(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(metastep: int, values: dict[str, float], x: Tensor | None) -> None:
        if metastep == 3:
            raise Killed

    method = PixelPoisoning(metasteps=5, update=Sign(step=0.1))
    whole = method.run(make_problem(), ROWS)
    with pytest.raises(Killed):
        method.run(make_problem(tmp_path), ROWS, on_metastep=kill)
    problem = make_problem()
    rest = method.run(DescentProblem(**{**vars(problem), "resume": tmp_path}), ROWS)
    assert torch.equal(rest.images, whole.images)
    assert (rest.metastep, rest.cost) == (whole.metastep, whole.cost)


def test_rows_are_a_share_of_distinct_ones() -> None:
    rows = poison_rows(200, 0.03, 1)
    assert len(rows) == len(rows.unique()) == 6
    assert int(rows.min()) >= 0
    assert int(rows.max()) < 200
    assert not torch.equal(rows, poison_rows(200, 0.03, 2))
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(UserError, match="shares"):
            poison_rows(200, share, 1)


def test_pixels_outside_the_range_are_refused() -> None:
    problem = make_problem()
    with pytest.raises(UserError, match=r"data\.standardize"):
        PixelPoisoning(low=0.4).run(problem, ROWS)
    with pytest.raises(UserError, match=r"method\.harm"):
        PixelPoisoning(harm="pain")  # type: ignore[arg-type]


def gradient_at(learner: mg.Learner, params: Tensor, examples: dict[str, Tensor]) -> Tensor:
    """Of the mean cross entropy of a linear model, by its formula: X^T (p - e_y) / n, then its bias."""
    weight, bias = params[:6].view(3, 2), params[6:]
    p = torch.softmax(examples["x"] @ weight.T + bias, 1)
    residual = (p - torch.nn.functional.one_hot(examples["y"], 3)) / len(p)
    return torch.cat([(residual.T @ examples["x"]).flatten(), residual.sum(0)])


def test_gradient_cancelling_makes_its_target_stationary() -> None:
    problem = make_problem()
    learner, clean = problem.routine.train(problem.train, 0)
    peer = GradientCancelling(corruption_steps=20, steps=400, rate=0.05, low=None, high=None)
    target = peer.corrupt(learner, clean, problem.steer, radius=0.05)
    distance = float((target.params - clean.params).norm() / clean.params.norm())
    assert distance <= 0.05 * (1 + 1e-9)
    losses = []
    for state in (clean, target):
        with torch.no_grad(), learner.evaluating(state):
            losses.append(float(mg.mean_loss(problem.steer)(learner)))
    assert losses[1] > losses[0]
    rows = torch.arange(25)
    free = peer.cancel(learner, target, problem.train, rows)
    clipped = GradientCancelling(corruption_steps=20, steps=400).cancel(learner, target, problem.train, rows)
    norms = [
        float(gradient_at(learner, target.params, {**problem.train, **data}).norm())
        for data in ({}, clipped.apply(problem.train), free.apply(problem.train))
    ]
    assert norms[1] < 0.9 * norms[0]
    assert norms[2] < 0.2 * norms[0]
    assert float(clipped.images.min()) >= 0
    assert float(clipped.images.max()) <= 1


def test_the_clean_gradient_may_be_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()
    peer = GradientCancelling(
        corruption_steps=5, steps=50, low=None, high=None
    )  # no range that could hide a difference
    learner, clean = problem.routine.train(problem.train, 3)
    target = peer.corrupt(learner, clean, problem.steer, 0.5)
    whole = peer.cancel(learner, target, problem.train, ROWS)
    monkeypatch.setattr(gradient_cancelling, "CHUNK", 7)
    assert torch.allclose(peer.cancel(learner, target, problem.train, ROWS).images, whole.images, atol=1e-9)


def test_gradient_cancelling_takes_the_radius_that_harms_most() -> None:
    problem = make_problem()
    harmful = {
        radius: GradientCancelling(radii=[radius], corruption_steps=10, steps=50).run(problem, ROWS)
        for radius in (0.01, 1.0)
    }
    both = GradientCancelling(radii=[0.01, 1.0], corruption_steps=10, steps=50).run(problem, ROWS)
    left = []
    for done, one in enumerate(harmful.values()):
        victim = problem.routine.train(one.apply(problem.train), problem.seed + 1 + done)
        left.append(problem.score(*victim)["held_out_accuracy"])
    assert left[0] != left[1]
    worst, other = sorted(zip(left, harmful.values(), strict=True), key=lambda pair: pair[0])
    assert torch.equal(both.images, worst[1].images)
    assert not torch.equal(both.images, other[1].images)
    assert both.cost > max(one.cost for one in harmful.values())
