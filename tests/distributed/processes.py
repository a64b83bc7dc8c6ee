"""Processes for tests: each runs one function of its group, and what it returns is read by the test."""

from __future__ import annotations

import os
import time
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
    for process in _started(sizes, function, folder):
        process.join(240)
    failed = [path.read_text() for path in sorted(folder.glob("error-*"))]
    assert not failed, "\n".join(failed)
    return {
        size: [torch.load(folder / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)] for size in sizes
    }


def ends(size: int, function: Callable[[Group], Any], folder: Path, seconds: float = 60) -> list[str | None]:
    """How each process of a group ends: the last line of its error, "" without one, None where it died without a word.

    Those that have not ended after some seconds are an error.
    """
    folder.mkdir()
    processes = _started([size], function, folder)
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    assert not hanging, f"processes {hanging} were still waiting after {seconds} s"

    def end(rank: int) -> str | None:
        error, done = folder / f"error-{rank}", folder / f"{size}-{rank}.pt"
        return error.read_text().strip().splitlines()[-1] if error.exists() else "" if done.exists() else None

    return [end(rank) for rank in range(size)]


def _started(sizes: Sequence[int], function: Callable[[Group], Any], folder: Path) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cases"])  # imported once
    processes = [
        context.Process(target=_run, args=(rank, list(sizes), function, str(folder)), daemon=True)
        for rank in range(max(sizes))
    ]
    for process in processes:
        process.start()
    return processes


def _run(rank: int, sizes: Sequence[int], function: Callable[[Group], Any], folder: str) -> None:
    torch.set_num_threads(1)
    # As torchrun says it, for Lightning.
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": max(sizes), "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": max(sizes)}
    os.environ |= {name: str(value) for name, value in said.items()}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
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
