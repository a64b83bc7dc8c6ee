"""Types of the core configuration groups: a wrong key or type is refused when the configuration is composed."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from metagradient.schema.ranges import braces, names, number

_COUNT: dict[str, Any] = {"whole": True, "least": 1}


class Normalize(Enum):
    """What the weighted mean loss divides by: the batch size or the sum of the weights."""

    batch = "batch"
    kept = "kept"


class Decay(Enum):
    """Which parameters the weight decay touches: all, or those with two or more dimensions."""

    all = "all"
    matrices = "matrices"


class Loss(Enum):
    """The loss of numbers that are predicted, or of pairs."""

    squared = "squared"
    huber = "huber"
    clip = "clip"
    siglip = "siglip"


@dataclass
class LearnerConfig:
    """conf/learner: optimizer and the routine around it. One of `epochs` and `steps` is given."""

    _target_: Any = None
    arguments: Any = None
    optimizer: Any = braces("metagradient.training.SGD")
    learning_rate: float = number(MISSING, least=0, most=1e6, example=0.05)
    schedule: Any = "constant"
    warmup: float = number(0.25, least=0, most=1)
    batch_size: int | None = number(None, **_COUNT, nullable=True, example=100)
    epochs: int | None = number(None, **_COUNT, nullable=True, example=20)
    steps: int | None = number(None, **_COUNT, nullable=True, example=200)
    normalize: Normalize = Normalize.kept
    decay: Decay = Decay.all
    clip_norm: float | None = number(None, above=0, nullable=True, example=1.0)
    clip_value: float | None = number(None, above=0, nullable=True, example=1.0)
    average: float | None = number(None, least=0, below=1, nullable=True, example=0.99)
    label_smoothing: float = number(0.0, least=0, below=1)
    loss: Loss | None = None
    micro_batch: int | None = number(None, **_COUNT, nullable=True, example=16)
    compiled: bool = False


@dataclass
class ReplayConfig:
    """conf/replay: checkpoint plan, memory budget, storage, saved positions, check."""

    checkpoints: str = "auto"
    memory: str | None = None
    storage: str = "memory"
    folder: str | None = None
    save_every: float | None = number(None, above=0, nullable=True, example=300)
    check: str | None = None


@dataclass
class TrainerConfig:
    """conf/trainer: what is checked of Lightning's Trainer and of torch, whatever else is given."""

    threads: int | None = number(None, **_COUNT, most=1024, nullable=True, example=1)
    devices: int = number(1, **_COUNT, most=1024, example=2)
    num_nodes: int = number(1, **_COUNT, most=1024, example=2)
    matmul: str = "highest"


@dataclass
class LoggerConfig:
    """conf/logger: the W&B run, and TensorBoard's event files."""

    mode: str = "auto"
    project: str = "metagradient"
    group: str | None = None
    name: str | None = None
    tags: list[str] = names()
    tensorboard: bool = False


GROUPS: dict[str, type] = {
    "learner": LearnerConfig,
    "replay": ReplayConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
}

_PARTS = {"data", "model", "method", *GROUPS}
PARTS: dict[str, set[str]] = dict.fromkeys(("selection", "poisoning", "schedule"), _PARTS) | {
    "attribution": _PARTS - {"method"},
    "smoothness": _PARTS - {"method"},
    "unlearning": _PARTS - {"replay"},
    "cost": {"trainer", "logger"},
}
"""The groups that each experiment reads."""


def register() -> None:
    """Make the types known to Hydra as `<group>/schema`."""
    store = ConfigStore.instance()
    for group in ("learner", "replay", "logger"):
        store.store(group=group, name="schema", node=GROUPS[group])
