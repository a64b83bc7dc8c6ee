"""Data sets with a recorded truth; nothing here knows the rest of metagradient."""

from metagradient.data.augmentation import GaussianNoise, RandomShift
from metagradient.data.collisions import higgs
from metagradient.data.corruption import LabelNoise, LabelTruth
from metagradient.data.labelled_sentences import SentenceSplits, sentences
from metagradient.data.language import (
    AnswerNoise,
    AnswerTruth,
    TextSplits,
    Tokenizer,
    TokenizerSettings,
    characters,
    instructions,
    made_instructions,
)
from metagradient.data.origins import Origin
from metagradient.data.own import array_file, class_numbers, image_folder, table_file, text_file
from metagradient.data.pairs import PairSplits, drawn_digits, image_text_pairs
from metagradient.data.sources import digits, hub
from metagradient.data.splits import Splits
from metagradient.data.tabular import a9a, covtype, rcv1

__all__ = [
    "AnswerNoise",
    "AnswerTruth",
    "GaussianNoise",
    "LabelNoise",
    "LabelTruth",
    "Origin",
    "PairSplits",
    "RandomShift",
    "SentenceSplits",
    "Splits",
    "TextSplits",
    "Tokenizer",
    "TokenizerSettings",
    "a9a",
    "array_file",
    "characters",
    "class_numbers",
    "covtype",
    "digits",
    "drawn_digits",
    "higgs",
    "hub",
    "image_folder",
    "image_text_pairs",
    "instructions",
    "made_instructions",
    "rcv1",
    "sentences",
    "table_file",
    "text_file",
]
