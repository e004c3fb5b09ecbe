"""Names in a run's folder: `checkpoints/step_00000500`, `checkpoints/latest`, the link `best`, `report.html`."""

from pathlib import Path

CHECKPOINTS = "checkpoints"
LATEST = "latest"
BEST = "best"
REPORT = "report.html"


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's folder, such as step_00000500."""
    return f"step_{step:08d}"


def checkpoints_newest_first(run_dir: Path) -> list[str]:
    """Names of the checkpoints in `run_dir`, by step.

    `latest` is for people and other programs: a checkpoint is whole as soon as it has its name, and one that
    its run did not live to write into `latest` counts too.
    """
    return sorted((path.name for path in (run_dir / CHECKPOINTS).glob("step_*")), reverse=True)


def best_checkpoint(run_dir: Path) -> str | None:
    """The name of the checkpoint that `run_dir/best` points at, None while there is none."""
    link = run_dir / BEST
    return link.readlink().name if link.is_symlink() else None
