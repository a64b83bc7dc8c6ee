"""A replay that can be killed and goes on: what is saved of it, where, and how it is recognised."""

from metagradient.replay.saving.asked import asked_for, folder_of
from metagradient.replay.saving.position import Backward, Position
from metagradient.replay.saving.saving import Saving

__all__ = ["Backward", "Position", "Saving", "asked_for", "folder_of"]
