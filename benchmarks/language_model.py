"""What a metagradient through a language model of 135M parameters with adapters costs, in plain trainings and in memory.

    python benchmarks/language_model.py --steps 40 --pairs 3

Batches of 4 x 96 tokens, adapters of rank 8 on the queries and values, Adam. Times: a plain training, a training that is replayed
(`checkpoints=auto`), and one with `checkpointing=0.4`, two in five of whose blocks keep their inputs alone, in turn in one process of
one thread; seconds of CPU, which other processes disturb least. Memory: the peak resident size of a process of its own, less what it
held after one plain step. Weights are random, of the shape of
SmolLM2-135M (30 layers of width 576, a vocabulary of 49,152): costs do not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings

import psutil
import torch

import metagradient as mg
from metagradient.models.causal import hf_causal
from metagradient.replay.heap import keep_freed_memory

BATCH, LENGTH, VOCABULARY = 4, 96, 49_152
SHAPE = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
MEMORY = 16 * 2**30
WAYS = ("plain", "replay", "checkpointing")


def texts(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of 48 to 96 tokens, the first 16 of them a prompt."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (rows, LENGTH), generator=rng)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (rows, 1), generator=rng)
    lengths[::BATCH] = LENGTH  # every batch is as wide as the others
    place = torch.arange(LENGTH)
    mask = place < lengths
    return {"tokens": tokens, "mask": mask, "labels": torch.where(mask & (place >= 16), tokens, -100)}


def learner(way: str, share: float) -> mg.Learner:
    torch.manual_seed(0)
    lora = {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
    model = hf_causal(
        VOCABULARY, LENGTH, config=SHAPE, lora=lora, checkpointing=share if way == "checkpointing" else False
    )
    return mg.LanguageModel(model, mg.AdamW(eps_root=1e-7, weight_decay=0.0), 3e-4)


def once(way: str, made: mg.Learner, steps: int, plan: str) -> str:
    """Train, and replay where the way is not plain; the plan that was taken."""
    data = texts(BATCH * steps, 1)
    batches = mg.Batches(data, torch.arange(BATCH * steps).view(steps, BATCH))
    if way == "plain":
        mg.train(made, batches)
        return ""
    weights = mg.DataWeights(torch.ones(len(data["tokens"])))
    result = mg.metagradient(made, batches, [weights], mg.mean_loss(texts(BATCH, 2)), checkpoints=plan, memory=MEMORY)
    assert bool(result["weights"].isfinite().all())
    return type(result.plan).__name__ if not hasattr(result.plan, "name") else str(result.plan.name)


def peak(way: str, share: float, steps: int, plan: str) -> float:
    """MiB above what the process held before, in a process of its own."""
    command = [sys.executable, __file__, "--memory", way, "--steps", str(steps), "--plan", plan]
    command += ["--share", str(share)]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def measure_memory(way: str, share: float, steps: int, plan: str) -> None:
    keep_freed_memory()
    made = learner(way, share)
    once("plain", made, 1, plan)  # warm
    before = psutil.Process().memory_info().rss
    once(way, made, steps, plan)
    with open("/proc/self/status") as status:
        highest = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps((highest - before) / 2**20))


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--plan", default="auto")
    parser.add_argument("--share", type=float, default=0.4, help="of the blocks that are checkpointed")
    parser.add_argument("--memory", choices=WAYS)
    given = parser.parse_args()
    if given.memory:
        measure_memory(given.memory, given.share, given.steps, given.plan)
        return
    made = {way: learner(way, given.share) for way in WAYS}
    for way in WAYS:
        once(way, made[way], 1, given.plan)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for pair in range(given.pairs):
        for way in WAYS:
            start = time.process_time()
            plan = once(way, made[way], given.steps, given.plan)
            seconds[way].append(time.process_time() - start)
            print(f"round {pair}: {way} {plan} {seconds[way][-1]:.1f} s", flush=True)
    ratios = {way: [s / p for s, p in zip(seconds[way], seconds["plain"], strict=True)] for way in WAYS}
    peaks = {f"{way}, {plan}": peak(way, given.share, min(given.steps, 4), plan) for way, plan in
             (("replay", "all"), ("replay", "auto"), ("checkpointing", "auto"))}  # fmt: skip
    print(f"{given.steps} steps of {BATCH} x {LENGTH} tokens, {torch.get_num_threads()} threads")
    for way in WAYS[1:]:
        values = sorted(ratios[way])
        print(f"{way}: {statistics.median(values):.2f} plain trainings ({values[0]:.2f} to {values[-1]:.2f})")
    for name, value in peaks.items():
        print(f"peak of {name}: {value:.0f} MiB")
    print(json.dumps({"seconds": seconds, "peaks_mib": peaks}))


if __name__ == "__main__":
    main()
