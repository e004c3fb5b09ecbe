#!/usr/bin/env bash
# Trains the art encoder on all GPUs of this machine, or those of CUDA_VISIBLE_DEVICES; without a GPU as one process on
# the CPU:
#   bash launch/art_encoder.sh --data wikiart [OPTION ...]
# Run again after a stop, it goes on from where it was.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: bash launch/art_encoder.sh --data PATH [OPTION ...]; artkv art-encoder --help lists the options" >&2
  exit 2
fi
caller=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd -- "$caller" # paths among the options are relative to it
exec python -m artkv.launching ${RANKS:+--ranks "$RANKS"} artkv art-encoder --resume "$@"
