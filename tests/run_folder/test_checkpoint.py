"""Checkpoints: whole or absent, verified, found by any of their names, pruned."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from artkv.config import Config
from artkv.errors import UserError
from artkv.run_folder.checkpoint import (
    check_fits,
    check_same_frozen_weights,
    checkpoints_newest_first,
    load_checkpoint,
    load_latest,
    mark_best,
    prune_checkpoints,
    resolve_checkpoint,
    run_dir_of,
    save_checkpoint,
    set_aside_newer,
)
from artkv.run_folder.state import Identity, Progress, TrainableState

IDENTITY = Identity("frozen", "data", "float32", micro_batches_per_step=4)


def state(value: float = 1.0) -> TrainableState:
    tensors = {"b.weight": torch.full((2, 3), value), "a": torch.full((1,), value / 3)}
    return TrainableState(tensors, {k: v * 2 for k, v in tensors.items()}, {k: v * 3 for k, v in tensors.items()}, 7)


def save(run_dir: Path, step: int, value: float = 1.0) -> Path:
    return save_checkpoint(run_dir, state(value), Progress(step=step, questions_seen=8), IDENTITY, Config())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    loaded = load_checkpoint(save(tmp_path, 5))
    assert loaded.progress == Progress(step=5, questions_seen=8)
    assert loaded.identity == IDENTITY
    assert loaded.config == Config()
    assert loaded.state.adam_step == 7
    for saved, read in zip(
        (state().masters, state().exp_avg, state().exp_avg_sq),
        (loaded.state.masters, loaded.state.exp_avg, loaded.state.exp_avg_sq),
        strict=True,
    ):
        assert saved.keys() == read.keys()
        assert all(torch.equal(saved[name], read[name]) for name in saved)
    assert {path.name for path in loaded.path.iterdir()} == {
        "adapter.safetensors", "optimizer.safetensors", "checkpoint.json",
    }  # fmt: skip
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000005\n"


def test_every_name_of_a_checkpoint_leads_to_it(tmp_path: Path) -> None:
    first, last = save(tmp_path, 5), save(tmp_path, 10)
    mark_best(tmp_path, 5)
    for name in (tmp_path, last, tmp_path / "checkpoints" / "latest"):
        assert resolve_checkpoint(name) == last.resolve()
    assert resolve_checkpoint(tmp_path / "best") == first.resolve()
    assert run_dir_of(resolve_checkpoint(tmp_path / "best")) == tmp_path.resolve()
    with pytest.raises(UserError, match="no checkpoint there"):
        resolve_checkpoint(tmp_path / "checkpoints" / "step_00000099")


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    mark_best(tmp_path, 2)
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name[-1] for path in (tmp_path / "checkpoints").glob("step_*")) == ["2", "4", "5"]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("adapter.safetensors", lambda data: data[:-1], "does not match its checksum"),
        ("optimizer.safetensors", None, "optimizer.safetensors is missing"),
        ("checkpoint.json", lambda data: data[:20], "checkpoint.json is not valid"),
        ("checkpoint.json", lambda data: data.replace(b"seen\": 8", b"seen\": 9"), "checkpoint.json does not match"),
        ("checkpoint.json", lambda data: data.replace(b"_version\": 1", b"_version\": 9"), "has checkpoint format 9"),
    ],
)  # fmt: skip
def test_damage_is_noticed_and_the_checkpoint_before_is_the_latest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage, message: str
) -> None:  # fmt: skip
    save(tmp_path, 5)
    path = save(tmp_path, 10) / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        load_checkpoint(path.parent)
    latest = load_latest(tmp_path)
    assert latest is not None
    assert latest.progress.step == 5
    assert message in capsys.readouterr().err


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    (save(tmp_path, 5) / "adapter.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint is readable"):
        load_latest(tmp_path)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    masters = state().masters
    check_fits(path, Config(), Config(), masters, masters)
    with pytest.raises(UserError, match=r"first b.weight \(checkpoint: \(2, 3\), config: absent\)"):
        check_fits(path, Config(), Config(), masters, {"a": torch.zeros(1)})
    changed = Config.model_validate({"efficientnet": {"image_size": 80}})
    with pytest.raises(UserError, match="was trained with efficientnet.image_size=300, now 80; .* set"):
        check_fits(path, Config(), changed, masters, masters)
    check_same_frozen_weights(path, IDENTITY.frozen_hash, "frozen")
    with pytest.raises(UserError, match="was trained on other frozen weights"):
        check_same_frozen_weights(path, IDENTITY.frozen_hash, "thawed")


def test_going_back_sets_the_newer_history_aside(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000015" / "adapter.safetensors").unlink()  # damaged
    mark_best(tmp_path, 15)
    assert set_aside_newer(tmp_path, 5) == ["step_00000015", "step_00000010"]
    assert checkpoints_newest_first(tmp_path) == ["step_00000005"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000005\n"
    assert not (tmp_path / "best").exists()
    assert (tmp_path / "checkpoints" / "stale_step_00000010").is_dir()
    save(tmp_path, 8)
    prune_checkpoints(tmp_path, keep=1)
    latest = load_latest(tmp_path)
    assert latest is not None
    assert latest.progress.step == 8


def test_a_kill_at_any_moment_leaves_whole_checkpoints_or_none(tmp_path: Path) -> None:
    """Saves over and over in a process that is killed without warning; all that is there must verify."""
    root = Path(__file__).parents[2]
    last_steps = []
    for number, delay in enumerate((0.05, 0.11, 0.17, 0.23)):
        run_dir = tmp_path / str(number)
        writer = textwrap.dedent(
            f"""
            from pathlib import Path
            from tests.training.test_checkpoint import save
            from artkv.run_folder.checkpoint import prune_checkpoints
            run_dir = Path({str(run_dir)!r})
            for step in range(1, 100_000):
                save(run_dir, step, value=float(step))
                prune_checkpoints(run_dir, keep=2)
                if step == 1:
                    print("ready", flush=True)
            """
        )
        with subprocess.Popen([sys.executable, "-c", writer], cwd=root, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.kill()
        for path in (run_dir / "checkpoints").glob("step_*"):
            checkpoint = load_checkpoint(path)
            assert (checkpoint.state.masters["b.weight"] == checkpoint.progress.step).all()
        latest = load_latest(run_dir)
        assert latest is not None
        last_steps.append(latest.progress.step)
        named = (run_dir / "checkpoints" / "latest").read_text().strip()
        assert load_checkpoint(run_dir / "checkpoints" / named)
    assert max(last_steps) > 2
