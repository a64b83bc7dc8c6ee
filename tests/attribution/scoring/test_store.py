"""Scores on disk: valid files from the first moment, resumable, refused where they are of something else."""

import errno
import os
import struct
from collections.abc import Callable
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


def npy(path: Path, shape: tuple[int, ...], descr: str = "<f4", data: bytes = b"") -> None:
    """A .npy file with any header."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.write(data)


def header(path: Path, size: int, text: bytes = b"{}") -> None:
    """A .safetensors file with any header."""
    path.write_bytes(struct.pack("<Q", size) + text)


def saved(array: object) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.asarray(array), allow_pickle=True)


def stored(tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: save_file({"scores": tensor}, path)


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": (".npy", Path.touch, "cannot be read as scores"),
    "no array": (".npy", lambda p: p.write_text("1,2\n3,4\n"), "cannot be read as scores"),
    "no numbers": (".npy", saved(np.zeros((0, 4))), "."),
    "text": (".npy", saved([["a", "b"]]), "<U1 values; scores are real numbers"),
    "objects": (".npy", saved(np.array([[object]])), "cannot be read as scores"),
    "complex": (".npy", saved([[1 + 2j]]), "complex128 values"),
    "dates": (".npy", saved(np.array([["2020-01-01"]], dtype="datetime64[D]")), "scores are real numbers"),
    "true or false": (".npy", saved([[True]]), "bool values"),
    "records": (".npy", saved(np.zeros((2, 2), "f4,i4")), "scores are real numbers"),
    "not finite": (".npy", saved([[1.0, float("nan")], [float("inf"), 2.0]]), "2 of the 4 scores are not finite"),
    "beyond float32": (".npy", saved([[1e300]]), "1 of the 1 scores are not finite in float32"),
    "18 TiB": (".npy", lambda p: npy(p, (5_000_000, 1_000_000), data=b"1234"), "cannot be read as scores"),
    "more than there is": (".npy", lambda p: npy(p, (10**30, 10**30)), "cannot be read as scores"),
    "a negative shape": (".npy", lambda p: npy(p, (-1, 4), data=b"1234" * 8), "cannot be read as scores"),
    "cut short": (".npy", lambda p: npy(p, (2, 2), data=b"1234"), "cannot be read as scores"),
    "an archive": (".npy", lambda p: np.savez(p.open("wb"), a=SCORES.numpy()), "holds an archive"),
    "a folder": (".npy", Path.mkdir, "is a folder or a pipe"),
    "a pipe": (".npy", os.mkfifo, "is a folder or a pipe"),
    "an empty safetensors": (".safetensors", Path.touch, "cannot be read as scores"),
    "a header of 2^60": (".safetensors", lambda p: header(p, 2**60), "cannot be read as scores"),
    "a header that is none": (".safetensors", lambda p: header(p, 9, b"[[[[[[[[["), "cannot be read as scores"),
    "no tensors": (".safetensors", lambda p: header(p, 2), "holds nothing; a score file holds one tensor"),
    "18 TiB of tensor": (
        ".safetensors",
        lambda p: header(p, len(HUGE), HUGE),
        "cannot be read as scores",
    ),
    "complex tensors": (".safetensors", stored(torch.zeros(2, 2, dtype=torch.complex64)), "complex64 values"),
    "truths": (".safetensors", stored(torch.zeros(2, 2, dtype=torch.bool)), "bool values"),
    "NaN in tensors": (".safetensors", stored(torch.full((2, 2), float("nan"))), "4 of the 4 scores are not finite"),
    "an empty tensor": (".safetensors", stored(torch.zeros(0, 3)), "."),
    "a folder of tensors": (".safetensors", Path.mkdir, "is a folder or a pipe"),
    "a pipe of tensors": (".safetensors", os.mkfifo, "is a folder or a pipe"),
}
HUGE = b'{"scores": {"dtype": "F32", "shape": [5000000, 1000000], "data_offsets": [0, 20000000000000]}}'


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_score_file_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    suffix, make, says = WRONG[case]
    path = tmp_path / f"given{suffix}"
    make(path)
    with pytest.raises(UserError) as told:
        read_scores(path)
    message = str(told.value)
    assert message.startswith(str(path))
    assert says in message
    assert "\n" not in message


def test_a_link_to_nothing_is_no_file(tmp_path: Path) -> None:
    for suffix in (".npy", ".safetensors"):
        path = tmp_path / f"given{suffix}"
        path.symlink_to("nowhere")
        with pytest.raises(FileNotFoundError, match="leads nowhere"):
            read_scores(path)


def test_numbers_of_every_kind_are_scores(tmp_path: Path) -> None:
    whole = np.arange(6).reshape(2, 3)
    for kind in ("i1", "u8", ">i4", "f2", ">f8", "f16"):
        np.save(tmp_path / "a.npy", np.asfortranarray(whole.astype(kind)))
        assert read_scores(tmp_path / "a.npy").tolist() == whole.tolist()
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.float64):
        save_file({"x": torch.from_numpy(whole).to(dtype)}, tmp_path / "a.safetensors")
        assert read_scores(tmp_path / "a.safetensors").tolist() == whole.tolist()
