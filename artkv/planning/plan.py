"""Predicts memory and step cost of every way to hold the frozen weights, and picks one for a GPU's memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import torch

from artkv.config import Config
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.errors import UserError
from artkv.frozen.block_layout import BlockLayout, block_layout
from artkv.frozen.residency import device_bytes
from artkv.planning.batch_shape import BatchShape, Sequences, sequences
from artkv.planning.gpus import Gpu, find_gpu, gpu_of_memory
from artkv.planning.memory import (
    Activations,
    TrainableMemory,
    activations,
    block_activations,
    peak_activation_bytes,
    quantised_block_bytes,
    trainable_memory,
)
from artkv.planning.shapes import FrozenBytes, ModelShapes, frozen_bytes, model_shapes
from artkv.planning.transfer import (
    Stack,
    forward_pass_seconds,
    hidden_from_tokens,
    loads_per_training_pass,
    training_pass_seconds,
)

OptMode = Literal["resident", "stream", "int8", "nf4"]
Storage = Literal["bf16", "int8"]
# computed: ViT and EfficientNet run in each step. vit streamed: the ViT's blocks come from host memory.
# cached: both ran before training.
Features = Literal["computed", "ViT streamed", "cached"]

# What a recommendation may use: the values that `frozen.opt`, `frozen.storage` and feature settings take.
AVAILABLE_MODES: tuple[OptMode, ...] = ("resident", "stream", "int8", "nf4")
AVAILABLE_STORAGES: tuple[Storage, ...] = ("bf16", "int8")
AVAILABLE_FEATURES: tuple[Features, ...] = ("computed", "ViT streamed", "cached")

FEATURES: tuple[Features, ...] = ("computed", "ViT streamed", "cached")
SLOTS = (1, 2, 3, 4)

# Assumptions, not measurements.
# CUDA context, loaded kernels and cuBLAS' workspace of one process.
CUDA_OVERHEAD_BYTES = 512 * 2**20
# Of the GPU's memory: the allocator's gaps, kernels' workspaces, and what the driver keeps of the nominal size.
MARGIN_FRACTION = 0.1
# Products with quantised weights against plain ones, dequantisation included.
QUANTISED_SLOWDOWN = 1.5
# With neither a GPU nor a size named, rates are this one's.
_DEFAULT_GPU = "A100 80GB"
_VIT_SLOTS = 2
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Mode:
    """A way to hold OPT's blocks.

    storage, slots, resident_blocks: of streamed blocks; the storage is a streamed ViT's too. recompute: backward
    computes each block's inside again; always so for streamed blocks.
    """

    opt: OptMode
    recompute: bool
    storage: Storage = "bf16"
    slots: int = 1
    resident_blocks: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether it computes with the very weights, and not with quantised ones."""
        return self.opt in ("resident", "stream") and self.storage == "bf16"

    @property
    def vit_slots(self) -> int:
        """Slots of a streamed ViT: the same setting, free to choose where OPT is not streamed."""
        return self.slots if self.opt == "stream" else _VIT_SLOTS

    @property
    def name(self) -> str:
        """As printed."""
        if self.opt == "stream":
            kept = f", {self.resident_blocks} resident" if self.resident_blocks else ""
            return f"stream {self.storage}, {self.slots} slot{'s' if self.slots > 1 else ''}{kept}"
        return f"{self.opt}, recomputed" if self.recompute else self.opt


@dataclass(frozen=True)
class DeviceMemory:
    """Peak device memory of one rank by part.

    opt_blocks_bytes: weights, or slots, resident blocks and staging buffer. trainables_bytes: weights, masters,
    moments, gradients, buckets. activations_bytes: the most at a time, logits and inputs included.
    """

    vit_bytes: int
    efficientnet_bytes: int
    qformer_bytes: int
    opt_outside_blocks_bytes: int
    opt_blocks_bytes: int
    trainables_bytes: int
    activations_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Prediction:
    """One mode with one source of features, without or with LoRA on OPT.

    shared_host_bytes: frozen masters, once a node, page-locked. rank_host_bytes: an offloaded optimizer, page-locked.
    pcie_bytes_per_step: frozen weights that one rank copies in an optimizer step after the first.
    hidden_from_tokens: tokens in a micro-batch from which the copies are hidden; None where nothing is streamed.
    step_seconds: estimated from assumed rates; Q-Former, EfficientNet, optimizer and data are not in it.
    """

    mode: Mode
    features: Features
    lora_on_opt: bool
    device: DeviceMemory
    shared_host_bytes: int
    rank_host_bytes: int
    pcie_bytes_per_step: int
    hidden_from_tokens: int | None
    step_seconds: float

    @property
    def settings(self) -> tuple[str, ...]:
        """YAML lines that choose it."""
        lines = ["frozen:", f"  opt: {self.mode.opt}"]
        if self.mode.opt == "stream":
            lines += [
                f"  storage: {self.mode.storage}",
                f"  slots: {self.mode.slots}",
                f"  resident_blocks: {self.mode.resident_blocks}",
            ]
        if self.features == "ViT streamed":
            lines.append("  vit: stream")
            if self.mode.opt != "stream":
                lines.append(f"  slots: {self.mode.vit_slots}")
        if self.features == "cached":
            lines.append("  feature_cache: FOLDER   # written by artkv cache")
        if self.mode.opt != "stream":
            lines += ["training:", f"  activation_checkpointing: {str(self.mode.recompute).lower()}"]
        return tuple(lines)


