"""A matrix on disk: a memory-mapped safetensors file that is filled block by block and can be resumed."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.files import read_sealed, replacing, reserve, write_sealed
from metagradient.replay.budget import format_bytes

log = logging.getLogger(__name__)

_DTYPES = {torch.float32: ("F32", "<f4"), torch.float64: ("F64", "<f8")}
_DIGESTED = 2**24
"""Entries whose checksum is taken at a time, about."""


class _Block(NamedTuple):
    """end: its last row or column, exclusive; it begins where the block before it ends."""

    end: int
    cost: float
    sha256: str


class BlockFile:
    """A safetensors file with one tensor [rows, columns], written through a memory map.

    The file is complete in form, and has all its space on the disk, from the first moment; which blocks of rows (or columns)
    are there is noted beside it, in `<file>.progress`, with a checksum and the cost of each, after the block is on disk. So
    a run that was killed goes on where it was, and from before the first block that is damaged.

    Args:
        path: of the file.
        shape: of the tensor.
        dtype: float32 or float64.
        metadata: of its header, which says what the file is of: a file with another header is refused.

    Raises:
        UserError: the file is of something else, or cut short; the disk is full.
    """

    tensor: ClassVar[str] = "blocks"
    """Its name in the file."""
    kinds: ClassVar[tuple[str, str]] = ("rows", "columns")
    """What a row and what a column is."""
    refused: ClassVar[str] = "holds something else: remove it, or give another folder"
    """What is said of a file with another header."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        self.path, self.shape = Path(path), shape
        self._note = self.path.with_name(self.path.name + ".progress")
        name, code = _DTYPES[dtype]
        size = dtype.itemsize * math.prod(shape)
        header = {
            "__metadata__": dict(metadata),
            self.tensor: {"dtype": name, "shape": list(shape), "data_offsets": [0, size]},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        begin = len(text).to_bytes(8, "little") + text
        if not self.path.exists():
            self._note.unlink(missing_ok=True)
            self._create(begin, size)
        with self.path.open("rb") as file:
            if file.read(len(begin)) != begin:
                raise UserError(f"{path} {self.refused}")
        if self.path.stat().st_size != len(begin) + size:
            raise UserError(f"{path} is cut short: remove it")
        self._map = np.memmap(self.path, dtype=code, mode="r+", offset=len(begin), shape=shape)
        self.axis, self._blocks = self._intact()  # filled by rows (0) or by columns (1)

    def _create(self, begin: bytes, size: int) -> None:
        with replacing(self.path) as draft, draft.open("wb") as file:
            file.write(begin)
            try:
                reserve(file, len(begin) + size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                free = shutil.disk_usage(self.path.parent).free
                raise UserError(
                    f"{self.path} takes {format_bytes(size)}, and its disk has {format_bytes(free)} left: make room, or give "
                    "another folder"
                ) from error

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
        return self.done == self.shape[self.axis]

    @property
    def values(self) -> Tensor:
        """[rows, columns], a view of the file: nothing is read before it is looked at."""
        return torch.from_numpy(self._map)

    def write_rows(self, block: Tensor, cost: float = 0.0) -> None:
        """The next rows, [b, columns]."""
        self._write([block], len(block), 0, cost)

    def write_columns(self, block: Tensor, cost: float = 0.0) -> None:
        """The next columns, [rows, b]."""
        self._write([block], block.shape[1], 1, cost)

    def fill_columns(self, width: int, parts: Iterable[Tensor], cost: float = 0.0) -> None:
        """The next `width` columns, as parts [b, width] from the first row to the last: they are there when all of them are."""
        self._write(parts, width, 1, cost)

    def _write(self, parts: Iterable[Tensor], width: int, axis: int, cost: float) -> None:
        if axis != self.axis:  # blocks of rows, say, in a file that is now filled by columns
            self.axis, self._blocks = axis, []
        start, end, row = self.done, self.done + width, 0
        target = self._part(start, end, axis)
        for part in parts:
            target[row : row + len(part)] = part.cpu().numpy()
            row += len(part)
        assert row == len(target), "the parts are the whole block"
        self._map.flush()
        self._blocks.append(_Block(end, cost, self._digest(start, end, axis)))
        write_sealed(self._note, {"axis": axis, "blocks": self._blocks})

    def _part(self, start: int, end: int, axis: int) -> np.ndarray:
        return self._map[start:end] if axis == 0 else self._map[:, start:end]

    def _digest(self, start: int, end: int, axis: int) -> str:
        part, made = self._part(start, end, axis), hashlib.sha256()
        rows = max(1, _DIGESTED // max(1, part.shape[1]))
        for first in range(0, len(part), rows):
            made.update(part[first : first + rows].tobytes())
        return made.hexdigest()

    def _intact(self) -> tuple[int, list[_Block]]:
        """(axis, blocks) of an earlier run, up to the first whose checksum is wrong."""
        try:
            note: dict[str, Any] = read_sealed(self._note)
        except FileNotFoundError:
            return 0, []
        except ValueError as error:
            log.warning("%s: the %s are computed again", error, self.tensor)
            return 0, []
        axis, blocks = int(note["axis"]), [_Block(*block) for block in note["blocks"]]
        start = 0
        for i, block in enumerate(blocks):
            if block.sha256 != self._digest(start, block.end, axis):
                log.warning("%s is damaged: going on from the %d %s before", self.path, start, self.kinds[axis])
                return axis, blocks[:i]
            start = block.end
        if start < self.shape[axis]:
            log.info("going on after %d of %d %s in %s", start, self.shape[axis], self.kinds[axis], self.path)
        return axis, blocks
