"""Types of the configuration: the core groups, the settings of each experiment, what is built by name, with their ranges.

Light on purpose: the command line imports it before anything else.
"""

from metagradient.schema.experiments import EXPERIMENTS
from metagradient.schema.groups import Decay, LearnerConfig, Normalize, register
from metagradient.schema.whole import check_settings, read_by

__all__ = ["EXPERIMENTS", "Decay", "LearnerConfig", "Normalize", "check_settings", "read_by", "register"]
