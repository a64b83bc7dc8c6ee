"""Attribution: which training examples made the model say this? Exact by replay, cheap by influence functions."""

from metagradient.attribution.compressors import Compressor, Dropout, FactorDropout, Uncompressed
from metagradient.attribution.curvature import run_damping
from metagradient.attribution.exact import ExactScores, exact_scores
from metagradient.attribution.hooks import ExampleGradients
from metagradient.attribution.influence import Influence
from metagradient.attribution.kernel import KernelInfluence
from metagradient.attribution.peers import TRAK, checkpoints, tracin
from metagradient.attribution.projections import PCA, SJLT, DropoutSJLT, FactorGaussian, Gaussian
from metagradient.attribution.scorers import Scorer, fit_at_weight, scores
from metagradient.attribution.store import ScoreFile, read_scores

__all__ = [
    "PCA",
    "SJLT",
    "TRAK",
    "Compressor",
    "Dropout",
    "DropoutSJLT",
    "ExactScores",
    "ExampleGradients",
    "FactorDropout",
    "FactorGaussian",
    "Gaussian",
    "Influence",
    "KernelInfluence",
    "ScoreFile",
    "Scorer",
    "Uncompressed",
    "checkpoints",
    "exact_scores",
    "fit_at_weight",
    "read_scores",
    "run_damping",
    "scores",
    "tracin",
]
