"""Real disks that are small or read-only, for tests of what a full or a read-only one does."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A file system of 2 MiB by default, which a test fills, frees and makes read-only while others write on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Takes all the room but `leave` bytes."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(b"\0" * 4096):
                    pass
            except OSError:
                pass
            if leave:
                file.truncate(max(0, file.tell() - leave))

    def free(self) -> None:
        """Gives the room back."""
        self._ballast.unlink(missing_ok=True)

    def read_only(self, is_so: bool = True) -> None:
        """Whether nobody can write, not even root."""
        _mount("-o", f"remount,{'ro' if is_so else 'rw'}", str(self.folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A disk of its own, of `request.param` MiB; skips where this user cannot mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = getattr(request, "param", 2)
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}m", "artkv-test", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", b"") or str(error).encode()
        pytest.skip(f"no disk can be mounted here: {told.decode(errors='replace').strip()} (root can, outside a box)")
    try:
        yield Disk(folder)
    finally:
        # Lazily: what a failed test leaves open must not keep it.
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
        assert not os.path.ismount(folder)
