#!/usr/bin/env bash
# Trains on the hosts of a hostfile, where there is no batch system:
#   bash launch/train_multinode.sh my.yaml [--set SECTION.KEY=VALUE ...]
# Needs pdsh here, ssh without a password to each host, and this repository, its .venv and the data under the
# same paths on all of them. Run again after a stop, it goes on from the last checkpoint.
# Copy launch/hostfile.example to launch/hostfile and name your hosts in it. Variables that the ranks need go
# into .deepspeed_env in the repository's root; see launch/deepspeed_env.example and docs/cluster.md.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: bash $0 CONFIG [--set SECTION.KEY=VALUE ...]" >&2
  exit 2
fi
refuse() {
  echo "artkv: $1" >&2
  exit 1
}
root=$(realpath -- "$(dirname "${BASH_SOURCE[0]}")/..")
hostfile=$(realpath -m -- "${HOSTFILE:-$root/launch/hostfile}")
config=$(realpath -- "$1")
shift
[ -f "$hostfile" ] || refuse "hostfile $hostfile: no such file; copy launch/hostfile.example there, or set HOSTFILE"
grep -q '^[[:space:]]*[^#[:space:]]' "$hostfile" || refuse "hostfile $hostfile: names no host; give lines such as: n1 slots=8"
command -v pdsh >/dev/null || refuse "pdsh is not installed here; install it, or start with torchrun on each host"
source "$root/launch/environment.sh"

# DeepSpeed hands all this to the hosts' shells as one text. Of quotes, it puts double ones around words with spaces.
for word in "$root" "$(command -v python)"; do
  case $word in
    *[!A-Za-z0-9_@%+=:,./-]*) refuse "$word: pdsh cannot carry this path; move it to one of letters, digits and _@%+=:,./-" ;;
  esac
done
for word in "$config" "$@"; do
  case $word in
    *[\$\`\\]* | *$'\n'* | *$'\t'*) refuse "$word: pdsh cannot carry \$, \`, \\, tabs and ends of lines; write it into the config" ;;
    *" "*) ;;
    *[\"\'\;\&\|\<\>\(\)\*\?\!]* | \#* | \~*) refuse "$word: pdsh cannot carry this; write it into the config" ;;
  esac
done
# --force_multi: with a single host in the file DeepSpeed would start here, not there.
artkv supervise --restarts "${RESTARTS:-20}" --silence "${SILENCE:-30}" -- \
  deepspeed --hostfile "$hostfile" --force_multi --module artkv train --config "$config" --resume auto "$@"
