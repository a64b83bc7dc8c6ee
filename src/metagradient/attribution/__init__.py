"""Attribution: which training examples made the model say this? Exact by replay, cheap by influence functions."""

from metagradient.attribution.compression.compressors import Compressor, Dropout, FactorDropout, Uncompressed
from metagradient.attribution.compression.projections import PCA, SJLT, DropoutSJLT, FactorGaussian, FactorPCA, Gaussian
from metagradient.attribution.gradients.hooks import ExampleGradients
from metagradient.attribution.methods.less import less
from metagradient.attribution.methods.named import Method, method
from metagradient.attribution.methods.run import MethodSettings, TrainedRun
from metagradient.attribution.methods.spec import MethodSpec
from metagradient.attribution.methods.tracin import checkpoints, tracin
from metagradient.attribution.methods.trak import TRAK
from metagradient.attribution.scoring.curvature import run_damping
from metagradient.attribution.scoring.exact import ExactScores, exact_scores, exact_token_scores
from metagradient.attribution.scoring.influence import Influence
from metagradient.attribution.scoring.kernel import KernelInfluence
from metagradient.attribution.scoring.scorers import Scorer, fit_at_weight, scores, write_scores
from metagradient.attribution.scoring.store import ScoreFile, read_scores

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
    "FactorPCA",
    "Gaussian",
    "Influence",
    "KernelInfluence",
    "Method",
    "MethodSettings",
    "MethodSpec",
    "ScoreFile",
    "Scorer",
    "TrainedRun",
    "Uncompressed",
    "checkpoints",
    "exact_scores",
    "exact_token_scores",
    "fit_at_weight",
    "less",
    "method",
    "read_scores",
    "run_damping",
    "scores",
    "tracin",
    "write_scores",
]
