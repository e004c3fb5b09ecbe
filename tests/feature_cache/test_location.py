"""Where features are kept if nobody says: below the test's own $ARTKV_CACHE."""

import os
import shutil
import threading
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import artkv.models.backbone.backends as backends
from artkv.config import Config, ModelConfig, override_config
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.feature_cache import features_root
from artkv.models.files.blip2_files import Blip2Files
from artkv.session import Session
from tests.bad_inputs.test_permissions import as_anybody
from tests.feature_cache.conftest import on_ranks

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def automatic(tiny_config: Config) -> Config:
    return override_config(tiny_config, ["frozen.feature_cache=auto"])


def session(config: Config, *overrides: str) -> Session:
    return Session(override_config(config, overrides), single_process(), ["train", "val"])


def test_the_root_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARTKV_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert features_root() == tmp_path / "own" / "features"
    monkeypatch.delenv("ARTKV_CACHE")
    assert features_root() == tmp_path / "xdg" / "artkv" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert features_root() == Path.home() / ".cache" / "artkv" / "features"


def test_features_outlive_a_run_and_each_kind_has_its_folder(
    automatic: Config, features_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = session(automatic).load()
    folder = first.features.folder
    assert folder is not None
    assert folder == features_root / "format-3"
    assert (folder / "cache.json").is_file()
    assert f"features of 17 pictures, 0.00 GB, cached in {folder}" in capsys.readouterr().err
    again = session(automatic).load()
    assert again.features.folder == folder
    assert "encoded" not in capsys.readouterr().err
    other = session(automatic, "efficientnet.mean=[0.4, 0.4, 0.4]").load()
    assert other.features.folder == folder
    assert "encoded 18 pictures with test_efficientnet in" in capsys.readouterr().err
    kinds = [path.name.rpartition("-")[0] for path in folder.iterdir() if path.is_dir()]
    assert sorted(kinds) == ["test_efficientnet", "test_efficientnet", "vit"]


def test_a_control_reads_what_the_prefix_left(automatic: Config, capsys: pytest.CaptureFixture[str]) -> None:
    session(automatic).load()
    capsys.readouterr()
    session(automatic, "kv_modulation.enabled=false", "efficientnet.checkpoint=null").load()
    assert "encoded" not in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["full", "read-only"])
def test_without_room_nothing_is_cached_and_the_line_says_why(
    automatic: Config, features_root: Path, problem: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if problem == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
        reason = " has 0.00 GB free, 0.00 are wanted; set ARTKV_CACHE or frozen.feature_cache to a folder with room"
    else:  # whoever runs the tests may be root, who may write anywhere
        features_root.write_text("no folder")
        reason = " cannot be written (Not a directory); set ARTKV_CACHE"
    loaded = session(automatic).load()
    assert loaded.features.folder is None
    assert loaded.placement.config.frozen.feature_cache is None
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "mode", "reason"),
    [
        ("vit-*/shards", 0o555, "shards cannot be written (Permission denied); set ARTKV_CACHE"),
        ("vit-*/shards", 0, "shards: cannot be read (Permission denied); give this user permission to read it"),
        ("vit-*", 0, "cache.json: cannot be read (Permission denied); give this user permission to read it"),
        ("vit-*/shards/*", 0, ".safetensors: cannot be read (Permission denied); give this user permission to read it"),
        ("cache.json", 0, "cannot be read (Permission denied); give this user permission to read it"),
    ],
)
def test_a_part_that_another_user_has_made_may_keep_it_from_being_used(
    automatic: Config, features_root: Path, part: str, mode: int, reason: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # By what this user may do, and not by what the process began with.
    monkeypatch.setattr(os, "access", partial(os.access, effective_ids=True))
    Session(automatic, single_process(), ["train"]).load()
    for path in (features_root / "format-3").glob(part):
        path.chmod(mode)
    capsys.readouterr()
    with as_anybody():
        assert session(automatic).load().features.folder is None
    told = capsys.readouterr().err
    assert reason in told
    assert "or set ARTKV_CACHE or frozen.feature_cache to a folder with room" in told or mode


def test_a_damaged_part_ends_the_run(automatic: Config, features_root: Path) -> None:
    session(automatic).load()
    for path in features_root.glob("*/*/shards/*"):
        path.write_bytes(b"half")
    with pytest.raises(UserError, match="delete this file"):
        session(automatic).load()


def test_a_complete_cache_needs_no_room(automatic: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file is hashed again within two seconds of its change.
    monkeypatch.setattr("artkv.datasets.member_index.SETTLED_SECONDS", 0.0)
    folder = session(automatic).load().features.folder
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 0))
    assert session(automatic).load().features.folder == folder


@pytest.mark.parametrize("is_shared", [True, False])
def test_several_hosts_must_all_see_the_folder(
    automatic: Config, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import artkv.feature_cache.location as location

    true_probe, probes = location._probe, []

    def probe(folder: Path) -> Path:
        """The first tells whether the folder can be written, the second is looked for by the other host."""
        path = true_probe(folder)
        probes.append(path)
        if len(probes) == 2 and not is_shared:
            path.unlink()
        return path

    names = SimpleNamespace(gethostname=lambda: threading.current_thread().name)
    monkeypatch.setattr(location, "_probe", probe)
    monkeypatch.setattr(location, "socket", names)
    monkeypatch.setattr(location, "_SEEN_WITHIN_SECONDS", 0.0)
    first, second = on_ranks(2, lambda world: Session(automatic, world, ["train"]).features)
    assert first == second
    assert (first.folder is not None) is is_shared
    assert len(probes) == 2
    assert not any(path.exists() for path in probes)
    assert is_shared or " is not seen on Thread-" in first.note


def test_every_rank_opens_the_files_before_one_alone_does(automatic: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the hub's, which each host then fetches, while none waits for rank 0 in a meeting that ends after minutes."""
    opened: list[int] = []
    open_files = backends._open

    def noted(model: ModelConfig) -> Blip2Files:
        opened.append(threading.get_ident())
        return open_files(model)

    monkeypatch.setattr(backends, "_open", noted)
    on_ranks(2, lambda world: Session(automatic, world, ["train"]).features)
    assert len(set(opened[:2])) == 2
    assert len(opened) == 3  # and rank 0 once more, for all
