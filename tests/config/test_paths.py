"""`~` in the settings that are paths, and paths that cannot be."""

from pathlib import Path

import pytest

from artkv.config.paths import expand_home, resolve_paths
from artkv.errors import UserError


def test_home_is_expanded_in_inputs_and_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tree = {"run": {"output_dir": "~/runs"}, "dataset": {"train": "~/a.csv"}, "model": {"blip2": "~/blip2"}}
    resolve_paths(tree, Path("/base"))
    assert tree == {
        "run": {"output_dir": f"{tmp_path}/runs"},
        "dataset": {"train": f"{tmp_path}/a.csv"},
        "model": {"blip2": f"{tmp_path}/blip2"},
    }
    assert expand_home("./~x", "x") == Path.cwd() / "~x"  # which would be expanded by whoever reads it again


@pytest.mark.parametrize(("section", "key"), [("run", "output_dir"), ("dataset", "val"), ("model", "blip2")])
def test_a_home_that_nobody_has_is_told(section: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"{section}.{key} = '~nobody_here/x': no home folder is known for"):
        resolve_paths({section: {key: "~nobody_here/x"}}, Path("/"))


def test_paths_that_cannot_be_raise_nothing_here(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    tree = {"dataset": {"train": "loop", "val": "n" * 5000}, "model": {"blip2": "./" + "n" * 300}}
    resolve_paths(tree, tmp_path)
    assert tree["dataset"]["train"] == str(tmp_path / "loop")
