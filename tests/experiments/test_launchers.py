"""A small sweep through each launcher of local jobs, where it is installed: every job in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=10"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_with_a_failing_job(tmp_path: Path, launcher: str) -> None:
    plugin, settings = LAUNCHERS[launcher]
    pytest.importorskip(plugin)
    varied = ["learner.learning_rate=0.05,1e30", "debug=fast", "logger.mode=disabled", f"hydra/launcher={launcher}"]
    done = subprocess.run(
        [sys.executable, "-m", "metagradient", "selection", "-m", *varied, *settings],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "2 jobs, 1 finished" in done.stdout
    (sweep,) = (tmp_path / "outputs" / "selection").iterdir()
    well, failed = (json.loads((sweep / str(job) / "metrics.json").read_text()) for job in range(2))
    assert 0 < well["objective"] < 1
    assert failed["error"].startswith("NonFiniteLoss")
    assert "Traceback" in (sweep / "1" / "run.log").read_text()
    assert (sweep / "0" / "run.log").stat().st_size > 0
