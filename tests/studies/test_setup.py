"""What every experiment begins with."""

import gc

import pytest
import torch
from hydra.types import RunMode
from omegaconf import OmegaConf

from metagradient.cli.help import composer
from metagradient.schema import register
from metagradient.studies import setup, trainer


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


@pytest.mark.parametrize("given", [None, "high"])
def test_products_are_float32_unless_asked_for_on_a_gpu(
    given: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = OmegaConf.create({"trainer": {"accelerator": "auto", "precision": "32-true", "matmul": given or "highest"}})
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for on_gpu in (False, True):
            torch.set_float32_matmul_precision("medium")
            torch.backends.cudnn.allow_tf32 = True  # torch's own default
            monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
            trainer.multiply(cfg)
            reduced = on_gpu and given is not None
            assert torch.get_float32_matmul_precision() == ("high" if reduced else "highest")
            assert torch.backends.cudnn.allow_tf32 is reduced
            assert ("changes nothing on the CPU" in caplog.text) is (given is not None)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
