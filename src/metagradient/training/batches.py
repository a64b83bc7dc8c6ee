"""Batches as a function of the step: any order, any number of times, always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.streams import Library
from metagradient.training.random import generator
from metagradient.training.sources import Source

Fields = Mapping[str, Tensor]
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

    Attributes:
        examples: fields of equal length n, for example {"x": [n, 28, 28], "y": [n]}; given a map-style data set (or a
            `Source` of one), columns whose rows are fetched when they are asked for.
        plan: int64 [T, B], rows padded with -1 (see `training.plans`).
        seed: of everything random inside a step: augmentation, dropout. Both are functions of (seed, t).
        augment: (fields of a batch, generator of that step) -> fields.

    Iterating yields batch 0 .. T - 1 once, so the object itself is the loader for
    `Trainer(max_epochs=1).fit(learner, batches)`, and it resumes in the middle exactly.
    """

    def __init__(
        self, examples: Fields | Source | Any, plan: Tensor, seed: int = 0, augment: Augment | None = None
    ) -> None:
        self.source: Source | None = None
        if not isinstance(examples, Mapping):
            self.source = examples if isinstance(examples, Source) else Source(examples, seed=int(seed))
            examples = self.source.columns()
        lengths = {name: len(field) for name, field in examples.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise UserError(f"examples need one or more fields of equal length, not {lengths}")
        self.examples, self.seed, self.augment = dict(examples), int(seed), augment
        self.n_examples = next(iter(lengths.values()))
        if plan.dim() != 2 or plan.dtype != torch.int64 or not plan.numel():
            raise UserError(f"the plan must be int64 [T, B] with T, B >= 1, not {plan.dtype} {list(plan.shape)}")
        top, bottom = int(plan[:1].max() if plan.stride(0) == 0 else plan.max()), int(plan.min())
        if top >= self.n_examples or bottom < -1:
            raise UserError(f"the plan's indices must lie in [0, {self.n_examples}) or be -1, not in [{bottom}, {top}]")
        self.plan = plan
        self._start = 0
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

    def _gather(self, t: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self._cache is not None:
            return self._cache
        index = self.plan[t]
        if bool((index < 0).any()):
            index = index[index >= 0]
        if self.source is not None:
            return index, self.source.fetch(index.tolist(), t) if len(index) else self._none()
        if self._constant and torch.equal(index, torch.arange(self.n_examples, device=index.device)):
            fields = self.examples  # the whole data set in order: nothing to gather
        else:
            fields = {k: v.index_select(0, index.to(v.device)) for k, v in self.examples.items()}
        if self._constant:
            self._cache = index, fields
        return index, fields

    def held(self) -> Fields:
        """The examples as tensors.

        Raises:
            UserError: they are rows of a data set.
        """
        if self.source is not None:
            raise UserError(
                "this needs the examples as tensors, and these batches read rows of a data set: Batches({'x': x, 'y': y}, plan)"
            )
        return self.examples

    def _none(self) -> dict[str, Tensor]:
        """The fields of no rows."""
        return {name: torch.empty(0, *x.shape[1:], dtype=x.dtype) for name, x in self.examples.items()}

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        for t in range(start, len(self)):
            yield self(t)

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
