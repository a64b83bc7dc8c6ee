"""What a replay was asked for, in digests: a saved position is of this replay or of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType, MethodType

import torch
from torch import Tensor, nn

from metagradient.files import digest_of, named_tensors
from metagradient.learners.fingerprint import constants, described, named
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batches
from metagradient.training.metaparameters import Metaparameter
from metagradient.training.run import initial_state
from metagradient.training.state import TrainState

Part = str | Tensor


def asked_for(
    learner: Learner, batches: Batches, z: Sequence[Metaparameter], objective: object, start: TrainState, plan: str
) -> dict[str, str]:
    """All that decides the bits of a replay, each as a digest under the name that a refusal gives it.

    Examples that are held in memory count with all their values; of those that are read, the first, the middle and the last
    batch. A function counts with its code and with what it closes over.

    Args:
        learner: see `metagradient`.
        batches: see `metagradient`.
        z: see `metagradient`.
        objective: see `metagradient`.
        start: the initial state.
        plan: the name that the checkpoint plan is asked for by.
    """
    software = f"{torch.__version__} with {torch.get_num_threads()} threads on {start.params.device.type}"
    parts: dict[str, Iterator[Part]] = {
        "learner": chain(described(learner, batches), named_tensors(constants(learner).items())),
        "first parameters": named_tensors(zip(start.names(), start.tensors(), strict=True)),
        "batches": _batches(batches),
        "metaparameters": chain.from_iterable(_parts(m, set()) for m in z),
        "objective": _parts(objective, set()),
        "checkpoints": iter([plan]),
        "torch": iter([software]),
    }
    return {name: digest_of(own) for name, own in parts.items()}


def folder_of(folder: Path, learner: Learner, batches: Batches, z: Sequence[Metaparameter], objective: object) -> Path:
    """A folder of its own for each of many replays: those that are asked for the same have the same one."""
    asked = asked_for(learner, batches, z, objective, initial_state(learner, z), "")
    return folder / f"replay-{digest_of(asked.values())[:16]}"


def _batches(batches: Batches) -> Iterator[Part]:
    plan, steps = batches.plan, len(batches)
    yield from named_tensors([("plan", plan[:1] if plan.stride(0) == 0 else plan)])
    yield f"{steps} steps, seed {batches.seed}, {batches.n_examples} examples"
    if batches.source is None:
        yield from named_tensors(sorted(batches.examples.items()))
        return
    for t in sorted({0, steps // 2, steps - 1}):
        yield from named_tensors(sorted(batches(t).fields.items()))


def _parts(value: object, seen: set[int]) -> Iterator[Part]:
    """A value in words and tensors, without the addresses of what it consists of."""
    if isinstance(value, Tensor):
        yield from named_tensors([("tensor", value)])
        return
    if isinstance(value, str | bytes | int | float | complex | None):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    inner: list[object] = []
    if isinstance(value, nn.Module):
        yield named(value)
        yield from named_tensors(value.state_dict().items())
    elif isinstance(value, Mapping):
        inner = [part for item in value.items() for part in item]
    elif isinstance(value, tuple | list):
        inner = list(value)
    elif isinstance(value, partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, MethodType):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inner = [value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, *cells]
    elif isinstance(value, CodeType):
        inner = [value.co_code, value.co_names, value.co_consts]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif callable(value) and hasattr(value, "__dict__") and not isinstance(value, type):
        inner = [part for item in sorted(vars(value).items()) for part in item]
    else:
        yield named(value)
    for part in inner:
        yield from _parts(part, seen)
