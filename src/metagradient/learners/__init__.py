"""Lightning modules whose training is the one step: `Learner`, its subclasses, and the routine that makes them."""

from metagradient.learners.classifier import Classifier
from metagradient.learners.contrastive import ContrastiveLearner
from metagradient.learners.language import LanguageModel
from metagradient.learners.learner import Learner
from metagradient.learners.multilabel import MultiLabel
from metagradient.learners.regressor import Regressor
from metagradient.learners.routine import Routine
from metagradient.learners.strategy import SharedBatches

__all__ = [
    "Classifier",
    "ContrastiveLearner",
    "LanguageModel",
    "Learner",
    "MultiLabel",
    "Regressor",
    "Routine",
    "SharedBatches",
]
