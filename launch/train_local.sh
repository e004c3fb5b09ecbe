#!/usr/bin/env bash
# Trains on all GPUs of this machine, or those of CUDA_VISIBLE_DEVICES; without a GPU as one process on the CPU:
#   bash launch/train_local.sh my.yaml [--set SECTION.KEY=VALUE ...]
# Run again after a stop, it goes on from the last checkpoint.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: bash $0 CONFIG [--set SECTION.KEY=VALUE ...]" >&2
  exit 2
fi
config=$(realpath -- "$1")
shift
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
artkv supervise --restarts "${RESTARTS:-20}" --silence "${SILENCE:-30}" -- \
  python -m artkv.launching ${RANKS:+--ranks "$RANKS"} artkv train \
  --config "$config" --resume auto "$@"
