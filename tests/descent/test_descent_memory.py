"""Nothing grows: a descent of a hundred metasteps holds as much after the last as after the tenth."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_selection import blobs

import metagradient as mg
from metagradient.descent import (
    CountSelection,
    DescentProblem,
    PixelPoisoning,
    RecipeSpace,
    ScheduleSearch,
    WeightSelection,
    poison_rows,
)
from metagradient.models import mlp

SETTLED, METASTEPS, ROOM = 10, 110, 8 * 2**20
"""A state of the network is 0.27 MB: one of them kept at each metastep would be 27 MB."""


def problem() -> DescentProblem:
    routine = mg.Routine(
        lambda schedule: mg.Classifier(mlp((2,), 3, (256, 256)), mg.SGD(momentum=0.5), schedule),
        schedule=lambda steps: mg.Constant(0.01),
        batch_size=30,
        epochs=1,
    )
    train, validation = blobs(60, 1), blobs(60, 2)
    train["x"] = (train["x"] / 10 + 0.5).clamp(0, 1)
    return DescentProblem(
        train, validation, lambda *_: {"held_out_loss": 0.0, "held_out_accuracy": 0.0}, routine, mg.metagradient, seed=5
    )


METHODS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "weights": (WeightSelection(), ()),
    "counts": (CountSelection(), ()),
    "swapped counts": (CountSelection(swap=5), ()),
    "pixels": (PixelPoisoning(), (poison_rows(60, 0.1, 0),)),
    "schedule": (ScheduleSearch(space=RecipeSpace(momentum=True)), ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_long_descent_holds_no_more_than_a_short_one(name: str, held: Callable[[], tuple[int, int]]) -> None:
    method, rows = METHODS[name]
    found: dict[int, tuple[int, int]] = {}

    def look(reading: Any, *_: Any) -> None:
        metastep = reading if isinstance(reading, int) else reading.metastep
        if metastep in (SETTLED, METASTEPS - 1):
            found[metastep] = held()

    torch.manual_seed(0)
    replace(method, metasteps=METASTEPS).run(problem(), *rows, on_metastep=look)
    (tensors, before), (later, after) = found[SETTLED], found[METASTEPS - 1]
    assert later - tensors < 10  # not one of them for each metastep
    assert after - before < ROOM
