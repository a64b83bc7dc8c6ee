"""Language models: next-token losses of padded sequences."""

from metagradient.learners.language.learner import LanguageModel

__all__ = ["LanguageModel"]
