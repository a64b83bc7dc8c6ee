"""Metaparameters: what a training run is differentiated with respect to, and where each enters the step.

A metaparameter is a tensor `value` and the one hook through which it enters. Each class here overrides a single hook;
a new kind is one small class.
"""

from metagradient.training.metaparameters.candidates import CandidateWeights
from metagradient.training.metaparameters.data import DataWeights, InputPerturbation
from metagradient.training.metaparameters.hyper import LearningRates, Momentum, WeightDecay
from metagradient.training.metaparameters.initial import InitialParameters
from metagradient.training.metaparameters.metaparameter import Metaparameter
from metagradient.training.metaparameters.tokens import TokenWeights

__all__ = [
    "CandidateWeights",
    "DataWeights",
    "InitialParameters",
    "InputPerturbation",
    "LearningRates",
    "Metaparameter",
    "Momentum",
    "TokenWeights",
    "WeightDecay",
]
