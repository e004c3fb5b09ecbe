# Makes .venv and installs artkv into it, unless that is done already. Sourced by the other scripts, from
# anywhere; leaves the shell in the repository's root with .venv first on PATH.
# PYTHON names the interpreter to use where python3 is not the right one.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(cat setup.py constraints.txt | sha256sum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "installing artkv and the tested versions of its packages into .venv (minutes, the first time)" >&2
  "${PYTHON:-python3}" -m venv .venv
  # LAVIS's pins (transformers below 4.27, timm 0.4.12) fit nothing current, and all that artkv imports of it runs on
  # what artkv itself needs: so it comes without dependencies, and pip is not to warn of its pins when this runs again.
  pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt)
  "${pip[@]}" --no-warn-conflicts -e '.[dev]'
  "${pip[@]}" --no-deps salesforce-lavis
  echo "$wanted" >.venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
