"""Data sets with a recorded truth; nothing here knows the rest of metagradient."""

from metagradient.data.augmentation import GaussianNoise, RandomShift
from metagradient.data.corruption import LabelNoise, LabelTruth
from metagradient.data.sources import digits, hub
from metagradient.data.splits import Splits
from metagradient.data.tabular import a9a, covtype, rcv1

__all__ = [
    "GaussianNoise",
    "LabelNoise",
    "LabelTruth",
    "RandomShift",
    "Splits",
    "a9a",
    "covtype",
    "digits",
    "hub",
    "rcv1",
]
