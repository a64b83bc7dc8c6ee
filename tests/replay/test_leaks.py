"""Nothing grows: a hundred replays in one process leave as many tensors alive as one."""

import gc
import weakref
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from toys import fit

import metagradient as mg
from metagradient import models
from metagradient.training.run import run_mode
from metagradient.training.steps import step

STEPS = 3


def toy(model: nn.Module, width: int) -> tuple[mg.Learner, mg.Batches, mg.Objective]:
    rng = torch.Generator().manual_seed(0)
    data = {"x": torch.randn(16, 1, 1, width, generator=rng), "y": torch.randint(3, (16,), generator=rng)}
    learner = mg.Classifier(model, mg.SGD(momentum=0.9), 0.1)
    return learner, mg.Batches(data, mg.epoch_plan(16, 8, 2, seed=0)[:STEPS]), mg.mean_loss(data)


def live_tensors() -> tuple[int, int]:
    """Tensors alive, and the bytes of their storages."""
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
    return len(found), sum({x.data_ptr(): x.untyped_storage().nbytes() for x in found}.values())


@pytest.mark.parametrize("checkpoints", ["tape", "sqrt", "auto"])
def test_replays_leave_no_tensor_behind(checkpoints: str) -> None:
    """GELU saves its own input, an operation's output: what made cycles through C++ hooks."""
    learner, batches, objective = toy(models.mlp((1, 1, 4), 3, hidden=(8, 8)), 4)
    weights = mg.DataWeights(torch.ones(16))

    def replay() -> None:
        mg.metagradient(learner, batches, weights, objective, checkpoints=checkpoints)

    replay()
    before = live_tensors()
    for _ in range(100):
        replay()
    assert live_tensors() == before


@pytest.mark.parametrize("tape", [False, True])
def test_a_step_is_let_go_without_the_collector(tape: bool) -> None:
    """What a cycle of references holds stays until the collector comes, and a segment's graph with it: twice the budget."""
    learner, batches, _ = toy(models.mlp((1, 1, 4), 3, hidden=(8, 8)), 4)
    z = [mg.DataWeights(torch.ones(16)).leaf(learner.layout.params())]
    with run_mode(learner, batches):
        step(learner, mg.initial_state(learner, z).leaf(), batches(0), 0, z, tape=tape)
        gc.collect()
        gc.disable()
        try:
            state = mg.initial_state(learner, z).leaf()
            held = []
            for t in range(STEPS):
                state, _, _ = step(learner, state, batches(t), t, z, tape=tape)
                held.append(weakref.ref(state.params))
            del state
            assert [x() for x in held] == [None] * STEPS
        finally:
            gc.enable()


@pytest.mark.parametrize("through_trainer", [False, True])
def test_a_pulled_segment_is_let_go(through_trainer: bool) -> None:
    """Nobody holds the nodes of the last segment's graph, which was taped in training, while the others are replayed."""
    nodes = weakref.WeakSet[Any]()

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nodes.add(ctx)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *g: Tensor) -> Tensor:
            found: Tensor = Seen.apply(g[0])  # type: ignore[no-untyped-call]
            return found  # of the graph of the gradient, which a tape keeps

    class Watched(mg.Classifier):
        def losses(self, batch: mg.Batch) -> Tensor:
            found: Tensor = Seen.apply(super().losses(batch))  # type: ignore[no-untyped-call]
            return found

    _, batches, objective = toy(nn.Identity(), 4)
    batches = batches.with_plan(mg.epoch_plan(16, 8, 6, seed=0))
    learner = Watched(models.mlp((1, 1, 4), 3, hidden=(8,)), mg.SGD(momentum=0.9), 0.1)
    left: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "replay" and done > 0:
            left.append(len(nodes))

    weights = mg.DataWeights(torch.ones(16))
    if through_trainer:
        fit(learner, batches, mg.Metagradient(weights, objective, checkpoints="every(4)", progress=progress))
    else:
        mg.metagradient(learner, batches, weights, objective, checkpoints="every(4)", progress=progress)
    assert len(left) == 3
    # The end of the segment is still held by the loop that pulls it; of the last one nobody holds more than its end.
    assert max(left[1:]) <= 4


@pytest.mark.slow
def test_resident_memory_is_flat() -> None:
    """Tensors that only C++ holds are no Python objects: 100 replays, of which each tapes 3 x 4 MiB, stay below 40 MiB."""
    learner, batches, objective = toy(models.mlp((1, 1, 64), 3, hidden=(512, 512)), 64)
    weights, process = mg.DataWeights(torch.ones(16)), psutil.Process()

    def replay(times: int) -> int:
        for _ in range(times):
            mg.metagradient(learner, batches, weights, objective)
        gc.collect()
        return process.memory_info().rss

    before = replay(10)
    assert replay(100) - before < 40 * 2**20
