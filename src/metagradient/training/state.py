"""Training state as flat vectors, and how they lie in a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from metagradient.errors import UserError
from metagradient.training.modules.replayable import DifferentiableBatchNorm


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, tensors made without a dtype have this one, as under Lightning's `precision=64-true`."""
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True, eq=False)
class TrainState:
    """All that one training step hands to the next.

    Attributes:
        params: [P] trainable parameters, one vector.
        slots: optimizer vectors, [P] each (momentum, second moments).
        buffers: [N] floating-point buffers (normalisation statistics), one vector; they carry gradient as well. Counters
            (integer buffers of one number) are among them, as floats.

    States are values: nothing writes into their tensors, so a checkpoint in memory is a reference, not a copy.
    """

    params: Tensor
    slots: tuple[Tensor, ...]
    buffers: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.params, *self.slots, self.buffers)

    def names(self) -> tuple[str, ...]:
        return ("params", *(f"slot {i}" for i in range(len(self.slots))), "buffers")

    @staticmethod
    def of(tensors: tuple[Tensor, ...] | list[Tensor]) -> TrainState:
        """The inverse of `tensors()`."""
        return TrainState(tensors[0], tuple(tensors[1:-1]), tensors[-1])

    @staticmethod
    def stack(states: Sequence[TrainState]) -> TrainState:
        """R runs as one state, its tensors [R, P]: a step then moves them all at once."""
        return TrainState.of([torch.stack(column) for column in zip(*(s.tensors() for s in states), strict=True)])

    def __getitem__(self, run: int) -> TrainState:
        """One of the stacked runs."""
        return TrainState.of([x[run] for x in self.tensors()])

    def leaf(self) -> TrainState:
        """The same values as differentiable leaves: the start of a taped segment."""
        return TrainState.of([x.detach().requires_grad_() for x in self.tensors()])

    def detach(self) -> TrainState:
        return TrainState.of([x.detach() for x in self.tensors()])

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.tensors())


