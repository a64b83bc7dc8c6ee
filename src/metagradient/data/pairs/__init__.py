"""Pairs of an image and a text."""

from metagradient.data.pairs.drawn import drawn_digits
from metagradient.data.pairs.files import image_text_pairs
from metagradient.data.pairs.splits import PairSplits

__all__ = ["PairSplits", "drawn_digits", "image_text_pairs"]
