"""The part of DeepSpeed's JSON that artkv takes, by DeepSpeed's own names.

DeepSpeed itself refuses some of what is wrong, after minutes, and ignores the rest in silence. Here is all that has an
effect on a training of artkv's; a test compares the names with DeepSpeed's.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
Bool = Annotated[bool, Field(strict=True)]
_Share = Annotated[float, Field(strict=True, ge=0, lt=1)]


def _whole(value: object) -> object:
    """5e8, as DeepSpeed's own examples write it, is the whole number that it says."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Elements = Annotated[int, BeforeValidator(_whole), Field(strict=True, gt=0, le=2**34)]
_Even = Annotated[_Elements, Field(multiple_of=2)]
# What the YAML owns is compared with it where it is known.
_Count = Annotated[int, Field(strict=True, gt=0)]
_Number = Annotated[float, Field(strict=True, ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AdamWParameters(_Part):
    """Arguments of `torch.optim.AdamW`."""

    lr: Auto | _Number = Field(default="auto", description='"auto": training.learning_rate has it')
    weight_decay: Auto | _Number = Field(default="auto", description='"auto": training.weight_decay has it')
    betas: tuple[_Share, _Share] = Field(
        default=(0.9, 0.999), description="two numbers of 0 or more and below 1, such as [0.9, 0.999]"
    )
    eps: float = Field(default=1e-8, strict=True, gt=0, le=1, description="a number above 0, such as 1e-8")
    torch_adam: Bool = Field(default=True, description="true: artkv trains with torch's own AdamW")
    fused: Bool = Field(default=False, description="true or false")
    foreach: Bool = Field(default=False, description="true or false; not both fused and foreach")


class Optimizer(_Part):
    """The optimizer, which is AdamW."""

    type: Literal["AdamW"] = Field(default="AdamW", description='"AdamW"')
    params: AdamWParameters = AdamWParameters()


class Precision(_Part):
    """`bf16` or `fp16`."""

    enabled: Auto | Bool = Field(default="auto", description='"auto": model.dtype settles it')


class DataTypes(_Part):
    """Data types that are not the model's."""

    grad_accum_dtype: Literal["fp32", "bf16"] = Field(default="fp32", description='"fp32" or "bf16"')


class OffloadOptimizer(_Part):
    """Masters and moments in host memory."""

    device: Literal["none", "cpu"] = Field(description='"cpu" or "none"; ZeRO\'s stage 2 has no NVMe')
    pin_memory: Bool = Field(default=True, description="true or false")


class Zero(_Part):
    """ZeRO's stage 2."""

    stage: Literal[2] = Field(
        description="2: artkv trains with stage 2 (stage 3 would shard frozen weights that artkv keeps out of "
        "DeepSpeed's sight)"
    )
    contiguous_gradients: Bool = Field(default=True, description="true or false")
    overlap_comm: Bool = Field(default=False, description="true or false")
    reduce_scatter: Bool = Field(default=True, description="true or false")
    allgather_partitions: Bool = Field(default=True, description="true or false")
    use_multi_rank_bucket_allreduce: Bool = Field(default=True, description="true or false")
    round_robin_gradients: Bool = Field(default=False, description="true or false")
    reduce_bucket_size: Auto | _Elements = Field(
        default="auto", description='elements, a whole number above 0 and up to 2^34, or "auto": as many as train'
    )
    allgather_bucket_size: Auto | _Even = Field(
        default="auto", description='elements, an even number above 0 and up to 2^34, or "auto": as many as train'
    )
    offload_optimizer: OffloadOptimizer | None = Field(
        default=None, description='an object such as {"device": "cpu", "pin_memory": true}'
    )


class DeepSpeedFile(_Part):
    """The JSON that `training.deepspeed` names."""

    zero_optimization: Zero
    optimizer: Optimizer = Optimizer()
    train_batch_size: Auto | _Count = Field(default="auto", description='"auto": it follows from training.batch_size')
    train_micro_batch_size_per_gpu: Auto | _Count = Field(
        default="auto", description='"auto": training.batch_size has it'
    )
    gradient_accumulation_steps: Auto | _Count = Field(
        default="auto", description='"auto": training.gradient_accumulation_steps has it'
    )
    gradient_clipping: Auto | _Number = Field(default="auto", description='"auto": training.max_grad_norm has it')
    bf16: Precision = Precision()
    fp16: Precision = Precision()
    data_types: DataTypes = DataTypes()
    communication_data_type: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description='"fp32", "bf16" or "fp16"'
    )
    zero_force_ds_cpu_optimizer: Bool = Field(default=False, description="false: artkv trains with torch's own AdamW")
    zero_allow_untested_optimizer: Bool = Field(default=False, description="true or false")
    steps_per_print: _Count = Field(default=10, description="micro-steps, a whole number above 0")
    wall_clock_breakdown: Bool = Field(default=False, description="true or false")
    memory_breakdown: Bool = Field(default=False, description="true or false")


_STAGE_3 = "is of ZeRO's stage 3, and artkv trains with stage 2; leave it out"
# Keys that DeepSpeed has and this does not take, where more can be said than that they are unknown.
UNSUPPORTED = {
    "scheduler": "artkv's schedule is warm-up and linear decay by training.warmup_steps and training.num_epochs; leave "
    "it out",
    "deepspeed": "the settings stand at the top of the file; take them out of it",
    "bfloat16": "unknown key; did you mean 'bf16'?",
    "activation_checkpointing": "training.activation_checkpointing of the YAML settles it; leave it out",
    "gradient_allreduce_op": "artkv weighs each answer token alike, which needs DeepSpeed's mean; leave it out",
    "optimizer.params.amsgrad": "artkv's checkpoints hold AdamW's two moments and nothing more; leave it out",
    "optimizer.params.max_grad_norm": "training.max_grad_norm of the YAML has it; leave it out",
    "optimizer.params.adam_w_mode": "AdamW has no other mode; leave it out",
    "zero_optimization.cpu_offload": 'has another name now; give offload_optimizer: {"device": "cpu"}',
    "zero_optimization.compute_grad_norm": "artkv clips gradients, which needs their norm; leave it out",
    "zero_optimization.offload_optimizer.nvme_path": "ZeRO's stage 2 has no NVMe; leave it out",
    **dict.fromkeys(
        (
            "amp", "aio", "autotuning", "checkpoint", "comms_logger", "compile", "compression_training", "csv_monitor",
            "data_efficiency", "elasticity", "flops_profiler", "hybrid_engine", "nebula", "pipeline",
            "prescale_gradients", "gradient_predivide_factor", "sparse_attention", "sparse_gradients",
            "tensor_parallel", "tensorboard", "torch_autocast", "wandb", "weight_quantization",
            "dataloader_drop_last", "dump_state", "curriculum_learning", "progressive_layer_drop",
        ),
        "artkv uses nothing of this; leave it out",
    ),
    **{
        f"zero_optimization.{key}": _STAGE_3
        for key in (
            "offload_param", "sub_group_size", "cpu_offload_param", "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
            "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "zero_hpz_partition_size",
            "zero_quantized_weights", "zero_quantized_gradients", "memory_efficient_linear", "leaf_module",
        )
    },
    **{
        f"zero_optimization.offload_optimizer.{key}": "has no effect with ZeRO's stage 2; leave it out"
        for key in ("buffer_count", "pipeline_read", "pipeline_write", "fast_init", "ratio", "super_offload")
    },
}  # fmt: skip
