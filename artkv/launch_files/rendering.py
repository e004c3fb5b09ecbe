"""A file of launch/ as it is of use without the repository.

In a clone the scripts source launch/environment.sh, which installs artkv. What is written finds it in an environment
that is there: one that a line of the file names.
"""

import shlex
from pathlib import Path

from artkv.config.paths import shipped_folder
from artkv.launch_files.kinds import Kind

_SLURM = "source launch/slurm_environment.sh\n"
_IN_SLURM = "source launch/environment.sh\n"
_SHELL = 'source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"\n'

# What of one file alone is the repository's: in the order of the file.
_OWN = {
    "train_multinode.sh": {
        "and this repository, its .venv and the data": "and this folder, the environment and the data",
        "Copy launch/hostfile.example to launch/hostfile and name your hosts in it.": "`artkv launch hostfile` writes "
        "a hostfile, to name your hosts in.",
        "into .deepspeed_env in the repository's root; see launch/deepspeed_env.example and docs/cluster.md.": "into "
        ".deepspeed_env in this folder: artkv launch deepspeed-env --output .deepspeed_env",
        'root=$(realpath -- "$(dirname "${BASH_SOURCE[0]}")/..")': "root=$PWD",
        "$root/launch/hostfile": "$root/hostfile",
        "copy launch/hostfile.example there": "write one with: artkv launch hostfile",
        'source "$root/launch/environment.sh"\n': _SHELL,
    },
}


def render(kind: Kind, output: Path, prefix: Path) -> str:
    """The text of a launch file.

    output: where it will be, for its own words about how to start it. prefix: of the environment that artkv is
    installed in, `sys.prefix`; the file's line that names it can be changed.
    """
    folder = shipped_folder("launch")
    text = (folder / kind.source).read_text(encoding="utf-8")
    for its_own, ours in _OWN.get(kind.source, {}).items():
        text = _replaced(text, its_own, ours)
    if _SLURM in text:
        shared = (
            (folder / "slurm_environment.sh").read_text(encoding="utf-8").partition("# shellcheck shell=bash\n\n")[2]
        )
        text = _replaced(text, _SLURM, _replaced(shared, f"  {_IN_SLURM}", _environment(prefix, "  ")))
    elif _SHELL in text:
        text = _replaced(text, _SHELL, _environment(prefix, ""))
    text = text.replace("in the repository's root", "in the folder that its paths are relative to")
    return text.replace(f"launch/{kind.source}", shlex.quote(str(output)))


def _environment(prefix: Path, indent: str) -> str:
    """The lines that put an environment first on PATH, in place of those that install one."""
    lines = [
        "# Where artkv is installed. VENV=none takes the shell's own PATH, after `module load` or `conda activate`.",
        f"environment={shlex.quote(str(prefix))}",
        "VENV=${VENV:-$environment}",
        '[ "$VENV" = none ] || PATH=$VENV/bin:$PATH',
        "command -v artkv >/dev/null || {",
        '  echo "artkv: is neither in $VENV nor on PATH; correct the line environment= of this file, or set VENV" >&2',
        "  exit 1",
        "}",
    ]
    return "".join(f"{indent}{line}\n" for line in lines)


def _replaced(text: str, old: str, new: str) -> str:
    before, found, after = text.partition(old)
    assert found, f"launch/ has changed, and this module not: {old}"
    return before + new + after
