"""Presets of the smoothness experiment."""
