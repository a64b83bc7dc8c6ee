"""The command line against real Hydra, as a user meets it: in a process of its own, in an empty directory."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "tiny"


def command(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`metagradient <arguments>`, with the experiment `tiny` added."""
    env = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"} | environment
    return subprocess.run(
        [sys.executable, TINY / "driver.py", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )


def tiny(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`metagradient tiny <arguments>`."""
    return command(cwd, "tiny", "--config-dir", str(TINY / "conf"), *arguments, **environment)


def run_directory(cwd: Path) -> Path:
    (directory,) = (cwd / "outputs" / "tiny").iterdir()
    return directory


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "lightning", "wandb", "matplotlib", "hydra")
    probe = f"import sys, metagradient.cli.command; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_terminal_without_a_character_and_a_closed_one_end_no_run(tmp_path: Path) -> None:
    narrow = tiny(tmp_path, "hydra.run.dir='ü–→'", PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0, narrow.stderr
    assert "run directory: ???" in narrow.stdout
    line = f"{sys.executable} {TINY / 'driver.py'} tiny --config-dir {TINY / 'conf'} hydra.run.dir=closed"
    closed = subprocess.run(["sh", "-c", f"exec {line} >&-"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert closed.returncode == 0, closed.stderr
    assert '"status": "finished"' in (tmp_path / "closed" / "metrics.json").read_text()


def test_without_arguments_experiments_are_listed(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 0
    assert "Does the command line behave? An experiment that ends as it is told." in done.stdout
    assert command(tmp_path, "--version").stdout.startswith("metagradient ")


def test_help_is_quick_and_complete(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = tiny(tmp_path, "--help")
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
    assert done.returncode == 0
    for text in ("Does the command line behave?", "large  [small]", "noisy", "learning_rate: 0.1"):
        assert text in done.stdout
    assert "[large]  small" in tiny(tmp_path, "--help", "experiment=noisy").stdout
    assert "did you mean experiment=noisy?" in tiny(tmp_path, "--help", "experiment=nosy").stderr
    assert seconds < 2.0  # about half of one, unless torch is imported


def test_a_run_leaves_its_record_and_ends_with_the_summary(tmp_path: Path) -> None:
    done = tiny(tmp_path, "seed=3")
    assert (done.returncode, done.stderr) == (0, "")
    directory = run_directory(tmp_path)
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics["result/test_accuracy"] == 0.5
    assert (metrics["seed"], metrics["meta/steps"], metrics["cost/training_runs"]) == (3, 1, 3.0)
    assert done.stdout.strip().splitlines()[-1] == f"run directory: {directory.relative_to(tmp_path)}"


def test_a_preset_and_hydras_own_flags_work(tmp_path: Path) -> None:
    done = tiny(tmp_path, "experiment=noisy", "--cfg", "job")
    assert done.returncode == 0
    assert "width: 30" in done.stdout
    assert not (tmp_path / "outputs").exists()


BAD_INPUT = {  # more of it, in the experiments: tests/experiments/test_wrong_inputs.py
    "unknown key beside a preset": (["experiment=noisy", "sed=3"], "did you mean seed?"),
    "wrong type, boolean": (["learner.nesterov=maybe"], "expected true or false, got 'maybe'"),
    "syntax": (["end={a"], "cannot read the override 'end={a'"),
    "mandatory value": (["needed=???"], "no value for needed; give one: needed=..."),
    "interpolation": (["needed=${nowhere}"], "Interpolation key 'nowhere' not found"),
    "logger mode": (["logger.mode=of"], "logger.mode=of: expected one of auto, online, offline, disabled"),
    "bad setting found later": (["end=user"], "too small for the plan: the smallest that works is memory=12MiB"),
    "bad setting, wrapped": (["end=wrapped"], "no data set 'mnits'; there are: digits, mnist"),
    "missing file": (["end=file"], "no such file or folder: /no/such/folder/data.csv"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line_that_helps(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = tiny(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("metagradient tiny: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_experiment_is_named(tmp_path: Path) -> None:
    done = command(tmp_path, "tniy")
    assert done.returncode == 2
    assert "did you mean tiny? there are: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_failure_is_one_line_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    done = tiny(tmp_path, "end=bug")
    directory = run_directory(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f'metagradient tiny: KeyError: "a programmer\'s error" (traceback: {directory}/run.log)\n'
    assert "Traceback (most recent call last):" in (directory / "run.log").read_text()
    metrics = json.loads((directory / "metrics.json").read_text())
    assert (metrics["status"], metrics["result/test_accuracy"]) == ("failed", 0.5)


def test_raw_tracebacks_for_those_who_ask(tmp_path: Path) -> None:
    done = tiny(tmp_path, "end=user", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("end", ["lightning", "terminated"])
def test_ctrl_c_and_sigterm_keep_what_there_is(tmp_path: Path, end: str) -> None:
    done = tiny(tmp_path, f"end={end}")
    directory = run_directory(tmp_path)
    assert done.returncode == 130
    assert (
        done.stderr == f"metagradient tiny: interrupted; partial results lie in {directory}; go on with resume=true\n"
    )
    metrics = json.loads((directory / "metrics.json").read_text())
    assert (metrics["status"], metrics["result/test_accuracy"]) == ("interrupted", 0.5)


def test_a_sweep_goes_on_after_a_failed_job_and_says_so(tmp_path: Path) -> None:
    done = tiny(tmp_path, "-m", "end=well,bug,user", "seed=0,1")
    assert done.returncode == 1
    sweep = run_directory(tmp_path)
    status = [json.loads((sweep / str(job) / "metrics.json").read_text())["status"] for job in range(6)]
    assert status == ["finished", "finished", "failed", "failed", "failed", "failed"]
    assert "a programmer's error" in (sweep / "3" / "run.log").read_text()
    assert "Traceback" not in (sweep / "1" / "run.log").read_text()
    assert "job 3 failed: KeyError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_without_failures_succeeds(tmp_path: Path) -> None:
    assert tiny(tmp_path, "--multirun", "seed=0,1").returncode == 0


@pytest.mark.slow
def test_optuna_raises_what_an_experiment_returns(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sampled = ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1", "learner.learning_rate=interval(0.01,0.3)"]
    done = tiny(tmp_path, "-m", "hydra/sweeper=optuna", *sampled, "end=rate")
    assert done.returncode == 0, done.stderr
    reached = [json.loads(path.read_text())["objective"] for path in run_directory(tmp_path).glob("*/metrics.json")]
    assert len(reached) == 4
    assert f"Best value: {max(reached)}" in done.stdout


@pytest.mark.slow
def test_optuna_outlives_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    trials = ["hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]
    done = tiny(tmp_path, "-m", "hydra/sweeper=optuna", *trials, "end=choice(bug,well)")
    assert done.returncode == 1
    table = re.search(r"6 jobs, (\d) finished", done.stdout)
    assert table is not None
    assert 0 < int(table[1]) < 6
    assert "jobs without a result" in done.stderr
