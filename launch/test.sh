#!/usr/bin/env bash
# From a bare clone: installs, the tools of the tests too, checks style and types, and runs all tests.
# Arguments go to pytest, such as tests/datasets or -m 'not system'.
set -euo pipefail
export EXTRAS=dev
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check --quiet .
ruff format --check --quiet .
shellcheck launch/*.sh launch/*.sbatch .ci/run .ci/pythons tests/*.sh tests/system/cluster/*.sh
mypy
# First what can run side by side, then what disturbs others: launchers, clusters, measurements, which mostly wait.
exit_code=0
for part in none only; do
  ended=0
  [ "$part" = only ] && processes=3 || processes=auto
  pytest --quiet "--system=$part" "--numprocesses=$processes" --maxprocesses=8 --durations=15 --durations-min=20 "$@" || ended=$?
  case $ended in
    0) found=yes ;;
    1) found=yes exit_code=1 ;;
    5) ;; # none of the wanted tests is of this part
    *) exit "$ended" ;;
  esac
done
[ "${found:-no}" = yes ] || exit 5
exit "$exit_code"
