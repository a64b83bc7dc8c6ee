"""What really happens without some examples: retrainings on subsets, kept on disk, one set for every method."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagradient.errors import UserError
from metagradient.evaluation.batched import losses_of_runs, train_batched
from metagradient.training.batches import Batches, Fields
from metagradient.training.learner import Learner
from metagradient.training.random import generator
from metagradient.training.run import Progress, initial_state

log = logging.getLogger(__name__)

_FORMAT = "1"  # raise it when a step of the same recipe means something else


def subsets(n: int, drop: float, runs: int, seed: int) -> Tensor:
    """[R, n] bool, the examples kept: each row loses round(drop n) of them at random."""
    removed = round(drop * n)
    if not 0 < removed < n:
        raise UserError(
            f"a share of {drop} of {n} examples removes {removed} of them: give a share in (0, 1), e.g. drop=0.5"
        )
    kept = torch.ones(runs, n, dtype=torch.bool)
    for r in range(runs):
        kept[r, torch.randperm(n, generator=generator(seed, removed, r))[:removed]] = False
    return kept


@dataclass
class GroundTruth:
    """Retrains a run without some of its examples: same initialisation, same order, weight 0 for the removed.

    learner, batches: the run, from the learner's own parameters.
    queries: whose losses are measured under every retrained model.
    folder:  where losses are kept, by a hash of everything that decides them; None: nowhere. What was done before an
             interruption is found again.
    owner:   who pays: `runs` counts the trainings that were really done for it, before an interruption as well.
    at_once: trainings at a time. `found` counts those that lay on the disk.
    """

    learner: Learner
    batches: Batches
    queries: Fields
    folder: Path | None = None
    owner: str = ""
    at_once: int = 50
    progress: Progress | None = None
    runs: float = field(default=0.0, init=False)
    found: int = field(default=0, init=False)

    def losses(self, weights: Tensor) -> Tensor:
        """The queries' losses [R, q] after training with weights (or masks) [R, n]."""
        file = (
            None
            if self.folder is None
            else self.folder / f"{recipe(self.learner, self.batches, self.queries, weights)}.safetensors"
        )
        done, owners = _load(file, len(next(iter(self.queries.values()))))
        self.runs += owners.count(self.owner) if self.owner else 0
        self.found += len(done)
        if len(done):
            log.info("%d of %d retrainings found in %s", len(done), len(weights), file)
        for start in range(len(done), len(weights), self.at_once):
            rows = torch.arange(start, min(start + self.at_once, len(weights)))
            states = train_batched(
                self.learner,
                self.batches,
                weights[rows].float(),
                initial_state(self.learner),
                at_once=self.at_once,
                progress=self._within(start, len(weights)),
            )
            done = torch.cat([done, losses_of_runs(self.learner, states, self.queries).float()])
            self.runs += len(rows)
            owners += [self.owner] * len(rows)
            if file is not None:
                _save(done, owners, file)
        return done

    def _within(self, before: int, total: int) -> Progress | None:
        progress, steps = self.progress, len(self.batches)
        if progress is None:
            return None
        return lambda what, done, _: progress(what, before * steps + done, total * steps)


def recipe(learner: Learner, batches: Batches, queries: Fields, weights: Tensor | None = None) -> str:
    """A hash of all that decides a run and what is asked of it: model, optimizer, schedule, data, order, queries."""
    start = initial_state(learner)
    words = [
        _FORMAT,
        repr(learner),
        repr(learner.optimizer),
        learner.normalize,
        repr([float(learner.schedule(t)) for t in range(len(batches))]),
        repr((batches.seed, batches.augment)),
        *_settings(learner),
    ]
    parts = {"plan": batches.plan, "weights": weights, "decay": learner.decay_mask}
    parts |= dict(zip(start.names(), start.tensors(), strict=True))
    digest = hashlib.sha256("\n".join(words).encode())
    for name, x in (*batches.examples.items(), *queries.items(), *parts.items()):
        if x is not None:
            digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _settings(learner: Learner) -> list[str]:
    """What modules keep as plain attributes and need not print: heads, scales, functions by their names."""
    common, address = vars(Learner()).keys(), re.compile(r" at 0x[0-9a-f]+")
    return [
        f"{name}.{key} = {address.sub('', repr(value))}"
        for name, module in learner.named_modules()
        for key, value in sorted(vars(module).items())
        if key not in common and (callable(value) or _plain(value))
    ]


def _plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return isinstance(value, bool | int | float | complex | str)


def _load(file: Path | None, queries: int) -> tuple[Tensor, list[str]]:
    """Losses, and for whom each row was trained."""
    if file is not None and file.exists():
        try:
            with safe_open(file, framework="pt") as kept:
                losses, about = kept.get_tensor("losses"), kept.metadata() or {}
            if about.get("sha256") != _digest(losses, about.get("owners", "")):
                raise ValueError("its checksum is wrong")
            return losses, json.loads(about["owners"])
        except Exception as error:
            log.warning("%s cannot be read (%s): its models are trained again", file, error)
    return torch.empty(0, queries), []


def _save(losses: Tensor, owners: list[str], file: Path) -> None:
    """Written beside and renamed: a run killed here leaves the last whole file."""
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    losses, words = losses.contiguous(), json.dumps(owners)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"losses": losses}, partial, metadata={"owners": words, "sha256": _digest(losses, words)})
        partial.replace(file)
    except OSError as error:
        log.warning("retrainings are not kept: %s; METAGRADIENT_CACHE names another folder", error)


def _digest(losses: Tensor, owners: str) -> str:
    return hashlib.sha256(owners.encode() + losses.numpy().tobytes()).hexdigest()
