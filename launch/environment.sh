# Makes .venv and installs artkv into it, unless that is done already. Sourced by the other scripts, from
# anywhere; leaves the shell in the repository's root with .venv first on PATH.
# EXTRAS names more of setup.py's extras to install: EXTRAS=dev has the tools of the tests, and LAVIS.
# PYTHON names the interpreter to use where python3 is not the right one, CONSTRAINTS another file of versions.
# VENV names another folder than .venv; VENV=none takes the shell's own environment, such as one of conda, and
# installs nothing.
# shellcheck shell=bash

# A script's caller keeps its own folder and PATH; the commands that artkv prints to be pasted there need to know them.
[[ $- == *i* ]] || export ARTKV_CALLER_FOLDER=$PWD ARTKV_CALLER_PATH=$PATH
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || return
venv=${VENV:-.venv}
if [ "$venv" != none ]; then
  constraints=${CONSTRAINTS:-constraints.txt}
  wanted=$(cat setup.py "$constraints" | sha256sum)
  stamp=$venv/installed${EXTRAS:+.$EXTRAS} # with extras there is all that the installation without them has
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    mkdir -p "$venv"
    # On a shared folder several jobs may come here at once: one installs, the others wait.
    exec {lock}>"$venv/lock"
    flock "$lock" || echo "no locks in $venv: start one job at a time until this installation is done" >&2
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
      # On a terminal pip shows what it fetches. LAVIS makes it warn: see below.
      pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-warn-conflicts -c "$constraints")
      [ -t 2 ] || pip+=(--quiet)
      echo "artkv: 1/3 making the environment $venv; the whole takes minutes and 6 GB, the first time" >&2
      # LAVIS's pins (transformers below 4.27, timm 0.4.12) fit nothing current, and all that artkv imports of it runs
      # on what artkv itself needs: so it comes without dependencies, and pip is not to warn of its pins when this
      # runs again.
      if ! {
        "${PYTHON:-python3}" -m venv "$venv" &&
          echo "artkv: 2/3 installing torch, the largest part" >&2 &&
          "${pip[@]}" torch torchvision >&2 &&
          echo "artkv: 3/3 installing artkv${EXTRAS:+ with $EXTRAS} and the tested versions of its packages" >&2 &&
          "${pip[@]}" -e ".${EXTRAS:+[$EXTRAS]}" >&2 &&
          { [[ ,${EXTRAS:-}, != *,dev,* ]] || "${pip[@]}" --no-deps salesforce-lavis >&2; } &&
          echo "$wanted" >"$venv/installed" && echo "$wanted" >"$stamp"
      }; then
        exec {lock}>&-
        return 1
      fi
    fi
    exec {lock}>&-
  fi
  PATH="$(realpath "$venv")/bin:$PATH"
  export PATH
fi
