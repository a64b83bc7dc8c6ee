"""Small runs of every experiment, to be killed, damaged, or left without room."""

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

COMMON = ["trainer.threads=1", "logger.mode=disabled"]
DIGITS = ["data.train=300", "data.validation=80", "data.test=100", "learner.epochs=null", "learner.steps=40", *COMMON]
RUNS = {
    "selection": [
        *DIGITS, "method.metasteps=12", "refit=true", "retrainings=1", "filter_fractions=[0.4]", "smoothness=null",
    ],
    "poisoning": [
        *DIGITS, "method.metasteps=8", "shares=[0.05,0.1]", "victims=1", "peers=null", "defences=false", "~transfer",
        "+transfer={}", "smoothness=null",
    ],
    "schedule": [
        *DIGITS, "method.metasteps=12", "grid.peaks=2", "grid.warmups=[0.1]", "finalists=1", "finalist_seeds=1",
        "retrainings=1", "stretch=1", "smoothness=null",
    ],
    "attribution": [
        *DIGITS, "methods=[exact,exact:alpha,dropout:64]", "queries=8", "held_out=5", "queries_per_replay=2",
        "drop=[0.1,0.5]", "retrainings=15", "at_once=5", "dampings=[1.0,10.0]", "leave_one_out=null",
    ],
    "unlearning": [*DIGITS, "sets=8", "delete.fraction=0.02", "klom.models=0"],
    "smoothness": ["experiment=null", *DIGITS, "directions=2", "+variants.wide={model.hidden:[16]}"],
    "cost": ["models=[mlp]", "steps=[20]", "tape_steps=20", "plans=[tape,auto]", "repeats=2", *COMMON],
}  # fmt: skip
"""Long enough to be killed in the middle."""

TWO = "trainer.devices=2"

FEW = ["data.train=100", "data.validation=40", "data.test=40", "learner.steps=8"]
BRIEF = {
    "selection": ("selection", [*RUNS["selection"], *FEW, "method.metasteps=2"]),
    "poisoning": ("poisoning", [*RUNS["poisoning"], *FEW, "method.metasteps=2"]),
    "schedule": ("schedule", [*RUNS["schedule"], *FEW, "method.metasteps=2"]),
    "attribution": ("attribution", [*RUNS["attribution"], *FEW, "methods=[exact,dropout:64]", "drop=[0.5]"]),
    "unlearning": ("unlearning", [*RUNS["unlearning"], *FEW, "sets=3"]),
    "stream": ("unlearning", [*RUNS["unlearning"], *FEW, "stream.requests=3", "stream.judge_every=1"]),
    "smoothness": ("smoothness", [*RUNS["smoothness"], *FEW]),
    "processes": ("selection", [*RUNS["selection"], *FEW, "method.metasteps=2", TWO]),
    "cost": ("cost", RUNS["cost"]),
}
"""Shorter ones, by name: (experiment, overrides)."""

ON_DISK = {
    "replay on disk": (
        "selection",
        [
            *BRIEF["selection"][1],
            "refit=false",
            "replay.storage=disk",
            "replay.checkpoints='binomial(3)'",
            "replay.folder=states",
        ],
    ),
    "history on disk": ("unlearning", [*BRIEF["stream"][1], "history.storage=disk", "history.folder=states"]),
}
"""Shorter ones that also write what they compute with."""


def some(cases: Sequence[T]) -> list[T]:
    """All cases, or METAGRADIENT_CASES of them drawn at random, in their order: all take an hour."""
    most = int(os.environ.get("METAGRADIENT_CASES", len(cases)))
    drawn = sorted(random.Random(most).sample(range(len(cases)), min(most, len(cases))))
    return [cases[i] for i in drawn]
