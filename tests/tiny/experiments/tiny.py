"""Does the command line behave? An experiment that ends as it is told.

Only the tests see it.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from metagradient.errors import UserError


def run(cfg: Any, record: Any) -> float:
    """End as `cfg.end` says: well, or with one of the errors that a user or a programmer makes."""
    record.curve(0, {"objective": 2.0})
    record.result({"test_accuracy": 0.5})
    match cfg.end:
        case "user":
            raise UserError("memory budget 3 MiB is too small for the plan:\n the smallest that works is memory=12MiB")
        case "wrapped":
            try:
                raise UserError("no data set 'mnits'; there are: digits, mnist")
            except UserError as error:
                raise RuntimeError("Error in call to target") from error
        case "file":
            Path("/no/such/folder/data.csv").read_text()
        case "bug":
            raise KeyError("a programmer's error")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        case "rate":
            if record.directory.name == os.environ.get("DIE_IN"):
                os.kill(os.getpid(), signal.SIGKILL)
            return float(cfg.learner.learning_rate)
        case "lightning":  # what Trainer.fit makes of Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                raise SystemExit(1)  # noqa: B904
    record.curve(1, {"objective": 1.0})
    record.table("baselines", ["method", "test accuracy"], [("all data", 0.25), ("ours", 0.5)])
    record.cost(training_runs=3.0)
    return 0.5
