"""The DeepSpeed JSON: one owner for each setting, and the shipped files."""

import json
from pathlib import Path

import pytest

from artkv.config import TrainingConfig
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.errors import UserError

TRAINING = TrainingConfig(batch_size=3, learning_rate=2e-4, weight_decay=0.1, max_grad_norm=0.5)


def fill(tree: dict) -> dict:
    return fill_deepspeed_config(tree, TRAINING, 4, world_size=2, is_bf16=True, num_trainable_elements=1000)


@pytest.mark.parametrize("name", ["zero2_bf16.json", "zero2_bf16_offload_optimizer.json"])
def test_shipped_files_leave_the_yamls_settings_to_the_yaml(name: str) -> None:
    filled = fill(load_deepspeed_config(name))
    assert filled["train_micro_batch_size_per_gpu"] == 3
    assert filled["gradient_accumulation_steps"] == 4
    assert filled["train_batch_size"] == 24
    assert filled["gradient_clipping"] == 0.5
    assert filled["bf16"]["enabled"] is True
    assert filled["optimizer"]["params"]["lr"] == 2e-4
    assert filled["optimizer"]["params"]["weight_decay"] == 0.1
    assert filled["data_types"]["grad_accum_dtype"] == "fp32"
    assert filled["zero_optimization"]["reduce_bucket_size"] == 1000
    assert "auto" not in json.dumps(filled)


def test_buckets_have_an_even_number_of_elements() -> None:
    """DeepSpeed refuses an odd one, which a gate, a single parameter, makes of an even one."""
    zero = fill_deepspeed_config(load_deepspeed_config("zero2_bf16.json"), TRAINING, 4, 2, True, 1001)[
        "zero_optimization"
    ]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 1002


def test_a_single_rank_has_a_small_bucket() -> None:
    """It sends nothing; two ranks of the same model have one that holds every gradient."""
    tree, elements = load_deepspeed_config("zero2_bf16.json"), 40_000_000
    alone, two = (
        fill_deepspeed_config(tree, TRAINING, 4, world_size, True, elements)["zero_optimization"]
        for world_size in (1, 2)
    )
    assert alone["reduce_bucket_size"] == 2**22
    assert two["reduce_bucket_size"] == elements


def test_a_value_that_the_yaml_owns_is_a_conflict_unless_it_is_the_same() -> None:
    tree = load_deepspeed_config("zero2_bf16.json")
    assert fill(tree | {"gradient_clipping": 0.5})["gradient_clipping"] == 0.5
    with pytest.raises(UserError, match=r"gradient_clipping is 2.0 in the JSON but 0.5 by the YAML"):
        fill(tree | {"gradient_clipping": 2.0})
    with pytest.raises(UserError, match=r"fp16.enabled is True"):
        fill(tree | {"fp16": {"enabled": True}})


def test_a_file_of_the_users_own_is_read_and_a_wrong_one_explained(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 77}, "optimizer": {"type": "AdamW"}}')
    filled = fill(load_deepspeed_config(str(own)))
    assert filled["zero_optimization"]["reduce_bucket_size"] == 77
    assert filled["optimizer"]["params"]["torch_adam"] is True
    assert filled["communication_data_type"] == filled["data_types"]["grad_accum_dtype"] == "fp32"
    with pytest.raises(UserError, match="no such file"):  # and not the shipped file of that name
        load_deepspeed_config(str(tmp_path / "zero2_bf16.json"))
    own.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(UserError, match="stage = 3: .* artkv trains with stage 2"):
        load_deepspeed_config(str(own))
    for shape in ("[]", '{"zero_optimization": true}', '{"optimizer": "AdamW"}'):
        own.write_text(shape)
        with pytest.raises(UserError, match="not an object|is a section|is missing"):
            load_deepspeed_config(str(own))
    own.write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        load_deepspeed_config(str(own))
    with pytest.raises(UserError, match=r"one of zero2_bf16.json, zero2_bf16_offload_optimizer.json"):
        load_deepspeed_config("zero9.json")
