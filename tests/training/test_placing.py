"""A run that chooses where weights lie on a device that says what is free, and goes to a smaller way if need be."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from artkv.config import Config, load_config
from artkv.distributed import World
from artkv.errors import UserError
from artkv.planning.device import Device
from artkv.training.run import train
from tests.models.test_cuda_graphs import rerunning
from tests.training_runs import Stopped, Train, final_bytes

AUTO = ["frozen={opt: auto, vit: auto}", "training.activation_checkpointing=auto", "training.num_epochs=1"]


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the CPU a device with so many bytes free."""

    def make(free_bytes: int) -> None:
        device = Device("fake", free_bytes, free_bytes)
        monkeypatch.setattr("artkv.planning.device.ask_device", lambda _: device)

    return make


def test_four_lines_are_a_config(
    tiny_world: Path, tmp_path: Path, one_process: World, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What a run has to be told of a model whose EfficientNet is the usual one; here it is a smaller one."""
    path = tmp_path / "my.yaml"
    path.write_text(
        f"model: {{blip2: {tiny_world / 'blip2'}}}\n"
        f"efficientnet: {{checkpoint: {tiny_world / 'efficientnet.safetensors'}}}\n"
        f"dataset: {{train: {tiny_world / 'train.csv'}, image_root: {tiny_world / 'images'}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    short = ["efficientnet.architecture=test_efficientnet", "efficientnet.image_size=32", "training.num_epochs=1"]
    assert train(load_config(path, short), None, one_process).step == 5
    said = capsys.readouterr().err
    assert "artkv: OPT resident on the CPU, all activations kept; features of 12 pictures, 0.00 GB, cached in " in said
    written = load_config(tmp_path / "outputs" / "demo" / "config.yaml")
    assert (written.frozen.opt, written.frozen.feature_cache) == ("auto", "auto")
    assert written.training.activation_checkpointing == "auto"


def test_a_run_tries_its_largest_micro_batch_and_leaves_no_trace(
    run_training: Train, tiny_config: Config, tmp_path: Path, fake_device: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import artkv.training.placing as placing

    run_training(["training.num_epochs=1"])
    tried: list[int] = []
    forward_backward = placing.forward_backward

    def counting(session: object, batch: object, at_once: int) -> None:
        tried.append(at_once)
        torch.rand(3)
        forward_backward(session, batch, at_once)  # type: ignore[arg-type]

    monkeypatch.setattr(placing, "forward_backward", counting)
    fake_device(8 * 2**30)
    run_training([*AUTO, f"run.output_dir={tmp_path / 'placed'}"])
    assert tried == [1]
    assert "artkv: OPT resident, all activations kept: 0.5 of 8.0 GiB free; training.batch_size 4: up to about " in (
        capsys.readouterr().err
    )
    assert final_bytes(tmp_path / "placed") == final_bytes(tiny_config.run.output_dir)
    assert load_config(tmp_path / "placed" / "config.yaml").frozen.opt == "auto"


def test_a_run_that_runs_out_goes_on_in_a_smaller_way(
    run_training: Train, tiny_config: Config, tmp_path: Path, fake_device: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import artkv.training.placing as placing

    # Activations of two narrow blocks are worth recomputing where there are enough of them.
    large = [
        "training.batch_size=30",
        "training.num_epochs=1",
        "training.warmup_steps=0",
        "evaluation.each_epoch=false",
    ]
    run_training(large)
    placed: list[tuple[str, object]] = []
    forward_backward = placing.forward_backward

    def running_out_once(session: placing.Session, *others: object) -> None:
        config = session.placement.config
        placed.append((config.frozen.opt, config.training.activation_checkpointing))
        if len(placed) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        forward_backward(session, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(placing, "forward_backward", running_out_once)
    fake_device(8 * 2**30)
    run_training([*AUTO, *large, f"run.output_dir={tmp_path / 'placed'}"])
    assert placed[0] == ("resident", False)
    assert len(placed) == 2
    assert placed[1] != placed[0]
    assert "device memory ran out in a trial step; going on in a smaller way" in capsys.readouterr().err
    assert final_bytes(tmp_path / "placed") == final_bytes(tiny_config.run.output_dir)


def test_where_no_smaller_way_is_left_the_error_says_what_to_do(
    run_training: Train, fake_device: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import artkv.training.placing as placing

    def running_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(placing, "forward_backward", running_out)
    fake_device(8 * 2**30)
    with pytest.raises(UserError, match=r"training\.batch_size = 4: device memory runs out in the smallest way"):
        run_training(AUTO)


def test_what_is_set_by_hand_is_not_tried(
    run_training: Train, fake_device: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artkv.training.placing.forward_backward", lambda *_: pytest.fail("a step was tried"))
    fake_device(8 * 2**30)
    run_training(["training.num_epochs=1"])


def test_graphs_of_the_largest_micro_batch_are_recorded_before_the_first_step(
    run_training: Train, fake_device: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What smaller ones compute with fits into their memory, and that there is room for both is known in time."""
    recorders = rerunning(monkeypatch)
    fake_device(8 * 2**30)
    with pytest.raises(Stopped):
        run_training(AUTO, stop_before_step=0)
    assert [recorder.records > 0 for recorder in recorders][-2:] == [True, True]  # not those of the prediction


def test_a_run_resumes_under_another_placement(
    run_training: Train, tiny_config: Config, tmp_path: Path, fake_device: Callable[[int], None]
) -> None:
    run_training([*AUTO, f"run.output_dir={tmp_path / 'whole'}"])
    with pytest.raises(Stopped):
        run_training(AUTO, stop_before_step=6)
    fake_device(8 * 2**30)
    run_training(AUTO, resume="latest")
    assert final_bytes(tiny_config.run.output_dir) == final_bytes(tmp_path / "whole")


def test_a_rank_that_has_room_goes_with_one_that_ran_out(
    run_training: Train, fake_device: Callable[[int], None], one_process: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them meet once after the trial."""
    gather = World.gather

    def with_another_rank(world: World, value: object) -> list[object]:
        is_trial = isinstance(value, tuple) and len(value) == 2 and value[0] is False
        return [*gather(world, value), *([(True, 0)] if is_trial else [])]

    monkeypatch.setattr(World, "gather", with_another_rank)
    fake_device(8 * 2**30)
    with pytest.raises(UserError, match="device memory runs out in the smallest way"):
        run_training(AUTO)
