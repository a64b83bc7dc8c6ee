"""One process at a time writes a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from metagradient.errors import UserError


@contextmanager
def only_writer(directory: Path, setting: str) -> Iterator[None]:
    """Nobody else writes in a directory meanwhile; the operating system takes the lock back from a process that is killed.

    Raises:
        UserError: another process does; `setting` names the place.
    """
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another process is writing {directory}: let it finish or stop it, or give another {setting}=..."
        ) from None
    try:
        yield
    finally:
        lock.release()
