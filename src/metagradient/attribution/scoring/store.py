"""Scores on disk, [n_train, n_query]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
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
