"""Types of the core configuration groups: a wrong key or type is refused when the configuration is composed."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


class Normalize(Enum):
    """What the weighted mean loss divides by: the batch size or the sum of the weights."""

    batch = "batch"
    kept = "kept"


class Decay(Enum):
    """Which parameters the weight decay touches: all, or those with two or more dimensions."""

    all = "all"
    matrices = "matrices"


class Loss(Enum):
    """The loss of numbers that are predicted."""

    squared = "squared"
    huber = "huber"


@dataclass
class LearnerConfig:
    """conf/learner: optimizer and the routine around it. One of `epochs` and `steps` is given."""

    _target_: Any = None
    arguments: Any = None
    optimizer: Any = MISSING
    learning_rate: float = MISSING
    schedule: Any = "constant"
    warmup: float = 0.25
    batch_size: int | None = None
    epochs: int | None = None
    steps: int | None = None
    normalize: Normalize = Normalize.kept
    decay: Decay = Decay.all
    clip_norm: float | None = None
    clip_value: float | None = None
    average: float | None = None
    label_smoothing: float = 0.0
    loss: Loss | None = None
    micro_batch: int | None = None
    compiled: bool = False


@dataclass
class ReplayConfig:
    """conf/replay: checkpoint plan, memory budget, storage, check."""

    checkpoints: str = "auto"
    memory: str | None = None
    storage: str = "memory"
    folder: str | None = None
    check: str | None = None


@dataclass
class LoggerConfig:
    """conf/logger: the W&B run, and TensorBoard's event files."""

    mode: str = "auto"
    project: str = "metagradient"
    group: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    tensorboard: bool = False


def register() -> None:
    """Make the types known to Hydra as `<group>/schema`."""
    store = ConfigStore.instance()
    for group, node in (
        ("learner", LearnerConfig),
        ("replay", ReplayConfig),
        ("logger", LoggerConfig),
    ):
        store.store(group=group, name="schema", node=node)
