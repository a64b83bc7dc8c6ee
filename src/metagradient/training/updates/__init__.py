"""How a gradient moves the parameters: optimizers, learning-rate schedules, and both together as an `Update`."""

from metagradient.training.updates.optimizers import SGD, Adam, AdamW, Optimizer
from metagradient.training.updates.rule import Update
from metagradient.training.updates.schedules import Constant, Cosine, Halved, Knots, OneCycle, Schedule, WarmupDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Halved",
    "Knots",
    "OneCycle",
    "Optimizer",
    "Schedule",
    "Update",
    "WarmupDecay",
]
