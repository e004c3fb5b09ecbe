"""What is imported is left alone by the collector of garbage, which goes on afterwards."""

import gc
import subprocess
import sys
import weakref

import pytest

from artkv.heavy_imports import heavy_imports


@pytest.fixture(autouse=True)
def thawed() -> object:
    before = gc.isenabled()
    yield
    gc.unfreeze()
    gc.enable() if before else gc.disable()


def test_nothing_is_collected_meanwhile_and_what_is_made_is_looked_at_no_more() -> None:
    with heavy_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)
    assert not {id(one) for one in made} & {id(one) for one in gc.get_objects()}


def test_what_is_made_later_is_collected_as_ever() -> None:
    class Own:
        pass

    def forgotten() -> weakref.ref[Own]:
        own = Own()
        own.itself = own  # type: ignore[attr-defined]
        return weakref.ref(own)

    with heavy_imports():
        pass
    seen = forgotten()
    gc.collect()
    assert seen() is None
    seen = forgotten()
    with heavy_imports():
        pass
    assert seen() is None  # and not frozen


def test_an_error_is_passed_on_and_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError
    assert not gc.isenabled()


def test_a_command_imports_with_it() -> None:
    """As a count, and not as a time: the collector would go through everything some seven times."""
    program = """
import gc, sys
full = 0
def count(phase, info):
    global full
    full += phase == "start" and info["generation"] == 2
gc.callbacks.append(count)
from artkv.cli import main
assert main(["check", "--config", "/nowhere.yaml"]) == 1  # told before the imports
before = full
assert "torch" not in sys.modules
from artkv.heavy_imports import heavy_imports
with heavy_imports():
    import artkv.training.run
assert full == before, full
assert gc.get_freeze_count() > 200_000
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, capture_output=True)
