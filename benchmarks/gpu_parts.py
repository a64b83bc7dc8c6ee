"""The parts of `gpu.py`: `python benchmarks/gpu_parts.py PART FOLDER` writes FOLDER/PART.json, rewritten after every row.

Costs are those of data weights: a plain training, the metagradient under some plans and kinds of products, both compiled, in seconds of a
step (the median of three runs), in plain trainings, in MiB of the allocator's peak, and in the share that the operations counted
in a replay (`torch.utils.flop_counter`) have of the matrix products that the chip computed per second in the part "rates".
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import metagradient as mg
from metagradient import models
from metagradient.memory import peak_mib, reset_peak
from metagradient.studies.cost import precision
from metagradient.studies.cost.measuring import settle
from metagradient.training.modules.products import set_products

REHEARSAL = os.environ.get("GPU_REHEARSAL") == "1"
DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
SMOLLM = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
          "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}  # fmt: skip
TINY_LLAMA = SMOLLM | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "num_key_value_heads": 2}  # fmt: skip


@dataclass
class Rows:
    """What has been measured, and the file that holds it."""

    path: Path

    def __post_init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        self.all.append(row)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.all))
        draft.replace(self.path)


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """The median of some runs."""
    found = []
    for _ in range(1 if REHEARSAL else repeats):
        settle(DEVICE)
        start = time.perf_counter()
        run()
        settle(DEVICE)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


@contextmanager
def products(name: str) -> Iterator[None]:
    set_products(name)
    try:
        yield
    finally:
        set_products("highest")


# -- costs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A run to be differentiated; `make(compiled)` gives its learner on the CPU."""

    make: Callable[[bool], mg.Learner]
    data: dict[str, Tensor]
    held_out: dict[str, Tensor]
    batch: int
    steps: int

    def batches(self) -> mg.Batches:
        plan = torch.arange(self.batch * self.steps).view(self.steps, self.batch) % len(next(iter(self.data.values())))
        return mg.Batches(self.data, plan).to(DEVICE)

    def learner(self, compiled: bool) -> mg.Learner:
        torch.manual_seed(0)
        return self.make(compiled).to(DEVICE)


def replay(work: Work, learner: mg.Learner, batches: mg.Batches, plan: str) -> Tensor:
    weights = mg.DataWeights(torch.ones(batches.n_examples))
    return mg.metagradient(learner, batches, weights, mg.mean_loss(work.held_out), checkpoints=plan)["weights"]


def costs(rows: Rows, name: str, work: Work, out: Path) -> None:
    """The cost table of one model; compiled ways last, as making them may take all the time there is."""
    learner, batches = work.learner(False), work.batches()
    unit = flops = 0.0
    truth: Tensor | None = None
    ways = [("plain", "", "highest"), ("replay", "auto", "highest"), ("replay", "auto", "high"), ("plain", "", "high"),
            ("replay", "all", "highest"), ("replay", "binomial(2)", "highest"), ("float64", "auto", "highest"),
            ("plain, compiled", "", "highest"), ("replay, compiled", "auto", "highest"),
            ("replay, compiled", "auto", "high")]  # fmt: skip
    kept: dict[int, tuple[dict[str, Any], Tensor]] = {}
    if REHEARSAL and name != "MLP":  # compiling for a CPU takes minutes
        ways = [way for way in ways if "compiled" not in way[0]]
    for way, plan, kind in ways:
        row: dict[str, Any] = {"model": name, "way": " ".join((way, plan)).strip(), "products": kind}
        if way == "float64":
            learner, batches = copy.deepcopy(learner).double(), batches.to(dtype=torch.float64)
        elif way == "plain, compiled":
            learner, batches = work.learner(True), work.batches()

        def once(learner: mg.Learner = learner, batches: mg.Batches = batches, plan: str = plan) -> Tensor | None:
            return replay(work, learner, batches, plan) if plan else mg.train(learner, batches) and None

        try:
            with products(kind):
                if plan == "auto" and not flops:
                    with FlopCounterMode(display=False) as counter:
                        found = once()
                    flops = float(counter.get_total_flops())
                else:
                    found = once()
                settle(DEVICE)
                reset_peak()
                taken = seconds(once)
        except (mg_errors(), RuntimeError) as error:
            rows.add(**row, error=str(error).split("\n")[0][:80])
            continue
        unit = unit or taken
        row |= {"seconds a step": taken / work.steps, "plain trainings": taken / unit, "peak MiB": peak_mib()}
        if plan == "auto" and way != "float64":
            row |= {"TFLOP/s": flops / taken / 1e12, "share of products": _share(flops / taken, kind, out)}
        if way == "float64":
            truth = found
        elif found is not None:
            kept[len(rows.all)] = row, found
        rows.add(**row)
        for at, (earlier, gradient) in kept.items() if truth is not None else ():
            error = float((gradient.double() - truth).norm() / truth.norm())
            rows.all[at] = earlier | {"error against float64": error}
    rows.add(
        model=name, way=f"{sum(p.numel() for p in learner.parameters()) / 1e6:.1f}M parameters, batch {work.batch}"
    )


def mg_errors() -> type[Exception]:
    from metagradient.errors import UserError

    return UserError


