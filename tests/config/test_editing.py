"""Settings written into a YAML file whose other lines stay."""

from pathlib import Path

import pytest
import yaml

from artkv.config.editing import write_settings, yaml_scalar
from artkv.errors import UserError
from tests.mounted import Disk

TEXT = """# Mine.
frozen:
    # weights
    opt: stream   # for now
    slots: 3
training:
    seed: 1

run: {output_dir: out}   # where
"""


def test_lines_are_changed_or_added_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT)
    changes = {"frozen.opt": "resident", "frozen.feature_cache": None, "training.activation_checkpointing": "3MiB"}
    assert write_settings(path, changes | {"model.dtype": "float32"})
    assert path.read_text().splitlines() == [
        "# Mine.", "frozen:", "    feature_cache: null", "    # weights", "    opt: resident   # for now",
        "    slots: 3", "training:", "    activation_checkpointing: 3MiB", "    seed: 1", "",
        "run: {output_dir: out}   # where", "model:", "  dtype: float32",
    ]  # fmt: skip


def test_a_section_in_braces_costs_the_comments(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT)
    assert not write_settings(path, {"run.log_every": 5})
    tree = yaml.safe_load(TEXT)
    assert yaml.safe_load(path.read_text()) == tree | {"run": {"output_dir": "out", "log_every": 5}}


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        write_settings(tmp_path / "absent.yaml", {"run.log_every": 5})


def test_a_full_disk_leaves_the_file_as_it_was(disk: Disk) -> None:
    path = disk.folder / "my.yaml"
    text = TEXT + "# why\n" * 600
    path.write_text(text[:4090])  # what is added takes another block
    before = path.read_bytes()
    disk.fill()
    with pytest.raises(UserError, match=f"config {path}: cannot be written \\(No space left on device\\); make room"):
        write_settings(path, {"frozen.opt": "resident", "training.activation_checkpointing": "3MiB"})
    assert path.read_bytes() == before
    disk.free()
    assert sorted(disk.folder.iterdir()) == [path]


def test_a_link_stays_one_and_the_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    path, link = tmp_path / "kept" / "my.yaml", tmp_path / "link.yaml"
    path.write_text(TEXT)
    path.chmod(0o640)
    link.symlink_to(path)
    assert write_settings(link, {"frozen.opt": "resident"})
    assert link.is_symlink()
    assert "opt: resident" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (None, "null"), (3, "3"), ("2MiB", "2MiB"), ("1", "'1'")])
def test_values_are_written_as_yaml(value: bool | str | int | None, text: str) -> None:
    assert yaml_scalar(value) == text
