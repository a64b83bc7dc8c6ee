"""An interrupt is not lost where Python only notes exceptions: in finalisers, and in what libraries make of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from metagradient.cli.interrupts import was_interrupted

LOST = """
import gc, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from metagradient.cli.interrupts import interruptible

class Interrupting:  # a cycle whose finaliser is interrupted
    def __init__(self):
        self.itself = self

    def __del__(self):
        os.kill(os.getpid(), signal.{by})
        time.sleep({wait})

before, came = sys.unraisablehook, 0
try:
    with interruptible():
        for _ in range(20):
            Interrupting()
        gc.collect()
        {after}
except (KeyboardInterrupt, ValueError):
    came += 1
time.sleep(0.2)  # no second one comes after the block
print(came, sys.unraisablehook is before)
"""


@pytest.mark.parametrize(
    ("by", "wait", "after"),
    [
        ("SIGINT", 0, "time.sleep(5)"),
        ("SIGTERM", 0.02, "time.sleep(5)"),
        ("SIGINT", 0, "pass"),
        ("SIGINT", 0, "raise ValueError"),
    ],
)
def test_an_interrupt_within_a_finaliser_comes_through_once(by: str, wait: float, after: str) -> None:
    script = LOST.format(by=by, wait=wait, after=after)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "1 True\n"), done.stderr


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
