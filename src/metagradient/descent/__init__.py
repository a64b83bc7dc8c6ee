"""Metagradient descent: update rules, the outer loop's state, data selection."""

from metagradient.descent.problem import DescentProblem, Reading, Selection
from metagradient.descent.selection import CountSelection, WeightSelection
from metagradient.descent.state import DescentState
from metagradient.descent.updates import Adam, Clipped, Sign, UpdateRule
from metagradient.descent.weights import Raw, Sigmoid, WeightMap

__all__ = [
    "Adam",
    "Clipped",
    "CountSelection",
    "DescentProblem",
    "DescentState",
    "Raw",
    "Reading",
    "Selection",
    "Sigmoid",
    "Sign",
    "UpdateRule",
    "WeightMap",
    "WeightSelection",
]
