"""HIGGS, on small files in its format."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from metagradient.data import Splits, collisions, higgs

N, OFFICIAL = 60, 10


@pytest.fixture
def rows() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(N, 29)).astype(np.float32)
    values[:, 0] = np.arange(N) % 2
    values[:, 1] = np.arange(N)  # which tells the rows apart
    return values


@pytest.fixture
def path(rows: np.ndarray, tmp_path: Path) -> str:
    with gzip.open(tmp_path / "HIGGS.csv.gz", "wt") as file:
        np.savetxt(file, rows, delimiter=",", fmt="%.18e")
    return str(tmp_path / "HIGGS.csv.gz")


def numbers(splits: Splits) -> list[list[int]]:
    return [t["x"][:, 0].int().tolist() for t in (splits.train, splits.validation, splits.test)]


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_last_rows_are_the_test_set_and_the_others_are_one_stretch(chunk: int, path: str, rows: np.ndarray) -> None:
    splits = higgs(path, official=OFFICIAL, chunk=chunk)
    train, validation, test = numbers(splits)
    assert (train, validation, test) == (list(range(50)), [], list(range(50, 60)))
    assert torch.equal(splits.train["x"], torch.from_numpy(rows[:50, 1:]))  # the bits of float32
    assert torch.equal(splits.test["y"], torch.from_numpy(rows[50:, 0]).long())
    assert len(splits.features) == 28
    assert splits.train["x"].untyped_storage().data_ptr() == splits.test["x"].untyped_storage().data_ptr()


def test_validation_rows_are_drawn_and_the_rest_stays_in_place(path: str, rows: np.ndarray) -> None:
    splits, again, other = (higgs(path, validation=12, official=OFFICIAL, seed=s) for s in (0, 0, 1))
    train, validation, _ = numbers(splits)
    assert len(validation) == 12
    assert sorted(train + validation) == list(range(50))
    assert numbers(again) == numbers(splits) != numbers(other)
    for table in (splits.train, splits.validation):
        which = table["x"][:, 0].int().numpy()
        assert torch.equal(table["x"], torch.from_numpy(rows[which, 1:]))
        assert table["y"].tolist() == (which % 2).tolist()


def test_fewer_rows_are_drawn_at_random(path: str) -> None:
    train, validation, test = numbers(higgs(path, train=20, validation=5, test=4, official=OFFICIAL))
    assert (len(train), len(validation), len(test)) == (20, 5, 4)
    assert not set(train) & set(validation)
    assert set(train) | set(validation) < set(range(50))
    assert set(test) < set(range(50, 60))
    assert sorted(train) != list(range(20))


def test_no_second_array_is_made(path: str, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading holds the array and a chunk: what is allocated while reading stays below twice the array."""
    import tracemalloc

    many = np.tile(rows, (500, 1))
    with gzip.open(path, "wt", compresslevel=1) as file:
        np.savetxt(file, many, delimiter=",", fmt="%g")
    higgs(path, official=OFFICIAL, chunk=1000)  # imports
    tracemalloc.start()
    splits = higgs(path, validation=100, official=OFFICIAL, chunk=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    array = many[:, 1:].nbytes
    assert splits.train["x"].untyped_storage().nbytes() == array
    assert peak < 1.7 * array


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3", "29 columns are needed"),
        ("2" + ",0.5" * 28, "row 60 is no label 0 or 1"),
        ("1,nan" + ",0.5" * 27, "row 60 is no label 0 or 1 and 28 finite numbers"),
        ("s" + ",0.5" * 28, r"is not HIGGS\.csv\.gz"),
    ],
)
def test_another_file_is_told_by_its_row(line: str, message: str, path: str) -> None:
    if line.startswith("1,2"):
        with gzip.open(path, "wt") as file:
            file.write(line)
    else:
        with gzip.open(path, "at") as file:
            file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        higgs(path, official=OFFICIAL)


def test_what_is_missing_or_too_large_is_told(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data\.path=.*does not exist: download HIGGS\.csv\.gz from https://archive"
    ):
        higgs(str(tmp_path / "no.csv.gz"))
    with pytest.raises(ValueError, match=r"data\.official=500000 of 60 rows"):
        higgs(path)
    (tmp_path / "HIGGS.csv.gz").write_bytes((tmp_path / "HIGGS.csv.gz").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"is not HIGGS\.csv\.gz"):
        higgs(path)
    monkeypatch.setattr(collisions, "_MEMORY", (1e9, 1e9))
    with pytest.raises(ValueError, match="GiB of memory"):
        higgs(path)
