"""Presets of the selection experiment."""
