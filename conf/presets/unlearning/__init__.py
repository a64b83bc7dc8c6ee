"""Presets and methods of the unlearning experiment."""
