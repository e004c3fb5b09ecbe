"""Norms of the parts of what trains, against what an optimizer's tensors say when they are looked at one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from artkv.config import Config
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.run_folder.state import TrainableState
from artkv.training.part_norms import PartNorms, Stretch, merged, part_metrics, parts_of
from tests.training.test_run import poison
from tests.training_runs import Train

CPU = torch.device("cpu")


def test_each_trainable_belongs_to_a_part() -> None:
    expected = {
        "kv_prefix_gate": "gate",
        "kv_prefix_generator.mlp.0.weight": "generator",
        "kv_prefix_generator.prefix_tokens": "generator",
        "language_model.model.decoder.layers.3.self_attn.q_proj.lora_A.weight": "lora_opt",
        "qformer.encoder.layer.0.crossattention.attention.query.weight": "cross_attention_0",
        "qformer.encoder.layer.10.crossattention.output.LayerNorm.bias": "cross_attention_2",
        "qformer.encoder.layer.2.attention.attention.query.lora_B.weight": "lora_qformer",
        "qformer.encoder.layer.2.crossattention.output.dense.weight": "cross_attention_1",
    }
    assert parts_of(expected) == expected


def test_neighbours_of_one_part_are_one_stretch() -> None:
    stretches = [Stretch("b", 5, 9), Stretch("a", 0, 2), Stretch("a", 2, 5), Stretch("a", 9, 10)]
    assert merged(stretches) == [Stretch("a", 0, 5), Stretch("b", 5, 9), Stretch("a", 9, 10)]


def test_squares_are_of_the_step_that_was_asked_for() -> None:
    torch.manual_seed(0)
    masters = torch.nn.Parameter(torch.randn(7))
    optimizer = torch.optim.AdamW([masters], lr=0.1)
    norms = PartNorms(optimizer, {masters: [Stretch("a", 0, 3), Stretch("b", 3, 6)]})
    for is_asked in (False, True, False):
        norms.ask(is_asked)
        before = masters.detach().clone()
        masters.grad = torch.randn(7)
        optimizer.step()
        found = norms.read(["a", "b", "other"], CPU)
        if not is_asked:
            assert found is None
            continue
        rows = [masters.grad.numpy(), (masters.detach() - before).numpy(), masters.detach().numpy()]
        expected = [[(row[:3] ** 2).sum(), (row[3:6] ** 2).sum(), 0.0] for row in rows]
        # fp32; the worst seen is 1e-7 relative.
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    norms.ask(True)
    assert norms.read(["a"], CPU) is None  # a step that was skipped


def test_metrics_are_the_norm_before_clipping_and_change_over_weights() -> None:
    squares = torch.tensor([[9.0, 16.0, 0.0], [0.25, 4.0, 0.0], [25.0, 4.0, 0.0]])
    metrics = part_metrics(squares, ["a", "b", "c"], grad_norm=torch.tensor(50.0))
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx({
        "grad_norm/a": 30.0, "grad_norm/b": 40.0, "grad_norm/c": 0.0,
        "update_to_weight/a": 0.1, "update_to_weight/b": 1.0, "update_to_weight/c": 0.0,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "deepspeed"),
    [
        ("float32", "zero2_bf16.json"),
        ("bfloat16", "zero2_bf16.json"),
        ("bfloat16", "zero2_bf16_offload_optimizer.json"),
    ],
)
def test_a_runs_norms_are_those_of_its_checkpoints(
    run_training: Train, tiny_config: Config, dtype: str, deepspeed: str
) -> None:
    """Adam's first moment after the first step is a tenth of the clipped gradient; masters say how far they moved."""
    settings = [
        f"model.dtype={dtype}", f"training.deepspeed={deepspeed}", "run.log_every=1", "run.checkpoint_every=1",
        "run.keep_checkpoints=99",
        "training.num_epochs=1", "training.max_grad_norm=0.01", "training.warmup_steps=0", "kv_modulation.gate=zero",
        "trainable.lora.targets=[opt, qformer]", "trainable.lora.rank=2",
    ]  # fmt: skip
    run_training(settings)
    run_dir = tiny_config.run.output_dir
    first, second = (state_of(run_dir, step) for step in (1, 2))
    events = EventAccumulator(str(run_dir)).Reload()
    parts = parts_of(first.masters)
    assert set(parts.values()) == {
        "cross_attention_0", "cross_attention_1", "gate", "generator", "lora_opt", "lora_qformer",
    }  # fmt: skip
    total = events.Scalars("train/grad_norm")[0].value
    clipped = norm([first.exp_avg[name] / 0.1 for name in parts])
    assert total > 0.1
    assert clipped == pytest.approx(0.01, rel=1e-4)
    for part in set(parts.values()):
        names = [name for name, its_part in parts.items() if its_part == part]
        gradient = norm([first.exp_avg[name] / 0.1 for name in names]) * total / clipped
        # fp32, sums in another order, and 1 - 0.9 in fp32; the worst seen is 2e-6.
        assert events.Scalars(f"grad_norm/{part}")[0].value == pytest.approx(gradient, rel=2e-5)
        change = norm([second.masters[name] - first.masters[name] for name in names])
        ratio = change / norm([second.masters[name] for name in names])
        assert events.Scalars(f"update_to_weight/{part}")[1].value == pytest.approx(ratio, rel=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_skipped_step_has_no_norms_of_parts(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """In float32 DeepSpeed leaves the optimizer's step out, in bfloat16 the optimizer leaves its weights alone."""
    poison(lambda call: call == 3, monkeypatch)
    run_training([f"model.dtype={dtype}", "run.log_every=1", "training.num_epochs=1"])
    lines = (tiny_config.run.output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    has_norms = [any(name.startswith("grad_norm/") for name in record) for record in records]
    skipped_so_far = [record["skipped_steps"] for record in records]
    was_skipped = [after > before for before, after in zip([0, *skipped_so_far], skipped_so_far, strict=False)]
    assert sum(was_skipped) == 1
    assert has_norms == [not skipped for skipped in was_skipped]


def state_of(run_dir: Path, step: int) -> TrainableState:
    return open_checkpoint(run_dir / "checkpoints" / f"step_{step:08}").state()


def norm(tensors: list[torch.Tensor]) -> float:
    return float(np.sqrt(sum((tensor.double().numpy() ** 2).sum() for tensor in tensors)))
