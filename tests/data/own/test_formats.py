"""One file as a data frame: read in pieces, and the same as in one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metagradient.data.own.formats import files


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_pieces_of_a_file_are_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers whose later rows miss, words that look like numbers at first, truth values that miss at the end."""
    n, rng = 50, np.random.default_rng(0)
    code = [f"{i:03}" for i in range(n - 1)] + ["x"]
    frame = pd.DataFrame({"age": rng.normal(size=n), "count": rng.integers(0, 9, n), "code": code})
    frame["late"] = pd.Series([*range(45), *[None] * 5], dtype="Int64")
    frame["flag"] = [*([True, False] * 20), *[None] * 10]
    frame.to_csv(tmp_path / name, index=False, sep="\t" if ".tsv" in name else ",")
    whole = files.frame_of(tmp_path / name)
    monkeypatch.setattr(files, "_CHUNK", 7)
    pieces = files.frame_of(tmp_path / name)
    assert pieces["code"].tolist() == code  # and not 0, 1, 2, ...
    for column in ("age", "count", "late"):
        pd.testing.assert_series_equal(pieces[column], whole[column])
    assert pieces["flag"].astype("string").equals(whole["flag"].astype("string"))
    assert pieces.index.tolist() == list(range(n))


def test_the_index_of_a_parquet_file_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, None, 3.0], "kind": pd.Categorical(["x", "y", "x"], ["y", "x"])}, index=[7, 8, 9])
    frame.rename_axis("name").to_parquet(tmp_path / "a.parquet", row_group_size=2)
    read = files.frame_of(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read, frame.reset_index(drop=True))
    assert files.frame_of(tmp_path / "a.parquet", without=["a"]).columns.tolist() == ["kind"]


def test_one_value_of_a_column_at_a_time(tmp_path: Path) -> None:
    pd.DataFrame({"a": range(10), "b": [bytes([i]) for i in range(10)]}).to_parquet(tmp_path / "a.parquet")
    assert list(files.values_of(tmp_path / "a.parquet", "b", chunk=3)) == [bytes([i]) for i in range(10)]
