"""Files are whole or not there; digests are those of hashlib over the same bytes."""

import csv
import hashlib
import zlib
from pathlib import Path

import pytest
import torch

from metagradient.files import checksum, digest, named_tensors, replacing, reserve, write_csv, write_text


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


def test_a_csv_file_reads_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["a", "b"], [[1, "x, y"], [2.5, '"']])
    assert list(csv.reader((tmp_path / "t.csv").open(newline=""))) == [["a", "b"], ["1", "x, y"], ["2.5", '"']]


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
