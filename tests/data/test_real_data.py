"""MNIST and CIFAR-10 from local parquet folders (METAGRADIENT_TEST_DATA, or ../shared/data beside the checkout)."""

import os
from pathlib import Path

import pytest
import torch

from metagradient.data import LabelNoise, hub

ROOT = Path(os.environ.get("METAGRADIENT_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def folder(name: str) -> str:
    if not (ROOT / name).is_dir():
        pytest.skip(f"{ROOT / name} is not here; METAGRADIENT_TEST_DATA names the folder that holds {name}")
    return str(ROOT / name)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path))


@pytest.mark.slow
def test_mnist_hypercleaning_protocol() -> None:
    noise = LabelNoise("redraw", 0.5)
    splits = hub(folder("mnist"), train=5000, validation=5000, test=10000, noise=noise)
    assert splits.truth is not None
    assert splits.truth.redrawn.sum() == 2500
    # a redraw keeps the true class one time in ten: 2250 wrong, standard deviation 15
    assert abs(splits.truth.wrong.sum().item() - 2250) < 75

    everything = hub(folder("mnist"), train=59998, validation=1, test=1)
    x = everything.train["x"]
    assert x.shape[1:] == (1, 28, 28)
    torch.testing.assert_close(x.mean().item(), 0.1307, atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std().item(), 0.3081, atol=1e-4, rtol=0)
    official = everything.extra_tests["official"]["y"]
    assert torch.bincount(official).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.slow
def test_cifar10_channel_means() -> None:
    splits = hub(folder("cifar10"), train=30000, validation=2000, test=5000)
    assert splits.classes[3] == "cat"
    means = splits.train["x"].mean((0, 2, 3))
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=3e-3, rtol=0)
