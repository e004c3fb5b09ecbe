"""A folder or a hub id, and which revision of it."""

from pathlib import Path
from typing import Any

import pytest

from artkv.config import Config
from artkv.errors import UserError
from artkv.models.files.hub import local_folder, moving_revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_revision_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        (tmp_path / COMMIT).mkdir(exist_ok=True)
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            (tmp_path / COMMIT / file).touch()
        assert not any(pattern.endswith(".py") for pattern in allow_patterns)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    for revision in ("v1", COMMIT, None):
        assert local_folder("some/model", "model.blip2", revision) == tmp_path / COMMIT
    assert asked == [("some/model", "v1"), ("some/model", COMMIT), ("some/model", None)]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["config.json", "tokenizer.json"], r"without weights \(\*\.safetensors, or \*\.bin\); give the id of a whole"),
        (["config.json", "pytorch_model.bin"], r"without a tokenizer \(tokenizer\.json, or vocab\.json\); give"),
        (["README.md"], r"without config\.json and without weights .* and without a tokenizer"),
    ],
)
def test_what_a_repository_lacks_is_told_by_its_id(
    files: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / COMMIT
    cached.mkdir()
    for file in files:
        (cached / file).touch()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cached))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^model\.blip2 = 'some/model': the hub has it, {told}"):
        local_folder("some/model", "model.blip2")
    assert local_folder("some/model", "model.opt") == cached


def test_a_branch_moves_and_a_commit_does_not(tmp_path: Path) -> None:
    assert moving_revision(None, tmp_path) is None
    assert moving_revision(COMMIT, tmp_path) is None
    note = moving_revision("main", tmp_path / COMMIT)
    assert note == f"model.revision = 'main': a branch or tag, which moves; pin the commit: {COMMIT}"


def test_a_revision_of_what_has_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.revision = 'main': is for a hub id, .* is a folder; leave it out"):
        local_folder(str(tmp_path), "model.blip2", "main")
    with pytest.raises(ValueError, match=r"model\.revision is for a hub id, and model\.blip2 = 'x\.pth' is a file"):
        Config.model_validate({"model": {"blip2": "x.pth", "opt": "y", "revision": "main"}})


@pytest.mark.parametrize("revision", ["", "../x", "a/../../b", "-rf", "a b", "a\x1b", "x" * 300])
def test_what_is_no_revision_is_an_error(revision: str) -> None:
    with pytest.raises(ValueError, match="no name of a commit, tag or branch"):
        Config.model_validate({"model": {"revision": revision}})


def test_a_hub_that_fails_is_told_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise OSError("no network\nand \x1b[31mmore. Pass trust_remote_code=True.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(UserError, match=r"'some/model' at model\.revision = 'v1': no such .*download it") as caught:
        local_folder("some/model", "model.blip2", "v1")
    assert str(caught.value).isprintable()
    assert "trust_remote_code" not in str(caught.value)
