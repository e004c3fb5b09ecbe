"""What is imported is left alone by the collector of garbage, which goes on afterwards."""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from artkv.heavy_imports import heavy_imports


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("artkv.heavy_imports._FROZEN", [])
    before = gc.isenabled()
    yield
    gc.unfreeze()
    gc.enable() if before else gc.disable()


class Own:
    """Refers to itself, so that the collector alone can end it."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_meanwhile_and_what_is_made_is_looked_at_no_more() -> None:
    with heavy_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)
    assert not {id(one) for one in made} & {id(one) for one in gc.get_objects()}


def test_what_is_made_later_is_collected_as_ever_after_more_imports_too() -> None:
    with heavy_imports():
        pass
    own = Own()
    seen = weakref.ref(own)
    with heavy_imports():
        assert not gc.isenabled()
    del own
    gc.collect()
    assert seen() is None


def test_an_error_is_passed_on_and_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError
    assert not gc.isenabled()


def test_a_command_imports_with_it(tiny_world: Path) -> None:
    """As a count, and not as a time: the collector would go through everything some seven times."""
    program = """
import gc, sys
full = 0
def count(phase, info):
    global full
    full += info["generation"] == 2 and "torch" in sys.modules and "artkv.preflight" not in sys.modules
gc.callbacks.append(count)
from artkv.cli import main
assert main(["check", "--config", "config.yaml"]) == 0
assert "artkv.preflight" in sys.modules
assert full == 0, full
assert gc.get_freeze_count() > 200_000, gc.get_freeze_count()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tiny_world, timeout=120, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
