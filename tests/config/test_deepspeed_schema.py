"""DeepSpeed's JSON key by key, and that the names are DeepSpeed's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.config.deepspeed_schema import UNSUPPORTED, DeepSpeedFile, OffloadOptimizer, Zero
from artkv.config.schema import TrainingConfig
from artkv.errors import UserError

LEAST = {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}


def load(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The least file, with some of its dotted keys changed: `zero_optimization__stage=2`."""
    tree = json.loads(json.dumps(LEAST))
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    (tmp_path / "ds.json").write_text(json.dumps(tree))
    return load_deepspeed_config(str(tmp_path / "ds.json"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("zero_optimization__reduce_bucket_size", -1, "give elements, a whole number above 0"),
        ("zero_optimization__reduce_bucket_size", 0, "give elements"),
        ("zero_optimization__reduce_bucket_size", "1000", "give elements"),
        ("zero_optimization__reduce_bucket_size", 2.5, "give elements"),
        ("zero_optimization__reduce_bucket_size", True, "give elements"),
        ("zero_optimization__reduce_bucket_size", 10**15, "give elements"),
        ("zero_optimization__reduce_bucket_size", None, "give elements"),
        ("zero_optimization__allgather_bucket_size", 1001, "give elements, an even number"),
        ("zero_optimization__stage", 3, "artkv trains with stage 2"),
        ("zero_optimization__stage", "2", "artkv trains with stage 2"),
        ("zero_optimization__overlap_comm", "auto", "give true or false"),
        ("zero_optimization__overlap_com", True, "did you mean 'overlap_comm'"),
        ("zero_optimization__offload_param", {"device": "cpu"}, "stage 3"),
        ("zero_optimization__cpu_offload", True, "give offload_optimizer"),
        ("zero_optimization__offload_optimizer__device", "nvme", 'give "cpu" or "none"; ZeRO'),
        ("zero_optimization__offload_optimizer", {"device": "cpu", "pin_memory": "yes"}, "give true or false"),
        ("zero_optimization__offload_optimizer", {"device": "cpu", "nvme_path": "/x"}, "has no NVMe"),
        ("zero_optimization__offload_optimizer", {}, "device: is missing; give"),
        ("zero_optimization__offload_optimizer", True, "is a section; give keys under it"),
        ("optimizer__type", "SGD", 'give "AdamW"'),
        ("optimizer__params__betas", [0.9], "give two numbers"),
        ("optimizer__params__betas", [0.9, 1.5], "give two numbers"),
        ("optimizer__params__betas", [-0.1, 0.5], "give two numbers"),
        ("optimizer__params__betas", "auto", "give two numbers"),
        ("optimizer__params__eps", 0, "give a number above 0"),
        ("optimizer__params__eps", -1e-8, "give a number above 0"),
        ("optimizer__params__eps", "1e-8", "give a number above 0"),
        ("optimizer__params__amsgrad", True, "two moments"),
        ("optimizer__params__epsilon", 1e-8, "did you mean 'eps'"),
        ("optimizer__params__torch_adam", False, "must be true, or left out"),
        ("bf16__enabled", "yes", "model.dtype settles it"),
        ("fp16__loss_scale", 0, "unknown key; known keys here: enabled"),
        ("data_types__grad_accum_dtype", "fp8", 'give "fp32" or "bf16"'),
        ("communication_data_type", "int8", 'give "fp32"'),
        ("scheduler", {"type": "WarmupLR"}, "artkv's schedule is"),
        ("amp", {"enabled": True}, "leave it out"),
        ("elasticity", {"enabled": True}, "leave it out"),
        ("flops_profiler", {"enabled": True}, "leave it out"),
        ("activation_checkpointing", {}, "training.activation_checkpointing of the YAML"),
        ("bfloat16", {"enabled": True}, "did you mean 'bf16'"),
        ("zero_optimisation", {}, "did you mean 'zero_optimization'"),
        ("train_batch_size", 0, "training.batch_size"),
        ("steps_per_print", 0, "above 0"),
        ("zero_force_ds_cpu_optimizer", True, "must be false"),
    ],
)
def test_what_would_be_refused_later_or_ignored_is_told_by_its_key(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, **{key: value})
    assert message in str(caught.value)
    assert key.replace("__", ".").removesuffix(".") in str(caught.value)
    assert f"training.deepspeed = {tmp_path}/ds.json:" in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, amp={}, zero_optimization__stage=1, optimizer__params__eps=-1)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"zero_optimization": {"stage": 2}, "zero_optimization": {"stage": 2}}', "is given twice"),
        (b'{"optimizer": {"params": {"eps": NaN}}}', "NaN is no number"),
        (100_000 * b"[", "nest too deeply"),
        (b"\xff\xfe{", "not readable JSON"),
        (b"", "not readable JSON"),
        (bytes(2**21), "more than"),
    ],
)
def test_what_is_no_json_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ds.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_deepspeed_config(str(tmp_path / "ds.json"))


def test_a_whole_number_may_be_written_as_deepspeeds_examples_do(tmp_path: Path) -> None:
    zero = load(tmp_path, zero_optimization__reduce_bucket_size=5e8)["zero_optimization"]
    assert (zero["reduce_bucket_size"], type(zero["reduce_bucket_size"])) == (500_000_000, int)


def test_fused_and_foreach_are_not_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fused and foreach"):
        load(tmp_path, optimizer__params__fused=True, optimizer__params__foreach=True)


def test_the_names_are_deepspeeds_own() -> None:
    def names(model: Any) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    zero = names(DeepSpeedZeroConfig)
    offload = names(DeepSpeedZeroOffloadOptimizerConfig)
    assert set(Zero.model_fields) <= zero
    assert set(OffloadOptimizer.model_fields) <= offload
    for key in UNSUPPORTED:
        *section, name = key.split(".")
        if section == ["zero_optimization"]:
            assert name in zero
        if section == ["zero_optimization", "offload_optimizer"]:
            assert name in offload


def test_deepspeed_reads_what_artkv_has_filled_in(tmp_path: Path) -> None:
    """All keys at once, as DeepSpeed's own reader takes them."""
    every = DeepSpeedFile.model_validate(LEAST).model_dump(mode="json")
    every["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    (tmp_path / "ds.json").write_text(json.dumps(every))
    filled = fill_deepspeed_config(
        load_deepspeed_config(str(tmp_path / "ds.json")), TrainingConfig(), 1, 1, True, num_trainable_elements=10
    )
    assert "auto" not in json.dumps(filled)
    read = DeepSpeedConfig(filled)
    assert read.zero_config.stage == 2
    assert read.zero_config.reduce_bucket_size == 10
    assert read.zero_config.offload_optimizer.device == "cpu"
    assert read.optimizer_params["eps"] == 1e-8
