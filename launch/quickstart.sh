#!/usr/bin/env bash
# From a bare clone: installs, makes a small world of paintings, and runs the whole job on it.
# Arguments go to `artkv quickstart`, such as --seed 7 (see `artkv quickstart --help`).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
artkv quickstart "$@"
