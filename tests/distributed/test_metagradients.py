"""One, two, three and four processes find the same metagradients, and each of them the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, table
from processes import together

from metagradient.distributed import SOLO

EXACT = 1e-12


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """By the number of processes, what each of them found: spawned once for all cases."""
    return together([2, 3, 4], table, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_finds_the_same(shared: dict[int, list[Any]], case: str) -> None:
    alone = CASES[case](SOLO)
    for size, ranks in shared.items():
        for name, expected in alone.items():
            found = ranks[0][case][name]
            for other in ranks[1:]:
                assert torch.equal(other[case][name], found), (size, name)
            if expected.numel():
                assert float((found - expected).norm() / expected.norm()) < EXACT, (size, name)
