"""The settings of a run, one class a section of the YAML file.

Every field's description is what an error message shows as the remedy, so it says what is accepted.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from artkv.config.art_encoders import (
    ArtEncoderConfig,
    EfficientNetConfig,
    check_art_encoders,
    either_form,
    with_checkpoints,
)
from artkv.config.dataset_schema import DatasetConfig
from artkv.config.kv_modulation_schema import KVModulationConfig
from artkv.config.said_as_text import each_once, no_switch
from artkv.config.section import Bool, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from artkv.config.sizes import parse_size

# The highest values are far above what anybody has use for. They keep what was mistyped from asking for terabytes, from
# days of work before the first step, and from numbers that torch, NumPy or the operating system cannot hold.
_MOST_STEPS = 10**12
_MOST_MINUTES = 10**6  # two years


class ModelConfig(Section):
    """Where BLIP-2 comes from and in which precision it computes."""

    backend: Literal["transformers", "lavis"] = Field(
        default="transformers",
        description="transformers, or lavis: salesforce-lavis's own ViT and Q-Former; either reads all files",
    )
    blip2: str = Field(
        default="Salesforce/blip2-opt-2.7b", description="a hub id, a transformers folder or a .pth of LAVIS"
    )
    revision: str | None = Field(
        default=None,
        description="with a hub id only: a commit, tag or branch of it; null: the newest",
    )
    opt: str | None = Field(
        default=None, description="with a LAVIS .pth only: facebook/opt-2.7b, or a folder of OPT or BLIP-2"
    )
    vit: Path | None = Field(
        default=None, description="with a LAVIS .pth only, where that holds no ViT: path of eva_vit_g.pth"
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="auto (bfloat16 where the device is fast at it), bfloat16 or float32"
    )

    @field_validator("revision")
    @classmethod
    def _is_a_revision(cls, revision: str | None) -> str | None:
        if revision is not None and (
            not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", revision) or ".." in revision
        ):
            raise ValueError("is no name of a commit, tag or branch")
        return revision

    @property
    def is_lavis_file(self) -> bool:
        """Whether `blip2` is a checkpoint of LAVIS, and no folder or hub id."""
        return self.blip2.endswith((".pth", ".pt"))


class LoraConfig(Section):
    """LoRA adapters, through peft."""

    targets: tuple[Literal["qformer", "opt"], ...] = Field(
        default=(), description="a list from: qformer, opt, each once at most"
    )
    rank: PositiveInt = Field(default=8, le=16_384, description="a whole number of 1 to 16384")
    alpha: PositiveFloat = Field(default=16.0, le=10**6, description="a number above 0, of a million at most")
    _no_target_twice = field_validator("targets")(each_once)


class TrainableConfig(Section):
    """What trains beside the prefix generator."""

    qformer_cross_attention: Bool = Field(
        default=True, description="true: query, key, value, output and LayerNorm of each cross-attention block train"
    )
    lora: LoraConfig = LoraConfig()


class TrainingConfig(Section):
    """Batch, schedule and the DeepSpeed file."""

    batch_size: PositiveInt = Field(
        default=8,
        le=65_536,
        description="most questions in a micro-step of one rank, of 1 to 65536; a painting's stay together",
    )
    gradient_accumulation_steps: PositiveInt = Field(default=1, le=65_536, description="a whole number of 1 to 65536")
    learning_rate: PositiveFloat = Field(
        default=1e-4, le=1, description="a number above 0, such as 1.0e-4, of 1 at most"
    )
    weight_decay: NonNegativeFloat = Field(default=0.01, le=10, description="a number of 0 to 10")
    num_epochs: PositiveInt = Field(default=10, le=100_000, description="a whole number of 1 to 100000")
    warmup_steps: Annotated[NonNegativeInt, Field(le=_MOST_STEPS)] | Literal["auto"] = Field(
        default="auto", description="optimizer steps of 0 to 10^12, or auto: 6% of the run's, 500 at most"
    )
    max_grad_norm: PositiveFloat = Field(default=1.0, le=1e30, description="a number above 0, of 1e30 at most")
    seed: NonNegativeInt = Field(default=1337, lt=2**63, description="a whole number of 0 or more, below 2^63")
    pack_questions: Bool = Field(
        default=True, description="true: a painting's questions share one sequence; false: one sequence a question"
    )
    activation_checkpointing: Literal["auto"] | Bool | str = Field(
        default="auto",
        description="auto (OPT's blocks keep as many activations as the device has room for), true (all are recomputed "
        "in backward), false (all are kept), or a size such as 2GiB that may be kept",
    )
    early_stopping_patience: PositiveInt | None = Field(
        default=None, le=100_000, description="epochs without a better validation EM before training stops; null: never"
    )
    max_nonfinite_steps: PositiveInt = Field(
        default=10,
        le=_MOST_STEPS,
        description="steps in a row, 1 or more, with a loss or gradient that is not finite before the run fails",
    )
    deterministic: Bool = Field(
        default=False, description="true: deterministic CUDA kernels, slower, bit-identical resume on a GPU"
    )
    deepspeed: str = Field(default="zero2_bf16.json", description="a path, or the name of a file of ds_configs/")

    @field_validator("activation_checkpointing")
    @classmethod
    def _is_a_size(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and value != "auto":
            parse_size(value)
        return value

    @property
    def kept_activation_bytes(self) -> int | None:
        """Device memory that OPT's blocks may keep for backward, the rest is recomputed; None: no limit."""
        setting = self.activation_checkpointing
        if setting == "auto":
            raise RuntimeError("training.activation_checkpointing is auto: the placement replaces it before it is used")
        if isinstance(setting, bool):
            return 0 if setting else None
        return parse_size(setting)


