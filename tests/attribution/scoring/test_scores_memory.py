"""Nothing grows: scores in a hundred chunks hold as much after the last chunk as after the tenth."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import metagradient as mg
from metagradient import models
from metagradient.attribution import Dropout, ExactScores, Influence, Uncompressed

ROWS, CHUNKS, SETTLED, ROOM = 8, 110, 10, 8 * 2**20


def data(n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 5, generator=g), "y": torch.randint(3, (n,), generator=g)}


def learner() -> mg.Classifier:
    torch.manual_seed(0)
    return mg.Classifier(models.mlp((5,), 3, hidden=(256, 256)), mg.SGD(0.9), 0.05)


def exact() -> Iterator[Tensor]:
    """A replay for each of the queries; a taped step of the network is above a megabyte."""
    batches = mg.Batches(data(ROWS, 0), mg.epoch_plan(ROWS, 4, 2, seed=0))
    return (part for part, *_ in ExactScores(learner(), batches, at_once=1).columns(data(CHUNKS, 1)))


def influence(dropout: bool) -> Iterator[Tensor]:
    """A chunk of rows at a time; their gradients are a quarter of a megabyte each."""
    model, train = learner(), data(2 * CHUNKS, 0)
    state = mg.initial_state(model)
    scorer = Influence(Dropout(32) if dropout else Uncompressed(), batch_size=2).fit(model, state, train)
    return (part for part in scorer.chunks(data(3, 1), [1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact", "dropout", "none"])
def test_scores_in_many_chunks_hold_no_more_than_in_few(name: str, held: Callable[[], tuple[int, int]]) -> None:
    found, chunks = {}, 0
    for _ in exact() if name == "exact" else influence(name == "dropout"):
        chunks += 1
        if chunks in (SETTLED, CHUNKS):
            found[chunks] = held()
    (tensors, before), (later, after) = found[SETTLED], found[CHUNKS]
    assert chunks == CHUNKS
    assert later - tensors < 10  # not one of them for each chunk
    assert after - before < ROOM
