"""The ground floor: a training run as a deterministic, replayable, differentiable program."""

from metagradient.training.batches import Batch, Batches
from metagradient.training.compiled import Graphs
from metagradient.training.learner import Classifier, ContrastiveLearner, LanguageModel, Learner
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
from metagradient.training.optimizers import SGD, Adam, AdamW, Optimizer
from metagradient.training.plans import count_plan, epoch_plan, full_batch_plan, given_plan
from metagradient.training.routine import Routine
from metagradient.training.run import NonFiniteLoss, initial_state, train
from metagradient.training.schedules import Constant, Cosine, Halved, Knots, OneCycle, Schedule, WarmupDecay
from metagradient.training.state import TrainState
from metagradient.training.step import step

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Batch",
    "Batches",
    "CandidateWeights",
    "Classifier",
    "Constant",
    "ContrastiveLearner",
    "Cosine",
    "DataWeights",
    "Graphs",
    "Halved",
    "InitialParameters",
    "InputPerturbation",
    "Knots",
    "LanguageModel",
    "Learner",
    "LearningRates",
    "Metaparameter",
    "Momentum",
    "NonFiniteLoss",
    "OneCycle",
    "Optimizer",
    "Routine",
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
