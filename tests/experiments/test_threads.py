"""Torch threads of the jobs of a sweep that share a machine."""

import pytest

from metagradient.studies.setup import threads_of_a_job


@pytest.mark.parametrize(
    ("launcher", "cores", "threads"),
    [
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 8, None),
        ({"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}, 8, 4),
        ({"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": -1}, 8, 1),
        ({"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 16}, 8, 1),
        ({"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": -7}, 8, 4),
        (
            {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "cpus_per_task": 6},
            8,
            6,
        ),
        ({}, 8, None),
    ],
)
def test_jobs_share_the_cores(launcher: dict[str, object], cores: int, threads: int | None) -> None:
    assert threads_of_a_job(launcher, cores) == threads
