"""Data sets with a recorded truth; nothing here knows the rest of metagradient."""

from metagradient.data.corruption import LabelNoise, LabelTruth
from metagradient.data.sources import digits, hub
from metagradient.data.splits import Splits

__all__ = ["LabelNoise", "LabelTruth", "Splits", "digits", "hub"]
