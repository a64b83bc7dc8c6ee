"""One thread, quiet logs, and the machine's devices: what every test shares."""

import ctypes
import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch

torch.set_num_threads(1)
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)


# What Lightning says in every such fit and the library silences; pytest sets its own filters.
_SAID_OFTEN = (
    "LightningModule.configure_optimizers. returned .None.",
    "no pre-optimization state was saved",
    "callbacks used to create the checkpoint need to be provided",
    "tensorboardX. has been removed",
    "You defined a .validation_step. but have no",
    "is smaller than the logging interval",
    ".max_epochs. was not set",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores: tests that kill, wait and read leave a quarter of a core idle."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    for message in _SAID_OFTEN:
        config.addinivalue_line("filterwarnings", f"ignore:.*{message}")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device a truth is checked on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    if request.param == "cuda":
        torch.backends.cudnn.deterministic = True  # a replay is bit for bit
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _global_randomness_is_no_tests_business() -> Iterator[None]:
    """No test sees the generator state that another left behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def held() -> Callable[[], tuple[int, int]]:
    """What a process holds: the number of tensors alive, and its resident bytes without those that are only kept for later."""
    process, libc = psutil.Process(), ctypes.CDLL(None)

    def measure() -> tuple[int, int]:
        gc.collect()
        tensors = sum(type(x) in (torch.Tensor, torch.nn.Parameter) for x in gc.get_objects())
        if hasattr(libc, "malloc_trim"):  # glibc keeps freed pages, some MiB more with every new pattern of requests
            libc.malloc_trim(0)
        return tensors, process.memory_info().rss

    return measure


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples per-example gradients were taken of, call by call."""
    from metagradient.attribution.gradients.hooks import ExampleGradients

    counts: list[int] = []
    inner = ExampleGradients._pieces

    def counting(self: ExampleGradients, batch: Any, target: Any) -> Any:
        counts.append(len(batch))
        return inner(self, batch, target)

    monkeypatch.setattr(ExampleGradients, "_pieces", counting)
    return counts