class EvaluationConfig(Section):
    """Generation of answers and their scores."""

    batch_size: Annotated[PositiveInt, Field(le=65_536)] | Literal["auto"] = Field(
        default="auto",
        description="most questions answered at once by a rank, of 1 to 65536, or auto: as many as memory holds",
    )
    max_new_tokens: PositiveInt = Field(
        default=100,
        le=65_536,
        description="most tokens of an answer, of 1 to 65536; where OPT's positions end it ends too",
    )
    bootstrap_samples: PositiveInt = Field(
        default=1000, le=1_000_000, description="resamples behind a 95% interval, of 1 to 1000000"
    )
    each_epoch: Literal["auto"] | Bool = Field(
        default="auto",
        description="auto (validation after each epoch where dataset.val is set), true, or false: none while training",
    )


class FrozenConfig(Section):
    """Where the frozen weights live while training."""

    opt: Literal["auto", "resident", "stream", "int8", "nf4"] = Field(
        default="auto",
        description="auto (the fastest of resident and stream that fits the device), resident (OPT's blocks on the "
        "device), stream (in host memory, fetched through a few device slots), or int8 or nf4 (on the device, "
        "quantised by bitsandbytes)",
    )
    vit: Literal["auto", "resident", "stream"] = Field(
        default="auto", description="auto, resident or stream, as for opt"
    )
    storage: Literal["bf16", "int8"] = Field(
        default="bf16", description="bf16, or int8: streamed blocks in half the bytes, at some cost in accuracy"
    )
    slots: PositiveInt = Field(
        default=2,
        le=1024,
        description="a whole number of 1 to 1024: blocks on the device at a time; 2 let copies run beside computing",
    )
    resident_blocks: Annotated[NonNegativeInt, Field(le=1024)] | Literal["auto"] = Field(
        default=0,
        description="how many of OPT's blocks stay on the device though the others stream, or auto: as many as "
        "memory_budget holds",
    )
    memory_budget: str | None = Field(
        default=None,
        description="a size such as 8GiB: device memory for OPT's streamed and resident blocks; null: no limit",
    )
    feature_cache: Literal["auto"] | Path | None = Field(
        default="auto",
        description="a folder for the frozen encoders' features, filled where it lacks any; auto: one in the user's "
        "cache, where there is room; null: encode in each step",
    )
    _is_no_switch = field_validator("feature_cache")(no_switch)

    @field_validator("memory_budget")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            parse_size(text)
        return text

    @property
    def memory_budget_bytes(self) -> int | None:
        """`memory_budget` as a number of bytes."""
        return None if self.memory_budget is None else parse_size(self.memory_budget)

    @property
    def feature_folder(self) -> Path | None:
        """`feature_cache` as a folder; None where nothing is cached."""
        if self.feature_cache == "auto":
            raise RuntimeError("frozen.feature_cache is auto: the placement replaces it before it is used")
        return self.feature_cache


class RunConfig(Section):
    """Where the run writes, and how often."""

    output_dir: Path = Field(default=Path("outputs/demo"), description="a folder; made where it is missing")
    checkpoint_every: PositiveInt = Field(default=500, le=_MOST_STEPS, description="optimizer steps, of 1 to 10^12")
    keep_checkpoints: PositiveInt = Field(
        default=3, le=_MOST_STEPS, description="newest checkpoints kept, 1 or more, beside the best one"
    )
    save_retry_minutes: NonNegativeFloat = Field(
        default=30.0,
        le=_MOST_MINUTES,
        description="minutes of 0 or more to train on while checkpoints cannot be saved, before the run fails",
    )
    log_every: PositiveInt = Field(
        default=10, le=_MOST_STEPS, description="optimizer steps between two lines of metrics.jsonl, of 1 to 10^12"
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=("tensorboard",),
        description="a list of tensorboard, wandb and trackio, each once at most; [] for metrics.jsonl alone",
    )
    stop_before_walltime_minutes: NonNegativeFloat | None = Field(
        default=5.0,
        le=_MOST_MINUTES,
        description="minutes before a Slurm job's end to save and stop at, a quarter of its time at most; or null",
    )

    _no_tracker_twice = field_validator("trackers")(each_once)


