"""Each wrong input gets one message with place, value and remedy; nothing is lost, half-written or waited for."""

import faulthandler
import hashlib
import os
import re
import stat
import sys
from pathlib import Path

import pytest

import artkv.cli as cli
from artkv.config import load_config
from artkv.distributed import World
from artkv.training.run import train
from tests.bad_inputs.cases import BadInput, Place
from tests.bad_inputs.table import AREAS, page

ALL = [pytest.param(case, id=f"{area.title}: {case.name}") for area in AREAS for case in area.cases]
# One that hangs ends the test's process, with the stacks: a wait in C++ could not be ended otherwise.
SECONDS = 120


@pytest.fixture(scope="session")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    config = load_config(tiny_world / "config.yaml", [f"run.output_dir={output}", "training.num_epochs=1"])
    train(config, None, one_process)
    return output


def state_of(folder: Path) -> dict[str, str]:
    """What lies below a folder: each path, with its kind and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else ""
        target = os.readlink(path) if stat.S_ISLNK(mode) else ""
        found[str(path)] = f"{stat.S_IFMT(mode)} {content}{target}"
    return found


@pytest.mark.parametrize("case", ALL)
def test_a_wrong_input_is_told_and_nothing_else_happens(
    case: BadInput,
    tiny_world: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_process: None,
) -> None:
    place = Place(tmp_path / "place", tiny_world, trained)
    place.folder.mkdir()
    monkeypatch.chdir(place.folder)
    arguments = case.make(place)
    before, world_before = state_of(place.folder), state_of(tiny_world)
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
    try:
        code = cli.main(arguments)
    except SystemExit as end:  # argparse's way
        code = end.code
    finally:
        faulthandler.cancel_dump_traceback_later()
    told = capsys.readouterr().err
    assert code == case.exit_code, told
    assert "Traceback" not in told
    for part in case.says:
        assert part.replace("{folder}", str(place.folder)).replace("{world}", str(tiny_world)) in told
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told.replace("\r", "")), (
        "control characters reach a terminal"
    )
    assert len(told) < 20_000
    assert state_of(place.folder) == before
    assert state_of(tiny_world) == world_before


def test_no_two_cases_have_one_name() -> None:
    names = [str(param.id) for param in ALL]
    assert len(set(names)) == len(names)


def test_the_page_is_made_of_this_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "bad_input.md").read_text(encoding="utf-8")
    assert text == page()
