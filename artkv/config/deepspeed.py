"""Reads a DeepSpeed JSON file and fills in what the YAML owns.

Batch, accumulation, precision, clipping, learning rate and weight decay are the YAML's, so the JSON says
"auto" there or nothing; ZeRO, buckets, communication and optimizer offload are the JSON's.
"""

import json
from pathlib import Path
from typing import Any

from artkv.config.schema import TrainingConfig
from artkv.errors import UserError

# Elements. DeepSpeed passes gradients through its bucket even where there is nobody to send them to; parameters with
# more elements pass it by.
_SINGLE_RANK_BUCKET = 2**22


def load_deepspeed_config(path_or_name: str) -> dict[str, Any]:
    """The JSON at a path, or the file of that name in ds_configs/."""
    path = _find(path_or_name)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"training.deepspeed = {path}: not readable JSON ({error}); correct the file") from None
    sections = {"zero_optimization", "optimizer", "bf16", "fp16", "data_types"}
    if not isinstance(tree, dict) or any(not isinstance(tree.get(name, {}), dict) for name in sections):
        raise UserError(
            f"training.deepspeed = {path}: it and its {', '.join(sorted(sections))} must be JSON objects; "
            "see ds_configs/zero2_bf16.json"
        )
    stage = tree.get("zero_optimization", {}).get("stage")
    if stage != 2:
        raise UserError(
            f"training.deepspeed = {path}: zero_optimization.stage is {stage!r}; artkv trains with stage 2 "
            "(stage 3 would shard frozen weights that artkv keeps out of DeepSpeed's sight)"
        )
    return tree


def fill_deepspeed_config(
    tree: dict[str, Any],
    training: TrainingConfig,
    accumulation: int,
    world_size: int,
    is_bf16: bool,
    num_trainable_elements: int,
) -> dict[str, Any]:
    """The complete config for `deepspeed.initialize`; a value that conflicts with the YAML is an error.

    Buckets set to "auto" take the number of trainable elements, rounded up to the even number that DeepSpeed wants:
    it allocates a bucket whole, and its default of 5e8 elements would cost 1 GB in bf16. A single rank, which sends
    nothing, gets a small one.
    """
    yaml_owned: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": training.batch_size * accumulation * world_size,
        "gradient_clipping": training.max_grad_norm,
        "bf16.enabled": is_bf16,
        "fp16.enabled": False,
        "optimizer.params.lr": training.learning_rate,
        "optimizer.params.weight_decay": training.weight_decay,
    }
    filled: dict[str, Any] = json.loads(json.dumps(tree))
    if "scheduler" in filled:
        raise UserError(
            "training.deepspeed: holds a 'scheduler'; artkv's schedule is warm-up and linear decay by "
            "training.warmup_steps and training.num_epochs, so remove it from the JSON"
        )
    for dotted, value in yaml_owned.items():
        *parents, key = dotted.split(".")
        section = filled
        for parent in parents:
            section = section.setdefault(parent, {})
        found = section.get(key, "auto")
        if found not in ("auto", value):
            raise UserError(
                f"training.deepspeed: {dotted} is {found!r} in the JSON but {value!r} by the YAML, which owns "
                'it; write "auto" in the JSON'
            )
        section[key] = value
    optimizer = filled["optimizer"]
    if optimizer.get("type") != "AdamW":
        raise UserError(f"training.deepspeed: optimizer.type is {optimizer.get('type')!r}; artkv trains with AdamW")
    # torch's own AdamW: DeepSpeed's are compiled at the first start, and keep their step count elsewhere.
    if optimizer["params"].setdefault("torch_adam", True) is not True:
        raise UserError("training.deepspeed: optimizer.params.torch_adam must be true, or left out")
    zero = filled["zero_optimization"]
    for bucket in ("reduce_bucket_size", "allgather_bucket_size"):
        if zero.get(bucket, "auto") == "auto":
            most = num_trainable_elements if world_size > 1 else _SINGLE_RANK_BUCKET
            zero[bucket] = min(num_trainable_elements + num_trainable_elements % 2, most + most % 2)
    # DeepSpeed's defaults are bf16, in which a sum over many micro-steps or ranks loses what it adds last.
    filled.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    filled.setdefault("communication_data_type", "fp32")
    return filled


def _find(path_or_name: str) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    package = Path(__file__).parents[1]
    # In a checkout ds_configs/ lies beside the package, in an installation inside it.
    folders = [package.parent / "ds_configs", package / "ds_configs"]
    if path.parent in (Path("."), Path("ds_configs")) and not path_or_name.startswith("."):
        for folder in folders:
            if (folder / path.name).is_file():
                return folder / path.name
    names = sorted({path.name for folder in folders if folder.is_dir() for path in folder.glob("*.json")})
    raise UserError(f"training.deepspeed = {path_or_name!r}: no such file; give a path or one of {', '.join(names)}")
