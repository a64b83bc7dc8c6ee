"""Folders of files, of `save_to_disk` and names of the hub: the same rows as from one file, divided as their names say."""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from metagradient.data import Splits, table_file, text_file
from metagradient.data.own.formats import files
from metagradient.data.own.formats.places import find, split_of
from metagradient.data.own.reading import read_frame

N = 120
datasets.disable_progress_bars()


def frame(first: int = 0, n: int = N) -> pd.DataFrame:
    rows = np.arange(first, first + n)
    kinds = np.array(["calm", "wild"])
    return pd.DataFrame({"height": rows / 7.0, "city": [f"town {i % 3}" for i in rows], "kind": kinds[rows % 2]})


def heights(splits: Splits) -> list[list[int]]:
    """The rows of each split, sorted."""
    tables = (splits.train, splits.validation, splits.test)
    return [sorted((table["x"][:, 0] * 7).round().int().tolist()) for table in tables]


def same(a: Splits, b: Splits) -> bool:
    return (a.classes, a.features) == (b.classes, b.features) and all(
        torch.equal(x[key], y[key])
        for x, y in ((a.train, b.train), (a.validation, b.validation), (a.test, b.test))
        for key in ("x", "y")
    )


@pytest.fixture
def one(tmp_path: Path) -> Splits:
    frame().to_csv(tmp_path / "one.csv", index=False)
    return table_file(str(tmp_path / "one.csv"), "kind")


@pytest.mark.parametrize("layout", ["saved", "shards", "nested", "csv", "jsonl"])
def test_every_layout_gives_the_rows_of_one_file(layout: str, one: Splits, tmp_path: Path) -> None:
    folder = tmp_path / layout
    halves = [frame(0, 50), frame(50, N - 50)]
    if layout == "saved":
        datasets.Dataset.from_pandas(frame()).save_to_disk(folder, num_shards=3)
    else:
        inside = folder / "data" if layout == "nested" else folder
        inside.mkdir(parents=True)
        (folder / "README.md").write_text("about")
        for i, half in enumerate(halves):
            if layout in ("shards", "nested"):
                half.to_parquet(inside / f"train-0000{i}-of-00002.parquet")
            elif layout == "csv":
                half.to_csv(inside / f"{i}.csv.gz", index=False)
            else:
                half.to_json(inside / f"{i}.jsonl", orient="records", lines=True)
    read = read_frame(str(folder))
    assert read.index.tolist() == list(range(N))
    assert read["city"].tolist() == frame()["city"].tolist()
    assert same(table_file(str(folder), "kind"), one)


def divided(folder: Path, layout: str, sizes: dict[str, int]) -> str:
    """Rows 0, 1, ... in splits of these names and sizes."""
    parts, first = {}, 0
    for name, n in sizes.items():
        parts[name] = frame(first, n)
        first += n
    if layout == "saved":
        held = {name: datasets.Dataset.from_pandas(part) for name, part in parts.items()}
        datasets.DatasetDict(held).save_to_disk(folder)
    for name, part in parts.items() if layout != "saved" else ():
        file = folder / (f"{name}/0.parquet" if layout == "folders" else f"data/{name}-00000-of-00001.parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        part.to_parquet(file)
    return str(folder)


@pytest.mark.parametrize("layout", ["saved", "files", "folders"])
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("training", "dev", "eval")])
def test_splits_of_the_source_are_kept(layout: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    path = divided(tmp_path / "set", layout, dict(zip(names, (60, 20, 40), strict=True)))
    kept = table_file(path, "kind", standardize=False)
    assert heights(kept) == [list(range(60)), list(range(60, 80)), list(range(80, 120))]
    assert kept.features == ("height", "city = town 0", "city = town 1", "city = town 2")
    fewer = table_file(path, "kind", train=30, standardize=False)
    assert len(heights(fewer)[0]) == 30
    assert set(heights(fewer)[0]) < set(range(60))
    assert heights(fewer)[1:] == heights(kept)[1:]


def test_a_split_that_the_source_lacks_comes_from_its_training_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = divided(tmp_path / "set", "saved", {"train": 80, "test": 30, "unsupervised": 10})
    with caplog.at_level(logging.INFO):
        splits = table_file(path, "kind", validation=0.25, stratify=True, standardize=False)
    train, validation, test = heights(splits)
    assert test == list(range(80, 110))
    assert len(validation) == 20
    assert sorted(train + validation) == list(range(80))
    assert float(splits.validation["y"].float().mean()) == 0.5
    assert "unsupervised not read" in caplog.text
    assert "the source has no validation rows: 20 of its training rows are" in caplog.text


def test_a_column_of_splits_goes_before_the_sources_own(tmp_path: Path) -> None:
    rows = frame()
    rows["part"] = np.where(np.arange(N) < 30, "test", "train")
    for name, part in (("train", rows.iloc[:60]), ("test", rows.iloc[60:])):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    splits = table_file(str(tmp_path), "kind", split="part", standardize=False)
    assert heights(splits)[2] == list(range(30))
    assert len(splits.features) == 4


def test_class_labels_keep_their_names_and_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["wild", "calm", "never"]
    rows = {"text": [f"a {i % 2}" for i in range(60)], "label": [-1, *(i % 2 for i in range(59))]}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "a.parquet")
    for path in ("saved", "a.parquet"):
        splits = text_file(str(tmp_path / path), "label", length=4, words=5)
        assert splits.classes == tuple(names)
        word = splits.vocabulary.index("1")
        assert torch.equal((splits.train["x"] == word).any(1), splits.train["y"] == 0)
        assert "1 of 60 rows have no label and are left out" in caplog.text


