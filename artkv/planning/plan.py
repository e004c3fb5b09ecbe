"""Predicts memory and step cost of every way to hold the frozen weights, and picks one for a GPU's memory."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from artkv.config import Config
from artkv.config.editing import Scalar
from artkv.errors import UserError
from artkv.models.assembly import num_visual_tokens, too_many_prefix_tokens
from artkv.planning.activations import Activations
from artkv.planning.batch_shape import BatchShape, Sequences
from artkv.planning.device import Device
from artkv.planning.gpus import GIB, Gpu, find_gpu, gpu_named_by, gpu_of_device, gpu_of_memory
from artkv.planning.memory import TrainableMemory
from artkv.planning.modes import FEATURES, Features, Mode, all_modes
from artkv.planning.placement import Choice, choose, chosen_settings, describe, hint, usable_bytes
from artkv.planning.prediction import Prediction, Predictor
from artkv.planning.shapes import FrozenBytes, read_blip2_config
from artkv.planning.transfer import Stack

# With neither a GPU nor a size named, rates are this one's.
_DEFAULT_GPU = "A100 80GB"
# The inputs of OPT-2.7b's blocks alone are 86 GB for so many, in bf16, and the prediction takes half a minute.
_MOST_TOKENS = 2**19


@dataclass(frozen=True)
class Recommendation:
    """What `frozen.opt: auto` would choose, as training does.

    settings: by dotted key. words, hint: where OPT is and what it keeps, and what would fill the device. quantised: the
    fastest way that fits with quantised weights, where nothing exact does.
    """

    choice: Choice
    settings: dict[str, Scalar]
    words: str
    hint: str
    quantised: Prediction | None


@dataclass(frozen=True)
class Plan:
    """What `artkv plan` knows; see `plan`.

    gpu: the listed one whose rates are used. gpu_is_named: False where it is but the nearest by memory, or the default.
    device: this machine's, where that is planned for.
    usable_bytes: of gpu_memory_bytes, without the margin.
    frozen, activations, trainables: with LoRA as the config has it (lora_on_opt).
    sequences: what OPT reads of a micro-batch.
    opt_stack, vit_stack: blocks as bf16 masters; int8_stack, int8_vit_stack: as int8 masters.
    cached_bytes: of one picture in a feature cache.
    """

    batch: BatchShape
    num_visual_tokens: int
    sequences: Sequences
    accumulation: int
    world_size: int
    dtype: torch.dtype
    gpu: Gpu
    gpu_is_named: bool
    device: Device | None
    gpu_memory_bytes: int | None
    lora_on_opt: bool
    frozen: FrozenBytes
    activations: Activations
    trainables: TrainableMemory
    opt_stack: Stack
    int8_stack: Stack
    vit_stack: Stack
    int8_vit_stack: Stack
    cached_bytes: int
    predictions: tuple[Prediction, ...]
    recommendation: Recommendation | None

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens that OPT reads in a micro-batch, padding included."""
        return self.sequences.rows * self.sequences.columns

    @property
    def usable_bytes(self) -> int | None:
        """The GPU's memory less the margin."""
        return None if self.gpu_memory_bytes is None else usable_bytes(self.gpu_memory_bytes)

    def prediction(self, mode: Mode, features: Features, lora_on_opt: bool) -> Prediction:
        """The one of `predictions` with these."""
        wanted = (mode, features, lora_on_opt)
        return next(p for p in self.predictions if (p.mode, p.features, p.lora_on_opt) == wanted)


