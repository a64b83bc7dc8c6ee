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
    WeightDecay,
)
from metagradient.training.plans import count_plan, epoch_plan, full_batch_plan, given_plan
from metagradient.training.run import NonFiniteLoss, initial_state, train
from metagradient.training.state import TrainState
from metagradient.training.steps import step
from metagradient.training.updates.optimizers import SGD, Adam, AdamW, Optimizer
from metagradient.training.updates.schedules import Constant, Cosine, Halved, Knots, OneCycle, Schedule, WarmupDecay

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
    "Halved",
    "InitialParameters",
    "InputPerturbation",
    "Knots",
    "LearningRates",
    "Metaparameter",
    "Momentum",
    "NonFiniteLoss",
    "OneCycle",
    "Optimizer",
    "Schedule",
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