def test_a_filtered_data_set_is_read_as_it_was_saved(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_pandas(frame())
    whole.select(range(100, 20, -1)).save_to_disk(tmp_path / "some")
    assert read_frame(str(tmp_path / "some"))["height"].tolist() == [i / 7.0 for i in range(100, 20, -1)]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/test/part.0.csv", "test"),
        ("train/my_valid.csv", "validation"),
        ("training.csv", "train"),
        ("contest.csv", None),
        ("unsupervised", None),
    ],
)
def test_names_say_their_split(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_folders_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    def refused(message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            table_file(str(tmp_path), "kind")

    refused("holds no .*csv.* files and no data set of save_to_disk", FileNotFoundError)
    frame().to_csv(tmp_path / "dev.csv", index=False)
    frame().to_csv(tmp_path / "test.csv", index=False)
    refused("has dev.csv, test.csv, of which none is for training: give one of them")
    frame().assign(more=1).to_csv(tmp_path / "train.csv", index=False)
    refused(r"dev\.csv and train\.csv differ in their columns \(more\)")
    frame().to_parquet(tmp_path / "a.parquet")
    refused(r"holds \.csv and \.parquet files")
    (tmp_path / "state.json").write_text("{")
    refused("is a folder of save_to_disk that cannot be read")


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, configuration: str | None) -> datasets.DatasetDict:
        asked.append((name, configuration))
        return datasets.DatasetDict(
            train=datasets.Dataset.from_pandas(frame(0, 80)), test=datasets.Dataset.from_pandas(frame(80, 40))
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("metagradient.data.own.formats.places.reach", lambda name, *_: asked.append(name))
    splits = table_file("owner/people:small", "kind", standardize=False)
    assert heights(splits)[2] == list(range(80, 120))
    assert asked == ["owner/people", ("owner/people", "small")]
    (tmp_path / "owner" / "people").mkdir(parents=True)
    frame().to_csv(tmp_path / "owner" / "people" / "rows.csv", index=False)
    assert find("owner/people")[0].name == "rows.csv"  # what is on this machine goes first
    for path in ("people/rows.csv", "people.csv", "no such/place"):  # a file that is not there is no name of the hub
        with pytest.raises(FileNotFoundError, match="does not exist: give a file"):
            find(path)


def test_without_a_network_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(
        ConnectionError, match=r"data\.path=owner/name is no local folder and the Hugging Face hub.*give"
    ):
        table_file("owner/name", "kind")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "saved"])
def test_what_does_not_fit_is_told_before_it_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(4000, 8)), columns=list("abcdefgh"))
    path = tmp_path / name
    if name == "saved":
        datasets.Dataset.from_pandas(numbers).save_to_disk(path)
    elif name == "a.parquet":
        numbers.to_parquet(path)
    else:
        numbers.to_csv(path, index=False)
    tensors = 4000 * 8 * 12  # as float64 and float32
    assert tensors / 3 < sum(files.bytes_of(part.rows) for part in find(str(path))) < 4 * tensors
    monkeypatch.setattr(files.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    monkeypatch.setattr("metagradient.data.own.reading.frame_of", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"would take about 0\.0 GiB .*mg\.Batches\(dataset, plan\)"):
        table_file(str(path), "a")
