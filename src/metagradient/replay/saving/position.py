"""Where a replay stands between two steps, as one file that is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagradient.files import digest_of, named_tensors, replacing
from metagradient.replay.storage import apart
from metagradient.training.state import TrainState

_FORMAT = 1


@dataclass(eq=False)
class Backward:
    """The backward pass between two of its steps.

    Attributes:
        value: the objectives at the end of training, [] or [Q].
        final: the state at the end of training.
        cotangents: of the tensors of `expected` ([Q, ...] for Q objectives); before the first pull, of `final`.
        totals: the sums so far of the metagradients.
        queries: Q; None for a scalar objective.
        batched: whether Q cotangents are pulled at once; None: not tried yet.
        expected: the first state of the segment that was pulled last; None before the first pull.
        done: how many of the plan's `reverse_actions` are done.
        t: the step at which `state` stands.
        state: the current state.
    """

    value: Tensor
    final: TrainState
    cotangents: list[Tensor]
    totals: list[Tensor]
    queries: int | None
    batched: bool | None
    expected: TrainState | None = None
    done: int = 0
    t: int = 0
    state: TrainState | None = None


@dataclass(frozen=True, eq=False)
class Position:
    """Where a replay stands: before step t of the run, or in the backward pass.

    Attributes:
        plan: the name of the checkpoint plan.
        t: the next step of the run; T in the backward pass.
        state: the one at t.
        fingerprints: those of the recorded states, by step.
        backward: the backward pass; None before it.
        held: the checksums of the checkpoints that are still needed, by step.
    """

    plan: str
    t: int
    state: TrainState
    fingerprints: dict[int, Tensor]
    backward: Backward | None
    held: Mapping[int, list[int]]


def write_position(path: Path, position: Position, asked: Mapping[str, str]) -> None:
    """Write the file as a whole; `asked` says of which replay it is.

    Raises:
        OSError: it cannot be written.
        SafetensorError: see OSError.
    """
    tensors = {"fingerprints": torch.stack([*position.fingerprints.values()])} if position.fingerprints else {}
    page: dict[str, Any] = {
        "format": _FORMAT,
        "asked": dict(asked),
        "plan": position.plan,
        "t": position.t,
        "boundaries": list(position.fingerprints),
        "held": list(position.held.items()),
        "backward": None,
    }
    tensors |= _numbered("state", position.state.tensors())
    back = position.backward
    if back is not None:
        assert back.expected is not None
        assert back.state is not None
        page["backward"] = {"queries": back.queries, "batched": back.batched, "done": back.done, "t": back.t}
        tensors["value"] = back.value
        tensors |= _numbered("expected", back.expected.tensors()) | _numbered("current", back.state.tensors())
        tensors |= _numbered("cotangent", back.cotangents) | _numbered("total", back.totals)
    own = dict(zip(tensors, apart([x.detach().cpu().contiguous() for x in tensors.values()]), strict=True))
    text = json.dumps(page)
    with replacing(path, durable=True) as draft:
        save_file(own, draft, metadata={"page": text, "sha256": _seal(text, own)})


def read_position(path: Path, device: torch.device) -> tuple[Position, dict[str, str]] | None:
    """What `write_position` wrote, its tensors on `device`, and what it was `asked`; None where there is no file.

    Raises:
        ValueError: it is damaged; the message says how.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if _seal(notes["page"], tensors) != notes["sha256"]:
            raise ValueError("its checksum is wrong")
        page = json.loads(notes["page"])
        if page["format"] != _FORMAT:
            raise ValueError(f"it has format {page['format']}, not {_FORMAT}")
        return _position(page, {name: x.to(device) for name, x in tensors.items()}), page["asked"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _position(page: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Position:
    def named(kind: str) -> list[Tensor]:
        return [tensors[f"{kind}.{i}"] for i in range(sum(name.startswith(f"{kind}.") for name in tensors))]

    state, back = TrainState.of(named("state")), page["backward"]
    backward = None
    if back is not None:
        backward = Backward(
            tensors["value"],
            state,
            named("cotangent"),
            named("total"),
            back["queries"],
            back["batched"],
            TrainState.of(named("expected")),
            back["done"],
            back["t"],
            TrainState.of(named("current")),
        )
    rows = tensors["fingerprints"].unbind() if page["boundaries"] else ()
    marks = dict(zip(page["boundaries"], rows, strict=True))
    return Position(page["plan"], page["t"], state, marks, backward, {int(t): sums for t, sums in page["held"]})


def _numbered(kind: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{kind}.{i}": x for i, x in enumerate(tensors)}


def _seal(page: str, tensors: Mapping[str, Tensor]) -> str:
    return digest_of(chain([page], named_tensors(sorted(tensors.items()))))