class Layout:
    """Where the entries of the flat vectors lie in a module: names, shapes and owners, tied weights once.

    `P` counts parameters with `requires_grad` only; frozen ones stay the module's own.
    """

    def __init__(self, module: nn.Module) -> None:
        self._param_owners: list[list[tuple[nn.Module, str]]] = []
        self._buffer_owners: list[tuple[nn.Module, str]] = []
        self._constants: list[tuple[dict[str, Any], str]] = []
        self._constant_names: list[str] = []
        self.names: list[str] = []
        self.shapes: list[torch.Size] = []
        self.buffer_names: list[str] = []
        self.buffer_shapes: list[torch.Size] = []
        self._buffer_dtypes: list[torch.dtype | None] = []  # None: that of the vector
        seen: dict[int, int] = {}
        refuse_unusable(module)
        for prefix, owner in module.named_modules():
            for key, parameter in owner._parameters.items():
                if parameter is None or not parameter.requires_grad:
                    if parameter is not None:
                        self._constants.append((owner._parameters, key))
                        self._constant_names.append(f"{prefix}.{key}" if prefix else key)
                    continue
                if id(parameter) in seen:
                    self._param_owners[seen[id(parameter)]].append((owner, key))
                    continue
                seen[id(parameter)] = len(self.names)
                self._param_owners.append([(owner, key)])
                self.names.append(f"{prefix}.{key}" if prefix else key)
                self.shapes.append(parameter.shape)
            for key, buffer in owner._buffers.items():
                if buffer is not None and (buffer.is_floating_point() or _counts(owner, buffer)):
                    self._buffer_owners.append((owner, key))
                    self.buffer_names.append(f"{prefix}.{key}" if prefix else key)
                    self.buffer_shapes.append(buffer.shape)
                    self._buffer_dtypes.append(None if buffer.is_floating_point() else buffer.dtype)
                elif buffer is not None:
                    self._constants.append((owner._buffers, key))
                    self._constant_names.append(f"{prefix}.{key}" if prefix else key)
        if not self.names:
            raise UserError("the learner has no trainable parameters: every requires_grad is False")
        self.sizes = [shape.numel() for shape in self.shapes]
        self.buffer_sizes = [shape.numel() for shape in self.buffer_shapes]

    def identities(self) -> list[int]:
        """`id` of each trainable parameter, in order."""
        return [id(owners[0][0]._parameters[owners[0][1]]) for owners in self._param_owners]

    @property
    def owners(self) -> list[list[tuple[nn.Module, str]]]:
        """For each parameter the modules that hold it, and under which key (several where weights are tied)."""
        return self._param_owners

    def params(self) -> Tensor:
        """A copy of the module's trainable parameters, [P]."""
        return self.held().detach()

    def held(self) -> Tensor:
        """The parameters that the module holds now, [P], connected to them; inside `bind` to those given there."""
        owners = [o[0] for o in self._param_owners]
        return torch.cat([owner._parameters[key].reshape(-1) for owner, key in owners])  # type: ignore[union-attr]

    def buffers(self, like: Tensor) -> Tensor:
        """The buffers that the module holds now, [N]; inside `bind` this is what the forward pass left there."""
        if not self._buffer_owners:
            return like.new_zeros(0)
        # `to` is for counters, and for what a module leaves in another precision.
        return torch.cat([owner._buffers[key].reshape(-1).to(like.dtype) for owner, key in self._buffer_owners])  # type: ignore[union-attr]

    def bound_buffers(self) -> list[tuple[str, Tensor]]:
        """The float buffers that the modules hold now, by name, but for those of our own batch norms."""
        places = zip(self.buffer_names, self._buffer_owners, self._buffer_dtypes, strict=True)
        found = ((name, owner._buffers[key]) for name, (owner, key), dtype in places if dtype is None)
        return [(name, x) for name, x in found if x is not None]

    def views(self, params: Tensor) -> list[Tensor]:
        """The vector [P] as tensors of the parameters' shapes."""
        parts = zip(params.split(self.sizes), self.shapes, strict=True)
        return [p if len(shape) == 1 else p.view(shape) for p, shape in parts]

    @contextmanager
    def bind(self, params: Tensor, buffers: Tensor) -> Iterator[None]:
        """The module computes with these vectors inside the block and with its own tensors afterwards."""
        own_params = [o[0][0]._parameters[o[0][1]] for o in self._param_owners]
        own_buffers = [owner._buffers[key] for owner, key in self._buffer_owners]
        try:
            for owners, view in zip(self._param_owners, self.views(params), strict=True):
                for owner, key in owners:
                    owner._parameters[key] = view  # type: ignore[assignment]
            if self._buffer_owners:
                for (owner, key), part, shape, dtype in zip(
                    self._buffer_owners,
                    buffers.split(self.buffer_sizes),
                    self.buffer_shapes,
                    self._buffer_dtypes,
                    strict=True,
                ):
                    owner._buffers[key] = _bound(owner, part.view(shape), dtype)
            yield
        finally:
            for owners, own in zip(self._param_owners, own_params, strict=True):
                for owner, key in owners:
                    owner._parameters[key] = own
            for (owner, key), own_buffer in zip(self._buffer_owners, own_buffers, strict=True):
                owner._buffers[key] = own_buffer

    def constants(self) -> list[Tensor]:
        """What is no part of the training state: frozen parameters and buffers of integers."""
        return [tensors[key].detach() for tensors, key in self._constants]

    def named_constants(self) -> list[tuple[str, Tensor]]:
        """The constants themselves, with their names in the modules that hold them."""
        own = (tensors[key] for tensors, key in self._constants)
        return list(zip(self._constant_names, own, strict=True))

    @contextmanager
    def holding(self, constants: Sequence[Tensor]) -> Iterator[None]:
        """The module computes with these in place of its constants inside the block, which may not assign them."""
        own = [tensors[key] for tensors, key in self._constants]
        try:
            for (tensors, key), constant in zip(self._constants, constants, strict=True):
                tensors[key] = constant
            yield
            for (tensors, key), constant in zip(self._constants, constants, strict=True):
                if tensors[key] is not constant:
                    raise UserError(
                        f"the losses assign '{key}', which is neither a parameter nor a buffer of floats: a compiled "
                        "step would not see it change. Set learner.compiled=false"
                    )
        finally:
            for (tensors, key), before in zip(self._constants, own, strict=True):
                tensors[key] = before

    def store(self, state: TrainState) -> None:
        """Copy a state into the module's own parameters and buffers."""
        with torch.no_grad():
            for owners, view in zip(self._param_owners, self.views(state.params), strict=True):
                owner, key = owners[0]
                owner._parameters[key].copy_(view)  # type: ignore[union-attr]
            parts = state.buffers.split(self.buffer_sizes) if self._buffer_owners else ()
            for (owner, key), part, shape in zip(self._buffer_owners, parts, self.buffer_shapes, strict=True):
                owner._buffers[key].copy_(part.view(shape))  # type: ignore[union-attr]


def refuse_unusable(module: nn.Module) -> None:
    """One clear line for parameters that one vector cannot hold."""
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for name, parameter in trainable:
        if isinstance(parameter, UninitializedParameter):
            raise UserError(
                f"parameter '{name}' belongs to a lazy module that has not seen an input yet: run one batch through the model "
                "before it is trained here"
            )
        if parameter.device.type == "meta":
            raise UserError(
                f"parameter '{name}' lies on the meta device and has no values: give the model values first"
            )
    kinds = {p.dtype: name for name, p in reversed(trainable)}
    if len(kinds) > 1:
        which = ", ".join(f"'{name}' is {str(dtype).removeprefix('torch.')}" for dtype, name in kinds.items())
        raise UserError(f"trainable parameters must have one dtype ({which}): convert the model, for instance .float()")
    for dtype, name in kinds.items():
        if dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"trainable parameters must be float32 or float64 ('{name}' is {str(dtype).removeprefix('torch.')}): "
                "metagradients in low precision are wrong without warning, and complex numbers are not read; convert the model, for "
                "instance .float()"
            )


def _counts(owner: nn.Module, buffer: Tensor) -> bool:
    """Whether an integer buffer is part of the state: one number, and its owner is not known to leave it alone."""
    integer = buffer.dtype in (torch.int32, torch.int64)
    return integer and buffer.numel() == 1 and not isinstance(owner, DifferentiableBatchNorm)


def _bound(owner: nn.Module, part: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What a module holds in a step: a copy that it may write into, seen by autograd, where it is not known to assign."""
    if dtype is not None:
        return part.detach().round().to(dtype)
    return part if isinstance(owner, DifferentiableBatchNorm) else part.clone()
