"""The ground floor: a training run as a deterministic, replayable, differentiable program."""

from metagradient.training.batches import Batch, Batches
from metagradient.training.compiled import Graphs
from metagradient.training.metaparameters import (
    CandidateWeights,
    DataWeights,
    InitialParameters,
    InputPerturbation,
    LearningRates,
    Metaparameter,
    Momentum,
    TokenWeights,
    WeightDecay,
)
from metagradient.training.plans import count_plan, epoch_plan, full_batch_plan, given_plan
from metagradient.training.run import NonFiniteLoss, initial_state, train
from metagradient.training.sources import Padding, Source
from metagradient.training.state import TrainState
from metagradient.training.steps import step
from metagradient.training.updates import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Group,
    Groups,
    Halved,
    Knots,
    Lion,
    Muon,
    OneCycle,
    Optimizer,
    Schedule,
    Scheduled,
    WarmupDecay,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Batch",
    "Batches",
    "CandidateWeights",
    "Constant",
    "Cosine",
    "DataWeights",
    "Graphs",
    "Group",
    "Groups",
    "Halved",
    "InitialParameters",
    "InputPerturbation",
    "Knots",
    "LearningRates",
    "Lion",
    "Metaparameter",
    "Momentum",
    "Muon",
    "NonFiniteLoss",
    "OneCycle",
    "Optimizer",
    "Padding",
    "Schedule",
    "Scheduled",
    "Source",
    "TokenWeights",
    "TrainState",
    "WarmupDecay",
    "WeightDecay",
    "count_plan",
    "epoch_plan",
    "full_batch_plan",
    "given_plan",
    "initial_state",
    "step",
    "train",
]
