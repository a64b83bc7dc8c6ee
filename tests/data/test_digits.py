"""Digits: disjoint seeded splits of the embedded set, noise on training labels only."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from metagradient.data import LabelNoise, Splits, digits
from metagradient.data.splits import standardise

CONF = Path(__file__).parents[2] / "conf" / "data"


def tables(splits: Splits) -> list[dict[str, torch.Tensor]]:
    return [splits.train, splits.validation, splits.test]


def test_the_three_splits_are_the_whole_set_once() -> None:
    raw = load_digits()
    whole = np.column_stack([raw.data, raw.target])
    parts = [np.column_stack([16 * t["x"].flatten(1).numpy(), t["y"].numpy()]) for t in tables(digits())]
    assert [len(p) for p in parts] == [1000, 300, 497]
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, whole))


def test_splits_describe_themselves() -> None:
    splits = digits(train=20, validation=10, test=5)
    assert (len(splits.train["y"]), splits.input_shape, splits.num_classes) == (20, (1, 8, 8), 10)
    assert splits.train["x"].dtype == torch.float32
    assert splits.train["y"].dtype == torch.int64
    assert splits.truth is None
    assert splits.extra_tests == {}


def test_the_seed_decides_and_global_random_state_does_not_move() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    noise = LabelNoise("symmetric", 0.4)
    one, same, other = digits(noise=noise, seed=1), digits(noise=noise, seed=1), digits(noise=noise, seed=2)
    for a, b in zip(tables(one), tables(same), strict=True):
        assert torch.equal(a["x"], b["x"])
        assert torch.equal(a["y"], b["y"])
    assert not torch.equal(one.train["x"], other.train["x"])
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()


def test_noise_touches_training_labels_only() -> None:
    clean, noisy = digits(), digits(noise=LabelNoise("symmetric", 0.4))
    assert noisy.truth is not None
    assert torch.equal(noisy.truth.y, clean.train["y"])
    assert torch.equal(noisy.truth.wrong, noisy.train["y"] != clean.train["y"])
    assert noisy.truth.wrong.sum() == 400
    assert torch.equal(noisy.train["x"], clean.train["x"])
    for a, b in zip(tables(noisy)[1:], tables(clean)[1:], strict=True):
        assert torch.equal(a["x"], b["x"])
        assert torch.equal(a["y"], b["y"])


def test_standardising_uses_the_training_statistics_for_every_split() -> None:
    plain, scaled = digits(), digits(standardize=True)
    mean, std = plain.train["x"].mean(), plain.train["x"].std()
    for a, b in zip(tables(plain), tables(scaled), strict=True):
        torch.testing.assert_close(b["x"], (a["x"] - mean) / std)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"train": 1500, "validation": 300, "test": 100},
            r"data\.train=1500 \+ data\.validation=300 \+ data\.test=100 is 1900 rows, but digits has 1797; "
            r".*data\.train=1397",
        ),
        ({"train": 1500, "validation": 297}, r"data\.test=1 or more is 1798 rows"),
        ({"train": 0}, r"data\.train must be at least 1; got 0"),
        ({"validation": -1}, r"data\.validation must be at least 0; got -1"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits(**sizes)


def test_validation_may_be_empty() -> None:
    splits = digits(train=1797 - 1, validation=0)
    assert [len(t["y"]) for t in tables(splits)] == [1796, 0, 1]


def test_the_group_file_builds_what_the_function_does() -> None:
    cfg = OmegaConf.create({"seed": 3, "data": OmegaConf.load(CONF / "digits.yaml")})
    assert torch.equal(instantiate(cfg.data).train["x"], digits(seed=3).train["x"])
    assert instantiate(cfg.data).truth is None
    cfg.data.noise.fraction = 0.4
    expected = digits(seed=3, noise=LabelNoise("symmetric", 0.4)).train["y"]
    assert torch.equal(instantiate(cfg.data).train["y"], expected)
    cfg.data.noise = None
    assert instantiate(cfg.data).truth is None


def test_standardised_inputs_are_shown_as_they_were() -> None:
    plain, scaled = digits(train=50, validation=20, test=20), standardise(digits(train=50, validation=20, test=20))
    assert not torch.allclose(scaled.test["x"], plain.test["x"])
    torch.testing.assert_close(scaled.shown(scaled.test["x"]), plain.test["x"])
    assert plain.shown(plain.test["x"]) is plain.test["x"]
