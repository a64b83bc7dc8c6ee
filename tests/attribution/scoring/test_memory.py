"""Scoring never holds one [B, P] tensor: peak memory of a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
import metagradient as mg
from metagradient import models
from metagradient.attribution import Dropout, Influence, Uncompressed, scores

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
data = {"x": torch.rand(1024, 1, 28, 28, generator=g), "y": torch.randint(10, (1024,), generator=g)}
learner = mg.Classifier(models.mlp((1, 28, 28), 10, hidden=(128, 64)), mg.SGD(), 0.1)
state = mg.initial_state(learner)

def score(rows, batch_size, kind):
    part = {k: v[:rows] for k, v in data.items()}
    method = Influence(kind, labels=1, batch_size=batch_size)
    scores(method.fit(learner, state, part), {k: v[:20] for k, v in data.items()}, 1.0)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

score(16, 8, Dropout(1024))
before = peak()
score(1024, 512, Dropout(1024) if sys.argv[1] == "dropout" else Uncompressed())
print(peak() - before, 512 * state.params.numel() * 4)
"""


def peak_and_bound(compressor: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, compressor], capture_output=True, text=True, check=True)
    used, bound = map(int, done.stdout.split())
    return used, bound


@pytest.mark.slow
def test_scoring_with_dropout_stays_below_one_dense_batch_of_gradients() -> None:
    used, bound = peak_and_bound("dropout")
    assert used < bound, f"{used / 2**20:.0f} MiB, one [B, P] is {bound / 2**20:.0f} MiB"


@pytest.mark.slow
def test_the_measure_sees_a_dense_batch() -> None:
    used, bound = peak_and_bound("none")
    assert used > bound
