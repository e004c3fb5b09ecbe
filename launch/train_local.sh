#!/usr/bin/env bash
# Trains on all GPUs of this machine: bash launch/train_local.sh my.yaml [--set SECTION.KEY=VALUE ...]
# Run again after a stop, it goes on from the last checkpoint.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: bash $0 CONFIG [--set SECTION.KEY=VALUE ...]" >&2
  exit 2
fi
config=$(realpath -- "$1")
shift
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
# Without a GPU: one process on the CPU.
artkv supervise --restarts "${RESTARTS:-20}" --silence "${SILENCE:-30}" -- \
  deepspeed --num_accelerators "${RANKS:-$((gpus > 0 ? gpus : 1))}" --module artkv train \
  --config "$config" --resume auto "$@"
