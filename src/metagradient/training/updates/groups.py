"""Optimizers made of others: settings that change with the step, and groups of parameters with rules of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from metagradient.errors import UserError
from metagradient.training.updates.optimizers import Optimizer, Scalar, Slots
from metagradient.training.updates.schedules import Schedule


def placed(optimizer: Optimizer, names: Sequence[str], shapes: Sequence[torch.Size]) -> Optimizer:
    """The optimizer of a vector in which parameters of these names and shapes lie one after another."""
    place: Callable[[Sequence[str], Sequence[torch.Size]], Optimizer] | None = getattr(optimizer, "placed", None)
    return optimizer if place is None else place(names, shapes)


def rules(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer itself, or those that it is made of."""
    if isinstance(optimizer, Scheduled):
        yield from rules(optimizer.optimizer)
    elif isinstance(optimizer, Groups):
        for group in optimizer.groups:
            yield from rules(group.optimizer)
    else:
        yield optimizer


def _told(value: object) -> str:
    """`repr`, but for plain functions, whose own has an address in it and is another one in each process."""
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{getattr(value, '__module__', '')}.{name}"


@dataclass(frozen=True, repr=False)
class Scheduled:
    """An optimizer some of whose settings are functions of the step: `Scheduled(SGD(0.9), {"momentum": OneCycle(...)})`."""

    optimizer: Optimizer
    settings: Mapping[str, Schedule]

    def __post_init__(self) -> None:
        known = self.optimizer.hyper(0)
        for name in self.settings:
            if name not in known:
                raise UserError(
                    f"{type(self.optimizer).__name__} has no setting '{name}' that may change: {', '.join(known)}"
                )
        if "momentum" in self.settings and known["momentum"] == 0:
            raise UserError("a scheduled momentum needs an optimizer that keeps one: give it a momentum > 0, SGD(0.9)")

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}: {_told(schedule)}" for name, schedule in self.settings.items())
        return f"Scheduled({self.optimizer!r}, {{{settings}}})"

    def placed(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> Scheduled:
        """With the optimizer placed."""
        return replace(self, optimizer=placed(self.optimizer, names, shapes))

    def hyper(self, t: int) -> dict[str, Scalar]:
        return {**self.optimizer.hyper(t), **{name: schedule(t) for name, schedule in self.settings.items()}}

    def init(self, params: Tensor) -> Slots:
        return self.optimizer.init(params)

    def update(
        self,
        params: Tensor,
        gradient: Tensor,
        slots: Slots,
        t: int,
        hyper: Mapping[str, Scalar],
        decay_mask: Tensor | None = None,
    ) -> tuple[Tensor, Slots]:
        return self.optimizer.update(params, gradient, slots, t, hyper, decay_mask)


Names = str | Sequence[str] | Callable[[str, torch.Size], bool]
"""Parameters by patterns of their names (`"backbone.*"`; one, or several), or by a function of name and shape."""


@dataclass(frozen=True, repr=False)
class Group:
    """Parameters with a rule of their own.

    Attributes:
        names: which parameters, of those that no earlier group has.
        optimizer: their update rule.
        rate: their learning rate in units of the learner's: a number or a function of the step.
    """

    names: Names
    optimizer: Optimizer
    rate: float | Schedule = 1.0

    def __repr__(self) -> str:
        return f"Group({_told(self.names)}, {self.optimizer!r}, {_told(self.rate)})"

    def has(self, name: str, shape: torch.Size) -> bool:
        """Whether a parameter fits `names`."""
        if callable(self.names):
            return self.names(name, shape)
        patterns = [self.names] if isinstance(self.names, str) else self.names
        return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Groups:
    """Each parameter is updated by the first group that has it: layer-wise rates and decays, two optimizers in one run.

    The learning rate of a group is the learner's times its `rate`. Settings of group i are called "i.name" where a
    metaparameter would replace them.
    """

    groups: Sequence[Group]
    _members: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    _sizes: tuple[int, ...] = field(default=(), repr=False)
    _slots: tuple[int, ...] = field(default=(), repr=False)

    def placed(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> Groups:
        """The groups with their members found; groups without any are dropped.

        Raises:
            UserError: a parameter is in no group.
        """
        members: list[list[int]] = [[] for _ in self.groups]
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            of = next((g for g, group in enumerate(self.groups) if group.has(name, shape)), None)
            if of is None:
                raise UserError(f"parameter '{name}' is in no group of the optimizer: end with Group('*', ...)")
            members[of].append(i)
        kept = [(group, found) for group, found in zip(self.groups, members, strict=True) if found]
        groups = [
            replace(
                group,
                names=tuple(names[i] for i in found),
                optimizer=placed(group.optimizer, [names[i] for i in found], [shapes[i] for i in found]),
            )
            for group, found in kept
        ]
        return Groups(
            tuple(groups),
            tuple(tuple(found) for _, found in kept),
            tuple(shape.numel() for shape in shapes),
            tuple(len(group.optimizer.init(torch.empty(0))) for group in groups),
        )

    def hyper(self, t: int) -> dict[str, Scalar]:
        return {f"{i}.{name}": x for i, group in enumerate(self.groups) for name, x in group.optimizer.hyper(t).items()}

    def init(self, params: Tensor) -> Slots:
        return tuple(
            slot
            for group, members in zip(self.groups, self._members, strict=True)
            for slot in group.optimizer.init(self._of(params, members))
        )

    def update(
        self,
        params: Tensor,
        gradient: Tensor,
        slots: Slots,
        t: int,
        hyper: Mapping[str, Scalar],
        decay_mask: Tensor | None = None,
    ) -> tuple[Tensor, Slots]:
        moved: dict[int, Tensor] = {}
        left: list[Tensor] = []
        waiting = list(slots)
        for i, (group, members, count) in enumerate(zip(self.groups, self._members, self._slots, strict=True)):
            own = {name: hyper[f"{i}.{name}"] for name in group.optimizer.hyper(t)}
            own["learning_rate"] = hyper["learning_rate"] * (group.rate(t) if callable(group.rate) else group.rate)
            mask = None if decay_mask is None else self._of(decay_mask, members)
            part, new = group.optimizer.update(
                self._of(params, members), self._of(gradient, members), tuple(waiting[:count]), t, own, mask
            )
            waiting = waiting[count:]
            left += new
            moved |= zip(members, part.split([self._sizes[m] for m in members], dim=-1), strict=True)
        return torch.cat([moved[m] for m in range(len(self._sizes))], dim=-1), tuple(left)

    def _of(self, vector: Tensor, members: tuple[int, ...]) -> Tensor:
        """The members' coordinates of [..., P], one after another."""
        parts = vector.split(self._sizes, dim=-1)
        return torch.cat([parts[m] for m in members], dim=-1)