@dataclass(frozen=True)
class Recommendation:
    """The fastest available prediction that fits, or the smallest one and what it lacks.

    shortfall_bytes: 0 where it fits.
    """

    prediction: Prediction
    shortfall_bytes: int


@dataclass(frozen=True)
class Plan:
    """What `artkv plan` knows; see `plan`.

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
        return None if self.gpu_memory_bytes is None else int(self.gpu_memory_bytes * (1 - MARGIN_FRACTION))

    def prediction(self, mode: Mode, features: Features, lora_on_opt: bool) -> Prediction:
        """The one of `predictions` with these."""
        wanted = (mode, features, lora_on_opt)
        return next(p for p in self.predictions if (p.mode, p.features, p.lora_on_opt) == wanted)


def plan(
    config: Config,
    gpu_memory_bytes: int | None = None,
    gpu: str | None = None,
    world_size: int = 1,
    text_tokens: int = 32,
    paintings: int | None = None,
) -> Plan:
    """Predicts every mode from settings and shapes: no values of weights, no data, no GPU.

    gpu_memory_bytes: to fit into; without it that of `gpu`; without both nothing is recommended.
    gpu: name of a listed GPU, for the rates; without it the one whose memory is nearest.
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
    chosen = _choose_gpu(gpu, gpu_memory_bytes)
    if gpu is not None and gpu_memory_bytes is None:
        gpu_memory_bytes = chosen.memory_bytes
    # As at training: `auto` is bfloat16 where the device is fast at it.
    is_fp32 = config.model.dtype == "float32" or (config.model.dtype == "auto" and not chosen.has_bf16)
    dtype = torch.float32 if is_fp32 else torch.bfloat16
    batch = BatchShape(paintings, questions, text_tokens, config.training.pack_questions)
    plain = _Predictor.of(config, dtype, batch, False, world_size, chosen)
    adapted = _Predictor.of(config, dtype, batch, True, world_size, chosen, plain.activations)
    predictors = {False: plain, True: adapted}
    lora_on_opt = "opt" in config.trainable.lora.targets
    own = predictors[lora_on_opt]
    result = Plan(
        batch=batch,
        num_visual_tokens=own.shapes.model.backbone.num_query_tokens,
        sequences=own.sequences,
        accumulation=own.accumulation,
        world_size=world_size,
        dtype=dtype,
        gpu=chosen,
        gpu_is_named=gpu is not None,
        gpu_memory_bytes=gpu_memory_bytes,
        lora_on_opt=lora_on_opt,
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
    return replace(result, recommendation=_recommend(own, result.usable_bytes))


def all_modes(num_blocks: int) -> Iterator[Mode]:
    """Every mode of the table."""
    yield from (Mode("resident", recompute) for recompute in (False, True))
    for storage in ("bf16", "int8"):
        yield from (Mode("stream", True, storage, slots) for slots in SLOTS if slots <= num_blocks)  # type: ignore[arg-type]
    yield from (Mode(opt, recompute) for opt in ("int8", "nf4") for recompute in (False, True))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Predictor:
    """Predicts modes of one model: with or without LoRA on OPT."""

    shapes: ModelShapes
    frozen: FrozenBytes
    activations: Activations
    trainables: TrainableMemory
    batch: BatchShape
    lora_on_opt: bool
    accumulation: int
    gpu: Gpu

    @staticmethod
    def of(
        config: Config,
        dtype: torch.dtype,
        batch: BatchShape,
        lora_on_opt: bool,
        world_size: int,
        gpu: Gpu,
        known: Activations | None = None,
    ) -> "_Predictor":
        """known: activations of the model without LoRA on OPT, from which only the blocks' differ."""
        targets = [target for target in config.trainable.lora.targets if target != "opt"]
        shapes = model_shapes(config, dtype, [*targets, *(["opt"] if lora_on_opt else [])])
        training = config.training
        accumulation = training.gradient_accumulation_steps
        trainable_shapes = shapes.trainable_shapes()
        num_elements = sum(prod(shape) for shape in trainable_shapes.values())
        tree = load_deepspeed_config(training.deepspeed)
        is_bf16 = dtype == torch.bfloat16
        filled: dict[str, Any] = fill_deepspeed_config(tree, training, accumulation, world_size, is_bf16, num_elements)
        if known is None:
            evaluation = _evaluation_batch(config, batch.text_tokens)
            acts = activations(shapes, batch, config.efficientnet.image_size, evaluation)
        else:
            acts = replace(known, block=block_activations(shapes, batch))
        return _Predictor(
            shapes,
            frozen_bytes(shapes),
            acts,
            trainable_memory(trainable_shapes, dtype, world_size, filled),
            batch,
            lora_on_opt,
            accumulation,
            gpu,
        )

    @property
    def sequences(self) -> Sequences:
        return sequences(
            self.batch, self.shapes.model.backbone.num_query_tokens, self.shapes.blip2.text_config.hidden_size
        )

    @property
    def num_opt_blocks(self) -> int:
        return len(self.shapes.opt_blocks)

    def opt_stack(self, storage: Storage) -> Stack:
        return self._stack(self.num_opt_blocks, self.shapes.opt_block_shapes, self._opt_layouts[storage])

    def vit_stack(self, storage: Storage) -> Stack:
        return self._stack(self.shapes.num_vit_blocks, self.shapes.vit_block_shapes, self._vit_layouts[storage])

    @property
    def cached_bytes(self) -> int:
        """The ViT's tokens in the compute dtype, and the art features in fp32."""
        vision, encoder = self.shapes.blip2.vision_config, self.shapes.efficientnet
        art_bytes = 0 if encoder is None else encoder.feature_dim * torch.float32.itemsize
        return _image_tokens(vision) * vision.hidden_size * self.shapes.dtype.itemsize + art_bytes

    @cached_property
    def _opt_layouts(self) -> dict[Storage, BlockLayout]:
        return _layouts(self.shapes.opt_block_shapes)

    @cached_property
    def _vit_layouts(self) -> dict[Storage, BlockLayout]:
        return _layouts(self.shapes.vit_block_shapes)

    @staticmethod
    def _stack(num_blocks: int, shapes: dict[str, tuple[int, ...]], layout: BlockLayout) -> Stack:
        return Stack(num_blocks, sum(prod(shape) for shape in shapes.values()), layout.packed_bytes)

    def predict(self, mode: Mode, features: Features) -> Prediction:
        streams_vit = features == "ViT streamed"
        opt, vit = self.opt_stack(mode.storage), self.vit_stack(mode.storage)
        streamed = opt.num_blocks - mode.resident_blocks if mode.opt == "stream" else 0
        loads = loads_per_training_pass(streamed, mode.slots)
        vit_loads = vit.num_blocks if streams_vit else 0
        moved_bytes = loads * opt.block_bytes + vit_loads * vit.block_bytes
        shared_host_bytes = (opt.num_blocks * _whole_pages(opt.block_bytes) if mode.opt == "stream" else 0) + (
            vit_loads * _whole_pages(vit.block_bytes)
        )
        return Prediction(
            mode=mode,
            features=features,
            lora_on_opt=self.lora_on_opt,
            device=self._device_memory(mode, features),
            shared_host_bytes=shared_host_bytes,
            rank_host_bytes=self.trainables.host_bytes,
            pcie_bytes_per_step=moved_bytes * self.accumulation,
            hidden_from_tokens=hidden_from_tokens(opt, self.gpu) if mode.opt == "stream" else None,
            step_seconds=self.accumulation * self._pass_seconds(mode, features, streamed, vit_loads),
        )

    def _device_memory(self, mode: Mode, features: Features) -> DeviceMemory:
        computes = features != "cached"
        vit_bytes = self.frozen.vit if computes else 0
        if features == "ViT streamed":
            held = min(mode.vit_slots, self.shapes.num_vit_blocks)
            outside = self.frozen.vit - self.shapes.num_vit_blocks * self._block_bytes(self.shapes.vit_block_shapes)
            vit_bytes = outside + device_bytes(
                self._vit_layouts[mode.storage], self.shapes.dtype, self.shapes.num_vit_blocks, held, resident_blocks=0
            )
        return DeviceMemory(
            vit_bytes=vit_bytes,
            efficientnet_bytes=self.frozen.efficientnet if computes else 0,
            qformer_bytes=self.frozen.qformer,
            opt_outside_blocks_bytes=self.frozen.opt_outside_blocks,
            opt_blocks_bytes=self._opt_blocks_bytes(mode),
            trainables_bytes=self.trainables.device_bytes,
            activations_bytes=self._peak_activation_bytes(mode, features),
            overhead_bytes=CUDA_OVERHEAD_BYTES,
        )

    def _opt_blocks_bytes(self, mode: Mode) -> int:
        if mode.opt == "resident":
            return self.frozen.opt_blocks
        if mode.opt == "stream":
            layout = self._opt_layouts[mode.storage]
            return device_bytes(layout, self.shapes.dtype, self.num_opt_blocks, mode.slots, mode.resident_blocks)
        block_bytes = quantised_block_bytes(self.shapes.opt_block_shapes, mode.opt, self.shapes.dtype)
        return self.num_opt_blocks * block_bytes

    def _block_bytes(self, shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(prod(shape) for shape in shapes.values()) * self.shapes.dtype.itemsize

    def _peak_activation_bytes(self, mode: Mode, features: Features) -> int:
        matrices = [prod(shape) for shape in self.shapes.opt_block_shapes.values()]
        # bitsandbytes dequantises a matrix whole for backward.
        dequantised_bytes = max(matrices) * self.shapes.dtype.itemsize if mode.opt in ("int8", "nf4") else 0
        return peak_activation_bytes(
            self.activations,
            self.num_opt_blocks,
            recompute=mode.recompute,
            encodes=features != "cached",
            accumulation=self.accumulation,
            # Its int8 products keep their inputs; the LayerNorms' two outputs are those that nothing else keeps.
            extra_outputs=2 if mode.opt == "int8" else 0,
            workspace_bytes=dequantised_bytes,
        )

    def _pass_seconds(self, mode: Mode, features: Features, num_streamed: int, vit_loads: int) -> float:
        text = self.shapes.blip2.text_config
        vision = self.shapes.blip2.vision_config
        tokens = self.sequences.rows * self.sequences.columns
        slowdown = QUANTISED_SLOWDOWN if mode.opt in ("int8", "nf4") else 1.0
        seconds = training_pass_seconds(
            self.opt_stack(mode.storage), self.gpu, tokens, mode.recompute, num_streamed, mode.slots, slowdown
        )
        # The head: 2 FLOP an element of its matrix and answer token for the logits, 2 for their gradient.
        head_elements = text.vocab_size * text.word_embed_proj_dim
        seconds += 4 * head_elements * self.sequences.answer_tokens / self.gpu.effective_flops
        if features == "cached":
            return seconds
        image_tokens = self.batch.paintings * _image_tokens(vision)
        vit = self.vit_stack(mode.storage)
        return seconds + forward_pass_seconds(vit, self.gpu, image_tokens, vit_loads, mode.vit_slots)


def _layouts(shapes: dict[str, tuple[int, ...]]) -> dict[Storage, BlockLayout]:
    return {"bf16": block_layout(shapes, "bf16"), "int8": block_layout(shapes, "int8")}


def _image_tokens(vision: Any) -> int:
    """Tokens that the ViT makes of a picture, the class token included."""
    return (vision.image_size // vision.patch_size) ** 2 + 1


def _evaluation_batch(config: Config, text_tokens: int) -> tuple[BatchShape, int] | None:
    evaluation = config.evaluation
    if not evaluation.each_epoch:
        return None
    return BatchShape(evaluation.batch_size, evaluation.batch_size, text_tokens), evaluation.max_new_tokens


def _choose_gpu(name: str | None, memory_bytes: int | None) -> Gpu:
    if name is not None:
        return find_gpu(name)
    return find_gpu(_DEFAULT_GPU) if memory_bytes is None else gpu_of_memory(memory_bytes)


def _recommend(predictor: _Predictor, usable_bytes: int) -> Recommendation:
    """The fastest of the available predictions that fit; streamed modes keep as many blocks resident as fit."""
    candidates = []
    for mode in all_modes(predictor.num_opt_blocks):
        if mode.opt not in AVAILABLE_MODES or mode.storage not in AVAILABLE_STORAGES:
            continue
        counts = range(predictor.num_opt_blocks - mode.slots + 1) if mode.opt == "stream" else range(1)
        for features in AVAILABLE_FEATURES:
            candidates += [predictor.predict(replace(mode, resident_blocks=count), features) for count in counts]
    fitting = [p for p in candidates if p.device.total_bytes <= usable_bytes]
    if fitting:
        # Quantised weights cost accuracy: only where nothing exact fits.
        fitting = [p for p in fitting if p.mode.is_exact] or fitting
        # Times equal to two digits: the one that moves least, and of those the one that takes least memory.
        best = min(fitting, key=lambda p: (float(f"{p.step_seconds:.2g}"), p.pcie_bytes_per_step, p.device.total_bytes))
        return Recommendation(best, 0)
    smallest = min(candidates, key=lambda p: p.device.total_bytes)
    return Recommendation(smallest, smallest.device.total_bytes - usable_bytes)


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
