"""An interrupt is not lost where Python only notes exceptions: in finalisers, and in what libraries make of them."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metagradient.cli.interrupts import interruptible, was_interrupted


class Interrupting:
    """A cycle whose finaliser is interrupted."""

    def __init__(self, by: signal.Signals) -> None:
        self.itself, self.by = self, by

    def __del__(self) -> None:
        os.kill(os.getpid(), self.by)
        time.sleep(0.1)


def collect_some(by: signal.Signals) -> None:
    with interruptible():
        for _ in range(3):
            Interrupting(by)
        gc.collect()
        time.sleep(5)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_a_finaliser_comes_through(by: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    try:
        with pytest.raises(KeyboardInterrupt):
            collect_some(by)
        assert sys.unraisablehook is before[1]
    finally:
        signal.signal(signal.SIGINT, before[0])


def test_what_libraries_make_of_an_interrupt_is_one() -> None:
    def chained(error: BaseException, cause: BaseException) -> BaseException:
        error.__context__ = cause
        return error

    assert was_interrupted(KeyboardInterrupt())
    assert was_interrupted(chained(SystemExit(1), KeyboardInterrupt()))
    assert was_interrupted(chained(ImportError("half"), chained(SystemError(), KeyboardInterrupt())))
    assert not was_interrupted(chained(SystemExit(1), ValueError()))


def test_a_sweep_that_is_interrupted_says_which_job_was(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[1] / "tiny"
    command = [sys.executable, str(tiny / "driver.py"), "tiny", "--config-dir", str(tiny / "conf")]
    done = subprocess.run(
        [*command, "-m", "end=well,terminated,bug"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130
    assert "interrupted; partial results lie in" in done.stderr
    assert "3 jobs, 1 finished" in done.stdout
    assert "never began" in done.stdout
    assert "interrupted" in done.stdout
    assert "killed" not in done.stdout
