"""Where checkpoints lie: on the device, in pinned host memory, or on disk with checksums."""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagradient.distributed import Group
from metagradient.errors import UserError
from metagradient.files import checksum, replacing
from metagradient.training.state import TrainState


class Storage(Protocol):
    """Holds states by step. `load` gives back the saved bits on the device they were saved from; `expect` says which of them
    is asked for next."""

    def save(self, t: int, state: TrainState) -> None: ...

    def load(self, t: int) -> TrainState: ...

    def free(self, t: int) -> None: ...

    def expect(self, t: int) -> None: ...


class MemoryStorage:
    """References on the device: states are never written into, so nothing is copied."""

    def __init__(self) -> None:
        self._states: dict[int, TrainState] = {}

    def save(self, t: int, state: TrainState) -> None:
        self._states[t] = state.detach()

    def load(self, t: int) -> TrainState:
        return self._states[t]

    def free(self, t: int) -> None:
        del self._states[t]

    def expect(self, t: int) -> None:
        """Nothing: it is there."""


class PinnedStorage:
    """Copies in pinned host memory: keeps a GPU's memory for the tape."""

    def __init__(self) -> None:
        self._states: dict[int, tuple[TrainState, torch.device]] = {}

    def save(self, t: int, state: TrainState) -> None:
        device = state.params.device
        pin = device.type == "cuda"
        # Not waited for: `load` copies them back on the same stream, after this.
        copies = [
            torch.empty(x.shape, dtype=x.dtype, pin_memory=pin).copy_(x.detach(), non_blocking=pin)
            for x in state.tensors()
        ]
        self._states[t] = TrainState.of(copies), device

    def load(self, t: int) -> TrainState:
        state, device = self._states[t]
        return TrainState.of([x.to(device, non_blocking=True) for x in state.tensors()])

    def free(self, t: int) -> None:
        del self._states[t]

    def expect(self, t: int) -> None:
        """Nothing: it is there."""


