"""Presets of the cost experiment."""
