"""What decoding costs a run when a process reads ahead: JPEG files against tensors in memory, in interleaved pairs.

`python benchmarks/reading_ahead.py` trains a ResNet-9 of width 16 for some steps on batches of 200 pictures of 32 x 32, with one
thread, and prints the ratio of times with a bootstrap interval; `--replay` times the run and its replay.
"""

import argparse
import io
import statistics
import time

import numpy as np
import torch
from PIL import Image

import metagradient as mg
from metagradient.models import ResNet9

BATCH = 200


class Pictures(torch.utils.data.Dataset):
    """JPEG files, as bytes in memory: what a page cache makes of a folder."""

    def __init__(self, n: int) -> None:
        random = np.random.default_rng(0)
        small = random.integers(0, 255, (n, 8, 8, 3), dtype=np.uint8)
        self.files = [self._jpeg(Image.fromarray(x).resize((32, 32))) for x in small]

    @staticmethod
    def _jpeg(picture: Image.Image) -> bytes:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        return file.getvalue()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        pixels = np.asarray(Image.open(io.BytesIO(self.files[row])), dtype=np.float32) / 255
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), row % 10


def seconds(batches: mg.Batches, replay: bool) -> float:
    """Of a training, or of a metagradient."""
    torch.manual_seed(0)
    learner = mg.Classifier(ResNet9(3, 10, width=16), mg.SGD(0.9), 0.01)
    start = time.perf_counter()
    if replay:
        queries = {name: field[:50] for name, field in batches.examples.items()}
        mg.metagradient(
            learner, batches, mg.DataWeights(torch.ones(batches.n_examples)), mg.mean_loss(queries), checkpoints="sqrt"
        )
    else:
        mg.train(learner, batches)
    return time.perf_counter() - start


def main() -> None:
    """Interleaved pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--replay", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = Pictures(BATCH * args.steps)
    held = [torch.stack([files[i][0] for i in range(len(files))]), torch.arange(len(files)) % 10]
    runs = {
        "tensors": mg.Batches({"x": held[0], "y": held[1]}, batch_size=BATCH),
        "files": mg.Batches(files, batch_size=BATCH, workers=args.workers),
        "files, no worker": mg.Batches(files, batch_size=BATCH),
    }
    for batches in runs.values():
        seconds(batches.with_plan(batches.plan[:3]), args.replay)  # warm; the processes stay with the source
    ratios: dict[str, list[float]] = {name: [] for name in list(runs)[1:]}
    for pair in range(args.pairs):
        order = list(runs) if pair % 2 else list(runs)[::-1]
        taken = {name: seconds(runs[name], args.replay) for name in order}
        for name in ratios:
            ratios[name].append(taken[name] / taken["tensors"])
    random = np.random.default_rng(0)
    for name, found in ratios.items():
        draws = [statistics.median(random.choice(found, len(found))) for _ in range(2000)]
        low, high = np.quantile(draws, [0.025, 0.975])
        print(
            f"{name} / tensors: {statistics.median(found):.3f} (95 % {low:.3f} to {high:.3f}, {args.pairs} pairs, {args.workers} workers)"
        )


if __name__ == "__main__":
    main()
