"""The settings of each experiment: what stands at the top of conf/<experiment>.yaml, with types and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metagradient.schema.ranges import braces, names, number, settings

_SHARE: dict[str, Any] = {"above": 0, "below": 1}
_SEED: dict[str, Any] = {"whole": True, "least": 0, "below": 2**63}
_FILTERS: dict[str, Any] = {"each": True, "some": True, "distinct": True, "least": 0, "below": 1}
_LIST: dict[str, Any] = {"each": True, "distinct": True}


@dataclass
class Reading:
    """A metasmoothness reading at the start."""

    directions: int = number(1, whole=True, least=1)
    h: float = number(0.05, above=0, most=10)


@dataclass
class Pretraining:
    """Steps on the corpus of the data, before anything else."""

    steps: int = number(300, whole=True, least=1)
    learning_rate: float = number(0.006, above=0, most=1e6)


@dataclass
class Rivals:
    """Other choices of texts by attribution."""

    shares: list[float] = number([0.25], each=True, some=True, distinct=True, above=0, most=1)
    coordinates: int = number(8192, whole=True, least=1)
    checkpoints: int = number(4, whole=True, least=1)
    influence: str | None = "dropout:2048:path"


@dataclass
class Pairs:
    """How a selection among pairs is judged, and the filters that it is compared with."""

    among: int = number(100, whole=True, least=2)
    groupings: int = number(5, whole=True, least=1)
    shares: list[float] = number([0.5], some=True, **_LIST, above=0, most=1)
    caption_words: list[int] = number([2], **_LIST, whole=True, least=1)
    caption_known: list[float] = number([0.5], **_LIST, above=0, most=1)
    dropped_sources: int = number(0, whole=True, least=0)
    influence: bool = True


@dataclass
class SelectionConfig:
    """conf/selection.yaml."""

    seed: int = number(0, **_SEED)
    held_out: float = number(0.25, **_SHARE)
    refit: bool = False
    retrainings: int = number(3, whole=True, least=1)
    filter_fractions: list[float] = number([0.1], **_FILTERS)
    pretraining: Any = settings(Pretraining, nullable=True)
    rivals: Any = settings(Rivals)
    pairs: Any = settings(Pairs)
    smoothness: Any = settings(Reading, nullable=True)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Filter:
    """The influence filter of the defences."""

    k: int = number(2048, whole=True, least=1)
    damping: float = number(1.0, above=0, most=1e12)


@dataclass
class PoisoningConfig:
    """conf/poisoning.yaml."""

    seed: int = number(0, **_SEED)
    shares: list[float] = number([0.03], some=True, **_LIST, **_SHARE)
    held_out: float = number(0.4, **_SHARE)
    victims: int = number(5, whole=True, least=1)
    peers: Any = braces(nullable=True)
    transfer: Any = braces()
    defences: bool = True
    filter_fractions: list[float] = number([0.05], **_FILTERS)
    augmentation: Any = braces("metagradient.data.RandomShift")
    influence: Any = settings(Filter)
    defender: Any = braces("metagradient.descent.WeightSelection")
    smoothness: Any = settings(Reading, nullable=True)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Grid:
    """The grid of schedules that a search is compared with."""

    low: float = number(0.02, above=0, most=1e6)
    high: float = number(2.0, above=0, most=1e6)
    peaks: int = number(10, whole=True, least=1)
    warmups: list[float] = number([0.1], some=True, **_LIST, least=0, below=1)


@dataclass
class ScheduleConfig:
    """conf/schedule.yaml."""

    seed: int = number(0, **_SEED)
    held_out: float = number(0.4, **_SHARE)
    grid: Any = settings(Grid)
    family: Any = braces("metagradient.descent.Family")
    schedule_free: bool = True
    finalists: int = number(3, whole=True, least=1)
    finalist_seeds: int = number(3, whole=True, least=1)
    retrainings: int = number(5, whole=True, least=1)
    stretch: int = number(2, whole=True, least=1, most=1000)
    smoothness: Any = settings(Reading, nullable=True)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Race:
    """Compressors that are timed alone."""

    methods: list[str] = names()
    examples: int = number(512, whole=True, least=1)
    repeats: int = number(5, whole=True, least=1)


@dataclass
class Difference:
    """The query loss difference."""

    queries: int = number(0, whole=True, least=0)
    share: float = number(0.01, **_SHARE)
    randoms: int = number(5, whole=True, least=1)


@dataclass
class AttributionConfig:
    """conf/attribution.yaml."""

    seed: int = number(0, **_SEED)
    methods: list[str] = names("exact", some=True)
    queries: int = number(50, whole=True, least=1)
    top: int = number(10, whole=True, least=1)
    held_out: int = number(50, whole=True, least=1)
    drop: list[float] = number([0.5], **_LIST, **_SHARE)
    retrainings: int = number(50, whole=True, least=3)
    leave_one_out: int | None = number(None, whole=True, least=1, nullable=True)
    at_once: int = number(50, whole=True, least=1)
    workers: int | None = number(None, whole=True, least=1, nullable=True)
    keep_retrainings: bool = True
    curvature: str = "gauss_newton"
    labels: int | None = number(None, whole=True, least=1, nullable=True)
    damping: Any = number(None, above=0, most=1e12, nullable=True, words=("run",), example=1.0)
    dampings: list[float] = number([1.0], some=True, **_LIST, above=0, most=1e12)
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
    brittleness: list[int] = number([10], **_LIST, whole=True, least=1)
    qld: Any = settings(Difference)
    source_top: int | None = number(None, whole=True, least=1, nullable=True)
    token_scores: bool = False
    smoothness: Any = settings(Reading, nullable=True)
    race: Any = settings(Race)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class SmoothnessConfig:
    """conf/smoothness.yaml."""

    seed: int = number(0, **_SEED)
    metaparameters: list[str] = names("weights", some=True)
    directions: int = number(4, whole=True, least=1)
    h: float = number(0.05, above=0, most=10)
    gradient: bool = True
    variants: Any = braces(nullable=True)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class Deleted:
    """Rows to forget."""

    fraction: float = number(0.01, least=0, most=1)
    count: int | None = number(None, whole=True, least=0, nullable=True, example=1)
    rows: str = "random"
    label: int | None = number(None, whole=True, least=0, nullable=True, example=0)
    file: str | None = None


@dataclass
class Added:
    """Rows to learn."""

    fraction: float = number(0.0, least=0, most=1)
    count: int | None = number(None, whole=True, least=0, nullable=True, example=1)


@dataclass
class Kept:
    """Where the steps of a run are kept."""

    storage: str = "memory"
    folder: str | None = None
    dtype: str | None = None


@dataclass
class Stream:
    """A stream of requests."""

    requests: int = number(0, whole=True, least=0)
    judge_every: int = number(10, whole=True, least=1)


@dataclass
class Klom:
    """Models behind KLOM."""

    models: int = number(0, whole=True, least=2, words=(0,))
    examples: int = number(1000, whole=True, least=1)


@dataclass
class Frontier:
    """Fixed periods against the adaptive one."""

    periods: list[int] = number([5], **_LIST, whole=True, least=1)
    targets: list[float] = number([0.1], **_LIST, above=0, most=1e6)


@dataclass
class UnlearningConfig:
    """conf/unlearning.yaml."""

    seed: int = number(0, **_SEED)
    sets: int = number(10, whole=True, least=1)
    delete: Any = settings(Deleted)
    add: Any = settings(Added)
    stream: Any = settings(Stream)
    run_folder: Any = None
    history: Any = settings(Kept)
    output_noise: float = number(0.0, least=0, most=1e6)
    klom: Any = settings(Klom)
    frontier: Any = settings(Frontier)
    checkpoint: str | None = None
    resume: Any = None


@dataclass
class CostConfig:
    """conf/cost.yaml."""

    seed: int = number(0, **_SEED)
    models: list[str] = names("mlp", some=True)
    steps: list[int] = number([100], some=True, **_LIST, whole=True, least=1)
    plans: list[str] = names("auto", some=True)
    repeats: int = number(3, whole=True, least=1)
    tight_memory: Any = None
    tape_steps: int = number(300, whole=True, least=1)
    precision_steps: int | None = number(None, whole=True, least=1, nullable=True, example=100)
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
