"""The console command, run in the tests' own process."""

import io
import logging
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from metagradient.cli.command import main
from metagradient.reporting import Record


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


@pytest.fixture
def scratch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs keep what only an interrupted one needs: tests then cut them short after the fact."""
    monkeypatch.setattr(Record, "scratch", lambda self, *patterns: None)
