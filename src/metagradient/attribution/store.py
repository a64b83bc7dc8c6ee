"""Scores on disk, [n_train, n_query]: a memory-mapped safetensors file that is filled block by block and can be resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metagradient.errors import UserError

_NAME = "scores"


class ScoreFile:
    """A safetensors file with one float32 tensor `scores` [n_train, n_query], written through a memory map.

    The file is complete in form from the first moment; `done` rows (or columns) are noted beside it, in
    `<file>.progress`, after their block is on disk, so that a run that was killed goes on where it was. `recipe` says
    what the scores are of: a file of another recipe or shape is refused rather than continued.
    """

    def __init__(self, path: Path, n_train: int, n_query: int, recipe: str = "") -> None:
        self.path, self.shape, self.recipe = Path(path), (n_train, n_query), recipe
        self._note = self.path.with_name(self.path.name + ".progress")
        header = {
            "__metadata__": {
                "recipe": recipe,
                "unit": "nats",
                "sign": "positive: removing the example raises the loss",
            },
            _NAME: {"dtype": "F32", "shape": list(self.shape), "data_offsets": [0, 4 * n_train * n_query]},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._offset = 8 + len(text)
        if self.path.exists():
            with self.path.open("rb") as file:
                found = file.read(self._offset)
            if found != len(text).to_bytes(8, "little") + text:
                raise UserError(f"{path} holds scores of another run or shape: remove it, or give another folder")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(self._offset + 4 * n_train * n_query)
            self._write_note(0)
        self._map = np.memmap(self.path, dtype="<f4", mode="r+", offset=self._offset, shape=self.shape)

    @property
    def done(self) -> int:
        """Rows or columns that are there; everything once the note is gone."""
        return int(self._note.read_text()) if self._note.exists() else max(self.shape)

    @property
    def complete(self) -> bool:
        return not self._note.exists()

    def write_rows(self, block: Tensor) -> None:
        """The next training examples' scores, [b, n_query]."""
        self._write(block, axis=0)

    def write_columns(self, block: Tensor) -> None:
        """The next queries' scores, [n_train, b]."""
        self._write(block, axis=1)

    def _write(self, block: Tensor, axis: int) -> None:
        start = self.done
        where = slice(start, start + block.shape[axis])
        self._map[where if axis == 0 else (slice(None), where)] = block.cpu().numpy()
        self._map.flush()
        if where.stop == self.shape[axis]:
            self._note.unlink()
        else:
            self._write_note(where.stop)

    def _write_note(self, done: int) -> None:
        partial = self._note.with_name(self._note.name + ".tmp")
        partial.write_text(str(done))
        os.replace(partial, self._note)

    @property
    def scores(self) -> Tensor:
        """[n_train, n_query], a view of the file: nothing is read before it is looked at."""
        return torch.from_numpy(self._map)

    def top(self, query: int, k: int, lowest: bool = False) -> Tensor:
        """The k training examples with the highest (or lowest) scores for a query, best first."""
        return torch.from_numpy(np.array(self._map[:, query])).topk(k, largest=not lowest).indices


def read_scores(path: str | Path) -> Tensor:
    """A score matrix from anywhere: `.npy`, or the only tensor (or the one named scores) of a safetensors file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    if path.suffix == ".npy":
        found = torch.from_numpy(np.load(path, allow_pickle=False))
    elif path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
        if _NAME not in tensors and len(tensors) != 1:
            raise UserError(f"{path} holds {', '.join(tensors)}; a score file holds one tensor, or one named {_NAME}")
        found = tensors.get(_NAME, next(iter(tensors.values())))
    else:
        raise UserError(f"scores are read from .npy or .safetensors files, not {path.name}")
    if found.dim() != 2:
        raise UserError(f"{path} holds {list(found.shape)}; scores are [n_train, n_query]")
    return found.float()
