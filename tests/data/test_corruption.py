"""Label noise: exact counts, the promised distribution, and a truth that is true."""

import numpy as np
import pytest
import torch

from metagradient.data import LabelNoise, LabelTruth

Y = torch.arange(10).repeat(400)


def noisy(kind: str, fraction: float = 0.4, seed: int = 0) -> tuple[torch.Tensor, LabelTruth]:
    return LabelNoise(kind, fraction).apply(Y, 10, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", ["symmetric", "pairwise", "redraw"])
@pytest.mark.parametrize("fraction", [0.0, 0.333, 0.4, 1.0])
def test_exactly_the_asked_number_of_rows_is_redrawn_and_no_other_changes(kind: str, fraction: float) -> None:
    given, truth = noisy(kind, fraction)
    assert truth.redrawn.sum() == round(fraction * len(Y))
    assert torch.equal(given[~truth.redrawn], Y[~truth.redrawn])
    assert torch.equal(truth.y, Y)
    assert torch.equal(truth.wrong, given != Y)
    assert torch.equal(Y, torch.arange(10).repeat(400)), "the labels handed in are not touched"


def test_symmetric_noise_never_keeps_the_label_and_reaches_every_other_one() -> None:
    given, truth = noisy("symmetric", 1.0)
    assert torch.equal(truth.wrong, truth.redrawn)
    shifts = torch.bincount((given - Y) % 10, minlength=10)
    assert shifts[0] == 0
    # 4000 draws over nine classes: 444 each, standard deviation 20
    assert (shifts[1:] - 4000 / 9).abs().max() < 5 * 20


def test_pairwise_noise_is_the_next_class() -> None:
    given, truth = noisy("pairwise")
    assert torch.equal(given[truth.redrawn], (Y[truth.redrawn] + 1) % 10)


def test_redraw_gives_every_class_alike_the_true_one_included() -> None:
    given, truth = noisy("redraw", 1.0)
    counts = torch.bincount(given, minlength=10)
    assert (counts - 400).abs().max() < 5 * 19
    kept = (truth.redrawn & ~truth.wrong).sum().item()
    assert abs(kept - 400) < 5 * 19, "a tenth of the redrawn labels is still correct"


def test_the_generator_decides() -> None:
    assert torch.equal(noisy("symmetric", seed=1)[0], noisy("symmetric", seed=1)[0])
    assert not torch.equal(noisy("symmetric", seed=1)[0], noisy("symmetric", seed=2)[0])


def test_bad_settings_are_refused_with_the_override_that_works() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of symmetric, .*got 'flip'; .*data\.noise\.kind="):
        LabelNoise("flip", 0.1)
    for fraction in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"\[0, 1\]; got {fraction}; .*data\.noise\.fraction=0\.4"):
            LabelNoise("symmetric", fraction)
