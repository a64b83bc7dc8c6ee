"""Compression of per-example gradients at a hundred million parameters: seconds and memory, in one interleaved run.

`python benchmarks/compression.py --out compression.json`: all linear layers of a Llama-shaped model of 135 million parameters
(30 layers, width 576, 9 heads, 3 of keys and values, 1536 within; random weights; embeddings and norms frozen) and 256 random
texts of 64 to 128 tokens. Of every batch the gradients' factors are taken once, and each compressor compresses them in turn, in
another order each time. A dense projection of such a gradient cannot be stored: its matrix is said in TiB beside the table.
"""

import argparse
import gc
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metagradient as mg
from metagradient.attribution import SJLT, Dropout, ExampleGradients, FactorDropout, FactorGaussian, FactorPCA
from metagradient.attribution.compression.compressors import Compressor, coordinates, factor_sizes, total
from metagradient.attribution.gradients.hooks import Parameter
from metagradient.attribution.gradients.pieces import Piece
from metagradient.training.batches import Batch

SHAPE = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
}


class Peak(threading.Thread):
    """The largest RssAnon of this process, in MiB, while it runs: memory that is not a map of a file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.peak = self.now()
        self.done = threading.Event()

    @staticmethod
    def now() -> float:
        """The present one."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("RssAnon:")[2].split()[0]) / 1024

    def run(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, self.now())

    @property
    def grown(self) -> float:
        """By how much, at most."""
        return max(self.peak, self.now()) - self.first


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(what it gives, seconds, MiB at its peak beyond those before)."""
    gc.collect()
    watch = Peak()
    watch.start()
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    watch.done.set()
    watch.join()
    return found, seconds, watch.grown


def learner_of(layers: int) -> mg.LanguageModel:
    """The model, of whose parameters only the matrices between the embeddings and the head are trained."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=True, **SHAPE)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("proj.weight"))
    return mg.LanguageModel(model, mg.SGD(), 0.1)


def texts(count: int) -> dict[str, Tensor]:
    """Random texts of 64 to 128 tokens."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(64, 129, (count,), generator=rng)
    tokens = torch.randint(SHAPE["vocab_size"], (count, 128), generator=rng)
    return {"tokens": tokens, "mask": torch.arange(128) < lengths[:, None]}


def split(name: str, k: int, parameters: list[Parameter]) -> str:
    """What each matrix keeps, in words."""
    if name == "sjlt":
        return "one sum for all layers"
    if name == "dropout":
        kept = [len(rows) for rows, _ in coordinates(k, parameters, 0, torch.device("cpu"))]
        return f"{min(kept)} to {max(kept)} coordinates a matrix, by its size"
    sizes = factor_sizes(k, parameters)
    shown = {f"{p.rows}x{p.columns}: {r}x{c}" for p, (r, c) in zip(parameters, sizes, strict=True)}
    return ", ".join(sorted(shown))


def main() -> None:
    """Bind, compress batch by batch, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="texts whose gradients are taken and compressed together")
    parser.add_argument("--k", type=int, default=65_536, help="numbers that are kept of each gradient, about")
    parser.add_argument("--sample", type=int, default=32, help="texts that the PCA is fitted on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="some of the compressors; the first is the unit")
    parser.add_argument("--out", type=Path, help="a JSON file of all that is printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    learner, fields = learner_of(args.layers), texts(args.sequences)
    rows = torch.arange(args.sequences)
    learner.configure_for(mg.Batches(fields, rows[None, : args.batch]))
    state = mg.initial_state(learner)
    gradients = ExampleGradients(learner, state)
    size = total(gradients.parameters)

    def go(count: int) -> Iterator[tuple[list[Piece], float]]:
        for part in rows[:count].split(args.batch):
            start = time.perf_counter()
            (pieces,) = gradients(Batch(0, part, {name: x[part] for name, x in fields.items()}))
            yield pieces, time.perf_counter() - start

    kinds: dict[str, Compressor] = {
        "dropout": Dropout(args.k),
        "factor_dropout": FactorDropout(args.k),
        "factor_gaussian": FactorGaussian(args.k),
        "factor_pca": FactorPCA(args.k, args.sample),
        "sjlt": SJLT(args.k),
    }
    kinds = {name: kinds[name] for name in args.only or kinds}
    next(go(args.batch))  # warm
    bound, table = {}, {}
    for name, kind in kinds.items():
        like = state.params
        before = Peak.now()
        made, seconds, peak = measured(
            lambda kind=kind, like=like: kind.bind(
                gradients.parameters, like, lambda: (p for p, _ in go(args.sequences))
            )
        )
        gc.collect()
        bound[name] = made
        table[name] = {"k": made.k, "split": split(name, args.k, gradients.parameters), "bind_seconds": seconds}
        table[name] |= {"bind_peak_mib": peak, "held_mib": Peak.now() - before, "seconds": [], "peak_mib": 0.0}
        print(f"bound {name} in {seconds:.1f} s", flush=True)

    taking = []
    for i, (pieces, seconds) in enumerate(go(args.sequences)):
        taking.append(seconds)
        names = list(bound)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            _, spent, peak = measured(lambda name=name, pieces=pieces: bound[name](pieces))
            table[name]["seconds"].append(spent)
            table[name]["peak_mib"] = max(table[name]["peak_mib"], peak)
        print(f"{min((i + 1) * args.batch, args.sequences)} of {args.sequences} texts", flush=True)

    first = table[next(iter(table))]["seconds"]
    for row in table.values():
        ratios = sorted(own / unit for own, unit in zip(row["seconds"], first, strict=True))
        row["ratio"], row["ratio_low"], row["ratio_high"] = statistics.median(ratios), ratios[0], ratios[-1]
        row["seconds"] = sum(row["seconds"])
    dense = size * args.k * 4 / 2**40
    print(
        f"\n{size:,} parameters in {len(gradients.parameters)} matrices, {args.sequences} texts, {args.batch} at a time, ",
        end="",
    )
    print(f"{args.threads} thread(s); their gradients' factors take {sum(taking):.1f} s")
    print(
        f"a dense projection to {args.k} numbers, Gaussian or PCA, would be a matrix of {dense:.1f} TiB: it cannot be stored\n"
    )
    print(
        f"{'compressor':16} {'k':>7} {'seconds':>9} {'over the first':>22} {'peak MiB':>9} {'bind s':>8} {'held MiB':>9}  split"
    )
    for name, row in table.items():
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} - {row['ratio_high']:.2f})"
        print(f"{name:16} {row['k']:7} {row['seconds']:9.2f} {ratio:>22} {row['peak_mib']:9.0f} {row['bind_seconds']:8.1f} "
              f"{max(0, row['held_mib']):9.0f}  {row['split']}")  # fmt: skip
    if args.out is not None:
        about = {
            "parameters": size,
            "dense_projection_tib": dense,
            "gradients_seconds": sum(taking),
            "torch": torch.__version__,
        }
        args.out.write_text(
            json.dumps({**{k: v for k, v in vars(args).items() if k != "out"}, **about, "table": table}, indent=1)
        )


if __name__ == "__main__":
    main()
