"""What each experiment plans to do, for its estimate of the time left: its stages, and their work in trainings.

Rough on purpose: a stage's own pace is measured as soon as it has begun.
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from metagradient.descent.loop import Loop
from metagradient.reporting.estimate import Stage

REPLAY = 3.0  # a taped step and its pull, in plain steps
METASTEP = {"training": (0.0, 1 / 3), "replay": (1 / 3, 1.0)}  # where each lies in a metastep


def selection(cfg: DictConfig, method: Loop, texts: bool) -> list[Stage]:
    """Stages of `selection`, of texts or of examples with targets."""
    pretraining = cfg.pretraining if texts else None
    return [
        *([Stage("pretraining", pretraining.steps / (cfg.learner.steps or pretraining.steps))] if pretraining else []),
        *_smoothness(cfg),
        _descent("descent", method),
        *([_descent("refit", method)] if cfg.refit else []),
        Stage("rivals", 2 * (2 + cfg.retrainings * len(cfg.rivals.shares)) * texts),
        Stage("filter", 1 + cfg.retrainings * len(cfg.filter_fractions)),
        Stage("choices", 8 * cfg.retrainings),
    ]


def poisoning(cfg: DictConfig, method: Loop, routines: int) -> list[Stage]:
    """Stages of `poisoning`, with victims of so many routines."""
    peers = 5.0 * len(cfg.peers or {})
    attacks = len(cfg.shares) * (2 + len(cfg.peers or {}))
    defences = [
        Stage("defender", REPLAY * cfg.defender.metasteps, METASTEP),
        Stage("defences", 4 * (len(cfg.filter_fractions) + cfg.victims)),
    ]
    return [
        *_smoothness(cfg),
        Stage("attacks", len(cfg.shares) * (_descent("", method).work + peers), METASTEP),
        *[Stage("clean victims", cfg.victims)] * routines,
        Stage("victims", attacks * routines * cfg.victims),
        *(defences if cfg.defences else []),
    ]


def schedule(cfg: DictConfig, method: Loop, grid: tuple[str, int], equals: Sequence[str]) -> list[Stage]:
    """Stages of `schedule`. grid: its name and size; equals: the searchers that get as much as the descent."""
    ways = 2 + len(equals)
    descent = _descent("descent", method)
    return [
        *_smoothness(cfg),
        descent,
        Stage(*grid),
        *(Stage(name, descent.work) for name in equals),
        Stage("finalists", ways * cfg.finalists * cfg.finalist_seeds),
        Stage("test", (ways + 1) * cfg.retrainings),
    ]


def attribution(cfg: DictConfig) -> list[Stage]:
    """Stages of `attribution`."""
    exact = sum(len(cfg.drop) if word == "exact:alpha" else word == "exact" for word in map(str, cfg.methods))
    asked = max(1.0, cfg.queries / 10) + (cfg.aggregate is not None)
    together = 0.2  # retrainings run many at a time
    return [
        *_smoothness(cfg),
        Stage("retrainings", together * (cfg.retrainings * len(cfg.drop) + (cfg.leave_one_out or 0))),
        Stage("methods", exact * REPLAY * asked + len(cfg.methods)),
        *([Stage("tokens", REPLAY * asked)] if cfg.token_scores else []),
    ]


def unlearning(cfg: DictConfig) -> list[Stage]:
    """Stages of `unlearning`."""
    requests = 0.5 * cfg.stream.requests if cfg.stream.requests else 2 * cfg.sets
    variants = len(cfg.frontier.periods) + len(cfg.frontier.targets)
    return [
        Stage("training", 1.0),
        Stage("requests", requests),
        Stage("frontier", (1 + 0.3 * variants) * cfg.sets * bool(variants)),
        Stage("klom", 2 * cfg.klom.models),
    ]


def cost(cfg: DictConfig) -> list[Stage]:
    """Stages of `cost`."""
    rounds, plans = cfg.repeats + 1, len(cfg.plans) + 1
    timed = [
        Stage(part, weight * plans * steps)
        for _ in cfg.models
        for steps in cfg.steps
        for part, weight in (("timing", rounds), ("memory", 2))
    ]
    return [*timed, *(Stage("precision", 6 * cfg.precision_steps) for _ in cfg.models if cfg.precision_steps)]


def _descent(key: str, method: Loop) -> Stage:
    return Stage(key, (REPLAY * method.metasteps + 1) * method.seeds_per_metastep, METASTEP)


def _smoothness(cfg: DictConfig) -> list[Stage]:
    return [] if cfg.smoothness is None else [Stage("metasmoothness", 3 * cfg.smoothness.directions)]
