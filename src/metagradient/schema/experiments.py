"""The settings of each experiment: what stands at the top of conf/<experiment>.yaml, with types and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metagradient.schema.ranges import number

_SHARE: dict[str, Any] = {"above": 0, "below": 1}
_SEED: dict[str, Any] = {"whole": True, "least": 0, "below": 2**63}


@dataclass
class Reading:
    """A metasmoothness reading at the start."""

    directions: int = number(1, whole=True, least=1)
    h: float = number(0.05, above=0)


@dataclass
class SelectionConfig:
    """conf/selection.yaml."""

    seed: int = number(0, **_SEED)
    held_out: float = number(0.25, **_SHARE)
    refit: bool = False
    retrainings: int = number(3, whole=True, least=1)
    filter_fractions: list[float] = number([0.1], each=True, least=0, below=1)
    smoothness: Any = field(default_factory=Reading)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Filter:
    """The influence filter of the defences."""

    k: int = number(2048, whole=True, least=1)
    damping: float = number(1.0, above=0)


@dataclass
class PoisoningConfig:
    """conf/poisoning.yaml."""

    seed: int = number(0, **_SEED)
    shares: list[float] = number([0.03], each=True, **_SHARE)
    held_out: float = number(0.4, **_SHARE)
    victims: int = number(5, whole=True, least=1)
    peers: Any = None
    transfer: Any = None
    defences: bool = True
    filter_fractions: list[float] = number([0.05], each=True, least=0, below=1)
    augmentation: Any = None
    influence: Any = field(default_factory=Filter)
    defender: Any = None
    smoothness: Any = field(default_factory=Reading)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Grid:
    """The grid of schedules that a search is compared with."""

    low: float = number(0.02, above=0)
    high: float = number(2.0, above=0)
    peaks: int = number(10, whole=True, least=1)
    warmups: list[float] = number([0.1], each=True, least=0, below=1)


@dataclass
class ScheduleConfig:
    """conf/schedule.yaml."""

    seed: int = number(0, **_SEED)
    held_out: float = number(0.4, **_SHARE)
    grid: Any = field(default_factory=Grid)
    family: Any = None
    schedule_free: bool = True
    finalists: int = number(3, whole=True, least=1)
    finalist_seeds: int = number(3, whole=True, least=1)
    retrainings: int = number(5, whole=True, least=1)
    stretch: int = number(2, whole=True, least=1, most=1000)
    smoothness: Any = field(default_factory=Reading)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Race:
    """Compressors that are timed alone."""

    methods: list[str] = field(default_factory=list)
    examples: int = number(512, whole=True, least=1)
    repeats: int = number(5, whole=True, least=1)


@dataclass
class AttributionConfig:
    """conf/attribution.yaml."""

    seed: int = number(0, **_SEED)
    methods: list[str] = field(default_factory=list)
    queries: int = number(50, whole=True, least=1)
    top: int = number(10, whole=True, least=1)
    held_out: int = number(50, whole=True, least=1)
    drop: list[float] = number([0.1], each=True, **_SHARE)
    retrainings: int = number(50, whole=True, least=3)
    leave_one_out: int | None = number(None, whole=True, least=1, nullable=True)
    at_once: int = number(50, whole=True, least=1)
    workers: int | None = number(None, whole=True, least=1, nullable=True)
    keep_retrainings: bool = True
    curvature: str = "gauss_newton"
    labels: int | None = number(None, whole=True, least=1, nullable=True)
    damping: Any = number(None, above=0, nullable=True, words=("run",))
    dampings: list[float] = number([1.0], each=True, above=0)
    checkpoints: int = number(4, whole=True, least=1)
    mask_seed: int = number(0, **_SEED)
    batch: int = number(512, whole=True, least=1)
    queries_per_replay: int | None = number(None, whole=True, least=1, nullable=True)
    none_primal: int = number(8192, whole=True, least=0)
    pca_examples: int = number(4096, whole=True, least=1)
    trak_k: int = number(2048, whole=True, least=1)
    aggregate: str | None = None
    self_influence: bool = False
    store: str | None = None
    brittleness: list[int] = number([10], each=True, whole=True, least=1)
    smoothness: Any = field(default_factory=Reading)
    race: Any = field(default_factory=Race)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class SmoothnessConfig:
    """conf/smoothness.yaml."""

    seed: int = number(0, **_SEED)
    metaparameters: list[str] = field(default_factory=list)
    directions: int = number(4, whole=True, least=1)
    h: float = number(0.05, above=0)
    gradient: bool = True
    variants: Any = None
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Stream:
    """A stream of requests."""

    requests: int = number(0, whole=True, least=0)
    judge_every: int = number(10, whole=True, least=1)


@dataclass
class Klom:
    """Models behind KLOM."""

    models: int = number(0, whole=True, least=0)
    examples: int = number(1000, whole=True, least=1)


@dataclass
class Frontier:
    """Fixed periods against the adaptive one."""

    periods: list[int] = number([5], each=True, whole=True, least=1)
    targets: list[float] = number([0.1], each=True, above=0)


@dataclass
class UnlearningConfig:
    """conf/unlearning.yaml."""

    seed: int = number(0, **_SEED)
    sets: int = number(10, whole=True, least=1)
    delete: Any = None
    add: Any = None
    stream: Any = field(default_factory=Stream)
    run_folder: Any = None
    history: Any = None
    output_noise: float = number(0.0, least=0, most=1e6)
    klom: Any = field(default_factory=Klom)
    frontier: Any = field(default_factory=Frontier)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class CostConfig:
    """conf/cost.yaml."""

    seed: int = number(0, **_SEED)
    models: list[str] = field(default_factory=list)
    steps: list[int] = number([100], each=True, whole=True, least=1)
    plans: list[str] = field(default_factory=list)
    repeats: int = number(3, whole=True, least=1)
    tight_memory: Any = None
    tape_steps: int = number(300, whole=True, least=1)
    resume: Any = None


EXPERIMENTS: dict[str, type] = {
    "selection": SelectionConfig,
    "poisoning": PoisoningConfig,
    "schedule": ScheduleConfig,
    "attribution": AttributionConfig,
    "smoothness": SmoothnessConfig,
    "unlearning": UnlearningConfig,
    "cost": CostConfig,
}
