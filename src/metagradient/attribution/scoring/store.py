"""Scores on disk, [n_train, n_query]: a memory-mapped safetensors file that is filled block by block and can be resumed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metagradient.errors import UserError
from metagradient.files import digest, replacing, write_text

log = logging.getLogger(__name__)

_NAME = "scores"
_KINDS = ("training examples", "queries")


class _Block(NamedTuple):
    """end: its last row or column, exclusive; it begins where the block before it ends."""

    end: int
    cost: float
    sha256: str


class ScoreFile:
    """A safetensors file with one float32 tensor `scores` [n_train, n_query], written through a memory map.

    The file is complete in form from the first moment; which blocks of rows (or columns) are there is noted beside it, in
    `<file>.progress`, with a checksum and the cost of each, after the block is on disk. So a run that was killed goes on
    where it was, and from before the first block that is damaged. `about` says what the scores are of: a file of another
    run or shape is refused rather than continued. `unit` is written into its header.
    """

    def __init__(self, path: Path, n_train: int, n_query: int, about: str = "", unit: str = "nats") -> None:
        self.path, self.shape, self.about = Path(path), (n_train, n_query), about
        self._note = self.path.with_name(self.path.name + ".progress")
        header = {
            "__metadata__": {
                "run": about,
                "unit": unit,
                "sign": "positive: removing the example raises the loss",
            },
            _NAME: {"dtype": "F32", "shape": list(self.shape), "data_offsets": [0, 4 * n_train * n_query]},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        begin = len(text).to_bytes(8, "little") + text
        if not self.path.exists():
            self._note.unlink(missing_ok=True)
            with replacing(self.path) as draft, draft.open("wb") as file:
                file.write(begin)
                file.truncate(len(begin) + 4 * n_train * n_query)
        with self.path.open("rb") as file:
            if file.read(len(begin)) != begin:
                raise UserError(f"{path} holds scores of another run or shape: remove it, or give another folder")
        self._map = np.memmap(self.path, dtype="<f4", mode="r+", offset=len(begin), shape=self.shape)
        self._axis, self._blocks = self._intact()

    @property
    def done(self) -> int:
        """Rows or columns that are there."""
        return self._blocks[-1].end if self._blocks else 0

    @property
    def cost(self) -> float:
        """What the blocks that are there cost, in the unit of whoever wrote them."""
        return sum(block.cost for block in self._blocks)

    @property
    def complete(self) -> bool:
        return self.done == self.shape[self._axis]

    def write_rows(self, block: Tensor, cost: float = 0.0) -> None:
        """The next training examples' scores, [b, n_query]."""
        self._write(block, 0, cost)

    def write_columns(self, block: Tensor, cost: float = 0.0) -> None:
        """The next queries' scores, [n_train, b]."""
        self._write(block, 1, cost)

    def _write(self, block: Tensor, axis: int, cost: float) -> None:
        start, end = self.done, self.done + block.shape[axis]
        self._axis = axis
        self._part(start, end, axis)[:] = block.cpu().numpy()
        self._map.flush()
        self._blocks.append(_Block(end, cost, self._digest(start, end, axis)))
        write_text(self._note, json.dumps({"axis": axis, "blocks": self._blocks}))

    def _part(self, start: int, end: int, axis: int) -> np.ndarray:
        return self._map[start:end] if axis == 0 else self._map[:, start:end]

    def _digest(self, start: int, end: int, axis: int) -> str:
        return digest(self._part(start, end, axis).tobytes())

    def _intact(self) -> tuple[int, list[_Block]]:
        """(axis, blocks) of an earlier run, up to the first whose checksum is wrong."""
        if not self._note.exists():
            return 0, []
        try:
            note = json.loads(self._note.read_text())
            axis, blocks = int(note["axis"]), [_Block(*block) for block in note["blocks"]]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): the scores are computed again", self._note, error)
            return 0, []
        start = 0
        for i, block in enumerate(blocks):
            if block.sha256 != self._digest(start, block.end, axis):
                log.warning("%s is damaged: going on from the %d %s before", self.path, start, _KINDS[axis])
                return axis, blocks[:i]
            start = block.end
        if start < self.shape[axis]:
            log.info("going on after %d of %d %s in %s", start, self.shape[axis], _KINDS[axis], self.path)
        return axis, blocks

    @property
    def scores(self) -> Tensor:
        """[n_train, n_query], a view of the file: nothing is read before it is looked at."""
        return torch.from_numpy(self._map)

    def top(self, query: int, k: int, lowest: bool = False) -> Tensor:
        """The k training examples with the highest (or lowest) scores for a query, best first."""
        return torch.from_numpy(np.array(self._map[:, query])).topk(k, largest=not lowest).indices


def read_scores(path: str | Path) -> Tensor:
    """Finite scores [n_train, n_query] in float32 from anywhere: `.npy`, or the only tensor (or the one named scores) of a
    safetensors file. Nothing in it is executed, and nothing larger than the file is made.

    Raises:
        FileNotFoundError: no such file.
        UserError: no file, or not of scores; the message says what it is.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".safetensors"):
        raise UserError(f"scores are read from .npy or .safetensors files, not {path.name}")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder or a pipe, not a file of scores")
    try:
        found = _array(path) if path.suffix == ".npy" else _tensor(path)
    except FileNotFoundError:
        says = "a link that leads nowhere" if path.is_symlink() else "no such file"
        raise FileNotFoundError(2, says, str(path)) from None
    except (OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as scores ({' '.join(str(error).split())})") from error
    if found.dim() != 2 or not found.numel():
        raise UserError(f"{path} holds {list(found.shape)}; scores are [n_train, n_query]")
    if found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"{path} holds {str(found.dtype).removeprefix('torch.')} values; scores are real numbers")
    scores = found.float()
    if not bool(scores.isfinite().all()):
        raise UserError(
            f"{path}: {int((~scores.isfinite()).sum())} of the {scores.numel()} scores are not finite in float32"
        )
    return scores


def _array(path: Path) -> Tensor:
    """The array of a .npy file, which is mapped: a header that asks for more than the file holds is refused."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        what = f"{array.dtype} values" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path} holds {what}; scores are real numbers")
    return torch.from_numpy(array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32))


def _tensor(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if _NAME not in names and len(names) != 1:
            there = ", ".join(names[:10]) or "nothing"
            raise UserError(f"{path} holds {there}; a score file holds one tensor, or one named {_NAME}")
        return file.get_tensor(_NAME if _NAME in names else names[0])
