"""The console command: composing, errors in words, resuming, help, comparing."""

from metagradient.cli.command import experiments, launch
from metagradient.cli.command import main as main

__all__ = ["experiments", "launch", "main"]
