"""Scores on disk: valid files from the first moment, resumable, refused where they are of something else."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from metagradient.attribution import ScoreFile, read_scores
from metagradient.errors import UserError

SCORES = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


def test_a_file_filled_in_pieces_across_processes(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "scores.safetensors"
    first = ScoreFile(path, 7, 4, "run")
    first.write_rows(SCORES[:3], cost=1.5)
    assert not first.complete
    again = ScoreFile(path, 7, 4, "run")
    assert again.done == 3
    again.write_rows(SCORES[3:], cost=2.0)
    assert again.complete
    whole = ScoreFile(path, 7, 4, "run")
    assert (whole.complete, whole.cost) == (True, 3.5)
    torch.testing.assert_close(load_file(path)["scores"], SCORES)  # another reader
    assert sorted(p.name for p in path.parent.iterdir()) == ["scores.safetensors", "scores.safetensors.progress"]
    for k, lowest in ((2, False), (3, True)):
        expected = SCORES[:, 1].argsort(descending=not lowest)[:k]
        assert torch.equal(again.top(1, k, lowest), expected)


def test_the_header_names_the_unit(tmp_path: Path) -> None:
    for name, given in (("nats", {}), ("cosine", {"unit": "cosine"})):
        ScoreFile(tmp_path / name, 7, 4, **given)
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata()["unit"] == name


def test_columns_as_well(tmp_path: Path) -> None:
    file = ScoreFile(tmp_path / "s.safetensors", 7, 4)
    file.write_columns(SCORES[:, :1])
    assert file.done == 1
    file.write_columns(SCORES[:, 1:])
    torch.testing.assert_close(file.scores, SCORES)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_damaged_block_and_what_follows_it_are_written_again(
    tmp_path: Path, axis: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.safetensors"
    file = ScoreFile(path, 7, 4)
    write = file.write_rows if axis == 0 else file.write_columns
    for block in SCORES.split(1, dim=axis):
        write(block, cost=1.0)
    bits = bytearray(path.read_bytes())
    bits[-4 * 4 * 4 + 4 * 2] ^= 1  # row 3, column 2
    path.write_bytes(bits)
    damaged = ScoreFile(path, 7, 4)
    assert (damaged.done, damaged.cost, damaged.complete) == ((3, 3.0, False) if axis == 0 else (2, 2.0, False))
    assert "damaged" in caplog.text
    path.with_name(path.name + ".progress").write_text("4")
    assert ScoreFile(path, 7, 4).done == 0
    path.with_name(path.name + ".progress").unlink()  # killed before the first note
    assert ScoreFile(path, 7, 4).done == 0


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    ScoreFile(tmp_path / "s.safetensors", 7, 4, "one")
    for shape, recipe in (((7, 4), "two"), ((4, 7), "one"), ((7, 5), "one")):
        with pytest.raises(UserError, match="another run"):
            ScoreFile(tmp_path / "s.safetensors", *shape, recipe)


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"takes 112 B, and its disk has .* left"):
            ScoreFile(tmp_path / "s.safetensors", 7, 4)
    assert not list(tmp_path.iterdir())
    path = tmp_path / "s.safetensors"
    ScoreFile(path, 7, 4)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cut short"):
        ScoreFile(path, 7, 4)


def test_columns_come_in_parts_and_take_the_place_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    ScoreFile(path, 7, 4).write_rows(SCORES[:3])
    file = ScoreFile(path, 7, 4)
    file.fill_columns(3, SCORES[:, :3].split(2))
    assert (file.done, file.axis) == (3, 1)
    again = ScoreFile(path, 7, 4)
    assert (again.done, again.axis) == (3, 1)
    again.fill_columns(1, iter(SCORES[:, 3:].split(5)))
    assert again.complete
    torch.testing.assert_close(load_file(path)["scores"], SCORES)


def test_scores_from_anywhere(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SCORES.numpy().astype(np.float64))
    save_file({"whatever": SCORES}, tmp_path / "b.safetensors")
    for name in ("a.npy", "b.safetensors"):
        torch.testing.assert_close(read_scores(tmp_path / name), SCORES)
    np.save(tmp_path / "c.npy", SCORES[0].numpy())
    save_file({"one": SCORES, "two": SCORES.clone()}, tmp_path / "d.safetensors")
    (tmp_path / "e.txt").touch()
    for name, says in (("c.npy", "n_train, n_query"), ("d.safetensors", "one, two"), ("e.txt", r"\.npy or")):
        with pytest.raises(UserError, match=says):
            read_scores(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_scores(tmp_path / "missing.npy")
