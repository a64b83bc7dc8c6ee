"""Presets of the schedule experiment."""