def plan(
    config: Config,
    gpu_memory_bytes: int | None = None,
    gpu: str | Device | None = None,
    world_size: int = 1,
    text_tokens: int = 32,
    paintings: int | None = None,
) -> Plan:
    """Predicts every mode from settings and shapes: no values of weights, no data, no GPU.

    gpu_memory_bytes: to fit into; without it that of a listed `gpu`, or what is free of a device; without both nothing
    is recommended.
    gpu: name of a listed GPU, for the rates, or a device that was asked, in no list perhaps; without it the listed one
    whose memory is nearest.
    text_tokens: of the longest question with its answer. paintings: in a micro-batch; None: one a question, which
    takes the most memory.

    Raises:
        UserError: if a number is out of range, or GPU, shapes or DeepSpeed file are not to be had.
    """
    questions = config.training.batch_size
    paintings = questions if paintings is None else paintings
    for name, value in (("world-size", world_size), ("text-tokens", text_tokens), ("paintings", paintings)):
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if paintings > questions:
        raise UserError(f"--paintings {paintings}: is more than training.batch_size = {questions} questions have")
    if questions * text_tokens > _MOST_TOKENS:
        raise UserError(
            f"training.batch_size = {questions} with --text-tokens {text_tokens}: a micro-batch of more than "
            f"{_MOST_TOKENS} tokens is not planned, as it fits no GPU; lower one of them"
        )
    blip2 = read_blip2_config(config.model)
    _check_positions(config, blip2, text_tokens)
    card = _choose_card(gpu, gpu_memory_bytes)
    # As at training: `auto` is bfloat16 where the device is fast at it.
    is_fp32 = config.model.dtype == "float32" or (config.model.dtype == "auto" and not card.gpu.has_bf16)
    dtype = torch.float32 if is_fp32 else torch.bfloat16
    batch = BatchShape(paintings, questions, text_tokens, config.training.pack_questions)
    own = Predictor.of(config, dtype, batch, world_size, card.gpu)
    predictors = {on_opt: own.with_lora(on_opt) for on_opt in (False, True)}
    result = Plan(
        batch=batch,
        num_visual_tokens=own.shapes.model.num_visual_tokens,
        sequences=own.sequences,
        accumulation=own.accumulation,
        world_size=world_size,
        dtype=dtype,
        gpu=card.gpu,
        gpu_is_named=card.is_named,
        device=gpu if isinstance(gpu, Device) else None,
        gpu_memory_bytes=card.memory_bytes,
        lora_on_opt=own.lora_on_opt,
        frozen=own.frozen,
        activations=own.activations,
        trainables=own.trainables,
        opt_stack=own.opt_stack("bf16"),
        int8_stack=own.opt_stack("int8"),
        vit_stack=own.vit_stack("bf16"),
        int8_vit_stack=own.vit_stack("int8"),
        cached_bytes=own.cached_bytes,
        predictions=tuple(
            predictors[lora].predict(mode, features)
            for mode in all_modes(own.num_opt_blocks)
            for features in FEATURES
            for lora in (False, True)
        ),
        recommendation=None,
    )
    if result.usable_bytes is None:
        return result
    host_bytes = gpu.host_bytes if isinstance(gpu, Device) else None
    return replace(result, recommendation=_recommend(own, result.usable_bytes, host_bytes))


def _check_positions(config: Config, blip2: Any, text_tokens: int) -> None:
    """Raises `UserError` where OPT has no positions for the text beside what it reads of a painting."""
    num_visual = num_visual_tokens(config, blip2.num_query_tokens)
    most, added = blip2.text_config.max_position_embeddings - num_visual, num_visual - blip2.num_query_tokens
    if most < text_tokens <= most + added:
        raise UserError(too_many_prefix_tokens(config, added, most + added - text_tokens))
    if text_tokens > most:
        raise UserError(f"--text-tokens {text_tokens}: OPT has positions for {most} beside the picture's; give fewer")


class _Card(NamedTuple):
    """What is planned for: rates of a listed GPU, whether that is the one meant, and the memory to fit into, if any."""

    gpu: Gpu
    is_named: bool
    memory_bytes: int | None


def _choose_card(gpu: str | Device | None, memory_bytes: int | None) -> _Card:
    if isinstance(gpu, Device):
        is_named = gpu_named_by(gpu) is not None
        return _Card(gpu_of_device(gpu), is_named, gpu.free_bytes if memory_bytes is None else memory_bytes)
    if gpu is None:
        listed = find_gpu(_DEFAULT_GPU) if memory_bytes is None else gpu_of_memory(memory_bytes)
        return _Card(listed, False, memory_bytes)
    listed = find_gpu(gpu)
    if memory_bytes is not None and memory_bytes > listed.memory_bytes:
        raise UserError(
            f"--gpu-memory with --gpu {gpu!r}: {memory_bytes / GIB:,.1f} GiB are more than a {listed.name} has, "
            f"{listed.memory_bytes / GIB:.0f} GiB; leave one of them out"
        )
    return _Card(listed, True, listed.memory_bytes if memory_bytes is None else memory_bytes)


def _recommend(predictor: Predictor, usable_bytes: int, host_bytes: int | None) -> Recommendation:
    """Features are taken to be cached unless the config says null: how many pictures there are is not known here."""
    choice = choose(predictor, usable_bytes, predictor.config.frozen.feature_cache is not None, host_bytes)
    quantised = None
    if choice.shortfall_bytes:
        inexact = (mode for mode in all_modes(predictor.num_opt_blocks) if not mode.is_exact)
        predictions = (predictor.predict(mode, choice.prediction.features) for mode in inexact)
        fitting = [p for p in predictions if p.device.total_bytes <= usable_bytes]
        quantised = min(fitting, key=lambda p: p.step_seconds, default=None)
    return Recommendation(
        choice,
        chosen_settings(predictor, choice),
        describe(predictor, choice.prediction),
        hint(predictor, choice, usable_bytes),
        quantised,
    )
