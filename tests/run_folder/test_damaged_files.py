"""Each file of a run's folder and each exported adapter, damaged in every way: refused with a reason, or read."""

import json
import shutil
from pathlib import Path

import pytest

from artkv.config import Config
from artkv.errors import UserError
from artkv.run_folder.adapter_file import write_adapter
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.run_folder.marker import write_marker
from artkv.run_folder.run_lock import RunLock, read_lock
from artkv.run_folder.status import format_status, read_status
from tests.damage import VALUES, check, damaged, retyped
from tests.run_folder.test_checkpoint import IDENTITY, save, state

STATUS = {
    "format_version": 2, "state": "running", "total_steps": 18, "ranks": 1, "hosts": ["n1"], "job": "17",
    "started": 1.0, "ended": None, "error": "what \u00e9", "saved_step": 5,
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    save(run, 5)
    (run / "status.json").write_text(json.dumps(STATUS))
    write_marker(run, 5, "SIGTERM")
    lines = [
        {"step": step, "time": 1.5, "kind": "train", "loss": 1.0, "step_seconds": 0.1, "slowest_rank": 0}
        for step in (2, 4)
    ]
    lines.append({"step": 4, "time": 1.5, "kind": "validation", "exact_match": 0.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lock = RunLock(run, {"SLURM_JOB_ID": "17"}, 1e6)
    assert lock.try_take()
    content = (run / "run.lock").read_bytes()
    lock.release()
    (run / "run.lock").write_bytes(content.replace(b'"machine": "', b'"machine": "other '))
    write_adapter(tmp_path / "adapter.safetensors", state().masters, Config(), IDENTITY.frozen_hash, step=5)
    return run


@pytest.mark.parametrize("name", ["status.json", "run.lock", "preempted.json", "metrics.jsonl"])
def test_status_reads_a_damaged_file_or_says_why_not(run_dir: Path, name: str) -> None:
    path, refused = run_dir / name, 0
    content = path.read_bytes()
    trees = [json.dumps(tree).encode() for tree in retyped(json.loads(content.splitlines()[0]))]
    if name == "metrics.jsonl":
        trees = [tree + b"\n" for tree in trees]
    for new in [*damaged(content), *trees]:
        path.write_bytes(new)
        refused += check(lambda: format_status(read_status(run_dir, wait_seconds=0)), new)
    assert (refused > 100) == (name != "metrics.jsonl")  # whose damaged lines are told and left out


@pytest.mark.parametrize("name", ["status.json", "preempted.json", "run.lock"])
def test_each_missing_unknown_or_mistyped_value_is_refused_by_its_name(run_dir: Path, name: str) -> None:
    path = run_dir / name
    tree = json.loads(path.read_bytes())
    for key in tree.keys() - {"format_version"}:
        for change in ({}, {key: [1]}, {key: {"a": 1}}, {key: True}):
            path.write_text(json.dumps({k: v for k, v in tree.items() if k != key} | change))
            with pytest.raises(UserError, match=key) as caught:
                read_status(run_dir, wait_seconds=0)
            assert str(path) in str(caught.value)
    path.write_text(json.dumps(tree | {"format_version": 9}))
    with pytest.raises(UserError, match=f"{name}: has format 9, this artkv reads .; use the version of artkv"):
        read_status(run_dir, wait_seconds=0)
    path.write_text(json.dumps(tree | {"colour": 1}))
    with pytest.raises(UserError, match="has 'colour', which is unknown"):
        read_status(run_dir, wait_seconds=0)


def test_records_of_an_earlier_artkv_are_read(run_dir: Path) -> None:
    for name, unknown in {"status.json": "saved_step", "preempted.json": None, "run.lock": None}.items():
        tree = json.loads((run_dir / name).read_text())
        (run_dir / name).write_text(json.dumps({k: v for k, v in tree.items() if k not in ("format_version", unknown)}))
    assert read_status(run_dir, wait_seconds=0).state in ("running", "preempted")
    assert read_lock(run_dir) is not None


def test_a_damaged_checkpoint_is_refused(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step_00000005"
    whole = open_checkpoint(folder)
    for name in ("checkpoint.json", "adapter.safetensors", "optimizer.safetensors"):
        content = (folder / name).read_bytes()
        for new in damaged(content):
            (folder / name).write_bytes(new)
            if not check(lambda: open_checkpoint(folder).state(), new):
                assert open_checkpoint(folder) == whole  # other blanks in JSON, or no change
        (folder / name).write_bytes(content)
    open_checkpoint(folder).state()


def test_a_checkpoint_with_any_other_value_and_the_right_checksum_is_read_or_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_dir / "checkpoints" / "step_00000005"
    tree = json.loads((folder / "checkpoint.json").read_text())
    monkeypatch.setattr("artkv.run_folder.checkpoint._description_sha256", lambda tree: "right")
    tree["config"] = {"training": tree["config"]["training"], "dataset": tree["config"]["dataset"]}
    for part in ("progress", "identity"):
        for key in tree[part]:
            lacking = {**tree, part: {name: value for name, value in tree[part].items() if name != key}}
            lacking["sha256"] = lacking["sha256"] | {"checkpoint.json": "right"}
            (folder / "checkpoint.json").write_text(json.dumps(lacking))
            with pytest.raises(UserError, match=f"checkpoint.json: lacks {key}; the checkpoint is damaged"):
                open_checkpoint(folder)
    for new in retyped(tree):
        if isinstance(new.get("sha256"), dict):
            new["sha256"] = new["sha256"] | {"checkpoint.json": "right"}
        (folder / "checkpoint.json").write_text(json.dumps(new))
        check(lambda: open_checkpoint(folder).state(), new)
        check(lambda: RunCheckpoints(run_dir).latest(), new)


def test_a_damaged_adapter_is_read_or_refused(run_dir: Path) -> None:
    path = run_dir.parent / "adapter.safetensors"
    content = path.read_bytes()

    def read() -> None:
        opened = open_checkpoint(path)
        opened.adapter()
        opened._shapes()

    for new in damaged(content):
        path.write_bytes(new)
        check(read, new)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name in [*header["__metadata__"]]:
        value = json.loads(header["__metadata__"][name]) if name != "format" else None
        for other in [json.dumps(one) for one in [*VALUES, *retyped(value)]] + ["", "{", "NaN", "[" * 10_000]:
            metadata = header["__metadata__"] | {name: other}
            text = json.dumps(header | {"__metadata__": metadata}).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
            check(read, other)


def test_a_file_that_is_no_file_is_told(run_dir: Path) -> None:
    for name in ("status.json", "run.lock", "preempted.json", "metrics.jsonl"):
        content = (run_dir / name).read_bytes()
        (run_dir / name).unlink()
        (run_dir / name).mkdir()
        with pytest.raises(UserError, match=name):
            read_status(run_dir, wait_seconds=0)
        (run_dir / name).rmdir()
        with (run_dir / name).open("wb") as file:
            file.truncate(2**41)  # a hole, larger than memory
        with pytest.raises(UserError, match=r"has 2,199,023,255,552 bytes"):
            read_status(run_dir, wait_seconds=0)
        (run_dir / name).write_bytes(content)
    shutil.rmtree(run_dir)
