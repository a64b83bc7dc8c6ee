"""Scores of training examples: exact, by influence functions, and where they are kept."""
