"""Files are whole or not there; digests are those of hashlib over the same bytes."""

import csv
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from metagradient.files import (
    checksum,
    digest,
    named_tensors,
    read_sealed,
    replacing,
    reserve,
    write_csv,
    write_sealed,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as draft:
            draft.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "a line\n")
    assert os.read(reader, 100) == b"a line\n"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_csv_file_reads_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["a", "b"], [[1, "x, y"], [2.5, '"']])
    assert list(csv.reader((tmp_path / "t.csv").open(newline=""))) == [["a", "b"], ["1", "x, y"], ["2.5", '"']]


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=1;2", "-", "+x", "-inf"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_run_is_text(tmp_path: Path, text: str) -> None:
    write_csv(tmp_path / "t.csv", [text, "b"], [[1, text], ["x", text + "z"]])
    rows = list(csv.reader((tmp_path / "t.csv").open(newline="")))
    assert rows == [["'" + text, "b"], ["1", "'" + text], ["x", "'" + text + "z"]]


def test_names_that_rows_are_joined_by_are_written_as_they_are(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["id", "label"], [["@A-1", "@x"], ["-7b", "=y"]], verbatim=("id",))
    rows = list(csv.reader((tmp_path / "t.csv").open(newline="")))
    assert rows == [["id", "label"], ["@A-1", "'@x"], ["-7b", "'=y"]]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    numbers = [
        -1,
        -0.5,
        float("-inf"),
        1e-9,
        None,
        True,
        np.float32(-0.25),
        np.int64(-7),
        "-0.5",
        "+3",
        "-1e-05",
        "-.5",
    ]
    write_csv(tmp_path / "t.csv", ["a"], [[x] for x in numbers])
    read = [row[0] if row else "" for row in csv.reader((tmp_path / "t.csv").open(newline=""))][1:]
    assert read == ["-1", "-0.5", "-inf", "1e-09", "", "True", "-0.25", "-7", "-0.5", "+3", "-1e-05", "-.5"]


def test_half_a_character_does_not_stop_a_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["a"], [["\ud800"]])
    assert (tmp_path / "t.csv").read_text() == "a\n\\ud800\n"


def test_every_csv_file_is_written_by_one_function() -> None:
    """Whoever makes a writer of their own forgets what strangers' names may do in a spreadsheet."""
    source = Path(__file__).parents[1] / "src"
    makers = [
        p.name for p in source.rglob("*.py") if "csv.writer" in p.read_text() or "csv.DictWriter" in p.read_text()
    ]
    assert makers == ["files.py"]


def test_what_was_sealed_is_read_back_or_refused(tmp_path: Path) -> None:
    path, value = tmp_path / "kept.json", {"rows": [{"a": 0.1}, {"b": None}]}
    write_sealed(path, value)
    assert read_sealed(path) == value
    text = path.read_text()
    damaged = [text.replace("0.1", "0.2"), text[:-9], "", "[]", "null", '{"sha256": 1, "value": 2}', "[" * 100_000]
    for other in damaged:
        path.write_text(other)
        with pytest.raises(ValueError, match=r"kept\.json is damaged"):
            read_sealed(path)
    path.write_text(json.dumps(json.loads(text), indent=3))  # another layout, the same content
    assert read_sealed(path) == value
    write_sealed(path, value, of="a run")
    assert read_sealed(path, of="a run") == value
    for of in ("another run", ""):
        with pytest.raises(ValueError, match=r"kept\.json is damaged"):
            read_sealed(path, of)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"kept\.json is damaged"):
        read_sealed(path)
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="leads nowhere"):
        read_sealed(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_sealed(path)


def test_digests_are_sha256_of_the_bytes() -> None:
    x = torch.arange(6.0).view(2, 3).T  # not contiguous
    values = x.contiguous().numpy().tobytes()
    assert digest("ab", b"c", x) == hashlib.sha256(b"abc" + values).hexdigest()
    assert checksum(x) == zlib.crc32(values)
    assert checksum(torch.empty(0)) == 0
    named = digest(*named_tensors([("x", x)]))
    assert named == hashlib.sha256(b"x torch.float32 [3, 2]" + values).hexdigest()
    assert named != digest(*named_tensors([("y", x)]))


def test_reserved_space_is_really_there(tmp_path: Path) -> None:
    size = 2**20 + 5
    with (tmp_path / "reserved").open("wb") as file:
        file.write(b"head")
        reserve(file, size)
    found = (tmp_path / "reserved").stat()
    assert found.st_size == size
    assert found.st_blocks * 512 >= size  # a file with a hole has less
    assert (tmp_path / "reserved").read_bytes()[:5] == b"head\0"
