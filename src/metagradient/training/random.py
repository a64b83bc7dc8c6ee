"""Randomness as a function of (seed, t), never of the global generator's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from metagradient.distributed import SOLO, Group
from metagradient.errors import UserError

_MASK = (1 << 64) - 1


def fold_in(seed: int, *keys: int) -> int:
    """A new seed from a seed and some integers (SplitMix64 finaliser per key); in [0, 2^63)."""
    state = seed & _MASK
    for key in keys:
        state = (state + (key + 1) * 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def generator(seed: int, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A private generator for (seed, keys)."""
    return torch.Generator(device=device).manual_seed(fold_in(seed, *keys))


class Part(NamedTuple):
    """Rows start .. stop - 1 of a batch of `total` rows, whose fields are `whole`; `group` are the processes that run the others."""

    start: int
    stop: int
    total: int
    whole: Mapping[str, torch.Tensor]
    group: Group = SOLO


_part: ContextVar[Part | None] = ContextVar("metagradient_part_of_batch", default=None)


def part_within(start: int, stop: int, total: int, fields: Mapping[str, torch.Tensor]) -> Part:
    """Rows start .. stop - 1 of the `total` that are run here, which may be part of a larger batch."""
    outer = _part.get() or Part(0, total, total, fields)
    return outer._replace(start=outer.start + start, stop=outer.start + stop)


def whole_batch() -> Mapping[str, torch.Tensor] | None:
    """The fields of the batch that the rows which are run here are part of; None where they are all of it."""
    part = _part.get()
    return None if part is None else part.whole


def shared_part() -> Part | None:
    """The rows that are run here, of a batch whose others other processes run; None where there are no others."""
    current = _current.get()
    return None if current is None or current.part is None or current.part.group.alone else current.part


@contextmanager
def part_of_batch(part: Part) -> Iterator[None]:
    """Inside, steps run on these rows of a batch, and draw what they would draw in the whole."""
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


class StepRandomness:
    """The randomness of one training step: its generator is made only if something asks for it.

    Without a seed there is none to be had: a compiled step would draw the same numbers again and again.
    """

    def __init__(
        self,
        seed: int | None,
        t: int,
        states: Mapping[torch.device, torch.Tensor] | None = None,
        part: Part | None = None,
    ) -> None:
        self.seed, self.t, self.part = seed, t, part
        self._generators: dict[torch.device, torch.Generator] = {}
        for device, state in (states or {}).items():
            self._generators[device] = torch.Generator(device=device)
            self._generators[device].set_state(state)

    def states(self) -> dict[torch.device, torch.Tensor]:
        """The state of each generator that has been asked for."""
        return {device: generator.get_state() for device, generator in self._generators.items()}

    def generator(self, device: torch.device) -> torch.Generator:
        if self.seed is None:
            raise UserError(
                "the losses draw random numbers (dropout?), which a compiled step cannot: set learner.compiled=false"
            )
        if device not in self._generators:
            self._generators[device] = generator(self.seed, self.t, device=device)
        return self._generators[device]


_current: ContextVar[StepRandomness | None] = ContextVar("metagradient_step_randomness", default=None)


def step_generator(device: torch.device) -> torch.Generator | None:
    """The generator of the step that is running, seeded from (seed, t); None outside a step.

    For modules and losses that draw random numbers, such as :class:`SeededDropout`.
    """
    current = _current.get()
    if current is not None and current.part is not None:
        raise UserError(
            "the losses draw random numbers for their own rows, so parts of a batch would draw other numbers than the whole: "
            "draw with metagradient.training.random.bernoulli_like, or set learner.micro_batch=null and train on one device"
        )
    return None if current is None else current.generator(device)


def bernoulli_like(x: torch.Tensor, p: float) -> torch.Tensor | None:
    """0 and 1 (with probability p) in the shape of x [B, ...], from the step's generator; None outside a step.

    Rows that are part of a larger batch get theirs of what the whole would draw.
    """
    current = _current.get()
    if current is None:
        return None
    generator, part = current.generator(x.device), current.part
    if part is None:
        return torch.empty_like(x, requires_grad=False).bernoulli_(p, generator=generator)
    if len(x) != part.stop - part.start:
        raise UserError(
            f"dropout of a tensor {list(x.shape)}, whose first dimension is not the batch of {part.stop - part.start}, does "
            "not know which random numbers are its own: set learner.micro_batch=null and train on one device"
        )
    whole = x.new_empty((part.total, *x.shape[1:])).bernoulli_(p, generator=generator)
    return whole[part.start : part.stop]


def repeated_randomness() -> Callable[[], AbstractContextManager[None]]:
    """A context in which `step_generator` draws again what it draws from here on; it can be entered many times."""
    current = _current.get()
    states = {} if current is None else current.states()

    @contextmanager
    def repeated() -> Iterator[None]:
        again = None if current is None else StepRandomness(current.seed, current.t, states, current.part)
        token = _current.set(again)
        try:
            yield
        finally:
            _current.reset(token)

    return repeated


@contextmanager
def step_randomness(seed: int | None, t: int, device: torch.device, foreign: bool = False) -> Iterator[None]:
    """Make `step_generator` answer for step t; with `foreign`, seed the global generators as well.

    `foreign` forks the global generators of the CPU and of `device` (about 140 us a step), so that modules which
    draw from them become a function of (seed, t) too and the caller's random state is left as it was.
    """
    token = _current.set(StepRandomness(seed, t, part=_part.get()))
    try:
        if not foreign:
            yield
            return
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            assert seed is not None  # a compiled step's losses are refused before
            torch.manual_seed(fold_in(seed, t))
            yield
    finally:
        _current.reset(token)
