"""Whole runs in one process: exact resume, what moved and what did not, and refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import artkv.training.engine as engine_module
import artkv.training.run as run_module
from artkv.config import Config, override_config
from artkv.errors import RunFailed, UserError
from artkv.models.kv_modulated_blip2 import AnswerLoss, KVModulatedBlip2
from artkv.run_folder.checkpoint import open_checkpoint
from tests.models.test_cuda_graphs import rerunning
from tests.training_runs import Stopped, Train, final_adapter, final_bytes

BACKENDS = ["transformers", "lavis"]
BACKENDS_AND_DTYPES = [("transformers", "float32"), ("transformers", "bfloat16"), ("lavis", "bfloat16")]

# The tiny world's run: 30 questions, micro-batches of 4, two epochs of 9 steps, a checkpoint each 4 steps.
STEPS = 18


def adapter_change(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


# Mid-epoch between checkpoints, right after one, and in the second epoch. Where a run is stopped is no matter of the
# backend or the dtype, whose runs go on from the same files.
@pytest.mark.parametrize(
    ("backend", "dtype", "stops"),
    [("transformers", "float32", (6, 8, 13)), ("transformers", "bfloat16", (13,)), ("lavis", "bfloat16", (13,))],
)
def test_stopped_anywhere_and_resumed_gives_the_same_bytes(
    run_training: Train, tiny_config: Config, tmp_path: Path, backend: str, dtype: str, stops: tuple[int, ...]
) -> None:
    settings = [f"model.backend={backend}", f"model.dtype={dtype}"]
    assert run_training(settings).step == STEPS
    expected = final_bytes(tiny_config.run.output_dir)
    for stop in stops:
        output = tmp_path / f"stopped{stop}"
        overrides = [*settings, f"run.output_dir={output}"]
        with pytest.raises(Stopped):
            run_training(overrides, stop_before_step=stop)
        progress = run_training(overrides, resume="latest")
        assert progress.step == STEPS
        assert progress.questions_seen == 60
        assert final_bytes(output) == expected, f"stopped before step {stop}"


def test_each_epoch_sees_each_question_once_in_an_order_of_its_own(run_training: Train, tmp_path: Path) -> None:
    settings = ["training.gradient_accumulation_steps=4"]
    whole: list[list[int]] = []
    run_training(settings, seen_rows=whole)
    # About 9 micro-batches an epoch, 4 a step: the third step is filled up with rows that do not count.
    assert len(whole) == 6
    epochs = [[row for step in whole[start : start + 3] for row in step] for start in (0, 3)]
    assert [sorted(rows) for rows in epochs] == [list(range(30))] * 2
    assert epochs[0] != epochs[1]

    settings += [f"run.output_dir={tmp_path / 'stopped'}", "run.checkpoint_every=1"]
    parts: list[list[int]] = []
    with pytest.raises(Stopped):
        run_training(settings, stop_before_step=4, seen_rows=parts)
    run_training(settings, resume="latest", seen_rows=parts)
    assert parts == whole


def test_stopped_before_the_first_checkpoint_auto_starts_again_and_latest_refuses(
    run_training: Train, tiny_config: Config
) -> None:
    with pytest.raises(Stopped):
        run_training(stop_before_step=2)
    with pytest.raises(UserError, match=r"--resume latest: .* has no checkpoint; leave --resume out"):
        run_training(resume="latest")
    assert run_training(resume="auto").step == STEPS
    with pytest.raises(UserError, match="holds a run already; add --resume latest"):
        run_training()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_trainables_move_and_masters_are_fp32(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    seen: dict[str, object] = {}

    class Watching(engine_module.TrainingEngine):
        def __init__(self, model: KVModulatedBlip2, *arguments: object) -> None:
            seen["model"], seen["before"] = model, frozen_tensors(model)
            super().__init__(model, *arguments)

        def close(self) -> None:
            optimizer = self._engine.optimizer
            seen["state_elements"] = {
                key: sum(state[key].numel() for state in optimizer.state.values()) for key in ("exp_avg", "exp_avg_sq")
            }
            seen["master_dtypes"] = {masters.dtype for masters in optimizer.single_partition_of_fp32_groups}
            super().close()

    def frozen_tensors(model: KVModulatedBlip2) -> dict[str, Tensor]:
        trained = {id(p) for p in model.parameters()}
        parts: dict[str, nn.Module] = {
            "backbone": model.backbone._model,
            "efficientnet": model.parts.art_encoders[0],
        }
        return {
            f"{part}.{name}": tensor.clone()
            for part, module in parts.items()
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
            if id(tensor) not in trained
        }

    monkeypatch.setattr(run_module, "TrainingEngine", Watching)
    run_training(["model.dtype=bfloat16", f"model.backend={backend}"])
    model, before = seen["model"], seen["before"]
    after = frozen_tensors(model)
    assert before.keys() == after.keys()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    elements = sum(p.numel() for p in model.parameters())
    padding = 64  # DeepSpeed pads each flat group to a few elements
    for count in seen["state_elements"].values():
        assert elements <= count <= elements + padding
    assert seen["master_dtypes"] == {torch.float32}

    # The run trained every one of them, and what forward used is the masters in bf16.
    adapter = final_adapter(tiny_config.run.output_dir)
    for name, parameter in model.named_trainables().items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, adapter[name].bfloat16()), name
    first = open_checkpoint(tiny_config.run.output_dir / "best").adapter()
    moved = {name for name in adapter if not torch.equal(adapter[name], first[name])}
    assert moved == adapter.keys()
    assert any(not torch.equal(m, m.bfloat16().float()) for m in adapter.values())


def test_trackers_are_those_of_the_config_and_checked_before_anything_is_loaded(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(names: tuple[str, ...]) -> None:
        raise UserError(f"refused: {names}")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "check_trackers", refuse)
        with pytest.raises(UserError, match=r"refused: \('wandb',\)"):
            run_training(["run.trackers=[wandb]", "model.blip2=./nothing"])
    run_training(["run.trackers=[]", "training.num_epochs=1"])
    assert (tiny_config.run.output_dir / "metrics.jsonl").is_file()
    assert not list(tiny_config.run.output_dir.glob("events*"))


def test_logs_go_on_after_a_resume_and_tensorboard_reads_them(run_training: Train, tiny_config: Config) -> None:
    with pytest.raises(Stopped):
        run_training(stop_before_step=6)
    run_training(resume="latest")
    run_dir = tiny_config.run.output_dir
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == [2, 4, 6, 8, 9, 10, 12, 14, 16, 18]
    assert all(record["loss"] > 0 and record["grad_norm"] > 0 for record in records if record["kind"] == "train")
    assert [record["step"] for record in records if record["kind"] == "validation"] == [0, 9, 18]
    events = EventAccumulator(str(run_dir)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps
    assert [event.step for event in events.Scalars("validation/exact_match")] == [0, 9, 18]
    assert events.Tags()["images"]
    assert json.loads((run_dir / "environment.json").read_text())
    assert (run_dir / "best").resolve().name.startswith("step_")


def poison(model_step: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loss infinite in the forward passes that `model_step` picks, counted from 0."""
    forward, calls = KVModulatedBlip2.forward, iter(range(10_000))

    def poisoned(self: KVModulatedBlip2, batch: object) -> AnswerLoss:
        loss = forward(self, batch)
        return loss._replace(loss_sum=loss.loss_sum * torch.inf) if model_step(next(calls)) else loss

    monkeypatch.setattr(KVModulatedBlip2, "forward", poisoned)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    poison(lambda call: call in (3, 7), monkeypatch)
    progress = run_training([f"model.dtype={dtype}", "training.num_epochs=1"])
    assert progress.step == STEPS / 2
    assert progress.skipped_steps == 2
    assert progress.nonfinite_steps_in_a_row == 0
    assert all(torch.isfinite(tensor).all() for tensor in final_adapter(tiny_config.run.output_dir).values())


