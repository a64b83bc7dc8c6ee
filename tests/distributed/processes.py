"""Processes for tests: each runs one function of its group, and what it returns is read by the test."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from metagradient.distributed import SOLO, Group


def together(sizes: Sequence[int], function: Callable[[Group], Any], folder: Path) -> dict[int, list[Any]]:
    """`function(group)` in groups of each of the sizes, one after another: for each size what its ranks returned."""
    largest = max(sizes)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cases"])  # imported once
    processes = [
        context.Process(target=_run, args=(rank, list(sizes), function, str(folder)), daemon=True)
        for rank in range(largest)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    failed = [path.read_text() for path in sorted(folder.glob("error-*"))]
    assert not failed, "\n".join(failed)
    return {
        size: [torch.load(folder / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)] for size in sizes
    }


def _run(rank: int, sizes: Sequence[int], function: Callable[[Group], Any], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", max(sizes))
    dist.init_process_group("gloo", rank=rank, world_size=max(sizes), store=store, timeout=timedelta(seconds=60))
    try:
        groups = {size: dist.new_group(range(size)) for size in sizes if size > 1}
        for size in sizes:
            if rank < size:
                group = SOLO if size == 1 else Group(rank, size, groups[size])
                torch.save(function(group), f"{folder}/{size}-{rank}.pt")
    except BaseException:
        Path(folder, f"error-{rank}").write_text(traceback.format_exc())
    finally:
        dist.destroy_process_group()
