"""The experiments: one file per question, each read from top to bottom. `metagradient <name>` runs them."""
