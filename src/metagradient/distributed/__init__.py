"""What one process of a run must ask the others: a group of processes, and sums over it that can be differentiated."""

from metagradient.distributed.group import SOLO, Group, ProcessLost, current, leaving_word, world
from metagradient.distributed.operations import copy, gather, reduce, summed
from metagradient.distributed.watch import watched

__all__ = [
    "SOLO",
    "Group",
    "ProcessLost",
    "copy",
    "current",
    "gather",
    "leaving_word",
    "reduce",
    "summed",
    "watched",
    "world",
]
