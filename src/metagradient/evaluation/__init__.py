"""Judges: they retrain and measure, and never know which method they judge."""

from metagradient.evaluation.batched import losses_of_runs, train_batched
from metagradient.evaluation.classification import accuracy, example_losses_of, mean_cross_entropy
from metagradient.evaluation.filtering import filter_by_loss, filter_by_suspicion, neighbour_distances
from metagradient.evaluation.retraining import Retraining, join, take
from metagradient.evaluation.unlearning import agreement, distance, klom, margins, membership_auc
from metagradient.evaluation.victims import Victims, deviation, train_victims

__all__ = [
    "Retraining",
    "Victims",
    "accuracy",
    "agreement",
    "deviation",
    "distance",
    "example_losses_of",
    "filter_by_loss",
    "filter_by_suspicion",
    "join",
    "klom",
    "losses_of_runs",
    "margins",
    "mean_cross_entropy",
    "membership_auc",
    "neighbour_distances",
    "take",
    "train_batched",
    "train_victims",
]
