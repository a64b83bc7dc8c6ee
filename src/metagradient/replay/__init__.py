"""The run replayed: checkpoint plans, storage, the adjoint, the Lightning callback."""

from metagradient.replay.adjoint import NonFiniteCotangent, Objective
from metagradient.replay.budget import choose
from metagradient.replay.callback import Metagradient
from metagradient.replay.checks import Linearity, finite_differences, linearity
from metagradient.replay.metagradients import Metagradients, metagradient
from metagradient.replay.objectives import example_losses, mean_loss
from metagradient.replay.plans import Plan
from metagradient.replay.recording import ReplayMismatch
from metagradient.replay.smoothness import GradientHealth, Smoothness, measure_smoothness, metasmoothness
from metagradient.replay.storage import DiskStorage, MemoryStorage, PinnedStorage, make_storage
from metagradient.replay.trial import Footprint, Prediction

__all__ = [
    "DiskStorage",
    "Footprint",
    "GradientHealth",
    "Linearity",
    "MemoryStorage",
    "Metagradient",
    "Metagradients",
    "NonFiniteCotangent",
    "Objective",
    "PinnedStorage",
    "Plan",
    "Prediction",
    "ReplayMismatch",
    "Smoothness",
    "choose",
    "example_losses",
    "finite_differences",
    "linearity",
    "make_storage",
    "mean_loss",
    "measure_smoothness",
    "metagradient",
    "metasmoothness",
]
