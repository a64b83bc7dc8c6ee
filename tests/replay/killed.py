"""A replay in a process of its own that is killed again and again, until it is done."""

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import N, examples, mlp

import metagradient as mg

DATA, HELD_OUT = examples(), examples(7, seed=3)
STEPS = 24


@dataclass(frozen=True)
class Case:
    """A replay with everything that draws: shuffled batches, augmentation, dropout."""

    plan: str
    storage: str = "memory"
    optimizer: str = "sgd"
    queries: bool = False

    def replay(self, save_to: Path | None = None, every: float = 0.0) -> mg.Metagradients:
        """Run it, saved after every step."""
        learner = mg.Classifier(mlp(dropout=0.2), mg.SGD(0.9) if self.optimizer == "sgd" else mg.Adam(), 0.05)
        batches = mg.Batches(DATA, mg.epoch_plan(N, 4, epochs=8, seed=2), seed=7, augment=_noisy)
        z = [mg.DataWeights(torch.linspace(0.5, 1.5, N)), mg.LearningRates(torch.full((STEPS,), 0.05))]
        objective = mg.example_losses(HELD_OUT) if self.queries else mg.mean_loss(HELD_OUT)
        return mg.metagradient(
            learner,
            batches,
            z,
            objective,
            checkpoints=self.plan,
            storage=self.storage,
            save_to=save_to,
            save_every=every,
        )


def _noisy(fields: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    noise = torch.randn(fields["x"].shape, generator=generator, dtype=fields["x"].dtype)
    return fields | {"x": fields["x"] + 0.1 * noise}


def bits(found: mg.Metagradients) -> dict[str, Tensor]:
    """All that a replay gives."""
    state = dict(zip(found.state.names(), found.state.tensors(), strict=True))
    return {name: x.clone() for name, x in (found.gradients | state | {"value": found.objective}).items()}


def _child(case: Case, folder: Path, answer: Path) -> None:
    torch.set_num_threads(1)
    save_file(bits(case.replay(folder)), answer)


def kill_until_done(case: Case, folder: Path, kills: int, seed: int = 0) -> tuple[dict[str, Tensor], list[str]]:
    """Kill it so many times at random moments, then let it end: its answer, and where each kill found it."""
    found, random, answer = [], Random(seed), folder.parent / "answer"
    for _ in range(kills):
        process = _started(case, folder, answer)
        _wait(process, folder / "position.safetensors", random)
        process.kill()
        process.join()
        if answer.exists():
            break
        found.append(where(folder))
    if not answer.exists():
        process = _started(case, folder, answer)
        process.join()
        assert process.exitcode == 0
    return load_file(answer), found


def where(folder: Path) -> str:
    """Of what pass the saved position is."""
    found = mg.replay.saving.position.read_position(folder / "position.safetensors", torch.device("cpu"))
    return "nowhere" if found is None else "forward" if found[0].backward is None else "backward"


def _started(case: Case, folder: Path, answer: Path) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "lightning", "metagradient.learners", "metagradient.replay"])
    process = context.Process(target=_child, args=(case, folder, answer))
    process.start()
    return process


def _wait(process: ForkServerProcess, position: Path, random: Random) -> None:
    """Until so many positions have been saved, or so many seconds are over: both are drawn."""
    left, until, last = random.randint(1, 8), time.monotonic() + random.uniform(0.2, 10), None
    while process.is_alive() and left and time.monotonic() < until:
        time.sleep(0.002)
        now = position.stat().st_mtime_ns if position.exists() else None
        left -= now != last
        last = now
    time.sleep(0.005 * random.random())
