"""Attribution: which training examples made the model say this? Exact by replay, cheap by influence functions."""

from metagradient.attribution.compressors import Compressor, Dropout, FactorDropout, Uncompressed
from metagradient.attribution.curvature import DAMPINGS
from metagradient.attribution.exact import ExactScores, exact_scores
from metagradient.attribution.hooks import ExampleGradients
from metagradient.attribution.influence import Influence, Scorer, scores
from metagradient.attribution.kernel import KernelInfluence
from metagradient.attribution.projections import PCA, SJLT, DropoutSJLT, FactorGaussian, Gaussian

__all__ = [
    "DAMPINGS",
    "PCA",
    "SJLT",
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
    "Scorer",
    "Uncompressed",
    "exact_scores",
    "scores",
]
