"""`artkv launch` writes a file once, and says how to start it."""

import os
from pathlib import Path

import pytest

import artkv.cli as cli
from artkv.launch_files.kinds import KINDS


def test_a_script_is_written_under_its_own_name_and_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch", "local"]) == 0
    assert os.access(tmp_path / "train_local.sh", os.X_OK)
    assert capsys.readouterr().out == (
        "train_local.sh: written; edit its first lines, then: bash train_local.sh my.yaml\n"
    )


def test_the_file_may_have_another_name_in_a_folder_to_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my jobs" / "job.sbatch"
    assert cli.main(["launch", "slurm", "--output", str(path)]) == 0
    assert f"#   sbatch '{path}' [--set" in path.read_text()
    assert f"sbatch '{path}'\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_written(kind: str, tmp_path: Path) -> None:
    assert cli.main(["launch", kind, "--output", str(tmp_path / "file")]) == 0
    text = (tmp_path / "file").read_text()
    assert os.access(tmp_path / "file", os.X_OK) == text.startswith("#!")


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.sbatch"
    path.write_text("mine")
    assert cli.main(["launch", "slurm", "--output", str(path)]) == 1
    assert "is there already; give another --output" in capsys.readouterr().err
    assert path.read_text() == "mine"
