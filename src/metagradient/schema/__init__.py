"""Types of the configuration: the core groups, and the settings of each experiment with their ranges.

Light on purpose: the command line imports it before anything else.
"""

from metagradient.schema.experiments import EXPERIMENTS
from metagradient.schema.groups import Decay, LearnerConfig, Normalize, register
from metagradient.schema.ranges import check

__all__ = ["EXPERIMENTS", "Decay", "LearnerConfig", "Normalize", "check", "register"]
