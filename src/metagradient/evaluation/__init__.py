"""Judges: they retrain and measure, and never know which method they judge."""

from metagradient.evaluation.classification import accuracy, example_losses_of, mean_cross_entropy
from metagradient.evaluation.filtering import filter_by_loss
from metagradient.evaluation.retraining import Retraining, join, take

__all__ = ["Retraining", "accuracy", "example_losses_of", "filter_by_loss", "join", "mean_cross_entropy", "take"]
