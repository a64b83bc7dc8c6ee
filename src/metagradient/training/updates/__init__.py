"""How a gradient moves the parameters: optimizers, learning-rate schedules, and both together as an `Update`."""

from metagradient.training.updates.groups import Group, Groups, Scheduled, placed, rules
from metagradient.training.updates.muon import Muon
from metagradient.training.updates.optimizers import SGD, Adam, AdamW, Lion, Optimizer
from metagradient.training.updates.rule import Update
from metagradient.training.updates.schedules import Constant, Cosine, Halved, Knots, OneCycle, Schedule, WarmupDecay

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Group",
    "Groups",
    "Halved",
    "Knots",
    "Lion",
    "Muon",
    "OneCycle",
    "Optimizer",
    "Schedule",
    "Scheduled",
    "Update",
    "WarmupDecay",
    "placed",
    "rules",
]
