"""Files that are whole or not there, and digests of what they hold."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A draft beside `path` to write to, which takes its place when the block ends and goes when it fails.

    A reader, or a kill at any moment, finds the old file or the new one.

    Args:
        path: the file to write; its folder is made where it is missing.
        durable: also wait until the content is on the disk, so that a power cut cannot leave the name without it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        if durable:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def reserve(file: BinaryIO, size: int) -> None:
    """Give an open file this size, with space on the disk for all of it.

    A write through a memory map into a file with holes ends the process where the disk is full.

    Raises:
        OSError: the disk has no such space (errno ENOSPC).
    """
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(os.path.dirname(os.path.abspath(file.name))).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file as a whole."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def digest(*parts: str | bytes | Tensor) -> str:
    """SHA-256 of the parts one after the other, in hexadecimal: text as UTF-8, tensors as their values in memory."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes | Tensor]) -> str:
    """`digest` of parts that need not be in memory together."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            made.update(part)
        else:
            made.update(part.encode() if isinstance(part, str) else _values(part))
    return made.hexdigest()


def named_tensors(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[str | Tensor]:
    """Parts for `digest`: the name, dtype and shape of each tensor, and its values."""
    for name, x in tensors:
        yield f"{name} {x.dtype} {list(x.shape)}"
        yield x


def checksum(x: Tensor) -> int:
    """CRC-32 of a tensor's values, a quick guard against damage; 0 where it is empty."""
    return zlib.crc32(_values(x)) if x.numel() else 0


def _values(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().numpy().data.cast("B") if x.numel() else memoryview(b"")
