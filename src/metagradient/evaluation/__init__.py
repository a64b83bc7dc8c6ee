"""Judges: they retrain and measure, and never know which method they judge."""

from metagradient.evaluation.batched import losses_of_runs, train_batched
from metagradient.evaluation.classification import accuracy, example_losses_of, mean_cross_entropy
from metagradient.evaluation.filtering import filter_by_loss
from metagradient.evaluation.retraining import Retraining, join, take
from metagradient.evaluation.unlearning import agreement, distance, klom, margins, membership_auc

__all__ = [
    "Retraining",
    "accuracy",
    "agreement",
    "distance",
    "example_losses_of",
    "filter_by_loss",
    "join",
    "klom",
    "losses_of_runs",
    "margins",
    "mean_cross_entropy",
    "membership_auc",
    "take",
    "train_batched",
]
