"""Unlearning: the model without (or with) some examples, from the recorded run instead of a new training."""

from metagradient.unlearning.baselines import Finetune, FirstOrder, GradientAscent, NegGradPlus, Newton, Retrain
from metagradient.unlearning.deltagrad import DeltaGrad
from metagradient.unlearning.history import History
from metagradient.unlearning.lbfgs import SecantPairs
from metagradient.unlearning.methods import Method, Unlearned, perturbed
from metagradient.unlearning.policies import Adaptive, Guard
from metagradient.unlearning.requests import Request, pool
from metagradient.unlearning.run import RecordedRun, RecordRun, record
from metagradient.unlearning.saving import WORTHWHILE, predicted_saving
from metagradient.unlearning.stored import load, save
from metagradient.unlearning.streams import Served, stream

__all__ = [
    "WORTHWHILE",
    "Adaptive",
    "DeltaGrad",
    "Finetune",
    "FirstOrder",
    "GradientAscent",
    "Guard",
    "History",
    "Method",
    "NegGradPlus",
    "Newton",
    "RecordRun",
    "RecordedRun",
    "Request",
    "Retrain",
    "SecantPairs",
    "Served",
    "Unlearned",
    "load",
    "perturbed",
    "pool",
    "predicted_saving",
    "record",
    "save",
    "stream",
]
