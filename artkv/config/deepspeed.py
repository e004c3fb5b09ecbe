"""Reads a DeepSpeed JSON file and fills in what the YAML owns.

Batch, accumulation, precision, clipping, learning rate and weight decay are the YAML's, so the JSON says
"auto" there or nothing; ZeRO, buckets, communication and optimizer offload are the JSON's.
"""

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artkv.config.deepspeed_schema import UNSUPPORTED, DeepSpeedFile
from artkv.config.explaining import explain
from artkv.config.paths import shipped_folder
from artkv.config.schema import TrainingConfig
from artkv.errors import UserError
from artkv.reading import parse_json, read_regular, remedy_for

# Elements. DeepSpeed passes gradients through its bucket even where there is nobody to send them to; parameters with
# more elements pass it by.
_SINGLE_RANK_BUCKET = 2**22
_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
# The shipped files have less than a thousand.
_MOST_BYTES = 2**20


def load_deepspeed_config(path_or_name: str) -> dict[str, Any]:
    """The JSON at a path, or the file of that name in ds_configs/.

    Raises `UserError` for what artkv does not train with, by the key's name; see `deepspeed_schema`.
    """
    path = _find(path_or_name)
    try:
        tree = parse_json(read_regular(path, _MOST_BYTES), once=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"training.deepspeed = {path}: not readable JSON ({reason}); {remedy_for(error, 'correct the file')}"
        ) from None
    place = f"training.deepspeed = {path}:"
    if not isinstance(tree, dict):
        raise UserError(f"{place} holds {type(tree).__name__}, not an object; see ds_configs/zero2_bf16.json")
    try:
        read = DeepSpeedFile.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, DeepSpeedFile, place, UNSUPPORTED), on_all_ranks=True) from None
    for key, is_wrong, remedy in (
        ("optimizer.params.torch_adam", not read.optimizer.params.torch_adam, "must be true, or left out"),
        ("optimizer.params.foreach", read.optimizer.params.foreach and read.optimizer.params.fused,
         "torch has no AdamW that is fused and foreach; leave one of them out"),
        ("zero_force_ds_cpu_optimizer", read.zero_force_ds_cpu_optimizer,
         "must be false, or left out: artkv trains with torch's own AdamW"),
    ):  # fmt: skip
        if is_wrong:
            raise UserError(f"{place} {key} {remedy}", on_all_ranks=True)
    return _with_whole_buckets(tree, read)


def _with_whole_buckets(tree: dict[str, Any], read: DeepSpeedFile) -> dict[str, Any]:
    """5e8 as 500000000."""
    zero = tree["zero_optimization"]
    buckets = {key: getattr(read.zero_optimization, key) for key in _BUCKETS if key in zero}
    return {**tree, "zero_optimization": {**zero, **buckets}}


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
    # torch's own AdamW: DeepSpeed's are compiled at the first start, and keep their step count elsewhere.
    filled["optimizer"].setdefault("type", "AdamW")
    filled["optimizer"]["params"].setdefault("torch_adam", True)
    # With its default, DeepSpeed wants its own AdamW where the optimizer is offloaded.
    filled.setdefault("zero_force_ds_cpu_optimizer", False)
    zero = filled["zero_optimization"]
    for bucket in _BUCKETS:
        if zero.get(bucket, "auto") == "auto":
            most = num_trainable_elements if world_size > 1 else _SINGLE_RANK_BUCKET
            zero[bucket] = min(num_trainable_elements + num_trainable_elements % 2, most + most % 2)
    # DeepSpeed's defaults are bf16, in which a sum over many micro-steps or ranks loses what it adds last.
    filled.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    filled.setdefault("communication_data_type", "fp32")
    return filled


def _find(path_or_name: str) -> Path:
    path = Path(path_or_name)
    if os.path.exists(path):  # a folder or a pipe is told by whoever reads it
        return path
    folder = shipped_folder("ds_configs")
    is_name = path.parent in (Path("."), Path("ds_configs")) and not path_or_name.startswith(".")
    if is_name and os.path.isfile(folder / path.name):
        return folder / path.name
    names = sorted(path.name for path in folder.glob("*.json"))
    raise UserError(
        f"training.deepspeed = {path_or_name!r:.300}: no such file; give a path or one of {', '.join(names)}"
    )
