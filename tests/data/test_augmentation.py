"""Augmentations against loops over images."""

import pytest
import torch

from metagradient.data import GaussianNoise, RandomShift


def test_a_shift_moves_whole_images_and_fills_with_zeros() -> None:
    x = torch.rand(40, 2, 5, 6) + 0.1
    fields = {"x": x, "y": torch.arange(40)}
    shifted = RandomShift(2)(fields, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(x, shifted["x"], strict=True):
        matches = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                moved = torch.zeros_like(before)
                for i in range(5):
                    for j in range(6):
                        if 0 <= i - down < 5 and 0 <= j - right < 6:
                            moved[:, i, j] = before[:, i - down, j - right]
                if torch.equal(moved, after):
                    matches.append((down, right))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 10
    assert shifted["y"] is fields["y"]


def test_randomness_comes_from_the_generator_alone() -> None:
    fields = {"x": torch.rand(8, 1, 4, 4)}
    for augment in (RandomShift(1), GaussianNoise(0.3)):
        a, b, c = (augment(fields, torch.Generator().manual_seed(s))["x"] for s in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_noise_stays_in_range_with_its_deviation() -> None:
    x = torch.full((50, 1, 20, 20), 0.5)
    noisy = GaussianNoise(0.1)({"x": x}, torch.Generator().manual_seed(0))["x"]
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.02)
    wild = GaussianNoise(5.0)({"x": x}, torch.Generator().manual_seed(0))["x"]
    assert float(wild.min()) == 0
    assert float(wild.max()) == 1


def test_a_shift_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RandomShift(0)
