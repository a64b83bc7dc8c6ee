"""A step tried before a replay: what it takes, and whether it can be differentiated at all."""

from metagradient.replay.trial.footprint import Footprint, Prediction
from metagradient.replay.trial.measuring import Divisible, measure

__all__ = ["Divisible", "Footprint", "Prediction", "measure"]
