"""What really happens without some examples: retrainings on subsets, kept on disk, one set for every method."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagradient.errors import UserError
from metagradient.evaluation.batched import can_batch, losses_of_runs, train_batched
from metagradient.evaluation.pool import Tick, Unsendable, spread
from metagradient.files import digest, digest_of, named_tensors, replacing
from metagradient.learners.fingerprint import constants, described
from metagradient.learners.learner import Learner
from metagradient.training.batches import Batches, Fields
from metagradient.training.metaparameters import DataWeights
from metagradient.training.parallel.ranks import by_itself
from metagradient.training.random import generator
from metagradient.training.run import Progress, initial_state, train
from metagradient.training.sources import in_parts
from metagradient.training.state import TrainState

log = logging.getLogger(__name__)

_FORMAT = "1"  # raise it when a step of the same recipe means something else


def subsets(n: int, drop: float, runs: int, seed: int) -> Tensor:
    """[R, n] bool, the examples kept: each row loses round(drop n) of them at random."""
    removed = round(drop * n)
    if not 0 < removed < n:
        raise UserError(
            f"a share of {drop} of {n} examples removes {removed} of them: set another share, for example drop=[0.5]"
        )
    kept = torch.ones(runs, n, dtype=torch.bool)
    for r in range(runs):
        kept[r, torch.randperm(n, generator=generator(seed, removed, r))[:removed]] = False
    return kept


def leave_one_out(n: int, runs: int, seed: int) -> Tensor:
    """[R, n] bool, the examples kept: each row loses one, another one each time, drawn at random."""
    if not isinstance(runs, int) or not 3 <= runs <= n:  # fewer than three cannot be correlated
        raise UserError(f"leave_one_out must be an integer from 3 to {n}, not {runs}: set leave_one_out={min(n, 50)}")
    kept = torch.ones(runs, n, dtype=torch.bool)
    kept[torch.arange(runs), torch.randperm(n, generator=generator(seed))[:runs]] = False
    return kept


@dataclass
class GroundTruth:
    """Retrains a run without some of its examples: same initialisation, same order, weight 0 for the removed.

    Attributes:
        learner: the run, from the learner's own parameters.
        batches: see `learner`.
        queries: whose losses are measured under every retrained model.
        folder: where losses are kept, by a hash of everything that decides them; None: nowhere. What was done
            before an interruption is found again.
        owner: who pays: `runs` counts the trainings that were really done for it, before an interruption as well.
        at_once: trainings moved together, where they can be stacked (`train_batched`). 1: none; where a single step
            keeps a core busy already, as a transformer's does, stacking gains nothing and processes do.
        workers: processes of one thread each, among which the others are spread: convolutional networks, and
            at_once=1. The losses are bitwise those of one process with one thread. Every process holds the data.

    `found` counts those that lay on the disk. Processes that share the learner (`Learner.group`) divide the retrainings, each of
    which one of them does alone; the first one reads and keeps what is on disk.
    """

    learner: Learner
    batches: Batches
    queries: Fields
    folder: Path | None = None
    owner: str = ""
    at_once: int = 50
    workers: int = 1
    progress: Progress | None = None
    runs: float = field(default=0.0, init=False)
    found: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.workers, int) or self.workers < 1:
            raise UserError(f"workers must be an integer >= 1, not '{self.workers}': set workers=1")

    def losses(self, weights: Tensor) -> Tensor:
        """The queries' losses [R, q] after training with weights (or masks) [R, n]."""
        file = (
            None
            if self.folder is None
            else self.folder / f"{run_digest(self.learner, self.batches, self.queries, weights)}.safetensors"
        )
        losses = torch.empty(len(weights), len(next(iter(self.queries.values()))))
        group = self.learner.group
        found, owners = group.told(_load(file) if group.rank == 0 else None)[0]
        self.runs += list(owners.values()).count(self.owner) if self.owner else 0
        self.found += len(owners)
        if owners:
            losses[list(owners)] = found
            log.info("%d of %d retrainings found in %s", len(owners), len(weights), file)
        todo = [r for r in range(len(weights)) if r not in owners]
        with closing(self._divided(weights.float(), todo)) as retrained:
            for rows, values in retrained:
                losses[rows] = values
                owners |= dict.fromkeys(rows, self.owner)
                self.runs += len(rows)
                if file is not None and group.rank == 0:
                    _save(losses, owners, file)
        return losses

    def _divided(self, weights: Tensor, todo: list[int]) -> Generator[tuple[list[int], Tensor]]:
        """`_retrained`, of which each of several processes does a part: some at a time, so that the first one can keep them."""
        group = self.learner.group
        if group.alone:
            yield from self._retrained(weights, todo, len(weights) - len(todo))
            return
        each = self.at_once if self.at_once > 1 and can_batch(self.learner) else self.workers
        for start in range(0, len(todo), group.size * each):
            own = todo[start : start + group.size * each][group.rank :: group.size]
            with by_itself(self.learner):
                done = list(self._retrained(weights, own, len(weights) - len(todo) + start))
            for part in group.told(done):
                yield from part

    def _retrained(self, weights: Tensor, todo: list[int], finished: int) -> Generator[tuple[list[int], Tensor]]:
        """(rows of the weights, their losses) as they come, `finished` of them before: stacked where that helps, else from a pool
        of processes."""
        if self.at_once == 1 or not can_batch(self.learner):
            yield from self._singly(weights, todo, finished)
            return
        for start in range(0, len(todo), self.at_once):
            rows = todo[start : start + self.at_once]
            before = (finished + start) * len(self.batches)
            states = train_batched(
                self.learner,
                self.batches,
                weights[rows],
                initial_state(self.learner),
                at_once=self.at_once,
                progress=partial(self._after, before, len(weights)),
            )
            yield rows, losses_of_runs(self.learner, states, self.queries).float()

    def _singly(self, weights: Tensor, todo: list[int], finished: int) -> Generator[tuple[list[int], Tensor]]:
        job = partial(_retrain, self.learner, self.batches, self.queries)
        steps, under_way = len(self.batches), dict[int, int]()

        def tick(index: int, done: int) -> None:
            under_way[index] = done
            self._tell(finished * steps + sum(under_way.values()), len(weights))

        for index, values in _in_processes(job, [weights[r].numpy() for r in todo], self._processes(len(todo)), tick):
            tick(index, steps)
            yield [todo[index]], torch.from_numpy(values)

    def _processes(self, runs: int) -> int:
        """How many, and why."""
        workers, name = self.workers, type(self.learner).__name__
        if workers > 1 and next(self.learner.parameters()).is_cuda:
            log.info("processes would share the one GPU: workers=%d is left aside", workers)
            workers = 1
        if workers > 1 and runs:
            log.info("%d runs of %s are spread over %d processes of one thread each", runs, name, min(workers, runs))
        elif runs:
            log.info("%d runs of %s are trained one after the other", runs, name)
        return workers

    def _after(self, before: int, runs: int, _what: str, done: int, _total: int) -> None:
        self._tell(before + done, runs)

    def _tell(self, done: int, runs: int) -> None:
        if self.progress is not None:
            self.progress("retraining", done, runs * len(self.batches))


