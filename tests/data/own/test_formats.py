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


def test_an_index_of_a_parquet_file_is_a_column_where_it_has_a_name(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, None, 3.0], "kind": pd.Categorical(["x", "y", "x"], ["y", "x"])}, index=[7, 8, 9])
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=2)
    read = files.frame_of(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read, frame.reset_index(drop=True))
    assert files.frame_of(tmp_path / "a.parquet", without=["a"]).columns.tolist() == ["kind"]
    frame.rename_axis("name").to_parquet(tmp_path / "b.parquet", row_group_size=2)
    assert files.frame_of(tmp_path / "b.parquet")["name"].tolist() == [7, 8, 9]


def test_one_value_of_a_column_at_a_time(tmp_path: Path) -> None:
    pd.DataFrame({"a": range(10), "b": [bytes([i]) for i in range(10)]}).to_parquet(tmp_path / "a.parquet")
    assert list(files.values_of(tmp_path / "a.parquet", "b", chunk=3)) == [bytes([i]) for i in range(10)]


def test_words_of_json_lines_stay_words(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"code": "01", "date": "2020-01-01"}\n{"code": "1", "date": "2020-01-02"}\n')
    read = files.frame_of(tmp_path / "a.jsonl")
    assert read["code"].tolist() == ["01", "1"]
    assert read["date"].tolist() == ["2020-01-01", "2020-01-02"]


def test_rows_may_end_in_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,y\n" + "".join(f"{i},{2 * i},c{i % 2},\n" for i in range(5)))
    read = files.frame_of(tmp_path / "a.csv")
    assert read.to_dict("list") == {"a": [*range(5)], "b": [*range(0, 10, 2)], "y": ["c0", "c1", "c0", "c1", "c0"]}
    (tmp_path / "b.csv").write_text("a,y\nfirst,1,2\nsecond,3,4\n")  # names of rows, which the header leaves out
    assert files.frame_of(tmp_path / "b.csv").to_dict("list") == {"a": [1, 3], "y": [2, 4]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "städt,y\n1,2\n".encode("latin-1"), "a.csv is not UTF-8 text: save it as UTF-8"),
        ("a.csv", b"a;b;y\n1,5;2;x\n", "there is one column alone, 'a;b;y': .csv files are separated by commas"),
        ("a.tsv", b"a,y\n1,2\n", "there is one column alone, 'a,y': .tsv files are separated by tabs"),
        ("a.csv", b"", "a.csv has no rows"),
        ("a.csv", b"\n\n", "a.csv has no rows"),
        ("a.jsonl", b"", "a.jsonl has no rows"),
        ("a.parquet", b"", "a.parquet has no rows"),
    ],
)
def test_files_that_are_something_else_are_told(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.frame_of(tmp_path / name)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="two columns are named 'a': rename one"):
        files.frame_of(tmp_path / "a.csv")


def test_a_line_that_is_too_long_is_told_in_a_few_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match="cannot be read as csv: Expected 2 fields in line 3, saw 3"):
        files.frame_of(tmp_path / "a.csv")
