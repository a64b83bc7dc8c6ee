"""Metagradient descent: update rules, the outer loop's state, data selection."""

from metagradient.descent.problem import Reading, Selection, SelectionProblem
from metagradient.descent.selection import CountSelection, WeightSelection
from metagradient.descent.state import DescentState
from metagradient.descent.updates import Adam, Clipped, Sign, UpdateRule
from metagradient.descent.weights import Raw, Sigmoid, WeightMap

__all__ = [
    "Adam",
    "Clipped",
    "CountSelection",
    "DescentState",
    "Raw",
    "Reading",
    "Selection",
    "SelectionProblem",
    "Sigmoid",
    "Sign",
    "UpdateRule",
    "WeightMap",
    "WeightSelection",
]
