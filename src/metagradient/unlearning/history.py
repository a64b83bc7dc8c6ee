"""What DeltaGrad remembers of a run: the parameters and the mean batch gradient of every step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from metagradient.replay.budget import format_bytes
from metagradient.replay.storage import MemoryStorage, Storage, make_storage
from metagradient.training.state import TrainState

_WINDOW_BYTES = 64 * 2**20


class History:
    """w_t [P] and g_t [P] of the steps t = 0 .. T - 1: parameters before the step, mean loss gradient without L2.

    They lie in a `Storage` as windows of consecutive steps. Iterating yields (w_t, g_t) in order; windows that are not
    in memory are read one ahead of use, by a thread, so a history may be larger than memory.

    Attributes:
        steps: T.         size: P.
        dtype: of the numbers kept; what is read comes back in the dtype of what was recorded.
        window: steps in a window (default: 64 MiB of them).
    """

    def __init__(
        self,
        steps: int,
        size: int,
        storage: str | Storage = "memory",
        dtype: torch.dtype = torch.float32,
        window: int | None = None,
    ) -> None:
        self.steps, self.size, self.dtype = steps, size, dtype
        self.storage = make_storage(storage)
        bytes_per_step = max(1, self.nbytes // max(1, steps))
        self.window = window or max(1, min(steps, _WINDOW_BYTES // bytes_per_step))
        self.recorded = 0
        self._block: tuple[Tensor, Tensor] | None = None
        self._like = torch.empty(0, dtype=dtype)  # device and dtype of what was recorded

    @property
    def nbytes(self) -> int:
        """2 T P numbers."""
        return 2 * self.steps * self.size * torch.empty(0, dtype=self.dtype).element_size()

    def __str__(self) -> str:
        where = "in memory" if isinstance(self.storage, MemoryStorage) else "outside memory"
        return (
            f"the history of {self.steps} steps, parameters and gradients of {self.size} numbers, takes "
            f"{format_bytes(self.nbytes)} {where}"
        )

    @property
    def windows(self) -> int:
        return -(-self.steps // self.window)

    def record(self, t: int, params: Tensor, gradient: Tensor) -> None:
        """Keep step t. Steps between the last recorded one and t were skipped ones: same parameters, gradient 0."""
        while self.recorded < t:
            self._put(params, torch.zeros_like(params))
        self._put(params, gradient)

    def finish(self, params: Tensor) -> None:
        """After the last step: what is missing at the end was skipped."""
        while self.recorded < self.steps:
            self._put(params, torch.zeros_like(params))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for block in self._blocks():
            params, gradients = block.params.to(self._like), block.slots[0].to(self._like)
            yield from zip(params.unbind(), gradients.unbind(), strict=True)

    def _blocks(self) -> Iterator[TrainState]:
        if isinstance(self.storage, MemoryStorage):
            yield from (self.storage.load(i) for i in range(self.windows))
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.storage.load, 0)
            for i in range(self.windows):
                block = ahead.result()
                if i + 1 < self.windows:
                    ahead = reader.submit(self.storage.load, i + 1)
                yield block

    def like(self, storage: Storage) -> History:
        """An empty history of the same kind in another storage."""
        return History(self.steps, self.size, storage, self.dtype, self.window)

    def copy_to(self, storage: Storage) -> History:
        """The same history in another storage."""
        other = self.like(storage)
        for i, block in enumerate(self._blocks()):
            storage.save(i, block)
        other.recorded, other._like = self.recorded, self._like
        return other

    @classmethod
    def stored(cls, storage: Storage, steps: int, window: int, dtype: torch.dtype, like: Tensor) -> History:
        """A history whose windows are in `storage` already; `like` a vector [P] of the device and dtype to read them to."""
        history = cls(steps, len(like), storage, dtype, window)
        history.recorded, history._like = steps, like.new_empty(0)
        return history

    def free(self) -> None:
        """Let go of the windows."""
        for i in range(-(-self.recorded // self.window)):
            self.storage.free(i)
        self.recorded = 0

    def _put(self, params: Tensor, gradient: Tensor) -> None:
        row = self.recorded % self.window
        if self._block is None:
            rows = min(self.window, self.steps - self.recorded)
            empty = torch.empty(rows, self.size, dtype=self.dtype, device=params.device)
            self._block, self._like = (empty, torch.empty_like(empty)), params.detach().new_empty(0)
        self._block[0][row].copy_(params.detach())
        self._block[1][row].copy_(gradient.detach())
        self.recorded += 1
        if row + 1 == len(self._block[0]):
            self.storage.save((self.recorded - 1) // self.window, _as_state(*self._block))
            self._block = None


def _as_state(params: Tensor, gradients: Tensor) -> TrainState:
    return TrainState(params, (gradients,), params.new_zeros(0))