def _share(rate: float, kind: str, out: Path) -> float | None:
    """Of the rate of matrix products of this kind."""
    path = out / "rates.json"
    measured = {row["products"]: row["TFLOP/s"] for row in json.loads(path.read_text())} if path.exists() else {}
    return rate / 1e12 / measured[kind] if kind in measured else None


def pictures(n: int, side: int, channels: int = 3) -> dict[str, Tensor]:
    return {"x": torch.rand(n, channels, side, side), "y": torch.randint(10, (n,))}


def mlp(rows: Rows, out: Path) -> None:
    n, steps = (64, 3) if REHEARSAL else (6400, 100)

    def make(compiled: bool) -> mg.Learner:
        model = models.mlp((1, 28, 28), 10, hidden=(256, 256))
        return mg.Classifier(model, mg.SGD(0.9), 0.05, compiled=compiled)

    costs(rows, "MLP", Work(make, pictures(n, 28, 1), pictures(100, 28, 1), n // 32 if REHEARSAL else 128, steps), out)


def resnet9(rows: Rows, out: Path) -> None:
    width, batch, side, steps = (2, 4, 8, 2) if REHEARSAL else (64, 500, 32, 8)

    def make(compiled: bool) -> mg.Learner:
        model = models.resnet9((3, side, side), 10, width=width)
        return mg.Classifier(model, mg.SGD(0.9), 0.1, compiled=compiled)

    costs(rows, "ResNet-9", Work(make, pictures(batch * steps, side), pictures(2 * batch, side), batch, steps), out)


def tokens(rows: int, length: int, vocabulary: int) -> dict[str, Tensor]:
    return {"tokens": torch.randint(vocabulary, (rows, length))}


def gpt(rows: Rows, out: Path) -> None:
    batch, length, vocabulary, steps = (2, 9, 101, 2) if REHEARSAL else (8, 257, 50_257, 4)
    size = {"layers": 2, "heads": 2, "width": 16} if REHEARSAL else {"layers": 12, "heads": 12, "width": 768}

    def make(compiled: bool) -> mg.Learner:
        model = models.GPT(vocabulary, block=1024, tied=True, **size)
        return mg.LanguageModel(model, mg.AdamW(eps_root=1e-7), 3e-4, compiled=compiled)

    data, held_out = tokens(batch * steps, length, vocabulary), tokens(batch, length, vocabulary)
    costs(rows, "GPT", Work(make, data, held_out, batch, steps), out)


def adapters(rows: Rows, out: Path) -> None:
    batch, length, vocabulary, steps = (2, 9, 101, 2) if REHEARSAL else (8, 256, 49_152, 4)

    def make(compiled: bool) -> mg.Learner:
        lora = {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
        model = models.hf_causal(vocabulary, length, config=TINY_LLAMA if REHEARSAL else SMOLLM, lora=lora)
        return mg.LanguageModel(model, mg.AdamW(eps_root=1e-7, weight_decay=0.0), 3e-4, compiled=compiled)

    data, held_out = tokens(batch * steps, length, vocabulary), tokens(batch, length, vocabulary)
    costs(rows, "SmolLM2 and adapters", Work(make, data, held_out, batch, steps), out)


# -- the others ----------------------------------------------------------------------------------------------------


def rates(rows: Rows, out: Path) -> None:
    """TFLOP/s of square matrix products, which costs are compared with."""
    n, count = (128, 2) if REHEARSAL else (8192, 10)
    for kind, dtype in (("highest", torch.float32), ("high", torch.float32), ("medium", torch.float32),
                        ("bf16", torch.bfloat16), ("float64", torch.float64)):  # fmt: skip
        with products(kind if kind in ("high", "medium") else "highest"):
            a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
            a @ b
            taken = seconds(lambda a=a, b=b: [a @ b for _ in range(count)])
            rows.add(products=kind, **{"TFLOP/s": 2 * n**3 * count / taken / 1e12})


def precisions(rows: Rows, out: Path) -> None:
    """Of the models of `metagradient cost`: why parameters are not held in bfloat16."""
    for model in ("mlp",) if REHEARSAL else ("mlp", "resnet9", "gpt"):
        found = precision.compare(model, 3 if REHEARSAL else 30, 0, DEVICE, lambda names, _: names)
        for kind, (error, taken) in found.items():
            rows.add(model=model, products=kind, **{"error against float64": error, "time / float32": taken})


def poisoning(rows: Rows, out: Path) -> None:
    """The smooth ResNet-9 at half its width on 8000 images, 2.5 % of them replaced: as many metasteps as there is time for."""
    from gpu_poisoning import poison

    limit = max(10.0, float(os.environ.get("GPU_LIMIT", "90")) - 50)  # the victims come after it
    for row in poison(DEVICE, out / "poisons", Path(os.environ["GPU_CARRIED"]) / "cifar10.npz", limit, REHEARSAL):
        rows.add(model="ResNet-9", **row)


PARTS = {"rates": rates, "precision": precisions, "mlp": mlp, "resnet9": resnet9, "gpt": gpt, "adapters": adapters,
         "poisoning": poisoning}  # fmt: skip


def main(part: str, out: Path) -> None:
    warnings.filterwarnings("ignore")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # which no value depends on
    set_products("highest")
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    PARTS[part](Rows(out / f"{part}.json"), out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
