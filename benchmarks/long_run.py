"""A long run within a memory budget: what its metagradient costs in plain trainings, its peak, and kills from which it goes on.

`python benchmarks/long_run.py --kills 3` trains an MLP for 100,000 steps, replays the run in 512 MiB above the process, then replays it
again in processes that are killed, and compares the bits. Costs are CPU seconds of the process. Each part runs in a process of its own.

Measured on two cores beside one other process: 100,000 steps by `binomial(60, segment=1685)`, 3.45 plain trainings (counted in steps, a
taped one as 3: 3.98), 485 MiB above the process where 512 were given; killed three times, it ended in the same bits.
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

EXAMPLES, INPUTS, HIDDEN, CLASSES, BATCH = 2000, 64, (128, 128), 10, 32


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


def child(args: argparse.Namespace) -> None:
    """One training, plain or replayed; a line of JSON at its end."""
    import torch

    import metagradient as mg
    from metagradient import models
    from metagradient.replay.metagradients import describe

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, INPUTS, generator=random)
    y = torch.randint(CLASSES, (EXAMPLES,), generator=random)
    data = {"x": centres[y] + 2 * torch.randn(EXAMPLES, INPUTS, generator=random), "y": y}
    held_out = {name: field[: EXAMPLES // 10] for name, field in data.items()}
    epochs = -(-args.steps // (EXAMPLES // BATCH))
    plan = mg.epoch_plan(EXAMPLES, BATCH, epochs, seed=0)[: args.steps].clone()
    torch.manual_seed(0)
    learner = mg.Classifier(models.mlp((1, 1, INPUTS), CLASSES, hidden=HIDDEN), mg.SGD(0.9), 0.001)
    batches = mg.Batches({"x": data["x"].view(-1, 1, 1, INPUTS), "y": y}, plan)
    held_out["x"] = held_out["x"].view(-1, 1, 1, INPUTS)
    mg.metagradient(learner, batches.with_plan(plan[:4]), mg.DataWeights(torch.ones(EXAMPLES)), mg.mean_loss(held_out))
    print("begun", flush=True)
    begin, watch = Peak.now(), Peak()
    watch.start()
    cpu, wall = time.process_time(), time.perf_counter()
    if args.child == "plain":
        mg.train(learner, batches)
        told = {}
    else:
        found = mg.metagradient(
            learner,
            batches,
            mg.DataWeights(torch.ones(EXAMPLES)),
            mg.mean_loss(held_out),
            memory=args.memory,
            storage=args.storage,
            save_to=args.save_to,
            save_every=args.save_every,
        )
        own = [found["weights"], found.objective, *found.state.tensors()]
        bits = hashlib.sha256(b"".join(x.numpy().tobytes() for x in own)).hexdigest()[:16]
        told = {"plan": describe(found.plan), "steps_cost": found.cost, "bits": bits}
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    watch.done.set()
    watch.join()
    print(json.dumps(told | {"cpu": cpu, "wall": wall, "above_mib": watch.peak - begin}), flush=True)


def started(
    kind: str, args: argparse.Namespace, save_to: str | None = None, save_every: float = 0.0
) -> subprocess.Popen:
    """A child that has begun its training."""
    words = [sys.executable, __file__, "--child", kind, "--steps", str(args.steps), "--memory", args.memory]
    words += ["--storage", args.storage, "--save-every", str(save_every)]
    process = subprocess.Popen(words + (["--save-to", save_to] if save_to else []), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended(process: subprocess.Popen) -> dict:
    """What a child told."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a child ended with status {process.returncode}")
    return json.loads(out)


def main() -> None:
    """Train, replay, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--memory", default="512MiB", help="of checkpoints and tape, above the process")
    parser.add_argument("--storage", choices=("memory", "disk"), default="memory", help="where checkpoints lie")
    parser.add_argument("--kills", type=int, default=0, help="how often a second replay is killed")
    parser.add_argument(
        "--save-every", type=float, help="seconds between two positions of it; a 40th of the replay by default"
    )
    parser.add_argument("--child", choices=("plain", "replay"), help=argparse.SUPPRESS)
    parser.add_argument("--save-to", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    plain = ended(started("plain", args))
    print(f"plain training of {args.steps} steps: {plain['cpu']:.1f} s of CPU, {plain['wall']:.1f} s", flush=True)
    replay = ended(started("replay", args))
    print(replay["plan"])
    print(f"replayed: {replay['cpu']:.1f} s of CPU, {replay['wall']:.1f} s", flush=True)
    print(
        f"plain trainings: {replay['cpu'] / plain['cpu']:.2f} (counted in steps, a taped one as 3: {replay['steps_cost']:.2f})"
    )
    print(f"peak above the process: {replay['above_mib']:.0f} MiB of {args.memory}", flush=True)
    if not args.kills:
        return
    with tempfile.TemporaryDirectory() as folder:
        saved, every = f"{folder}/saved", args.save_every or replay["wall"] / 40
        for kill in range(args.kills):
            process = started("replay", args, saved, every)
            time.sleep(replay["wall"] / (args.kills + 1))
            process.kill()
            process.wait()
            size = sum(path.stat().st_size for path in Path(saved).glob("*")) / 2**20
            print(f"kill {kill + 1}: {size:.0f} MiB saved", flush=True)
        last = ended(started("replay", args, saved, every))
    print(f"after {args.kills} kills: {last['wall']:.1f} s left, peak above the process {last['above_mib']:.0f} MiB")
    print("same bits" if last["bits"] == replay["bits"] else "OTHER BITS")
    if last["bits"] != replay["bits"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
