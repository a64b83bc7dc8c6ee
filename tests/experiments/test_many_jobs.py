"""A sweep of many jobs, and a comparison of many runs: neither grows with them as it must not."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

JOBS, RUNS = 40, 500


def command(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "metagradient", *arguments], cwd=place, env=env, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_memory_of_a_sweeps_process_stays(tmp_path: Path) -> None:
    """Each job notes its own peak; a job that left 1 MiB behind would raise the last ten by 25 MiB over the first ones."""
    done = command(tmp_path, "selection", "-m", f"seed=range({JOBS})", "debug=fast", "logger.mode=disabled")
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "selection").iterdir()
    peaks = [json.loads((sweep / str(i) / "metrics.json").read_text())["cost/peak_memory_mib"] for i in range(JOBS)]
    early, late = statistics.median(peaks[5:15]), statistics.median(peaks[-10:])
    print(f"\n{JOBS} jobs: {early:.0f} MiB early, {late:.0f} MiB late")
    assert late - early < 12


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_five_hundred_runs_are_compared_in_ten_seconds(tmp_path: Path) -> None:
    assert command(tmp_path, "selection", "debug=fast", "logger.mode=disabled", "hydra.run.dir=runs/0").returncode == 0
    first = tmp_path / "runs" / "0"
    config = yaml.safe_load((first / "config.yaml").read_text())
    (first / "SHA256SUMS").unlink()  # the copies differ in their seed
    for i in range(1, RUNS):
        shutil.copytree(first, tmp_path / "runs" / str(i))
        changed = {**config, "seed": i // 5, "retrainings": 1 + i % 5}
        (tmp_path / "runs" / str(i) / "config.yaml").write_text(yaml.safe_dump(changed))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command(tmp_path, "compare", "runs", "--html", "page.html", "--csv", "table.csv")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"\n{RUNS} runs are compared in {seconds:.1f} s of processor time")
    assert seconds < 10
