"""A run over a data set on disk, and its replay: peak of the process's own memory, and the same bits as from tensors.

`python benchmarks/larger_than_memory.py --gib 3` writes random rows as a Hugging Face data set (Arrow), trains one epoch of a
linear classifier on it and replays the run; then the same from tensors in memory. Each runs in a process of its own.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

WIDTH, SHARD, CLASSES, BATCH = 3072, 20_000, 10, 500


def rows_of(gib: float) -> int:
    """Rows of so many GiB."""
    return int(gib * 2**30 / (4 * WIDTH))


def shards(rows: int):
    """(x, y) of at most SHARD rows each."""
    for start in range(0, rows, SHARD):
        random, size = np.random.default_rng(start), min(SHARD, rows - start)
        y = random.integers(0, CLASSES, size)
        x = random.standard_normal((size, WIDTH), dtype=np.float32)
        x[np.arange(size), y] += 2
        yield x, y


def write(folder: Path, rows: int) -> None:
    """The data set, a folder for each shard."""
    import datasets
    import pyarrow as pa

    datasets.disable_progress_bars()
    for i, (x, y) in enumerate(shards(rows)):
        table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH), "y": pa.array(y)})
        datasets.Dataset(table).save_to_disk(folder / f"{i:05}")


class Peak(threading.Thread):
    """The largest RssAnon of this process, in MiB: memory that is not a map of a file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = self.now(), threading.Event()

    @staticmethod
    def now() -> float:
        """The present one."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("RssAnon:")[2].split()[0]) / 1024

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self.now())


def child(folder: Path, rows: int, held: bool, workers: int) -> None:
    """One run and its replay."""
    import datasets
    import torch
    from torch import nn

    import metagradient as mg

    torch.set_num_threads(1)
    begin = Peak.now()
    watch = Peak()
    watch.start()
    start = time.perf_counter()
    if held:
        parts = list(shards(rows))
        data = {
            "x": torch.from_numpy(np.concatenate([x for x, _ in parts])),
            "y": torch.from_numpy(np.concatenate([y for _, y in parts])),
        }
        del parts
        batches = mg.Batches(data, batch_size=BATCH)
    else:
        tables = [datasets.load_from_disk(str(shard)) for shard in sorted(folder.iterdir())]
        table = datasets.concatenate_datasets(tables).with_format("torch")
        batches = mg.Batches(table, batch_size=BATCH, workers=workers)
    torch.manual_seed(0)
    learner = mg.Classifier(nn.Linear(WIDTH, CLASSES), mg.SGD(0.9), 0.01)
    queries = {name: field[:200] for name, field in batches.examples.items()}
    found = mg.metagradient(
        learner, batches, mg.DataWeights(torch.ones(rows)), mg.mean_loss(queries), checkpoints="sqrt"
    )
    bits = hashlib.sha256(found.state.params.numpy().tobytes() + found["weights"].numpy().tobytes()).hexdigest()[:16]
    watch.done.set()
    watch.join()
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "from": "tensors" if held else "disk",
                "rows": rows,
                "peak_mib": round(watch.peak),
                "begin_mib": round(begin),
                "seconds": round(seconds, 1),
                "bits": bits,
            }
        )
    )


def main() -> None:
    """Write, run both, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=3.0, help="size of the data set")
    parser.add_argument("--workers", type=int, default=0, help="processes that read ahead")
    parser.add_argument("--folder", help="where it is written; a temporary folder by default")
    parser.add_argument("--child", choices=("disk", "tensors"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.folder), rows_of(args.gib), args.child == "tensors", args.workers)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write(Path(folder), rows_of(args.gib))
        found = []
        for kind in ("disk", "tensors"):
            words = [
                sys.executable,
                __file__,
                "--gib",
                str(args.gib),
                "--workers",
                str(args.workers),
                "--folder",
                folder,
                "--child",
                kind,
            ]
            print(line := subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip(), flush=True)
            found.append(json.loads(line))
    print("same bits" if found[0]["bits"] == found[1]["bits"] else "OTHER BITS")


if __name__ == "__main__":
    main()