class DistributedConfig(Section):
    """Bounds on waiting for other ranks."""

    timeout_minutes: PositiveFloat = Field(
        default=10.0,
        ge=0.001,
        le=_MOST_MINUTES,
        description="minutes, of 0.001 to a million, that a collective, or the first meeting, may wait before the run "
        "fails",
    )


class Config(Section):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    efficientnet: EfficientNetConfig | None = Field(
        default=EfficientNetConfig(), description="a section with keys such as checkpoint, or null beside art_encoders"
    )
    art_encoders: tuple[ArtEncoderConfig, ...] | None = Field(
        default=None, description="a list of encoders, each with keys such as architecture and checkpoint"
    )
    kv_modulation: KVModulationConfig = KVModulationConfig()
    trainable: TrainableConfig = TrainableConfig()
    dataset: DatasetConfig = DatasetConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    frozen: FrozenConfig = FrozenConfig()
    run: RunConfig = RunConfig()
    distributed: DistributedConfig = DistributedConfig()

    @property
    def encoders(self) -> tuple[ArtEncoderConfig, ...]:
        """The art encoders in their order, however they are written; whether they are used is another matter."""
        if self.art_encoders is not None:
            return tuple(one.placed(f"art_encoders.{number}") for number, one in enumerate(self.art_encoders))
        short = self.efficientnet or EfficientNetConfig()
        return (ArtEncoderConfig.model_construct(**dict(short)).placed("efficientnet"),)

    @property
    def used_encoders(self) -> tuple[ArtEncoderConfig, ...]:
        """Those that a prefix is made from; none in a control."""
        return self.encoders if self.kv_modulation.enabled else ()

    def with_encoder_checkpoints(self, paths: Sequence[Path | None]) -> "Config":
        """The same with other checkpoints, one for each of `encoders`, in the form in which they are written."""
        if self.art_encoders is None:
            (path,) = paths
            short = self.efficientnet or EfficientNetConfig()
            return self.model_copy(update={"efficientnet": short.model_copy(update={"checkpoint": path})})
        return self.model_copy(update={"art_encoders": with_checkpoints(self.art_encoders, paths)})

    @property
    def validates(self) -> bool:
        """Whether training is to validate after each epoch."""
        each_epoch = self.evaluation.each_epoch
        return self.dataset.val is not None if each_epoch == "auto" else each_epoch

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, tree: Any) -> Any:
        return either_form(tree)

    @model_validator(mode="after")
    def _encoders_fit(self) -> "Config":
        check_art_encoders(self.art_encoders, self.kv_modulation.enabled)
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Config":
        self.kv_modulation.check_nothing_is_ignored()
        for key in ("opt", "vit"):
            if getattr(self.model, key) is not None and not self.model.is_lavis_file:
                raise ValueError(
                    f"model.{key} is for a LAVIS .pth, and model.blip2 = {self.model.blip2!r} is none; leave it out"
                )
        if self.model.revision is not None and self.model.is_lavis_file:
            raise ValueError(
                f"model.revision is for a hub id, and model.blip2 = {self.model.blip2!r} is a file; leave it out"
            )
        for key in ("storage", "slots", "resident_blocks", "memory_budget"):
            needs_opt = key in ("resident_blocks", "memory_budget")
            streams_vit = self.frozen.vit == "stream" and self.frozen.opt != "auto"
            streams = self.frozen.opt == "stream" or (streams_vit and not needs_opt)
            if not streams and getattr(self.frozen, key) != FrozenConfig.model_fields[key].default:
                raise ValueError(f"frozen.{key} is for streamed blocks; set frozen.opt: stream, or leave it out")
        if self.frozen.resident_blocks == "auto" and self.frozen.memory_budget is None:
            raise ValueError("frozen.resident_blocks: auto needs frozen.memory_budget, such as 8GiB")
        if self.training.early_stopping_patience is not None and not self.validates:
            raise ValueError(
                "training.early_stopping_patience needs validation; set dataset.val, and evaluation.each_epoch: true"
            )
        return self

    @model_validator(mode="after")
    def _something_trains(self) -> "Config":
        trains = (
            self.kv_modulation.enabled or self.trainable.qformer_cross_attention or bool(self.trainable.lora.targets)
        )
        if not trains:
            raise ValueError(
                "nothing trains: set one of kv_modulation.enabled, trainable.qformer_cross_attention "
                "or trainable.lora.targets"
            )
        return self
