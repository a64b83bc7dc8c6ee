"""A folder in which a replay saves its position, and the checkpoints that the position needs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

import torch
from safetensors import SafetensorError

from metagradient.errors import UserError
from metagradient.replay.saving.position import Position, read_position, write_position
from metagradient.replay.storage import DiskStorage, Storage
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)

_FILE, _STATES = "position.safetensors", "state-*.safetensors"
_HALF = (f".{_FILE}.*", f".{_STATES}.*", ".tmp??????")
"""Half written files: our own drafts, and safetensors' drafts of those."""


class Saving:
    """The position of one replay in a folder of its own: `position.safetensors`, and a file for each checkpoint it needs.

    Checkpoints are written once. Their files go after the first position that does not need them any more, so that a kill at
    any moment leaves a position with all its checkpoints.

    Args:
        folder: where they lie; made where it is missing, and empty again when the replay is done.
        every: seconds between two positions; 0: after every step.
        asked: what the replay is asked for (`asked_for`).
        own: where its checkpoints lie while it runs; those of a `DiskStorage` lie in the folder itself.
        device: of the run.

    Raises:
        UserError: the folder cannot be, or holds the position of another replay.
    """

    def __init__(
        self, folder: Path, every: float, asked: Mapping[str, str], own: Storage, device: torch.device
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int | float) or not every >= 0:
            raise UserError(f"save_every must be a number of seconds >= 0, not {every!r}: give save_every=300")
        self.folder, self.every, self.asked = folder, every, asked
        self._file, self._saved = folder / _FILE, monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot save the replay in {folder}: {error}; give another folder") from error
        self.found = self._read(device)
        disk = DiskStorage(folder, keep=True, sums=None if self.found is None else self.found.held, device=device)
        self.storage = SavedStorage(disk, None if isinstance(own, DiskStorage) else own)
        try:
            self.storage.begin()
        except UserError as error:
            self._anew(str(error))
            self.storage.clear()
        needed = {disk.path(t) for t in self.storage.held}
        for path in (path for pattern in (_STATES, *_HALF) for path in folder.glob(pattern)):
            if path not in needed:  # it was written after the position, or in part
                path.unlink(missing_ok=True)

    def _read(self, device: torch.device) -> Position | None:
        try:
            found = read_position(self._file, device)
        except ValueError as error:
            self._anew(str(error))
            return None
        if found is None:
            return None
        position, asked = found
        other = [name for name, digest in self.asked.items() if asked.get(name) != digest]
        if other:
            raise UserError(
                f"the replay saved in {self.folder} is of another run (its {', '.join(other)} differ): give what that run was "
                "given, or another folder"
            )
        return position

    def _anew(self, why: str) -> None:
        log.warning("the saved replay is computed anew: %s", why)
        self.found = None
        self._file.unlink(missing_ok=True)

    def when_due(self, position: Callable[[Mapping[int, list[int]]], Position]) -> None:
        """Save the position that is made of the checksums of the checkpoints, if it is time.

        Raises:
            UserError: it cannot be written.
        """
        if monotonic() - self._saved < self.every:
            return
        held = self.storage.on_disk()
        try:
            write_position(self._file, position(held), self.asked)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot save the replay to {self._file}: {error}; free some space, or give another folder"
            ) from error
        self.storage.drop_freed()
        self._saved = monotonic()

    def close(self) -> None:
        """The replay is done: nothing of it stays."""
        self._file.unlink(missing_ok=True)
        self.storage.clear()
        with contextlib.suppress(OSError):  # somebody else's files lie there
            self.folder.rmdir()


class SavedStorage:
    """Checkpoints of which a saved position has copies on a disk.

    Attributes:
        held: the steps of those that are stored now.
        own: where they lie besides; None: only there.
    """

    def __init__(self, disk: DiskStorage, own: Storage | None) -> None:
        self.disk, self.own = disk, own
        self.held: set[int] = set()

    def begin(self) -> None:
        """Look at all checkpoints of the position, and load them to where they lie in this run.

        Raises:
            UserError: one of them is damaged.
        """
        for t in sorted(self.disk.sums):
            state = self.disk.load(t)
            if self.own is not None:
                self.own.save(t, state)
            self.held.add(t)

    def save(self, t: int, state: TrainState) -> None:
        self.held.add(t)
        (self.own or self.disk).save(t, state)

    def load(self, t: int) -> TrainState:
        return (self.own or self.disk).load(t)

    def expect(self, t: int) -> None:
        (self.own or self.disk).expect(t)

    def free(self, t: int) -> None:
        self.held.discard(t)
        if self.own is not None:
            self.own.free(t)

    def on_disk(self) -> dict[int, list[int]]:
        """Write those that are not on the disk yet; the checksums of all that are stored now."""
        if self.own is not None:
            for t in sorted(self.held - set(self.disk.sums)):
                self.disk.save(t, self.own.load(t))
        return {t: self.disk.sums[t] for t in sorted(self.held)}

    def drop_freed(self) -> None:
        """Remove the copies of those that are not stored any more."""
        for t in set(self.disk.sums) - self.held:
            self.disk.free(t)

    def clear(self) -> None:
        """Forget all of them."""
        for t in sorted(self.held):
            self.free(t)
        self.drop_freed()
