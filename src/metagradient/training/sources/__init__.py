"""Data that are asked for, not held: where the rows of a batch come from."""

from metagradient.training.sources.collating import Padding
from metagradient.training.sources.columns import (
    Column,
    examples_of,
    gather,
    in_order,
    in_parts,
    join,
    source_of,
    stream,
    take,
)
from metagradient.training.sources.source import Source

__all__ = [
    "Column",
    "Padding",
    "Source",
    "examples_of",
    "gather",
    "in_order",
    "in_parts",
    "join",
    "source_of",
    "stream",
    "take",
]
