"""Hub image sets, on small parquet folders that the tests write in the hub's layout."""

import socket
import time
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from metagradient.data import LabelNoise, Splits, hub, images

CONF = Path(__file__).parents[2] / "conf" / "data"
NAMES = ["ant", "bee", "cow", "dog", "eel"]


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGRADIENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()


def write(folder: Path, split: str, pixels: np.ndarray, labels: list[int], column: str = "image") -> Path:
    features = {column: datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    rows = {column: [Image.fromarray(p) for p in pixels], "label": labels}
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """60 train and 20 test images, each of one grey, so that a pixel tells the row: 0..59 and 100..119."""
    for split, values in (("train", range(60)), ("test", range(100, 120))):
        pixels = np.stack([np.full((8, 6), v, np.uint8) for v in values])
        write(tmp_path / "grey", split, pixels, [v % 5 for v in values])
    return tmp_path / "grey"


def source_rows(table: dict[str, torch.Tensor]) -> list[int]:
    return (table["x"][:, 0, 0, 0] * 255).round().int().tolist()


def test_three_disjoint_parts_of_train_and_the_official_test_split(grey: Path) -> None:
    splits = hub(str(grey), train=30, validation=20, test=10)
    parts = [source_rows(t) for t in (splits.train, splits.validation, splits.test)]
    assert [len(p) for p in parts] == [30, 20, 10]
    assert sorted(chain.from_iterable(parts)) == list(range(60))
    assert source_rows(splits.extra_tests["official"]) == list(range(100, 120))
    for table in (splits.train, splits.validation, splits.test, splits.extra_tests["official"]):
        assert table["y"].tolist() == [row % 5 for row in source_rows(table)]
    assert (splits.name, splits.classes, splits.input_shape) == ("grey", tuple(NAMES), (1, 8, 6))


def test_the_official_split_can_be_the_test_set(grey: Path) -> None:
    splits = hub(str(grey), train=30, validation=30, test=5, test_split="official")
    assert len(set(source_rows(splits.test))) == 5
    assert set(source_rows(splits.test)) <= set(range(100, 120))
    assert splits.extra_tests == {}
    everything = hub(str(grey), train=30, validation=30, test_split="official")
    assert sorted(source_rows(everything.test)) == list(range(100, 120))


def test_noise_and_standardising_leave_the_draw_alone(grey: Path) -> None:
    clean = hub(str(grey), 30, 20, 10)
    noisy = hub(str(grey), 30, 20, 10, noise=LabelNoise("symmetric", 0.5), standardize=True)
    assert noisy.truth is not None
    assert torch.equal(noisy.truth.y, clean.train["y"])
    assert noisy.truth.wrong.sum() == 15
    mean, std = clean.train["x"].mean(), clean.train["x"].std()
    official = clean.extra_tests["official"]
    torch.testing.assert_close(noisy.extra_tests["official"]["x"], (official["x"] - mean) / std)
    assert torch.equal(noisy.extra_tests["official"]["y"], official["y"])


@pytest.mark.parametrize("classes", [[3, 1], ["dog", "bee"]])
def test_chosen_classes_are_relabelled_in_their_order(grey: Path, classes: list[int | str]) -> None:
    splits = hub(str(grey), train=12, validation=6, test=6, classes=classes)
    assert splits.classes == ("dog", "bee")
    for table in (splits.train, splits.validation, splits.test, splits.extra_tests["official"]):
        assert [row % 5 for row in source_rows(table)] == [(3, 1)[y] for y in table["y"].tolist()]
    assert len(splits.extra_tests["official"]["y"]) == 8


def test_colours_keep_their_channels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(12, 4, 5, 3), dtype=np.uint8)
    folder = write(tmp_path / "rgb", "train", pixels, [0] * 12, column="img")
    splits = hub(str(folder), train=12 - 2, validation=1, test=1)
    assert splits.extra_tests == {}
    got = torch.cat([splits.train["x"], splits.validation["x"], splits.test["x"]])
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    distance = (got[:, None] - expected[None]).abs().flatten(2).amax(2)
    assert (distance < 1e-6).sum(1).eq(1).all()


