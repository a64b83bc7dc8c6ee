"""Metagradient descent: the outer loop, update rules, data selection, poisoning."""

from metagradient.descent.gradient_cancelling import GradientCancelling
from metagradient.descent.loop import Loop
from metagradient.descent.poisoning import PixelPoisoning, Poisons, noise_poisons, poison_rows
from metagradient.descent.problem import STATE, DescentProblem, Reading, Selection
from metagradient.descent.schedule import FoundRecipe, Recipe, RecipeSpace, ScheduleSearch
from metagradient.descent.schedule_baselines import Family
from metagradient.descent.selection import CountSelection, WeightSelection
from metagradient.descent.state import DescentState
from metagradient.descent.updates import Adam, Clipped, Sign, UpdateRule
from metagradient.descent.weights import Raw, Sigmoid, WeightMap

__all__ = [
    "STATE",
    "Adam",
    "Clipped",
    "CountSelection",
    "DescentProblem",
    "DescentState",
    "Family",
    "FoundRecipe",
    "GradientCancelling",
    "Loop",
    "PixelPoisoning",
    "Poisons",
    "Raw",
    "Reading",
    "Recipe",
    "RecipeSpace",
    "ScheduleSearch",
    "Selection",
    "Sigmoid",
    "Sign",
    "UpdateRule",
    "WeightMap",
    "WeightSelection",
    "noise_poisons",
    "poison_rows",
]
