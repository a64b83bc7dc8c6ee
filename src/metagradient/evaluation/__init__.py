"""Judges: they retrain and measure, and never know which method they judge."""

from metagradient.evaluation.batched import losses_of_runs, train_batched
from metagradient.evaluation.classification import (
    accuracy,
    example_losses_of,
    hard_labels,
    mean_cross_entropy,
    outputs_of,
    token_losses_of,
)
from metagradient.evaluation.datamodels import (
    Correlation,
    check_scores,
    leave_one_out_correlation,
    linear_datamodeling_score,
)
from metagradient.evaluation.filtering import filter_by_loss, filter_by_suspicion, neighbour_distances
from metagradient.evaluation.groundtruth import GroundTruth, leave_one_out, run_digest, subsets
from metagradient.evaluation.measures import MEASURES, Measure
from metagradient.evaluation.ranking import (
    LossDifference,
    RandomRemovals,
    brittleness,
    inspection_curve,
    mislabel_auc,
    query_loss_difference,
    random_removals,
    source_precision,
    with_every_label,
)
from metagradient.evaluation.retraining import Retraining
from metagradient.evaluation.texts import choice_accuracy
from metagradient.evaluation.unlearning import agreement, distance, klom, margins, membership_auc
from metagradient.evaluation.victims import Victims, train_victims
from metagradient.evaluation.zero_shot import Retrieval, class_accuracy, embeddings, retrieval
from metagradient.training.sources import join, take

__all__ = [
    "MEASURES",
    "Correlation",
    "GroundTruth",
    "LossDifference",
    "Measure",
    "RandomRemovals",
    "Retraining",
    "Retrieval",
    "Victims",
    "accuracy",
    "agreement",
    "brittleness",
    "check_scores",
    "choice_accuracy",
    "class_accuracy",
    "distance",
    "embeddings",
    "example_losses_of",
    "filter_by_loss",
    "filter_by_suspicion",
    "hard_labels",
    "inspection_curve",
    "join",
    "klom",
    "leave_one_out",
    "leave_one_out_correlation",
    "linear_datamodeling_score",
    "losses_of_runs",
    "margins",
    "mean_cross_entropy",
    "membership_auc",
    "mislabel_auc",
    "neighbour_distances",
    "outputs_of",
    "query_loss_difference",
    "random_removals",
    "retrieval",
    "run_digest",
    "source_precision",
    "subsets",
    "take",
    "token_losses_of",
    "train_batched",
    "train_victims",
    "with_every_label",
]