def _retrain(learner: Learner, batches: Batches, queries: Fields, weights: np.ndarray, tick: Tick) -> np.ndarray:
    """The queries' losses [q] after one training."""
    z = DataWeights(torch.from_numpy(weights))
    state = train(learner, batches, (z,), progress=lambda _, done, __: tick(done))
    return losses_of_runs(learner, TrainState.stack([state]), queries)[0].float().numpy()


def _in_processes(
    job: partial[np.ndarray], arguments: Sequence[np.ndarray], workers: int, tick: Callable[[int, int], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """`spread`, or the loop where there is one worker, or the learner cannot travel: on one thread, too, to the same bits."""
    if workers == 1:
        yield from ((index, job(argument, partial(tick, index))) for index, argument in enumerate(arguments))
        return
    done = set[int]()
    with closing(spread(job, arguments, workers, tick)) as results:
        try:
            for index, result in results:
                done.add(index)
                yield index, result
            return
        except Unsendable as error:
            log.warning(
                "the learner cannot be sent to other processes (%s): one run after the other, in this one", error
            )
    for index in sorted(set(range(len(arguments))) - done):
        with _one_thread():
            result = job(arguments[index], partial(tick, index))
        yield index, result


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_digest(learner: Learner, batches: Batches, queries: Fields, weights: Tensor | None = None) -> str:
    """A hash of what decides a run and is asked of it: model, frozen weights too, optimizer, schedule, data, order, queries.

    Of code only names are part of it: an edited `losses` wants another METAGRADIENT_CACHE, or an emptied one.
    """
    words = [_FORMAT, *described(learner, batches)]
    start = initial_state(learner)
    parts = {"plan": batches.plan, "weights": weights, "decay": learner.decay_mask}
    parts |= dict(zip(start.names(), start.tensors(), strict=True)) | constants(learner)
    tensors = chain(in_parts(batches.examples), in_parts(queries), parts.items())
    there = ((name, x) for name, x in tensors if x is not None)
    return digest_of(chain(["\n".join(words)], named_tensors(there)))[:24]


def _load(file: Path | None) -> tuple[Tensor, dict[int, str]]:
    """The losses of the rows that are there, and for whom each was trained."""
    if file is not None and file.exists():
        try:
            with safe_open(file, framework="pt") as kept:
                losses, about = kept.get_tensor("losses"), kept.metadata() or {}
            if about.get("sha256") != digest(file.stem, about.get("owners", ""), losses):  # its name says of what
                raise ValueError("its checksum is wrong")
            owners = json.loads(about["owners"])  # a list: of the first rows, before they came in any order
            return losses, dict(enumerate(owners)) if isinstance(owners, list) else {
                int(k): v for k, v in owners.items()
            }
        except Exception as error:
            log.warning("%s cannot be read (%s): its models are trained again", file, error)
    return torch.empty(0), {}


def _save(losses: Tensor, owners: dict[int, str], file: Path) -> None:
    """The rows that are there. Written beside and renamed: a run killed here leaves the last whole file."""
    rows = sorted(owners)
    there, words = losses[rows].contiguous(), json.dumps({row: owners[row] for row in rows})
    try:
        with replacing(file) as draft:
            save_file({"losses": there}, draft, metadata={"owners": words, "sha256": digest(file.stem, words, there)})
    except OSError as error:
        log.warning("retrainings are not kept: %s; METAGRADIENT_CACHE names another folder", error)
