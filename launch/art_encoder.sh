#!/usr/bin/env bash
# Trains the art encoder on all GPUs of this machine: bash launch/art_encoder.sh --data wikiart [OPTION ...]
# Run again after a stop, it goes on from where it was.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: bash launch/art_encoder.sh --data PATH [OPTION ...]; artkv art-encoder --help lists the options" >&2
  exit 2
fi
caller=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd -- "$caller" # paths among the options are relative to it
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
# Without a GPU: one process on the CPU.
exec deepspeed --num_accelerators "${RANKS:-$((gpus > 0 ? gpus : 1))}" --module artkv art-encoder --resume "$@"