def test_a_second_load_decodes_nothing_and_a_changed_folder_does(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub(str(grey), 30, 20, 10)
    decoded: list[str] = []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda path, source: decoded.append(path) or decode(path, source))

    second = hub(str(grey), 30, 20, 10)
    assert decoded == []
    assert torch.equal(first.train["x"], second.train["x"])
    assert second.classes == first.classes

    write(grey, "train", np.full((60, 8, 6), 7, np.uint8), [2] * 60)
    changed = hub(str(grey), 30, 20, 10)
    assert decoded == [str(grey)]
    assert set(source_rows(changed.train)) == {7}


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    grey: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("METAGRADIENT_CACHE", str(grey / "train-00000-of-00001.parquet"))
    assert len(hub(str(grey), 30, 20, 10).train["y"]) == 30
    assert "decoded images are not kept" in caplog.text


def test_a_folder_that_is_not_there_or_holds_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, "../no/such/folder", "no/such/folder"):
        with pytest.raises(FileNotFoundError, match=r"holds no parquet files; .*data\.path=ylecun/mnist; .*digits"):
            hub(str(path), 1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 100}, r"is 130 rows, but the train split of .*grey has 60; set for example data\.train=30"),
        ({"test_split": "offical"}, r"must be one of train, official; got 'offical'; .*data\.test_split=train"),
        ({"classes": ["cat"]}, r"among 0\.\.4 or ant, bee.*got \['cat'\]; .*data\.classes=\[0,1\]"),
        ({"classes": [1, 1]}, r"different classes"),
        ({"test": 21, "test_split": "official"}, r"data\.test=21 is 21 rows, but the test split of .*has 20"),
    ],
)
def test_bad_settings_are_refused(grey: Path, settings: dict[str, object], message: str) -> None:
    asked: dict[str, object] = {"train": 30, "validation": 20, "test": 10} | settings
    with pytest.raises(ValueError, match=message):
        hub(str(grey), **asked)  # type: ignore[arg-type]


def test_sets_that_are_no_labelled_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    text = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    text.to_parquet(str(tmp_path / "text" / "train-0.parquet"))
    with pytest.raises(ValueError, match="a column 'image' or 'img' and a column 'label'; it has text, label"):
        hub(str(tmp_path / "text"), 1, 1, 1)

    write(tmp_path / "mixed", "train", np.zeros((3, 2, 2), np.uint8), [0, 1, 2])
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "mixed" / "train-1.parquet"))
    with pytest.raises(ValueError, match="cannot be read as one data set"):
        hub(str(tmp_path / "mixed"), 1, 1, 1)


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    pictures = [Image.new("L", (4, 4)), Image.new("L", (5, 4))]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=features)
    (tmp_path / "sizes").mkdir()
    table.to_parquet(str(tmp_path / "sizes" / "train-0.parquet"))
    with pytest.raises(ValueError, match=r"one size; train image 1 has \(5, 4\), the first \(4, 4\)"):
        hub(str(tmp_path / "sizes"), 1, 1, 1)


def test_a_hub_name_without_a_network_fails_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"data\.path=ylecun/mnist is no local folder .*data=digits"):
        hub("ylecun/mnist", 1, 1, 1)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_group_files_build(grey: Path, name: str) -> None:
    cfg = OmegaConf.create({"seed": 3, "data": OmegaConf.load(CONF / f"{name}.yaml")})
    cfg.data.update(path=str(grey), train=30, validation=20, test=10, classes=["ant", "eel", "dog", 1, 2])
    cfg.data.noise.update(kind="redraw", fraction=0.5)
    splits: Splits = instantiate(cfg.data)
    same = hub(str(grey), 30, 20, 10, seed=3, noise=LabelNoise("redraw", 0.5), classes=[0, 4, 3, 1, 2])
    assert torch.equal(splits.train["x"], same.train["x"])
    assert torch.equal(splits.train["y"], same.train["y"])
