# Makes .venv and installs artkv into it, unless that is done already. Sourced by the other scripts, from
# anywhere; leaves the shell in the repository's root with .venv first on PATH.
# PYTHON names the interpreter to use where python3 is not the right one. VENV names another folder than
# .venv; VENV=none takes the shell's own environment, such as one of conda, and installs nothing.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.." || return
venv=${VENV:-.venv}
if [ "$venv" != none ]; then
  wanted=$(cat setup.py constraints.txt | sha256sum)
  if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    mkdir -p "$venv"
    # On a shared folder several jobs may come here at once: one installs, the others wait.
    exec {lock}>"$venv/lock"
    flock "$lock" || echo "no locks in $venv: start one job at a time until this installation is done" >&2
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
      echo "installing artkv and the tested versions of its packages into $venv (minutes, the first time)" >&2
      # LAVIS's pins (transformers below 4.27, timm 0.4.12) fit nothing current, and all that artkv imports of it runs
      # on what artkv itself needs: so it comes without dependencies, and pip is not to warn of its pins when this
      # runs again.
      pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt)
      "${PYTHON:-python3}" -m venv "$venv" &&
        "${pip[@]}" --no-warn-conflicts -e '.[dev]' &&
        "${pip[@]}" --no-deps salesforce-lavis &&
        echo "$wanted" >"$venv/installed" || return
    fi
    exec {lock}>&-
  fi
  PATH="$(realpath "$venv")/bin:$PATH"
  export PATH
fi
