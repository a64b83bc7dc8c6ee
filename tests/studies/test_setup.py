"""What every experiment begins with."""

import gc

from hydra.types import RunMode

from metagradient.cli.help import composer
from metagradient.schema import register
from metagradient.studies import setup


def test_only_the_first_job_of_a_process_freezes_what_is_there() -> None:
    """Cycles that are frozen before they are collected stay for ever: a sweep grew by 13 MiB with each job."""
    register()
    with composer(None) as hydra:
        cfg = hydra.get_sanitized_cfg(hydra.compose_config("smoothness", ["debug=fast"], RunMode.RUN), "job")
    setup.prepare(cfg, "smoothness")
    frozen = gc.get_freeze_count()
    assert frozen > 0
    of_a_job = [[] for _ in range(100)]  # type: ignore[var-annotated]
    setup.prepare(cfg, "smoothness")
    assert gc.get_freeze_count() <= frozen
    del of_a_job
