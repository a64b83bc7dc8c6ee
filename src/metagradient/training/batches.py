"""Batches as a function of the step: any order, any number of times, always the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.streams import Library
from metagradient.training.plans import epoch_plan
from metagradient.training.random import generator
from metagradient.training.sources import Source, examples_of, gather, source_of, stream
from metagradient.training.sources.columns import Fields as Fields
from metagradient.training.sources.source import Collate, Transform

Augment = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]


class Batch:
    """The examples of one step: fields by name (`batch.x`, `batch["x"]`), their `index` [B], the step `t`, the `seed`.

    A batch of R runs at once that read different examples has index [R, B] and fields [R, B, ...].
    """

    def __init__(self, t: int, index: Tensor, fields: dict[str, Tensor], seed: int = 0) -> None:
        self.t, self.index, self.fields, self.seed = t, index, fields, seed

    def __len__(self) -> int:
        return self.index.shape[-1]

    def __getitem__(self, name: str) -> Tensor:
        if not isinstance(name, str):
            raise UserError(
                f"a batch has fields by name, not by number: batch.x, batch['x']; it has {sorted(self.fields)}"
            )
        return self.fields[name] if name in self.fields else getattr(self, name)

    def __iter__(self) -> Iterator[Tensor]:
        raise UserError(
            f"a batch has fields by name and is not unpacked: x, y = batch.x, batch.y; it has {sorted(self.fields)}"
        )

    def __getattr__(self, name: str) -> Tensor:
        if not name.startswith("_") and name in self.__dict__.get("fields", {}):
            return self.fields[name]
        raise AttributeError(f"this batch has no field '{name}'; it has {sorted(self.__dict__.get('fields', {}))}")

    def replace(self, **fields: Tensor) -> Batch:
        """The same batch with other tensors in some of its fields."""
        return Batch(self.t, self.index, {**self.fields, **fields}, self.seed)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None, **_: Any) -> Batch:
        """On `device`, floating-point fields as `dtype`; itself where nothing changes."""
        fields = {k: _cast(v, device, dtype) for k, v in self.fields.items()}
        if device in (None, self.index.device) and all(fields[k] is v for k, v in self.fields.items()):
            return self
        return Batch(self.t, self.index.to(device) if device is not None else self.index, fields, self.seed)


def _cast(x: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    return x.to(device=device, dtype=dtype if x.is_floating_point() else None)


class Batches:
    """A training run's data: examples, an index plan and a seed. `batches(t)` is step t's batch.

    `Batches(dataset, batch_size=32, epochs=3)` reads any map-style data set; `Batches({"x": x, "y": y}, plan)` tensors.

    Args:
        data: fields of equal length n, for example {"x": [n, 28, 28], "y": [n]}; or a map-style data set (or a `Source`
            of one), whose rows are fetched when they are asked for.
        plan: int64 [T, B], rows padded with -1 (see `training.plans`); None: `epoch_plan` of batch_size and epochs.
        seed: of everything random inside a step: augmentation, dropout. Both are functions of (seed, t).
        augment: (fields of a batch, generator of that step) -> fields.
        batch_size: examples of a step, in place of a plan.
        epochs: passes over the data, in place of a plan.
        fields: of a data set, like transform, collate and workers: see `Source`.
        transform: see fields.
        collate: see fields.
        workers: see fields.

    Attributes:
        examples: the fields by name; columns, where a data set is read.

    Iterating yields batch 0 .. T - 1 once, so the object itself is the loader for
    `Trainer(max_epochs=1).fit(learner, batches)`, and it resumes in the middle exactly.
    """

    def __init__(
        self,
        data: Fields | Source | Any,
        plan: Tensor | None = None,
        seed: int = 0,
        augment: Augment | None = None,
        *,
        batch_size: int | None = None,
        epochs: int | None = None,
        fields: Sequence[str] | None = None,
        transform: Transform | None = None,
        collate: Collate | None = None,
        workers: int = 0,
    ) -> None:
        examples = data if isinstance(data, Mapping) else None
        if examples is None or fields or transform or collate or workers:
            examples = examples_of(
                data, fields=fields, transform=transform, collate=collate, workers=workers, seed=int(seed)
            )
        lengths = {name: len(field) for name, field in examples.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise UserError(f"examples need one or more fields of equal length, not {lengths}")
        self.examples, self.seed, self.augment = dict(examples), int(seed), augment
        self.n_examples = next(iter(lengths.values()))
        if (plan is None) == (batch_size is None):
            raise UserError("Batches needs a plan, or batch_size= (and epochs=), one of the two")
        if plan is None:
            assert batch_size is not None
            plan = epoch_plan(self.n_examples, batch_size, 1 if epochs is None else epochs, int(seed))
        elif epochs is not None:
            raise UserError(f"epochs={epochs} stands beside a plan, which holds the epochs: leave it out")
        if plan.dim() != 2 or plan.dtype != torch.int64 or not plan.numel():
            raise UserError(f"the plan must be int64 [T, B] with T, B >= 1, not {plan.dtype} {list(plan.shape)}")
        top, bottom = int(plan[:1].max() if plan.stride(0) == 0 else plan.max()), int(plan.min())
        if top >= self.n_examples or bottom < -1:
            raise UserError(f"the plan's indices must lie in [0, {self.n_examples}) or be -1, not in [{bottom}, {top}]")
        self.plan, self._padded = plan, bottom < 0
        self.source = source_of(self.examples)
        self._start = 0
        self._read: _Read | None = None
        # A full-batch plan has one row for all steps: gather it once (unless an augmentation may write into it).
        self._constant = plan.stride(0) == 0 and len(plan) > 1 and augment is None and self.source is None
        self._cache: tuple[Tensor, dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def __call__(self, t: int) -> Batch:
        index, fields = self._gather(t)
        if self.augment is not None and len(index):
            fields = self.augment(
                dict(fields), generator(self.seed, t, Library.AUGMENTATION, device=next(iter(fields.values())).device)
            )
        return Batch(t, index, fields, self.seed)

    def _rows(self, t: int) -> Tensor:
        index = self.plan[t]
        return index[index >= 0] if self._padded else index

    def _gather(self, t: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self._cache is not None:
            return self._cache
        index = self._rows(t)
        if self.source is not None:
            return index, gather(self.examples, index, t, self.seed) if self._read is None else self._read(t, index)
        if self._constant and torch.equal(index, torch.arange(self.n_examples, device=index.device)):
            fields = self.examples  # the whole data set in order: nothing to gather
        else:
            fields = {k: v.index_select(0, index.to(v.device)) for k, v in self.examples.items()}
        if self._constant:
            self._cache = index, fields
        return index, fields

    @contextmanager
    def ahead(self, steps: Iterable[int]) -> Iterator[None]:
        """Inside, the batches of these steps, when they are asked for in this order, have been read ahead.

        Nothing is read ahead of tensors, by a source without workers, or inside another `ahead`.
        """
        if self.source is None or not self.source.workers or self._read is not None:
            yield
            return
        self._read = _Read(self, steps)
        try:
            with self.source.watched():
                yield
        finally:
            self._read.close()
            self._read = None

    def with_plan(self, plan: Tensor) -> Batches:
        """The same examples, seed and augmentation in another order."""
        return Batches(self.examples, plan, self.seed, self.augment)

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        with self.ahead(range(start, len(self))):
            for t in range(start, len(self)):
                yield self(t)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_read": None}

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Batches:
        """The same batches from examples on `device`, floating-point fields as `dtype`."""
        if self.source is not None:
            return self  # rows are moved batch by batch
        examples = {k: _cast(v, device, dtype) for k, v in self.examples.items()}
        return Batches(examples, self.plan, self.seed, self.augment)

    def from_step(self, t: int) -> None:
        """Let the next iteration start at step t (resuming)."""
        self._start = t

    def state_dict(self) -> dict[str, Any]:
        """Empty: batches have no state, and saying so tells Lightning that they resume exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the learner's checkpoint knows the step and calls `from_step`."""


class _Read:
    """The rows of some steps, read ahead in order."""

    def __init__(self, batches: Batches, steps: Iterable[int]) -> None:
        self._examples, self._seed = batches.examples, batches.seed
        self._steps = deque(steps)
        self._stream = stream(self._examples, [(t, batches._rows(t)) for t in self._steps], self._seed)

    def __call__(self, t: int, rows: Tensor) -> dict[str, Tensor]:
        """The fields of step t: the next of the steps, or another one, which is read here and now."""
        if not self._steps or t != self._steps[0]:
            return gather(self._examples, rows, t, self._seed)
        self._steps.popleft()
        return next(self._stream)

    def close(self) -> None:
        self._stream.close()
