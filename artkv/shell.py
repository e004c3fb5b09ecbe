"""Commands that a person can paste into the shell that artkv was started from."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artkv.config import Config

# What a launch script changes for itself alone, as its caller has it: folder and PATH. An empty CALLER_PATH says that
# the caller is a program.
_FOLDER, _PATH = "ARTKV_CALLER_FOLDER", "ARTKV_CALLER_PATH"


def without_person() -> dict[str, str]:
    """The environment for an artkv whose messages end in another program's: it has nobody to show commands to."""
    return {**os.environ, _PATH: ""}


def has_person() -> bool:
    """Whether there is a shell to paste into."""
    return os.environ.get(_PATH) != ""


def keep_bars_to_terminals() -> None:
    """Keeps the hub's progress bars, which move the cursor, out of logs and pipes; call it before its first import.

    Who sets HF_HUB_DISABLE_PROGRESS_BARS has it as it was set.
    """
    if not (sys.stderr is not None and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def agrees(question: str) -> bool:
    """Whether a person at a terminal answers yes; False where there is nobody to ask."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def command(program: str, *words: str | Path) -> str:
    """One line that calls a program of artkv's environment.

    A `Path` among the words is written as the caller sees it, and so is the program where PATH does not lead to it.
    """
    installed = Path(sys.executable).with_name(program)
    found = shutil.which(program, path=os.environ.get(_PATH))
    is_found = found is not None and installed.exists() and os.path.samefile(found, installed)
    spelled = [str(seen_by_caller(word)) if isinstance(word, Path) else word for word in words]
    return shlex.join([program if is_found else str(seen_by_caller(installed)), *spelled])


def seen_by_caller(path: Path) -> Path:
    """A path as it is short from the caller's folder: relative where it lies below, else absolute."""
    absolute = Path.cwd() / path
    folder = os.environ.get(_FOLDER, os.getcwd())
    return absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute


def next_commands(config: "Config") -> str:
    """What to type after a training: its evaluation, report and control, and its curves."""
    run_dir = config.run.output_dir
    split = "test" if config.dataset.test is not None else "val" if config.dataset.val is not None else None
    checkpoint = run_dir / "best" if (run_dir / "best").exists() else run_dir
    lines = ["next:"]
    if split is not None:
        lines.append(command("artkv", "evaluate", "--checkpoint", checkpoint, "--split", split, "--all-ablations"))
        lines.append(command("artkv", "report", run_dir))
    if config.kv_modulation.enabled:
        control = run_dir.with_name(f"{run_dir.name}_control")
        changed = ["--set", "kv_modulation.enabled=false", "--set", f"run.output_dir={seen_by_caller(control)}"]
        train = command("artkv", "train", "--config", run_dir / "config.yaml", *changed)
        lines.append(f"{train}    # the control, to compare with")
    return "\n  ".join([*lines, command("tensorboard", "--logdir", run_dir)])
