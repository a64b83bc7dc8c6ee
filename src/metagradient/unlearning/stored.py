"""A recorded run in a folder: found again only by the settings that made it, replaced whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from metagradient.errors import UserError
from metagradient.files import checksum, digest, digest_of, named_tensors, read_sealed, replacing, write_sealed
from metagradient.learners.learner import Learner
from metagradient.replay.storage import DiskStorage, MemoryStorage, Storage
from metagradient.training.batches import Batches, Fields
from metagradient.training.run import initial_state
from metagradient.training.sources import in_parts, source_of
from metagradient.training.state import TrainState
from metagradient.unlearning.history import History
from metagradient.unlearning.run import RecordedRun

_FILE, _ENDS, _FORMAT = "run.json", "ends.safetensors", 3


def save(run: RecordedRun, folder: str | Path, notes: Mapping[str, Any] | None = None, **tensors: Tensor) -> None:
    """Keep a run in `folder`, in place of the one there; `notes` (JSON) and named `tensors` are kept beside it.

    The new run is written beside the old one and takes its place in one step: whoever is killed in the middle leaves
    the old one.
    """
    folder = Path(folder)
    generation = 1 + max((int(p.name.rpartition("-")[2]) for p in folder.glob("generation-*")), default=0)
    place = folder / f"generation-{generation}"
    windows = DiskStorage(place, keep=True)
    history = run.history.copy_to(windows)
    ends = {f"initial.{i}": x for i, x in enumerate(run.initial.tensors())}
    ends |= {f"final.{i}": x for i, x in enumerate(run.final.tensors())}
    ends |= {"present": run.present, **{f"extra.{name}": x for name, x in tensors.items()}}
    ends = {name: x.detach().cpu().contiguous().clone() for name, x in ends.items()}
    with replacing(place / _ENDS) as draft:
        save_file(ends, draft)
    page = {
        "format": _FORMAT,
        "generation": generation,
        "window": history.window,
        "sums": [windows.sums[i] for i in range(history.windows)],
        "ends": digest(*named_tensors(sorted(ends.items()))),
        "dtype": str(history.dtype).removeprefix("torch."),
        "made_by": made_by(run.learner, run.batches, run.initial),
        "notes": dict(notes or {}),
    }
    write_sealed(folder / _FILE, page)
    for old in folder.glob("generation-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def exists(folder: str | Path) -> bool:
    """Whether a run is kept there."""
    return (Path(folder) / _FILE).exists()


def load(
    folder: str | Path,
    learner: Learner,
    batches: Batches,
    storage: Storage | None = None,
    *,
    initial: TrainState | None = None,
) -> tuple[RecordedRun, dict[str, Any], dict[str, Tensor]]:
    """A stored run, its notes and its extra tensors.

    Args:
        folder: where `save` kept it.
        learner: initialised as it was for the run, or with its first state given as `initial`.
        batches: those of the run, over all rows.
        storage: where its history is read into; None: memory.
        initial: the run's first state, where the learner does not hold it.

    Raises:
        UserError: the run was made from anything else, or is damaged.
    """
    folder = Path(folder)
    try:
        page = read_sealed(folder / _FILE)
        place = folder / f"generation-{page['generation']}"
        ends = load_file(place / _ENDS)
        format_, kept = page["format"], page["made_by"]
        if page.get("ends") != digest(*named_tensors(sorted(ends.items()))):
            raise ValueError(f"the checksum of {_ENDS} is wrong")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"the run stored in {folder} cannot be read ({error}): record it anew in another run_folder"
        ) from error
    if format_ != _FORMAT:
        raise UserError(
            f"the run stored in {folder} has format {format_}, not {_FORMAT}: record it anew in another run_folder"
        )
    start = initial_state(learner) if initial is None else initial
    asked = made_by(learner, batches, start)
    differ = [
        f"{name} {kept.get(name)} there, {value} here" for name, value in asked.items() if kept.get(name) != value
    ]
    if differ:
        raise UserError(
            f"the run stored in {folder} was made with other settings ({'; '.join(differ)}): give the settings of that run, "
            "or another run_folder"
        )
    dtype, like = getattr(torch, page["dtype"]), start.params
    windows = DiskStorage(place, keep=True, sums=dict(enumerate(page["sums"])))
    history = History.stored(windows, len(batches), page["window"], dtype, like)
    history = history.copy_to(MemoryStorage() if storage is None else storage)

    def state(name: str) -> TrainState:
        parts = [ends[f"{name}.{i}"].to(like.device) for i in range(len(start.tensors()))]
        return TrainState.of(parts)

    run = RecordedRun(learner, batches, ends["present"], history, state("initial"), state("final"))
    extra = {name.removeprefix("extra."): x for name, x in ends.items() if name.startswith("extra.")}
    return run, page["notes"], extra


def made_by(learner: Learner, batches: Batches, initial: TrainState) -> dict[str, str | int]:
    """All that decides a run, each in a few words or as a checksum."""
    plan = batches.plan[:1] if batches.plan.stride(0) == 0 else batches.plan
    rates = [float(learner.schedule(t)) for t in range(len(batches))]
    mask = learner.decay_mask
    return {
        "model": " ".join(repr(learner).split()),
        "optimizer": learner.update.described(),
        "learning rates": f"{rates[0]:.6g} .. {rates[-1]:.6g} ({_sum(torch.tensor(rates))})",
        "weight decay": "on all parameters" if mask is None else f"masked ({_sum(mask)})",
        "steps": len(batches),
        "precision": str(initial.params.dtype).removeprefix("torch."),
        "first parameters": _sum(initial.params),
        "order of batches": _sum(plan),
        "data": _data(batches.examples),
    }


def _data(examples: Fields) -> str:
    if source_of(examples) is not None:  # a pass over all rows
        return f"rows that are read, {digest_of(named_tensors(in_parts(examples)))[:16]}"
    return " ".join(f"{name} {list(x.shape)} {_sum(x)}" for name, x in sorted(examples.items()))


def _sum(x: Tensor) -> str:
    return f"{checksum(x):08x}" if x.numel() else "empty"
