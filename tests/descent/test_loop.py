"""The loop on functions of a vector: what it measures, rejects, chooses, saves and resumes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metagradient.descent import Adam, DescentState
from metagradient.descent.loop import Loop, Measured
from metagradient.errors import UserError
from metagradient.training import NonFiniteLoss
from metagradient.training.random import generator

TARGET = torch.tensor([1.0, -2.0, 0.5])


def noisy_bowl(state: DescentState, seed: int, differentiate: bool) -> Measured:
    """|x - target|^2 / 2 and its gradient with noise that depends on the seed alone."""
    noise = 0.1 * torch.randn(3, generator=generator(seed))
    value = float((state.x - TARGET).square().sum() / 2)
    return Measured({"objective": value}, -value, state.x - TARGET + noise if differentiate else None, 4.0)


def adam(state: DescentState, gradient: Tensor) -> None:
    state.x, state.memory = Adam(step=0.2).update(state.x, gradient, state.memory, state.metastep, 20, state.scale)


def test_it_descends_and_chooses_the_best_metastep() -> None:
    seen: list[tuple[float, Tensor]] = []
    state = Loop(metasteps=20).descend(
        torch.zeros(3), noisy_bowl, adam, seed=1, on_metastep=lambda m, v, x: seen.append((v["objective"], x.clone()))
    )
    objectives = [value for value, _ in seen]
    assert len(seen) == 21
    assert min(objectives) < 0.05 * objectives[0]
    assert state.best_metastep == objectives.index(min(objectives))
    assert torch.equal(state.best_x, seen[state.best_metastep][1])
    assert state.cost == 21 * 4


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_resumed_descent_ends_in_the_same_bits(tmp_path: Path, cut: int) -> None:
    class Killed(Exception):
        pass

    def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
        if state.metastep in (3, 4):  # rejections leave their marks in the state, too
            raise NonFiniteLoss("nan", 0)
        return noisy_bowl(state, seed, differentiate)

    def killed(metastep: int, values: dict[str, float], x: Tensor | None) -> None:
        if metastep > cut:
            raise Killed

    whole = Loop(metasteps=9, seeds_per_metastep=2).descend(torch.zeros(3), measure, adam, seed=3)
    loop, path = Loop(metasteps=9, seeds_per_metastep=2), tmp_path / "state"
    with pytest.raises(Killed):
        loop.descend(torch.zeros(3), measure, adam, seed=3, save_to=path, on_metastep=killed)
    rows: list[int] = []
    rest = loop.descend(
        torch.zeros(3), measure, adam, seed=3, resume_from=path, on_metastep=lambda m, v, x: rows.append(m)
    )
    assert torch.equal(rest.x, whole.x)
    assert torch.equal(rest.best_x, whole.best_x)
    assert rest.history == whole.history
    assert (rest.cost, rest.scale, rest.best_metastep) == (whole.cost, whole.scale, whole.best_metastep)
    assert rows == [row["metastep"] for row in whole.history]  # a resumed run tells the whole story


def test_only_the_same_descent_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Loop(metasteps=2).descend(torch.zeros(3), noisy_bowl, adam, seed=1, save_to=path)
    for loop, seed in ((Loop(metasteps=3), 1), (Loop(metasteps=2), 2)):
        with pytest.raises(UserError, match="another descent"):
            loop.descend(torch.zeros(3), noisy_bowl, adam, seed=seed, resume_from=path)
    Loop(metasteps=2).descend(torch.zeros(3), noisy_bowl, adam, seed=1, save_to=path, data="some")
    with pytest.raises(UserError, match="other training or steering examples"):
        Loop(metasteps=2).descend(torch.zeros(3), noisy_bowl, adam, seed=1, resume_from=path, data="others")
    Loop(metasteps=2).descend(torch.zeros(3), noisy_bowl, adam, seed=1, resume_from=path, data="some")


@pytest.mark.parametrize(("before", "after", "rejected"), [(-2.0, -0.9, True), (-2.0, -1.1, False), (2.0, 3.1, True)])
def test_the_trust_region_holds_on_either_side_of_zero(before: float, after: float, rejected: bool) -> None:
    """patience = .5: from -2 an objective may rise to -1, from 2 to 3."""
    values = iter([before, after, after])

    def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
        return Measured({"objective": next(values)}, 0.0, torch.ones(1) if differentiate else None, 1.0)

    def step(state: DescentState, gradient: Tensor) -> None:
        state.x = state.x - state.scale * gradient

    state = Loop(metasteps=2).descend(torch.zeros(1), measure, step, seed=0)
    assert state.scale == (0.5 if rejected else 1.0)
    assert float(state.x) == (0.0 if rejected else -2.0)


def test_one_lucky_seed_does_not_hold_the_descent() -> None:
    """The first objective is never reached again; measured again, the same point is accepted at its new objective."""
    values = iter([1.0, 9.0, 5.0, 5.0, 5.0])

    def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
        return Measured({"objective": next(values)}, 0.0, torch.ones(1) if differentiate else None, 1.0)

    def step(state: DescentState, gradient: Tensor) -> None:
        state.x = state.x - state.scale * gradient

    state = Loop(metasteps=4, average_from=0.0).descend(torch.zeros(1), measure, step, seed=0)
    assert state.scale == 0.5  # one rejection, of the 9
    assert float(state.x) == -1.0  # then two half steps
    assert state.accepted_objective == 5.0
    assert (state.averaged, float(state.mean_x)) == (2, -0.25)  # 0, measured twice, counts once; then -.5


def test_each_seeds_gradient_counts_the_same() -> None:
    """(3, 0) and (0, 0.001) average to (.5, .5)."""
    gradients = iter([torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.001])])
    moved: list[Tensor] = []

    def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
        return Measured({"objective": 1.0}, 0.0, next(gradients) if differentiate else None, 1.0)

    Loop(metasteps=1, seeds_per_metastep=2).descend(torch.zeros(2), measure, lambda s, g: moved.append(g), seed=0)
    torch.testing.assert_close(moved[0], torch.tensor([0.5, 0.5]))


def test_a_zero_gradient_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def measure(state: DescentState, seed: int, differentiate: bool) -> Measured:
        return Measured({"objective": 1.0}, math.inf, torch.zeros(3) if differentiate else None, 1.0)

    Loop(metasteps=1).descend(torch.zeros(3), measure, lambda s, g: None, seed=0)
    assert "exactly 0" in caplog.text
