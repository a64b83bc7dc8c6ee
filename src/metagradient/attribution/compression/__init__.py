"""Compressors of per-example gradients."""
