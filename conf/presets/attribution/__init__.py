"""Presets of the attribution experiment."""
