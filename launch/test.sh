#!/usr/bin/env bash
# From a bare clone: installs, checks style and types, and runs all tests.
# Arguments go to pytest, such as tests/datasets or -m 'not system'.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check --quiet .
ruff format --check --quiet .
shellcheck launch/*.sh launch/*.sbatch .ci/run tests/system/cluster/*.sh
mypy
pytest --quiet "$@"
