"""Faults are read back in order, and what is no record is left out."""

from pathlib import Path

import pytest

from artkv.run_folder.restarts import Restart, append_restart, read_restarts


def test_faults_are_read_back_and_damage_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Restart(1.5, "rank 1 is silent", 7, None), Restart(2.5, "killed?", 9, "too often")
    append_restart(tmp_path, first)
    with (tmp_path / "restarts.jsonl").open("a") as file:
        file.write('{"time": 1.0}\n[\n{"time": 1.0, "cause": 3, "step": -1, "gave_up": null}\n')
        file.write("\0" * 512 + "\n")  # as a power cut leaves it
    append_restart(tmp_path, second)
    assert read_restarts(tmp_path) == [first, second]
    assert "restarts.jsonl: 4 lines are no records and left out: 2, 3, 4 and more" in capsys.readouterr().err
    with (tmp_path / "restarts.jsonl").open("a") as file:
        file.write("\0" * 512)
    assert read_restarts(tmp_path) == [first, second]
    assert "5 lines are no records" in capsys.readouterr().err
    with (tmp_path / "restarts.jsonl").open("w") as file:
        file.write('{"time": 1.5, "cau')  # being written
    assert read_restarts(tmp_path) == []
    assert capsys.readouterr().err == ""
    assert read_restarts(tmp_path / "nowhere") == []
    append_restart(tmp_path / "nowhere", first)  # is lost, and no error
