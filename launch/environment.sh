# Makes .venv and installs artkv into it, unless that is done already. Sourced by the other scripts, from
# anywhere; leaves the shell in the repository's root with .venv first on PATH.
# EXTRAS names more of setup.py's extras to install: EXTRAS=dev has the tools of the tests, and LAVIS.
# PYTHON names the interpreter to make it with where python3 is not the right one, CONSTRAINTS another file of versions.
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
    # What was made here and never finished is made anew: where pip failed for its Python the next try names another,
    # which `python -m venv` would not put in the first one's place. Any other environment stays, and keeps its Python.
    _artkv_is_unfinished() {
      [ -e "$venv/made_by_artkv" ] && [ ! -e "$venv/installed" ] && [ ! "$venv/pyvenv.cfg" -nt "$venv/made_by_artkv" ]
    }
    python=$venv/bin/python remedy="remove the folder (rm -r $venv), or name another one in VENV"
    if [ ! -d "$venv/bin" ] || _artkv_is_unfinished; then
      python=${PYTHON:-python3} remedy="name another one that is installed: "
      # Else it is a shell, or a copy that Slurm made of a batch file.
      if [ -f "launch/${0##*/}" ]; then
        remedy+="PYTHON=python3.12 bash launch/${0##*/}"
      else
        remedy+="export PYTHON=python3.12"
      fi
    fi
    # constraints.txt has releases for these; another file of versions is its owner's matter.
    fits='3.1[1-3]' needs="3.11, 3.12 or 3.13"
    [ "$constraints" = constraints.txt ] || { fits='3.1[0-9]' needs="3.10 or newer"; }
    ask='import sys; print("Python %d.%d" % sys.version_info[:2])'
    version=$("$python" -c "$ask" 2>/dev/null) || version="does not run"
    # shellcheck disable=SC2053 # a pattern
    if [[ $version != "Python "$fits ]]; then
      python=$(command -v "$python" || echo "$python")
      echo "artkv: $python: $version, while the versions of $constraints need Python $needs; $remedy" >&2
      return 1
    fi
    mkdir -p "$venv"
    # On a shared folder several jobs may come here at once: one installs, the others wait.
    exec {lock}>"$venv/lock"
    has_locks=yes
    flock "$lock" || has_locks=no
    [ $has_locks = yes ] || echo "no locks in $venv: start one job at a time until this installation is done" >&2
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
      # All in it but what others wait for, and what says whose it is.
      content=(find "$venv/" -mindepth 1 -maxdepth 1 ! -name lock ! -name made_by_artkv)
      if _artkv_is_unfinished; then
        if [ $has_locks = no ]; then
          echo "artkv: $venv: another job is making it, or one did not finish; if none is at work, rm -r $venv" >&2
          exec {lock}>&-
          return 1
        fi
        echo "artkv: $venv: its installation was not finished; making it anew" >&2
        "${content[@]}" -exec rm -rf {} +
      fi
      # On a terminal pip shows what it fetches. LAVIS makes it warn: see below.
      pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-warn-conflicts -c "$constraints")
      [ -t 2 ] || pip+=(--quiet)
      echo "artkv: 1/3 making the environment $venv; the whole takes minutes and 6 GB, the first time" >&2
      # LAVIS's pins (transformers below 4.27, timm 0.4.12) fit nothing current, and all that artkv imports of it runs
      # on what artkv itself needs: so it comes without dependencies, and pip is not to warn of its pins when this
      # runs again.
      if ! {
        if [ -d "$venv/bin" ]; then
          # uv makes environments without pip.
          "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >&2
        else
          # Nothing of anybody else's may be removed another time.
          [ -n "$("${content[@]}" -print -quit)" ] || : >"$venv/made_by_artkv"
          made=0
          "${PYTHON:-python3}" -m venv "$venv" || made=$?
          # What somebody makes in its place later is newer.
          [ ! -e "$venv/made_by_artkv" ] || touch "$venv/made_by_artkv"
          [ "$made" = 0 ]
        fi &&
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
