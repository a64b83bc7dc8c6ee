"""Where checkpoints lie: on the device, in pinned host memory, or on disk with checksums."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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
    """Holds states by step. `load` gives back the saved bits on the device they were saved from."""

    def save(self, t: int, state: TrainState) -> None: ...

    def load(self, t: int) -> TrainState: ...

    def free(self, t: int) -> None: ...


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

    def _part(self, x: Tensor) -> Tensor:
        """Equally long in each process, a copy: a view would hold all of x."""
        length = -(-len(x) // self.group.size)
        own = x[self.group.rank * length : (self.group.rank + 1) * length]
        return torch.cat([own, x.new_zeros(length - len(own))])


class DiskStorage:
    """One safetensors file a state below `folder` (default: the system's temporary one), in a folder of its own that
    goes with the object: two runs never meet. With `keep` they lie in `folder` itself and stay.

    Attributes:
        sums: the CRC-32 of every tensor of each state, by step. They are not in the files: a file in the place of another
            is found as well as one that is damaged. Whoever opens a kept folder again gives them.
    """

    def __init__(
        self, folder: str | Path | None = None, *, keep: bool = False, sums: Mapping[int, list[int]] | None = None
    ) -> None:
        self.sums = dict(sums or {})
        try:
            if folder is not None and keep:
                self.folder = Path(folder)
                self.folder.mkdir(parents=True, exist_ok=True)
                self._device = torch.device("cpu")
                return
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(prefix="metagradient-", dir=folder)
        except OSError as error:
            raise UserError(f"cannot keep checkpoints in {folder}: {error}; set replay.folder=...") from error
        self.folder = Path(self._temporary.name)
        self._device = torch.device("cpu")

    def _path(self, t: int) -> Path:
        return self.folder / f"state-{t:09d}.safetensors"

    def save(self, t: int, state: TrainState) -> None:
        self._device = state.params.device
        own = [x.detach().cpu().contiguous() for x in state.tensors()]
        # An average begins as the parameters themselves, and safetensors refuses what shares its memory.
        places = [x.data_ptr() for x in own]
        tensors = {str(i): x.clone() if places[i] in places[:i] else x for i, x in enumerate(own)}
        self.sums[t] = [checksum(x) for x in tensors.values()]
        try:
            with replacing(self._path(t)) as draft:
                save_file(tensors, draft)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot write the checkpoint of step {t} ({state.nbytes / 2**20:.0f} MiB) to {self.folder}: {error}; "
                "free some space, or set replay.storage=memory or replay.folder=..."
            ) from error

    def load(self, t: int) -> TrainState:
        path = self._path(t)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
        except (OSError, SafetensorError) as error:
            raise UserError(f"the checkpoint {path} cannot be read ({error}): run again") from error
        if [checksum(x) for x in tensors] != self.sums.get(t):
            raise UserError(f"the checkpoint {path} is damaged, or another one (its checksum is wrong): run again")
        return TrainState.of([x.to(self._device) for x in tensors])

    def free(self, t: int) -> None:
        self.sums.pop(t, None)
        self._path(t).unlink(missing_ok=True)


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
