"""What a second process of one thread saves: two processes of one thread each against one of one thread, in interleaved pairs.

`python benchmarks/two_processes.py --out two_processes.json`, on two cores that do nothing else: exact attribution of an MLP
(ten queries, and fifty as by default, divided), retrainings of it (divided, each in one process by itself) and a metastep of a descent on ResNet-9
of width 16 in batches of 200 (random images of 3 x 32 x 32). Prints the ratio of the times, its median and a 95 % interval over
the pairs; in the end both ways must have found the same. `--tiny` rehearses it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

import metagradient as mg
from metagradient.attribution.scoring.exact import ExactScores, exact_scores
from metagradient.distributed import SOLO, Group
from metagradient.models.classifiers import mlp
from metagradient.models.resnet import resnet9

CLASSES = 10


def examples(n: int, *shape: int) -> dict[str, Tensor]:
    return {"x": torch.randn(n, *shape), "y": torch.randint(CLASSES, (n,))}


def learner(model: nn.Module, group: Group, rate: float) -> mg.Learner:
    made = mg.Classifier(model, mg.SGD(0.9), rate)
    made.group = group
    return made


def jobs(tiny: bool) -> dict[str, Callable[[Group], Tensor]]:
    """What is timed, each a function of the group that shares it; its result does not depend on that."""
    torch.manual_seed(0)
    n, epochs, width = (200, 4, 4) if tiny else (4000, 10, 16)
    digits, queries = examples(n, 784), examples(50, 784)
    images, held_out = examples(200 * (1 if tiny else 5), 3, 32, 32), examples(200, 3, 32, 32)
    tables = mg.Batches(digits, batch_size=200, epochs=epochs)
    pictures = mg.Batches(images, batch_size=200, epochs=1)
    weights = {"tables": mg.DataWeights(torch.ones(n)), "pictures": mg.DataWeights(torch.ones(len(images["y"])))}

    def net() -> nn.Module:
        torch.manual_seed(1)
        return mlp((784,), CLASSES)

    def attribution(count: int, group: Group) -> Tensor:
        asked = {name: field[:count] for name, field in queries.items()}
        return exact_scores(ExactScores(learner(net(), group, 0.05), tables), asked)[0]

    def retrainings(group: Group) -> Tensor:
        def one(i: int) -> Tensor:
            kept = torch.rand(n, generator=torch.Generator().manual_seed(i)) < 0.9
            return mg.train(learner(net(), SOLO, 0.05), tables, (mg.DataWeights(kept.float()),)).params

        return torch.stack(group.divided(8, one))

    def descent(group: Group) -> Tensor:
        torch.manual_seed(1)
        model = resnet9((3, 32, 32), CLASSES, width)
        objective = mg.mean_loss(held_out)
        found = mg.metagradient(learner(model, group, 0.02), pictures, weights["pictures"], objective)
        return found.gradients["weights"]

    exact = {f"exact attribution, {count} queries": partial(attribution, count) for count in (10, 50)}
    return exact | {"retrainings": retrainings, "descent on ResNet-9": descent}


def seconds(job: Callable[[Group], Tensor], group: Group, world: Group) -> tuple[float, Tensor | None]:
    """The time until all are done; a group of one is the first process alone, while the other waits."""
    world.wait()
    start = time.perf_counter()
    found = job(group) if not group.alone or world.rank == 0 else None
    world.wait()
    return time.perf_counter() - start, found


def work(rank: int, folder: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store)
    world, table = Group(rank, 2), {}
    random = np.random.default_rng(0)
    for name, job in jobs(args.tiny).items():
        if not name.startswith(args.only):
            continue
        groups = {"one": SOLO, "two": world}
        found = {way: seconds(job, group, world)[1] for way, group in groups.items()}  # warm
        ratios = []
        for pair in range(args.pairs):
            order = list(groups) if pair % 2 else list(groups)[::-1]
            taken = {way: seconds(job, groups[way], world)[0] for way in order}
            ratios.append(taken["two"] / taken["one"])
        if rank == 0:
            one, two = found["one"], found["two"]
            assert one is not None
            assert two is not None
            difference = float((one - two).norm() / one.norm())
            draws = [statistics.median(random.choice(ratios, len(ratios))) for _ in range(2000)]
            low, high = np.quantile(draws, [0.025, 0.975]).tolist()
            row = {"ratio": statistics.median(ratios), "low": low, "high": high, "difference": difference}
            table[name] = row
            print("{}: {ratio:.3f} (95 % {low:.3f} to {high:.3f}), results {difference:.1e} apart".format(name, **row))
    if rank == 0 and args.out is not None:
        args.out.write_text(json.dumps({"pairs": args.pairs, "cores": os.cpu_count(), **table}, indent=2))
    world.wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="the rows whose names begin so")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        multiprocessing.spawn(work, (scratch, parsed), nprocs=2)
