#!/usr/bin/env bash
# What a GPU does with metagradients, in at most eight minutes, on a machine without a network that has Python 3.12, torch, lightning,
# transformers, timm, peft, scikit-learn, pandas and pyarrow: the truth tests, costs, precisions, peak memory, and poisoned CIFAR-10.
# `benchmarks/gpu_pack.sh` packs what it needs beside the checkout into benchmarks/carried/ before it is taken there.
#
#   bash benchmarks/gpu.sh                      OUT=folder for the results (outputs/gpu); PARTS="rates gpt" for some of the parts
#                                               The attack goes on from benchmarks/carried/poisons, an earlier run's folder poisons
#   GPU_REHEARSAL=1 bash benchmarks/gpu.sh      everything at tiny sizes on a CPU
set -u
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
export GPU_CARRIED=${GPU_CARRIED:-$PWD/benchmarks/carried}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1 WANDB_MODE=disabled HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ "${GPU_REHEARSAL:-0}" != 1 ]; then
  site=$(mktemp -d)
  if compgen -G "$GPU_CARRIED/wheels/*.whl" > /dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$GPU_CARRIED"/wheels/*.whl || exit
  fi
  export PYTHONPATH=$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
fi
# shellcheck disable=SC2086
exec "$python" benchmarks/gpu.py --out "${OUT:-outputs/gpu}" ${PARTS:+--parts $PARTS}
