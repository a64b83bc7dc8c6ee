"""CIFAR-10 poisoned by metagradients of its pixels, in the time there is; the poisons lie in a folder from which a later run goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.descent import DescentProblem, PixelPoisoning, Poisons, Sign, noise_poisons, poison_rows
from metagradient.descent.problem import STATE
from metagradient.descent.state import DescentState
from metagradient.evaluation import accuracy, train_victims
from metagradient.training.updates import OneCycle

SHARE, METASTEPS = 0.025, 400
"""Of the training images; and those of the whole attack, whose step falls with them."""


class _TimeIsUp(Exception):
    pass


def images(path: Path, rehearsal: bool) -> tuple[dict[str, Tensor], ...]:
    """Training, steering, held-out and test examples."""
    if rehearsal:
        x, y = torch.rand(120, 3, 8, 8), torch.randint(10, (120,))
        sizes = [60, 20, 20, 20]
    else:
        with np.load(path) as file:
            x, y = torch.from_numpy(file["x"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(file["y"]).long()
        sizes = [8000, 500, 500, len(x) - 9000]
    return tuple({"x": a, "y": b} for a, b in zip(x.split(sizes), y.split(sizes), strict=True))


def poison(device: torch.device, folder: Path, path: Path, limit: float, rehearsal: bool) -> Iterator[dict[str, Any]]:
    """One row for the attack and one for each set of victims; goes on from the poisons in `folder`, or carried beside the images."""
    train, steer, held_out, test = images(path, rehearsal)
    width, batch, epochs, metasteps = (2, 30, 1, 2) if rehearsal else (32, 250, 8, METASTEPS)

    def learner(schedule: mg.Schedule) -> mg.Learner:
        model = models.resnet9(tuple(train["x"].shape[1:]), 10, width=width)
        return mg.Classifier(model, mg.SGD(0.9, weight_decay=5e-4), schedule).to(device)

    routine = mg.Routine(learner, lambda steps: OneCycle(0.5, steps), batch, epochs)
    rows = poison_rows(len(train["y"]), SHARE if not rehearsal else 0.1, seed=1)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = path.parent / "poisons"
    if earlier.is_dir() and not DescentState.saved_at(folder / STATE):
        shutil.copytree(earlier, folder, dirs_exist_ok=True)
    problem = DescentProblem(
        train,
        steer,
        score=lambda learner, state: {"held_out_accuracy": accuracy(learner, state, held_out)},
        routine=routine,
        fit=lambda learner, batches, z, phi: mg.metagradient(learner, batches.to(device), z, phi),
        folder=folder,
        resume=folder,
    )
    start = time.monotonic()

    def watch(metastep: int, values: dict[str, float], x: Tensor | None) -> None:
        if x is not None and time.monotonic() - start > limit and DescentState.saved_at(folder / STATE):
            raise _TimeIsUp

    with suppress(_TimeIsUp):
        PixelPoisoning(metasteps, update=Sign(0.1), settle=0.7).run(problem, rows, on_metastep=watch)
    state = DescentState.load(folder / STATE)
    taken = time.monotonic() - start
    yield {
        "way": f"attack, {min(state.metastep, metasteps)} of {metasteps} metasteps so far, {taken:.0f} s of this run"
    }
    assert state.best_x is not None
    examples = {
        "clean": train,
        "noise": noise_poisons(train, rows, 0).apply(train),
        "poisoned": Poisons(rows, state.best_x).apply(train),
    }
    for name, fields in examples.items():
        victims = train_victims(routine, fields, test, seeds=[101, 102] if rehearsal else [101, 102, 103])
        yield {"way": f"victims, {name}", "accuracy": victims.mean, "sd": victims.sd}
