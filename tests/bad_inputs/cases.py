"""What a wrong input is, and where it is made."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where a case makes its files. folder: its own, empty. world: `tiny_world`, which nobody may change."""

    folder: Path
    world: Path
    trained: Path

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the case's own."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def copy(self, name: str) -> Path:
        """A file or folder of the world, for the case to damage."""
        return _copy(self.world / name, self.folder / name)

    def run(self) -> Path:
        """A run that is finished, with a checkpoint after steps 4, 8 and its last, for the case to damage."""
        return _copy(self.trained, self.folder / "run")

    def checkpoint(self) -> Path:
        """The newest checkpoint of `run`."""
        run = self.run()
        return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()

    def config(self, *settings: str) -> list[str]:
        """Arguments for the world's config, with settings, that writes into a folder `run` of the case's."""
        all_settings = (f"run.output_dir={self.folder / 'run'}", *settings)
        return [
            "--config",
            str(self.world / "config.yaml"),
            *(word for setting in all_settings for word in ("--set", setting)),
        ]


Make = Callable[[Place], list[str]]


@dataclass(frozen=True)
class BadInput:
    """One wrong input.

    name: what is wrong, as the page of the docs says it. make: makes the files and returns the arguments of `artkv`.
    says: parts of the message: the place, the value, the remedy. `{folder}` and `{world}` stand for the paths.
    """

    name: str
    make: Make
    says: tuple[str, ...]
    exit_code: int = 1


@dataclass(frozen=True)
class Area:
    """A heading of the page, and the cases below it."""

    title: str
    cases: list[BadInput]


def _copy(source: Path, target: Path) -> Path:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return target
