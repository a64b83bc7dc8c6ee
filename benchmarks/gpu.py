"""What a GPU does with metagradients: every part of `gpu_parts.py` in turn, each in a process of its own with a time limit.

    bash benchmarks/gpu.sh                  # at most eight minutes
    GPU_REHEARSAL=1 bash benchmarks/gpu.sh  # every part at tiny sizes on the CPU

Prints one table, and leaves in the folder `--out` what each part measured (PART.json, rewritten after every row, so that one that
is cut leaves its rows), all of it (gpu.json), the parts' output (PART.log), and the poisons (poisons/), from which a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
REHEARSAL = os.environ.get("GPU_REHEARSAL") == "1"
PARTS = {
    "truth": 75,
    "rates": 25,
    "precision": 40,
    "mlp": 35,
    "resnet9": 60,
    "gpt": 85,
    "adapters": 60,
    "poisoning": 90,
}
"""Seconds of each part; what one leaves, those after it may take."""

TOTAL = 470
TRUTH = ("-m", "pytest", "-m", "cuda", "-n", "0", "-q", "-p", "no:cacheprovider", "tests/replay/test_truth.py",
         "tests/replay/test_checks.py")  # fmt: skip


def command(part: str, out: Path) -> list[str]:
    """What is run for a part."""
    if part == "truth":
        return [sys.executable, *TRUTH]
    return [sys.executable, str(HERE / "gpu_parts.py"), part, str(out)]


def run(part: str, out: Path, limit: float) -> str:
    """Run a part for at most `limit` seconds; how it ended, in words."""
    start, env = time.monotonic(), os.environ | {"GPU_LIMIT": f"{limit:.0f}"}
    with (out / f"{part}.log").open("w") as log:
        process = subprocess.Popen(
            command(part, out), stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent, env=env, start_new_session=True
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"cut after {limit:.0f} s"
    said = [line.strip() for line in (out / f"{part}.log").read_text(errors="replace").splitlines() if line.strip()]
    words = said[-1] if said and (part == "truth" or process.returncode) else ""
    how = "ended" if process.returncode == 0 else f"FAILED ({process.returncode})"
    return f"{how} after {time.monotonic() - start:.0f} s {words}"[:200].strip()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and the processes that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, how)
        try:
            process.wait(8)
            return
        except subprocess.TimeoutExpired:
            continue


def rows_of(part: str, out: Path) -> list[dict[str, Any]]:
    """What a part has measured."""
    path = out / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else []


FIRST = ("model", "way", "products")


def table(found: dict[str, dict[str, Any]]) -> Table:
    """All rows of all parts under the union of their columns."""
    rows = [(part, row) for part, result in found.items() for row in result["rows"]]
    columns = list(dict.fromkeys((*FIRST, *(key for _, row in rows for key in row))))
    made = Table("part", *columns, box=SIMPLE, padding=0)
    for part, row in rows:
        made.add_row(part, *(_shown(row.get(column)) for column in columns))
    return made


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--seconds", type=float, default=float(os.environ.get("GPU_SECONDS", 3600 if REHEARSAL else TOTAL))
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    found: dict[str, dict[str, Any]] = {}
    spare = 0.0
    for part in given.parts:
        (given.out / f"{part}.json").unlink(missing_ok=True)
        begun = time.monotonic()
        limit = min(900.0 if REHEARSAL else PARTS[part] + spare, end - begun)
        how = run(part, given.out, limit) if limit > 5 else "no time left"
        spare = max(0.0, spare + PARTS[part] - (time.monotonic() - begun))
        found[part] = {"how": how, "rows": rows_of(part, given.out)}
        (given.out / "gpu.json").write_text(json.dumps({"rehearsal": REHEARSAL, "parts": found}, indent=1))
        print(f"{part}: {how}", flush=True)
    Console(width=200).print(table(found))
    return 0 if all("FAILED" not in result["how"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