class SharedStorage:
    """A part of each state in each process that shares a run, 1 / W of its bytes; all of them load a state together."""

    def __init__(self, own: Storage, group: Group) -> None:
        self.own, self.group = own, group
        self._lengths: list[int] = []

    def save(self, t: int, state: TrainState) -> None:
        self._lengths = [len(x) for x in state.tensors()]
        self.own.save(t, TrainState.of([self._part(x.detach()) for x in state.tensors()]))

    def load(self, t: int) -> TrainState:
        parts = self.own.load(t).tensors()
        return TrainState.of([self.group.gather(x)[:n] for x, n in zip(parts, self._lengths, strict=True)])

    def free(self, t: int) -> None:
        self.own.free(t)

    def expect(self, t: int) -> None:
        self.own.expect(t)

    def _part(self, x: Tensor) -> Tensor:
        """Equally long in each process, a copy: a view would hold all of x."""
        length = -(-len(x) // self.group.size)
        own = x[self.group.rank * length : (self.group.rank + 1) * length]
        return torch.cat([own, x.new_zeros(length - len(own))])


_IN_FLIGHT = 2
"""States that wait to be written at most; whoever saves one more waits."""


class DiskStorage:
    """One safetensors file a state below `folder` (default: the system's temporary one), in a folder of its own that
    goes with the object: two runs never meet. With `keep` they lie in `folder` itself and stay.

    A thread of its own writes them, and reads the one that is expected next. What it could not write is told by the next call.

    Args:
        folder: see above.
        keep: see above.
        sums: those of a kept folder that is opened again.
        device: where states are loaded to, until the first is saved.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        keep: bool = False,
        sums: Mapping[int, list[int]] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._sums = dict(sums or {})
        self._device = torch.device("cpu") if device is None else device
        self._writing: dict[int, tuple[TrainState, Future[list[int]]]] = {}
        self._reading: tuple[int, Future[tuple[list[Tensor], list[int]]]] | None = None
        temporary: tempfile.TemporaryDirectory[str] | None = None
        try:
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
            if folder is None or not keep:
                temporary = tempfile.TemporaryDirectory(prefix="metagradient-", dir=folder)
        except OSError as error:
            raise UserError(f"cannot keep checkpoints in {folder}: {error}; set replay.folder=...") from error
        self.folder = Path(str(folder) if temporary is None else temporary.name)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        weakref.finalize(self, _close, self._thread, temporary)

    @property
    def sums(self) -> Mapping[int, list[int]]:
        """The CRC-32 of every tensor of each state, by step, once all are written.

        They are not in the files: a file in the place of another is found as well as one that is damaged. Whoever opens a kept
        folder again gives them.
        """
        self.wait()
        return self._sums

    def path(self, t: int) -> Path:
        """The file of the state of step t."""
        return self.folder / f"state-{t:09d}.safetensors"

    def save(self, t: int, state: TrainState) -> None:
        self._device = state.params.device
        while len(self._writing) >= _IN_FLIGHT:
            self._written(next(iter(self._writing)))
        own = [x.detach().cpu().contiguous() for x in state.tensors()]
        self._writing[t] = TrainState.of(own), self._thread.submit(_write, self.path(t), own)

    def load(self, t: int) -> TrainState:
        reading, self._reading = self._reading, None
        if t in self._writing:
            state, written = self._writing[t]
            if written.done():
                self._written(t)
            return TrainState.of([x.to(self._device) for x in state.tensors()])
        try:
            read = reading[1].result if reading is not None and reading[0] == t else partial(_read, self.path(t))
            tensors, sums = read()
        except (OSError, SafetensorError) as error:
            raise UserError(f"the checkpoint {self.path(t)} cannot be read ({error}): run again") from error
        if sums != self._sums.get(t):
            raise UserError(
                f"the checkpoint {self.path(t)} is damaged, or another one (its checksum is wrong): run again"
            )
        return TrainState.of([x.to(self._device) for x in tensors])

    def free(self, t: int) -> None:
        if t in self._writing:
            self._written(t)
        self._sums.pop(t, None)
        self.path(t).unlink(missing_ok=True)

    def expect(self, t: int) -> None:
        """Begin to read the state of step t."""
        if t in self._sums and (self._reading is None or self._reading[0] != t):
            self._reading = t, self._thread.submit(_read, self.path(t))

    def wait(self) -> None:
        """Return when all that was saved is written.

        Raises:
            UserError: it could not be.
        """
        while self._writing:
            self._written(next(iter(self._writing)))

    def _written(self, t: int) -> None:
        """Wait for the file of step t."""
        state, future = self._writing[t]
        try:
            self._sums[t] = future.result()
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot write the checkpoint of step {t} ({state.nbytes / 2**20:.0f} MiB) to {self.folder}: {error}; "
                "free some space, or set replay.storage=memory or replay.folder=..."
            ) from error
        del self._writing[t]


def _write(path: Path, tensors: Sequence[Tensor]) -> list[int]:
    """Write the tensors of a state; their checksums."""
    with replacing(path) as draft:
        save_file(dict(zip(map(str, range(len(tensors))), apart(tensors), strict=True)), draft)
    return [checksum(x) for x in tensors]


def _read(path: Path) -> tuple[list[Tensor], list[int]]:
    """The tensors of a state, and their checksums.

    They are copies, not maps of the file: they lie in memory as any other tensors do, and stay what they are if the file changes.
    """
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(str(i)).clone() for i in range(len(file.keys()))]
    return tensors, [checksum(x) for x in tensors]


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors, none of which shares its memory with an earlier one (safetensors refuses those that do)."""
    seen: set[int] = set()
    found = []
    for x in tensors:
        place = x.untyped_storage().data_ptr()
        found.append(x.clone() if place in seen else x)
        seen.add(place)
    return found


def _close(thread: ThreadPoolExecutor, temporary: tempfile.TemporaryDirectory[str] | None) -> None:
    """Let the file that is being written come to its end, and remove the temporary folder."""
    own = threading.current_thread().name.startswith("checkpoints")  # the collector may run in any thread
    thread.shutdown(wait=not own, cancel_futures=True)
    if temporary is not None:
        with suppress(OSError):
            temporary.cleanup()


def make_storage(kind: str | Storage, folder: str | Path | None = None) -> Storage:
    """'memory', 'pinned' or 'disk'; a Storage passes through."""
    if not isinstance(kind, str):
        return kind
    if kind == "memory":
        return MemoryStorage()
    if kind == "pinned":
        return PinnedStorage()
    if kind == "disk":
        return DiskStorage(folder)
    raise UserError(f"replay.storage must be one of memory, pinned, disk, not '{kind}': set replay.storage=memory")
