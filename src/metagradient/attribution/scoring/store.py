"""Scores on disk, [n_train, n_query]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metagradient.attribution.scoring.blocks import BlockFile
from metagradient.errors import UserError

_NAME = "scores"


class ScoreFile(BlockFile):
    """A safetensors file with one float32 tensor `scores` [n_train, n_query], filled block by block: see `BlockFile`.

    `about` says what the scores are of: a file of another run or shape is refused rather than continued. `unit` is written
    into its header.
    """

    tensor = _NAME
    kinds = ("training examples", "queries")
    refused = "holds scores of another run or shape: remove it, or give another folder"

    def __init__(self, path: Path, n_train: int, n_query: int, about: str = "", unit: str = "nats") -> None:
        self.about = about
        metadata = {"run": about, "unit": unit, "sign": "positive: removing the example raises the loss"}
        super().__init__(path, (n_train, n_query), torch.float32, metadata)

    @property
    def scores(self) -> Tensor:
        """[n_train, n_query], a view of the file: nothing is read before it is looked at."""
        return self.values

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
