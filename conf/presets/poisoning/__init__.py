"""Presets of the poisoning experiment."""
