#!/usr/bin/env bash
# Packs what benchmarks/gpu.sh needs on a machine without a network into benchmarks/carried/ (which git ignores), at most 64 MiB:
# the wheels that such a machine lacks, for its Python 3.12 on Linux, and 10,000 images of CIFAR-10. (wandb is not among them: nothing
# there logs to it.)
#
#   CIFAR10=folder bash benchmarks/gpu_pack.sh  a folder with the parquet files of uoft-cs/cifar10; without it there is no poisoning
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
carried=${GPU_CARRIED:-benchmarks/carried}
mkdir -p "$carried/wheels"
rm -f "$carried"/wheels/*.whl
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$carried/wheels" \
  'hydra-core>=1.3.8,<1.4' 'omegaconf>=2.3,<2.4' 'datasets>=5' 'dill<0.4.2' 'multiprocess<0.70.20'
"$python" -m pip wheel -q --no-deps -w "$carried/wheels" 'antlr4-python3-runtime==4.9.*'
if [ -n "${CIFAR10:-}" ]; then
  "$python" - "$CIFAR10" "$carried/cifar10.npz" <<'PY'
import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

folder, out = Path(sys.argv[1]), sys.argv[2]
files = sorted(folder.rglob("*train*.parquet"))
if not files:
    sys.exit(f"{folder} has no train*.parquet: give the folder of the Hugging Face data set uoft-cs/cifar10")
table = pd.read_parquet(files[0]).iloc[:10_000]
image = "img" if "img" in table else "image"
x = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table[image]])
np.savez_compressed(out, x=x, y=table["label"].to_numpy())
PY
fi
size=$(du -sm "$carried" | cut -f1)
echo "$carried: $size MiB"
[ "$size" -le 64 ] || { echo "more than 64 MiB: leave out images" >&2; exit 1; }
