#!/usr/bin/env bash
# Trains on the hosts of a hostfile, where there is no batch system:
#   bash launch/train_multinode.sh my.yaml [--set SECTION.KEY=VALUE ...]
# Needs pdsh here, ssh without a password to each host, and this repository, its .venv and the data under the
# same paths on all of them. Run again after a stop, it goes on from the last checkpoint.
# Copy launch/hostfile.example to launch/hostfile and name your hosts in it. Variables that the ranks need go
# into .deepspeed_env in the repository's root; see launch/deepspeed_env.example and docs/cluster.md.
set -euo pipefail
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
hostfile=$(realpath "${HOSTFILE:-$root/launch/hostfile}")
config=$(realpath "$1")
shift
source "$root/launch/environment.sh"
# --force_multi: with a single host in the file DeepSpeed would start here, not there.
artkv supervise --restarts "${RESTARTS:-20}" --silence "${SILENCE:-30}" -- \
  deepspeed --hostfile "$hostfile" --force_multi --module artkv train --config "$config" --resume auto "$@"
