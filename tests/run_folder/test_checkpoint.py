"""One checkpoint: whole or absent, found by any of its names, verified when read, and refused where it does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artkv.config import Config
from artkv.errors import UserError
from artkv.run_folder.adapter_file import write_adapter
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.run_folder.state import Identity, Progress, TrainableState

IDENTITY = Identity("frozen", "data", "float32", micro_batches_per_step=4)


def state(value: float = 1.0) -> TrainableState:
    tensors = {"b.weight": torch.full((2, 3), value), "a": torch.full((1,), value / 3)}
    return TrainableState(tensors, {k: v * 2 for k, v in tensors.items()}, {k: v * 3 for k, v in tensors.items()}, 7)


def save(run_dir: Path, step: int, value: float = 1.0) -> Path:
    return RunCheckpoints(run_dir).save(state(value), Progress(step=step, questions_seen=8), IDENTITY, Config())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 5))
    assert checkpoint.progress == Progress(step=5, questions_seen=8)
    assert checkpoint.step == 5
    assert checkpoint.identity == IDENTITY
    assert checkpoint.frozen_hash == IDENTITY.frozen_hash
    assert checkpoint.config == Config()
    loaded = checkpoint.state()
    assert loaded.adam_step == 7
    for saved, read in zip(
        (state().masters, state().exp_avg, state().exp_avg_sq, state().masters),
        (loaded.masters, loaded.exp_avg, loaded.exp_avg_sq, checkpoint.adapter()),
        strict=True,
    ):
        assert saved.keys() == read.keys()
        assert all(torch.equal(saved[name], read[name]) for name in saved)
    assert {path.name for path in checkpoint.path.iterdir()} == {
        "adapter.safetensors", "optimizer.safetensors", "checkpoint.json",
    }  # fmt: skip


def test_its_description_is_read_once(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 5))
    (checkpoint.path / "checkpoint.json").unlink()  # what is open needs it no more
    checkpoint.check_fits(Config(), checkpoint.adapter())
    checkpoint.check_frozen_weights(IDENTITY.frozen_hash)
    checkpoint.check_resumable()
    assert checkpoint.state().adam_step == 7


def test_every_name_of_a_checkpoint_leads_to_it(tmp_path: Path) -> None:
    first, last = save(tmp_path, 5), save(tmp_path, 10)
    RunCheckpoints(tmp_path).mark_best(5)
    for name in (tmp_path, last, str(last), tmp_path / "checkpoints" / "latest"):
        assert open_checkpoint(name).path == last.resolve()
    best = open_checkpoint(tmp_path / "best")
    assert best.path == first.resolve()
    assert best.run_dir == tmp_path.resolve()
    with pytest.raises(UserError, match="no checkpoint there"):
        open_checkpoint(tmp_path / "checkpoints" / "step_00000099")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="this run has no checkpoint yet"):
        open_checkpoint(tmp_path / "new")


def test_an_exported_adapter_is_a_checkpoint_that_no_run_goes_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    file = folder / "kv_prefix.safetensors"
    write_adapter(file, state().masters, Config(), IDENTITY.frozen_hash, step=5)
    for name in (file, folder):
        adapter = open_checkpoint(name)
        assert adapter.path == file.resolve()
        assert (adapter.step, adapter.frozen_hash, adapter.config) == (5, "frozen", Config())
        assert adapter.run_dir == folder.resolve() / "kv_prefix"
    assert all(torch.equal(tensor, state().masters[name]) for name, tensor in adapter.adapter().items())
    adapter.check_fits(Config(), state().masters)
    for ask in (
        adapter.state,
        adapter.check_resumable,
        lambda: adapter.progress,
        lambda: adapter.identity,
    ):
        with pytest.raises(UserError, match="is an adapter and holds no optimizer state; resume from a checkpoint's"):
            ask()


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
    for read in (lambda opened: opened.state(), lambda opened: opened.check_resumable()):
        with pytest.raises(UserError, match=message):
            read(open_checkpoint(path.parent))
    latest = RunCheckpoints(tmp_path).latest()
    assert latest is not None
    assert latest.progress.step == 5
    assert message in capsys.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 5))
    masters = state().masters
    checkpoint.check_fits(Config(), masters)
    with pytest.raises(UserError, match=r"first b.weight \(checkpoint: \(2, 3\), config: absent\)"):
        checkpoint.check_fits(Config(), {"a": torch.zeros(1)})
    changed = Config.model_validate({"efficientnet": {"image_size": 80}})
    with pytest.raises(UserError, match="was trained with efficientnet.image_size=300, now 80; .* set"):
        checkpoint.check_fits(changed, masters)
    checkpoint.check_frozen_weights("frozen")
    with pytest.raises(UserError, match="was trained on other frozen weights"):
        checkpoint.check_frozen_weights("thawed")


def test_a_tokenizer_is_compared_where_it_was_recorded(tmp_path: Path) -> None:
    before = open_checkpoint(save(tmp_path, 5))
    before.check_frozen_weights("frozen+tokens")
    recorded = replace(before, frozen_hash="frozen+tokens")
    recorded.check_frozen_weights("frozen+tokens")
    with pytest.raises(UserError, match=r"another tokenizer, .* \(hash tokens, now others\); give model.blip2"):
        recorded.check_frozen_weights("frozen+others")
    for checkpoint in (before, recorded):
        with pytest.raises(UserError, match="was trained on other frozen weights"):
            checkpoint.check_frozen_weights("thawed+tokens")
