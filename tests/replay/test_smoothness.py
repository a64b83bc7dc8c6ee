"""Metasmoothness against cases whose value is known, and three trainings by hand."""

import math

import pytest
import torch
import toys
from torch import Tensor

import metagradient as mg
from metagradient.errors import UserError
from metagradient.replay.smoothness import Smoothness
from metagradient.training.random import fold_in, generator


def test_a_hand_computed_case() -> None:
    """d = (3, .5): the first parameter keeps its direction, the second turns back."""
    start, near, far = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 0.5])
    assert mg.metasmoothness(start, near, far) == pytest.approx((3 - 0.5) / 3.5)
    assert mg.metasmoothness(start, 2 * near, near) == pytest.approx(-1)


def test_chance_is_zero() -> None:
    """Independent uniform end points: E d (2 d - 1) / E d = 0 for the distance d of two uniform numbers."""
    points = torch.rand(3, 400_000, generator=generator(3))
    assert abs(mg.metasmoothness(*points)) < 0.01


def test_without_movement_or_with_a_nan_there_is_no_value() -> None:
    x = torch.ones(4)
    assert math.isnan(mg.metasmoothness(x, x, x))
    broken = torch.tensor([1.0, math.nan, 1.0, 1.0])
    assert math.isnan(mg.metasmoothness(x, broken, 2 * x))
    assert math.isnan(mg.metasmoothness(x, 2 * x, broken))


def make_run(steps: int, rate: float = 0.3) -> tuple[mg.Learner, mg.Batches]:
    learner = mg.Classifier(toys.mlp(), mg.SGD(momentum=0.9), rate)
    return learner, toys.batches(toys.examples(), toys.ROWS[:steps])


def test_one_step_responds_linearly_to_data_weights() -> None:
    """theta_1 = theta_0 - (eta / B) sum w_i g_i is linear in w, so S is exactly 1."""
    z = mg.DataWeights(torch.ones(toys.N, dtype=torch.float64))
    reading = mg.measure_smoothness(lambda seed: make_run(1), z, directions=3)
    assert reading.readings == pytest.approx((1.0, 1.0, 1.0))
    assert reading.interval == pytest.approx((1.0, 1.0))
    assert reading.cost == 9
    assert reading.verdict() is None


def test_a_run_that_folds_back_is_rough() -> None:
    """A response -(z - h)^2 goes up by h^2 and back down: no net movement in some parameters, reversal in the rest."""
    h = 0.1
    ends = [torch.tensor([-((j * h - 0.9 * h) ** 2), j * h * 1e-3]) for j in range(3)]
    assert mg.metasmoothness(*ends) < -0.8


def test_it_is_three_trainings_a_direction() -> None:
    """The same value from three trainings spelled out, with the same directions and seeds."""
    asked: list[int] = []

    def make(seed: int) -> tuple[mg.Learner, mg.Batches]:
        asked.append(seed)
        return make_run(6)

    z = mg.DataWeights(torch.ones(toys.N, dtype=torch.float64))
    reading = mg.measure_smoothness(make, z, directions=2, h=0.2, seed=4)
    for i, found in enumerate(reading.readings):
        v = torch.randn(toys.N, generator=generator(4, 2, i)).double()
        a, b, c = (mg.train(*make_run(6), [mg.DataWeights(1 + j * 0.2 * v)]).params for j in range(3))
        share = (c - a).abs() / (c - a).abs().sum()
        assert found == pytest.approx(float((share * ((b - a) * (c - b)).sign()).sum()), rel=1e-12)
    assert asked == [fold_in(4, 1, i) % 2**31 for i in range(2)]


def test_a_run_that_diverges_is_reported() -> None:
    z = mg.DataWeights(torch.ones(toys.N, dtype=torch.float64))
    reading = mg.measure_smoothness(lambda seed: make_run(9, rate=1e200), z, directions=2)
    assert reading.failed == 2
    assert math.isnan(reading.value)
    assert "could not be read" in (reading.verdict() or "")


def test_the_run_at_z_is_handed_on() -> None:
    z = mg.DataWeights(torch.ones(toys.N, dtype=torch.float64))
    ends: list[Tensor] = []
    mg.measure_smoothness(
        lambda seed: make_run(3), z, directions=2, on_trained=lambda learner, state: ends.append(state.params)
    )
    assert len(ends) == 2
    assert torch.equal(ends[0], mg.train(*make_run(3), [z]).params)


def test_two_routines_are_compared_direction_by_direction() -> None:
    from scipy.stats import ttest_rel

    first, second = (0.1, 0.5, math.nan, 0.3, 0.2), (0.3, 0.6, 0.9, 0.45, 0.1)
    gain, low, high = Smoothness(second, 1.0, 15.0).against(Smoothness(first, 1.0, 15.0))
    both = [i for i in range(5) if i != 2]
    truth = ttest_rel([second[i] for i in both], [first[i] for i in both]).confidence_interval(0.95)
    assert gain == pytest.approx(0.0875)
    assert (low, high) == pytest.approx((truth.low, truth.high))


def test_a_failed_direction_does_not_hide_roughness() -> None:
    assert "metasmoothness is 0.10" in (Smoothness((0.1, math.nan), 1.0, 5.0).verdict() or "")
    assert "1 of 2 directions failed" in (Smoothness((0.9, math.nan), 1.0, 5.0).verdict() or "")
    assert Smoothness((0.9, 0.8), 1.0, 6.0).verdict() is None


def test_settings_out_of_range_are_refused() -> None:
    z = mg.DataWeights(torch.ones(toys.N, dtype=torch.float64))
    with pytest.raises(UserError, match=r"smoothness\.h"):
        mg.measure_smoothness(lambda seed: make_run(1), z, h=0.0)


def test_a_sick_gradient_is_reported() -> None:
    healthy = mg.GradientHealth.of(torch.tensor([1.0, -2.0]))
    assert healthy.verdict() is None
    assert healthy.norm == pytest.approx(math.sqrt(5))
    assert "nearly zero" in (mg.GradientHealth.of(torch.zeros(5)).verdict() or "")
    assert "not finite" in (mg.GradientHealth.of(torch.tensor([1.0, math.nan])).verdict() or "")
    assert mg.GradientHealth.of(torch.tensor([0.0, 0.0, 0.0, 1.0])).zeros == 0.75
