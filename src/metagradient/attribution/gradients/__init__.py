"""Per-example gradients in factors, and of what."""
