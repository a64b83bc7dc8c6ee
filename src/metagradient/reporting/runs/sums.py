"""SHA256SUMS of a finished run: what it left, in the format of `sha256sum -c`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from metagradient.errors import UserError
from metagradient.files import write_text
from metagradient.reporting.runs.foreign import content

SUMS = "SHA256SUMS"
_LEFT = ("*.yaml", "*.json", "*.csv", "artifacts/**/*", "figures/**/*")
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def write_sums(directory: Path, besides: Collection[Path], metrics: str) -> None:
    """Note the checksums of what a run leaves, `besides` left out, and of a metrics.json with this text, which comes after."""
    files = {path for pattern in _LEFT for path in directory.glob(pattern) if path.is_file()}
    left_out = {directory / "metrics.json", *besides}
    sums = {
        str(path.relative_to(directory)): _sum(path)
        for path in sorted(files)
        if not {path, *path.parents} & left_out and not path.name.startswith(".")
    }
    sums["metrics.json"] = hashlib.sha256(metrics.encode()).hexdigest()
    write_text(directory / SUMS, "".join(f"{value}  {name}\n" for name, value in sums.items()))


def check_sums(directory: Path, names: Collection[str] | None = None) -> None:
    """See whether files of a run are as it left them: those named, or all; one that was removed since is passed over.

    Raises:
        UserError: a file is another one now, or SHA256SUMS cannot be read.
    """
    for value, name in _noted(directory / SUMS):
        path = directory / name
        if (names is None or name in names) and os.path.lexists(path) and (not path.is_file() or _sum(path) != value):
            raise UserError(f"{path} is not what the run left (its checksum in {SUMS} is wrong)")


def _noted(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = content(path).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None or ".." in Path(found[2]).parts or Path(found[2]).is_absolute():
            raise UserError(f"{path} holds more than checksums of files below it")
        yield found[1], found[2]


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
