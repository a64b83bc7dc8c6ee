"""Texts for language models: rows of tokens, of which some are to be predicted."""

from metagradient.data.language.character_sequences import characters
from metagradient.data.language.instruction_files import TokenizerSettings, instructions
from metagradient.data.language.made import made_instructions
from metagradient.data.language.noise import AnswerNoise
from metagradient.data.language.splits import AnswerTruth, TextSplits
from metagradient.data.language.tokenizers import Tokenizer

__all__ = [
    "AnswerNoise",
    "AnswerTruth",
    "TextSplits",
    "Tokenizer",
    "TokenizerSettings",
    "characters",
    "instructions",
    "made_instructions",
]
