"""One thread, quiet logs, and the machine's devices: what every test shares."""

import logging
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device a truth is checked on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _global_randomness_is_no_tests_business() -> Iterator[None]:
    """No test sees the generator state that another left behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
