"""`python -m metagradient` is the console command."""

from metagradient.cli import main

main()
