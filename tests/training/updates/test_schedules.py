"""Schedules against torch.optim.lr_scheduler where it has an equal, and against their definitions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import metagradient as mg
from metagradient.errors import UserError


def torchs(make: Callable[[torch.optim.Optimizer], Any], steps: int, lr: float) -> list[float]:
    """The learning rates that a torch scheduler gives steps 0 .. steps - 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("final", [0.0, 0.02])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_cosine_is_cosine_annealing(steps: int, final: float) -> None:
    theirs = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=final), steps, 0.3)
    ours = mg.Cosine(0.3, steps, final)
    assert [ours(t) for t in range(steps)] == pytest.approx(theirs, rel=1e-10)
    assert ours(steps) == final


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("steps", [10, 40])
def test_one_cycle_is_torchs_over_the_points_0_to_steps(steps: int, warmup: float) -> None:
    """torch puts the last of `total_steps` values at the end; ours reaches it at t = steps, just after the run."""
    theirs = torchs(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=0.4,
            total_steps=steps + 1,
            pct_start=(warmup * steps + 1) / (steps + 1),
            div_factor=25.0,
            final_div_factor=1e4 / 25,
        ),
        steps,
        0.1,
    )
    ours = mg.OneCycle(0.4, steps, warmup)
    assert [ours(t) for t in range(steps)] == pytest.approx(theirs, rel=1e-9)
    assert ours(round(warmup * steps)) == pytest.approx(0.4)
    assert ours(steps) == pytest.approx(0.4 / 1e4)


def test_one_cycle_without_warmup_starts_at_the_peak_and_with_nothing_else_ends_there() -> None:
    assert mg.OneCycle(0.4, 10, warmup=0.0)(0) == 0.4
    assert mg.OneCycle(0.4, 10, warmup=1.0)(10) == pytest.approx(0.4)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 5), (9, 1), (9, 0), (6, 6)])
def test_warmup_then_decay_is_two_linear_schedules_in_sequence(steps: int, warmup: int) -> None:
    def make(o: torch.optim.Optimizer) -> Any:
        down = lr_scheduler.LambdaLR(o, lambda t: 1 - t / (steps - warmup) if steps > warmup else 1.0)
        if not warmup:
            return down
        up = lr_scheduler.LambdaLR(o, lambda t: (t + 1) / warmup)
        return lr_scheduler.SequentialLR(o, [up, down], milestones=[warmup])

    ours = mg.WarmupDecay(0.3, steps, warmup)
    assert [ours(t) for t in range(steps)] == pytest.approx(torchs(make, steps, 0.3), rel=1e-12)
    assert ours(steps) == (0.0 if warmup < steps else 0.3)


def test_constant() -> None:
    assert {mg.Constant(0.1)(t) for t in range(5)} == {0.1}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("knots", [1, 2, 3, 7])
def test_knots_are_linear_between_evenly_spaced_values(knots: int, log: bool) -> None:
    steps, values = 13, [0.1 + 0.07 * ((5 * i) % 7) for i in range(knots)]
    ours = mg.Knots(values, steps, log)
    reached = [math.log(v) for v in values] if log else values
    for t in range(steps):
        place = t * (knots - 1) / (steps - 1)
        left = min(int(place), max(knots - 2, 0))
        right = min(left + 1, knots - 1)
        expected = reached[left] + (place - left) * (reached[right] - reached[left])
        assert ours(t) == pytest.approx(math.exp(expected) if log else expected)


@pytest.mark.parametrize("log", [False, True])
def test_the_metaparameter_and_the_schedule_are_one_interpolation(log: bool) -> None:
    values, steps = torch.tensor([0.1, 0.4, 0.05], dtype=torch.float64), 11
    schedule = mg.Knots(values.tolist(), steps, log)
    rates = mg.LearningRates(values.log() if log else values, steps=steps, log=log)
    assert [float(rates.rate(t)) for t in range(steps)] == pytest.approx([schedule(t) for t in range(steps)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mg.Constant(-0.1), "rate must be a finite number >= 0, not -0.1"),
        (lambda: mg.Constant(math.inf), "rate must be a finite number >= 0, not inf"),
        (lambda: mg.Cosine(0.1, 0), "steps >= 1, not 0"),
        (lambda: mg.OneCycle(0.1, 10, warmup=30), r"warmup is a fraction of the run in \[0, 1\], not 30"),
        (lambda: mg.WarmupDecay(0.1, 10, warmup=30), r"warmup must lie in \[0, steps = 10\] steps, not 30"),
        (lambda: mg.Knots([], 10), "at least one value"),
        (lambda: mg.Knots([0.1, 0.0], 10, log=True), "> 0 where log is set"),
        (lambda: mg.Knots([0.1, math.nan], 10), r"values\[1\] must be a finite number >= 0, not nan"),
    ],
)
def test_bad_settings_are_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        make()


def test_halved_is_a_step_schedule_with_one_step() -> None:
    steps = 10
    truth = torchs(lambda o: lr_scheduler.StepLR(o, step_size=steps // 2, gamma=0.5), steps, 0.2)
    assert [mg.Halved(0.2, steps)(t) for t in range(steps)] == pytest.approx(truth)
