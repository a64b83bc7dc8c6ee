"""A thousand queries take the memory of a hundred: peak anonymous memory of a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metagradient as mg
from metagradient import models
from metagradient.attribution import Dropout, Influence, KernelInfluence, ScoreFile, scores
from metagradient.attribution.scoring.scorers import groups, write_scores

SCRIPT = """
import sys, threading, time
from pathlib import Path
import torch
import metagradient as mg
from metagradient import models
from metagradient.attribution import Dropout, Influence, ScoreFile
from metagradient.attribution.scoring.scorers import write_scores

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
data = {"x": torch.rand(1000, 1, 16, 16, generator=g), "y": torch.randint(10, (1000,), generator=g)}
learner = mg.Classifier(models.mlp((1, 16, 16), 10, hidden=(32,)), mg.SGD(), 0.1)
state = mg.initial_state(learner)
train = {k: v[:300] for k, v in data.items()}
scorer = Influence(Dropout(4096), labels=1, batch_size=50, memory=int(sys.argv[2])).fit(learner, state, train)
scorer.prepare()

def anonymous():
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("RssAnon:") + 1]) * 1024

def score(count):
    queries = {k: v[:count] for k, v in data.items()}
    write_scores(ScoreFile(Path(sys.argv[1]) / f"{count}.safetensors", 300, count), scorer, queries, 1.0)

seen = []
def watch():
    while seen is not None:
        seen.append(anonymous())
        time.sleep(0.001)

score(99)
threading.Thread(target=watch, daemon=True).start()
peaks = []
for count in (100, 1000):
    seen.clear()
    score(count)
    peaks.append(max(seen))
print(peaks[1] - peaks[0])
"""
FULL = 1000 * 4096 * 4
"""Bytes of a thousand compressed gradients."""


def growth(folder: Path, memory: int) -> int:
    words = [sys.executable, "-c", SCRIPT, str(folder), str(memory)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_a_thousand_queries_take_the_memory_of_a_hundred(tmp_path: Path) -> None:
    grown = growth(tmp_path, 8 * 2**20)
    assert grown < FULL / 4, f"{grown / 2**20:.1f} MiB"


@pytest.mark.slow
def test_the_measure_sees_them_all_at_once(tmp_path: Path) -> None:
    assert growth(tmp_path, 2**30) > 2 * FULL


def test_groups_have_the_same_scores_and_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    examples = {"x": torch.randn(23, 5, dtype=torch.float64), "y": torch.randint(3, (23,))}
    train = {name: field[:12] for name, field in examples.items()}
    queries = {name: field[12:] for name, field in examples.items()}
    learner = mg.Classifier(models.mlp((5,), 3, hidden=(4,)).double(), mg.SGD(), 0.1)
    state = mg.initial_state(learner)
    for number, (whole, small) in enumerate(
        (
            (Influence(Dropout(9), batch_size=4), Influence(Dropout(9), batch_size=4, memory=1000)),
            (KernelInfluence(batch_size=4), KernelInfluence(batch_size=4, memory=2500)),
        )
    ):
        together, divided = whole.fit(learner, state, train), small.fit(learner, state, train)
        assert together.at_once(queries) >= 11
        assert 1 < divided.at_once(queries) < 6
        assert len(groups(divided, queries)) > 2
        expected = scores(together, queries, 0.3)
        torch.testing.assert_close(scores(divided, queries, 0.3), expected)
        path = tmp_path / f"{number}.safetensors"
        first = groups(divided, queries)[0]
        begun = ScoreFile(path, 12, 11)
        begun.write_columns(torch.full((12, len(first["y"])), 7.0))
        file = ScoreFile(path, 12, 11)
        write_scores(file, divided, queries, 0.3)
        assert file.complete
        found = file.scores.clone()
        assert bool((found[:, : len(first["y"])] == 7).all()), "what was there is not computed again"
        torch.testing.assert_close(found[:, len(first["y"]) :], expected[:, len(first["y"]) :].float())
