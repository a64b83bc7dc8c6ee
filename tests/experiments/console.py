"""The console command, run in the tests' own process."""

import io
import logging
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from metagradient.cli.command import main


class Done(NamedTuple):
    status: int
    out: str
    err: str


def run_in(directory: Path, experiment: str, *overrides: str) -> Done:
    """`metagradient EXPERIMENT OVERRIDES` in `directory` (importing torch for each case would take most of the time)."""
    out, err, before, level = io.StringIO(), io.StringIO(), Path.cwd(), logging.getLogger().level
    os.chdir(directory)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([experiment, *overrides])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        os.chdir(before)
        logging.getLogger().setLevel(level)
    return Done(status, out.getvalue(), err.getvalue())