def test_too_many_in_a_row_fail_the_run(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(lambda call: call >= 5, monkeypatch)
    with pytest.raises(RunFailed, match="step 8: loss or gradient was not finite in 3 steps in a row"):
        run_training(["training.max_nonfinite_steps=3"])


def test_training_stops_early_when_validation_does_not_improve(run_training: Train) -> None:
    # Random weights never answer right: the first epoch's EM of 0 is the best, the second's no better.
    progress = run_training(["training.num_epochs=9", "training.early_stopping_patience=1"])
    assert (progress.step, progress.epoch, progress.best_step) == (18, 2, 9)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(
    run_training: Train, tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training()
    run_dir = tiny_config.run.output_dir
    expected = final_bytes(run_dir)
    adapter = run_dir / "checkpoints" / "step_00000018" / "adapter.safetensors"
    damaged = bytearray(adapter.read_bytes())
    damaged[-5] ^= 1
    adapter.write_bytes(damaged)
    assert run_training(resume="latest").step == STEPS
    assert "adapter.safetensors does not match its checksum" in capsys.readouterr().err
    assert final_bytes(run_dir) == expected


def test_another_order_or_other_weights_are_refused(
    run_training: Train, tiny_config: Config, tiny_world: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run_training(stop_before_step=6)
    for override, message in {
        "training.seed=7": "was trained with training.seed=1337, now 7",
        "training.batch_size=8": "was trained with training.batch_size=4, now 8",
        "efficientnet.mean=[0, 0, 0]": r"was trained with efficientnet.mean=\[0.485, 0.456, 0.406\], now",
        "kv_modulation.gate=zero": r"first kv_prefix_gate \(checkpoint: absent, config: \(1,\)\)",
        "kv_modulation.num_prefix_tokens=3": r"generator.mlp.2.bias \(checkpoint: \(96,\), config: \(144,\)\)",
        "trainable.qformer_cross_attention=false": "its trainables differ from this config's in 20 tensors",
    }.items():
        with pytest.raises(UserError, match=message):
            run_training([override], resume="latest")

    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join((tiny_world / "train.csv").read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match="has other rows than the run was trained on"):
        run_training([f"dataset.train={fewer}"], resume="latest")

    with pytest.raises(UserError, match=r"was trained with dataset.limit=null, now 3|dataset.limit=None, now 3"):
        run_training(["dataset.limit=3"], resume="latest")

    other = tmp_path / "other_blip2"
    shutil.copytree(tiny_world / "blip2", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 0x20  # the last byte is the exponent of some frozen fp32 value, which stays finite
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="was trained on other frozen weights"):
        run_training([f"model.blip2={other}"], resume="latest")


def test_wrong_data_stops_the_run_before_its_folder_is_made(
    run_training: Train, tiny_config: Config, tiny_world: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("image,question,answer\ntrain0.png,What?,\nnowhere.png,What?,oil\n")
    with pytest.raises(UserError) as error:
        run_training([f"dataset.train={bad}"])
    assert "bad.csv:2: empty answer" in str(error.value)
    assert "bad.csv:3: " in str(error.value)
    assert not tiny_config.run.output_dir.exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_lora_trains_and_resumes_like_the_rest(
    run_training: Train, tiny_config: Config, tmp_path: Path, backend: str
) -> None:
    lora = [f"model.backend={backend}", "trainable.lora.targets=[qformer, opt]", "trainable.lora.rank=2"]
    lora += ["training.num_epochs=1"]
    run_training(lora)
    expected = final_bytes(tiny_config.run.output_dir)
    output = [*lora, f"run.output_dir={tmp_path / 'stopped'}"]
    with pytest.raises(Stopped):
        run_training(output, stop_before_step=7)
    run_training(output, resume="latest")
    assert final_bytes(tmp_path / "stopped") == expected
    assert any("lora_B" in name and tensor.any() for name, tensor in final_adapter(tmp_path / "stopped").items())


def test_activation_checkpointing_changes_no_byte_of_accumulated_steps(
    run_training: Train, tiny_config: Config, tmp_path: Path
) -> None:
    settings = ["training.gradient_accumulation_steps=3", "training.num_epochs=1"]
    assert run_training(settings).step == 3
    other = [*settings, "training.activation_checkpointing=true", f"run.output_dir={tmp_path / 'other'}"]
    assert run_training(other).step == 3
    assert final_bytes(tmp_path / "other") == final_bytes(tiny_config.run.output_dir)


@pytest.mark.parametrize("accumulation", [3, 4])
def test_a_step_of_small_micro_batches_has_the_gradient_of_one_large_batch(
    run_training: Train, tiny_config: Config, tiny_world: Path, tmp_path: Path, accumulation: int
) -> None:
    """Paintings of 4, 4 and 2 questions are three micro-batches of at most 4, or one of 10, and no more steps.

    With an accumulation of 4 a filler makes the fourth micro-batch. Means of means would be off: the
    micro-batches have different numbers of answer tokens.
    """
    lines = (tiny_world / "train.csv").read_text().splitlines()
    chosen = [line for line in lines[1:] if line.split(",")[0] in ("train3.png", "train7.png", "train5.png")]
    few = tmp_path / "few.csv"
    few.write_text("\n".join([lines[0], *chosen]))
    # Adam's first exp_avg is a tenth of the gradient, clipped or not: here not, so that its size shows too. (The
    # weights would show less: Adam's first step moves each by the learning rate, however small its gradient.)
    settings = [
        f"dataset.train={few}", "training.num_epochs=1", "training.max_grad_norm=1.0e6", "training.warmup_steps=0",
    ]  # fmt: skip
    gradients = []
    for name, batch_size, micro_batches in (("many", 4, accumulation), ("one", len(chosen), 1)):
        seen: list[list[int]] = []
        sizes = [
            f"training.batch_size={batch_size}",
            f"training.gradient_accumulation_steps={micro_batches}",
            f"run.output_dir={tmp_path / name}",
        ]
        assert run_training([*settings, *sizes], seen_rows=seen).step == 1
        assert [sorted(rows) for rows in seen] == [list(range(10))]
        moments = open_checkpoint(tmp_path / name / "checkpoints" / "step_00000001").state().exp_avg
        gradients.append(torch.cat([moments[parameter].flatten() for parameter in sorted(moments)]))
    many, one = gradients
    # fp32, sums in another order; the worst seen is 2e-7 norm-wise.
    assert (many - one).norm() < 3e-6 * one.norm()


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS_AND_DTYPES)
def test_streamed_training_gives_the_resident_bytes(
    run_training: Train,
    tiny_config: Config,
    bf16_folder: Path,
    tmp_path: Path,
    backend: str,
    dtype: str,
    accumulation: int,
) -> None:
    """With all activations kept, and with recomputation; whether micro-batches go through OPT together or not."""
    settings = [
        f"model.backend={backend}",
        f"model.blip2={bf16_folder}",
        f"model.dtype={dtype}",
        "training.num_epochs=1",
        f"training.gradient_accumulation_steps={accumulation}",
    ]
    run_training(settings)
    for slots, vit, recomputes in ((1, "resident", "true"), (2, "stream", "false")):
        output = tmp_path / f"streamed{slots}"
        frozen = f"frozen={{opt: stream, slots: {slots}, vit: {vit}}}"
        recomputing = f"training.activation_checkpointing={recomputes}"
        run_training([*settings, frozen, recomputing, f"run.output_dir={output}"])
        assert final_bytes(output) == final_bytes(tiny_config.run.output_dir)


def test_replayed_training_gives_the_eager_weights(
    run_training: Train, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card, with a recorder that computes again; under DeepSpeed, with accumulation and validation."""
    settings = ["training.num_epochs=3", "training.gradient_accumulation_steps=2", "evaluation.batch_size=auto"]
    run_training(settings)
    recorders = rerunning(monkeypatch)
    output = tmp_path / "replayed"
    run_training([*settings, f"run.output_dir={output}"])
    assert [recorder.replays > recorder.records > 0 for recorder in recorders] == [True, True]
    # Paintings are filled up, and products of more of them round otherwise; 4e-7 was seen.
    assert adapter_change(final_adapter(output), final_adapter(tiny_config.run.output_dir)) < 4e-6
    # On a card that is full each validation has the graphs go, and they are recorded anew.
    monkeypatch.setattr(type(recorders[0]), "is_short", lambda recorder: True)
    again = tmp_path / "replayed in little memory"
    run_training([*settings, f"run.output_dir={again}"])
    assert sum(one.records for one in recorders[2:]) > sum(one.records for one in recorders[:2])
    assert adapter_change(final_adapter(again), final_adapter(tiny_config.run.output_dir)) < 4e-6


def test_a_validation_that_finds_no_memory_beside_graphs_has_them_go(
    run_training: Train, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import artkv.evaluation.answering as answering

    run_training(["training.num_epochs=2"])
    recorders = rerunning(monkeypatch)
    answers, asked = answering._answer, []

    def short_of_memory(model: KVModulatedBlip2, *others: Any, **options: Any) -> Any:
        asked.append(model._graphs.has_graphs)
        if asked[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answers(model, *others, **options)

    monkeypatch.setattr(answering, "_answer", short_of_memory)
    output = tmp_path / "replayed"
    run_training(["training.num_epochs=2", f"run.output_dir={output}"])
    assert True in asked
    assert all(recorder.records for recorder in recorders)
    assert adapter_change(final_adapter(output), final_adapter(tiny_config.run.output_dir)) < 4e-6


def test_the_offload_file_trains_to_the_same_weights(run_training: Train, tiny_config: Config, tmp_path: Path) -> None:
    run_training(["training.num_epochs=1"])
    offloaded = tmp_path / "offloaded"
    run_training(
        ["training.num_epochs=1", "training.deepspeed=zero2_bf16_offload_optimizer.json", f"run.output_dir={offloaded}"]
    )
    # The same arithmetic in another order of clipping; the worst seen is 1e-7.
    assert (
        adapter_change(final_adapter(offloaded), final_adapter(override_config(tiny_config, []).run.output_dir)) < 1e-5
    )


def test_a_refused_resume_leaves_checkpoints_as_they_are(run_training: Train, tiny_config: Config) -> None:
    """Though it names an earlier one, after which the newer ones would be set aside."""
    run_dir = tiny_config.run.output_dir
    settings = ["training.num_epochs=1", "run.keep_checkpoints=9"]
    run_training(settings)
    bad = run_dir.parent / "bad.json"
    bad.write_text('{"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR"}}')
    before = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert len(before) > 2
    with pytest.raises(UserError, match="scheduler"):
        run_training([*settings, f"training.deepspeed={bad}"], resume=str(run_dir / "checkpoints" / before[1]))
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == before
    assert (run_dir / "best").is_symlink()


def test_a_finished_run_does_not_go_on_in_another_folder(
    run_training: Train, tiny_config: Config, tmp_path: Path
) -> None:
    run_training(["training.num_epochs=1"])
    with pytest.raises(UserError, match="its run is finished, and nothing would come into run.output_dir"):
        run_training(
            ["training.num_epochs=1", f"run.output_dir={tmp_path / 'other'}"], resume=str(tiny_config.run.output_dir)
        )
    assert not (tmp_path / "other").exists()


def test_going_back_in_a_finished_run_with_fewer_epochs_sets_the_rest_aside(
    run_training: Train, tiny_config: Config
) -> None:
    run_dir = tiny_config.run.output_dir
    run_training(["run.keep_checkpoints=9"])
    ninth = run_dir / "checkpoints" / "step_00000009"
    assert run_training(["training.num_epochs=1"], resume=str(ninth)).step == 9
    assert (run_dir / "checkpoints" / "stale_step_00000018").is_dir()
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == 9


def test_a_warm_up_as_long_as_the_run_is_refused_before_anything_is_written(
    run_training: Train, tiny_config: Config
) -> None:
    with pytest.raises(UserError, match=r"training\.warmup_steps = 18: the run has 18 steps, .* give fewer, such as 1"):
        run_training(["training.warmup_steps=18"])
    assert not (tiny_config.run.output_dir / "config.yaml").exists()


def test_settings_that_runs_are_compared_by_are_numbers_and_text(tiny_config: Config) -> None:
    settings = run_module.main_settings(override_config(tiny_config, ["trainable.lora.targets=[opt]"]))
    assert settings["training.learning_rate"] == 1e-3
    assert settings["kv_modulation.enabled"] == "True"
    assert settings["trainable.lora.targets"] == "('opt',)"
    assert settings["training.early_stopping_patience"] == "None"
    assert {type(value) for value in settings.values()} == {int, float, str}
