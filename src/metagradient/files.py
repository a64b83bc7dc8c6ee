"""Files that are whole or not there, and digests of what they hold."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A draft beside `path` to write to, which takes its place when the block ends and goes when it fails.

    A reader, or a kill at any moment, finds the old file or the new one. What is no file, such as /dev/stdout, is written
    as it is.

    Args:
        path: the file to write; its folder is made where it is missing.
        durable: also wait until the content is on the disk, so that a power cut cannot leave the name without it.
    """
    if path.exists() and not path.is_dir() and (path.is_relative_to("/dev") or not path.is_file()):
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        if durable:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(draft):  # a write that failed does not say where
            error.filename = str(path)
        raise
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


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], verbatim: Collection[str] = ()) -> None:
    """Write a CSV file as a whole; text that a spreadsheet would run as a formula is written as text.

    Columns named in `verbatim` are written as they are: names by which rows are joined to other files.
    """
    as_is = [name in verbatim for name in header]
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, header))
        writer.writerows([x if same else _cell(x) for same, x in zip(as_is, row, strict=True)] for row in rows)


def _cell(value: Any) -> Any:
    """A value as a cell of a CSV file: text that a spreadsheet takes for a formula begins with an apostrophe.

    Numbers stay numbers, those that are written as text too.
    """
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def write_sealed(path: Path, value: Any, of: str = "") -> None:
    """Write what JSON can hold as a whole, beside its checksum: what a program keeps for itself to read again.

    `of` says whose it is; only who says the same can read it.
    """
    text = json.dumps(value)
    write_text(path, json.dumps({"sha256": digest(of, text), "value": text}) + "\n")


def read_sealed(path: Path, of: str = "") -> Any:
    """What `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of somebody else, or no file; the message says how.
    """
    try:
        page = json.loads(path.read_bytes())
        if digest(of, page["value"]) != page["sha256"]:
            raise ValueError("its checksum is wrong")
        return json.loads(page["value"])
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ValueError(f"{path} is damaged (a link that leads nowhere)") from error
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


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
