"""What each experiment plans to do, for its estimate of the time left: its outermost bars, and their work in trainings.

Rough on purpose: a stage's own pace is measured as soon as it has begun.
"""

from omegaconf import DictConfig

from metagradient.descent.loop import Loop
from metagradient.reporting.estimate import Stages

REPLAY = 3.0  # a taped step and its pull, in plain steps


def selection(cfg: DictConfig, method: Loop) -> Stages:
    fits = 1 + cfg.retrainings * len(cfg.filter_fractions)
    return [
        *_smoothness(cfg),
        *[("metagradient descent", _descent(method))] * (2 if cfg.refit else 1),
        ("high-loss filter", fits),
        ("retraining on each choice", 8 * cfg.retrainings),
    ]


def poisoning(cfg: DictConfig, method: Loop, routines: int) -> Stages:
    peers = 5.0 * len(cfg.peers or {})
    attacks = len(cfg.shares) * (2 + len(cfg.peers or {}))
    return [
        *_smoothness(cfg),
        ("attacks", len(cfg.shares) * (_descent(method) + peers)),
        *[("victims", cfg.victims)] * routines,
        ("victims of each attack", attacks * routines * cfg.victims),
        *([("metagradient descent", REPLAY * cfg.defender.metasteps)] if cfg.defences else []),
        *([("defences", 4 * (len(cfg.filter_fractions) + cfg.victims))] if cfg.defences else []),
    ]


def schedule(cfg: DictConfig, method: Loop, grid: tuple[str, int], equals: tuple[str, ...]) -> Stages:
    """grid: its name and size; equals: the names of the searchers that get as much as the descent."""
    ways = 2 + len(equals)
    return [
        *_smoothness(cfg),
        ("metagradient descent", _descent(method)),
        grid,
        *((name, _descent(method)) for name in equals),
        ("finalists", ways * cfg.finalists * cfg.finalist_seeds),
        ("test with fresh seeds", (ways + 1) * cfg.retrainings),
    ]


def attribution(cfg: DictConfig) -> Stages:
    exact = sum(len(cfg.drop) if word == "exact:alpha" else word == "exact" for word in map(str, cfg.methods))
    return [
        *_smoothness(cfg),
        (
            "retraining without some examples",
            0.2 * (cfg.retrainings * len(cfg.drop) + (cfg.leave_one_out or 0)),
        ),  # many at a time
        ("methods", exact * REPLAY * max(1.0, cfg.queries / 10) + len(cfg.methods)),
    ]


def unlearning(cfg: DictConfig) -> Stages:
    kind = "add" if cfg.add.fraction or cfg.add.count else "delete"
    requests = ("requests", 0.5 * cfg.stream.requests) if cfg.stream.requests else (f"requests to {kind}", 2 * cfg.sets)
    variants = len(cfg.frontier.periods) + len(cfg.frontier.targets)
    frontier = ("frontier: requests", (1 + 0.3 * variants) * cfg.sets * bool(variants))
    return [("training", 1.0), requests, frontier, ("KLOM: the method on runs of other seeds", 2 * cfg.klom.models)]


def cost(cfg: DictConfig) -> Stages:
    rounds, plans = cfg.repeats + 1, len(cfg.plans) + 1
    return [
        (f"{part}: {model}, {steps} steps", weight * plans * steps)
        for model in cfg.models
        for steps in cfg.steps
        for part, weight in (("timing", rounds), ("memory", 2))
    ]


def _descent(method: Loop) -> float:
    return (REPLAY * method.metasteps + 1) * method.seeds_per_metastep


def _smoothness(cfg: DictConfig) -> Stages:
    return [] if cfg.smoothness is None else [("metasmoothness", 3 * cfg.smoothness.directions)]
