"""Predicts memory and step cost of one way to hold the frozen weights."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch

from artkv.config import Config
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.frozen.block_layout import BlockLayout, block_layout
from artkv.frozen.residency import device_bytes
from artkv.models.art_encoder import art_source
from artkv.planning.activations import (
    Activations,
    MicroBatches,
    QuantisedExtras,
    activations,
    answering_peak_bytes,
    block_activations,
    peak_activation_bytes,
)
from artkv.planning.batch_shape import BatchShape, Sequences, sequences
from artkv.planning.gpus import Gpu
from artkv.planning.memory import TrainableMemory, quantised_block_bytes, trainable_memory
from artkv.planning.modes import Features, Mode, Storage
from artkv.planning.shapes import FrozenBytes, ModelShapes, frozen_bytes, model_shapes
from artkv.planning.transfer import (
    Stack,
    forward_pass_seconds,
    hidden_from_tokens,
    loads_per_training_pass,
    training_pass_seconds,
)

# Assumptions, not measurements.
# CUDA context, loaded kernels and cuBLAS' workspace of one process.
CUDA_OVERHEAD_BYTES = 512 * 2**20
# Products with quantised weights against plain ones, dequantisation included.
QUANTISED_SLOWDOWN = 1.5
# Answered at once under `evaluation.batch_size: auto`, which takes what is left; fewer would be slow.
_QUESTIONS_OF_AUTO = 16
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class DeviceMemory:
    """Peak device memory of one rank by part.

    opt_blocks_bytes: weights, or slots, resident blocks and staging buffer. trainables_bytes: weights, masters,
    moments, gradients, buckets. activations_bytes: the most at a time, logits and inputs included.
    """

    vit_bytes: int
    art_encoders_bytes: int
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
    step_seconds: estimated from assumed rates; Q-Former, art encoders, optimizer and data are not in it.
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


@dataclass(frozen=True)
class Predictor:
    """Predicts modes of one model: with or without LoRA on OPT.

    trains: False where questions are answered and nothing else.
    """

    config: Config
    shapes: ModelShapes
    frozen: FrozenBytes
    activations: Activations
    trainables: TrainableMemory
    batch: BatchShape
    lora_on_opt: bool
    world_size: int
    gpu: Gpu
    trains: bool

    @staticmethod
    def of(
        config: Config, dtype: torch.dtype, batch: BatchShape, world_size: int, gpu: Gpu, trains: bool = True
    ) -> "Predictor":
        """With LoRA as the config has it."""
        shapes = model_shapes(config, dtype, config.trainable.lora.targets)
        evaluation = _evaluation_batch(config, batch) if config.validates or not trains else None
        return Predictor(
            config,
            shapes,
            frozen_bytes(shapes),
            activations(shapes, batch, [encoder.image_size for encoder in config.used_encoders], evaluation),
            _trainables(config, shapes, world_size),
            batch,
            "opt" in config.trainable.lora.targets,
            world_size,
            gpu,
            trains,
        )

    def with_lora(self, on_opt: bool) -> "Predictor":
        """The same with LoRA on OPT or without it: of the activations only the blocks' differ."""
        if on_opt == self.lora_on_opt:
            return self
        targets = [target for target in self.config.trainable.lora.targets if target != "opt"]
        shapes = model_shapes(self.config, self.shapes.dtype, [*targets, *(["opt"] if on_opt else [])])
        return replace(
            self,
            shapes=shapes,
            frozen=frozen_bytes(shapes),
            activations=replace(self.activations, block=block_activations(shapes, self.batch)),
            trainables=_trainables(self.config, shapes, self.world_size),
            lora_on_opt=on_opt,
        )

    @property
    def accumulation(self) -> int:
        return self.config.training.gradient_accumulation_steps

    @property
    def sequences(self) -> Sequences:
        return sequences(self.batch, self.shapes.model.num_visual_tokens, self.shapes.blip2.text_config.hidden_size)

    @property
    def num_opt_blocks(self) -> int:
        return len(self.shapes.opt_blocks)

    def opt_stack(self, storage: Storage) -> Stack:
        return self._stack(self.num_opt_blocks, self.shapes.opt_block_shapes, self._opt_layouts[storage])

    def vit_stack(self, storage: Storage) -> Stack:
        return self._stack(self.shapes.num_vit_blocks, self.shapes.vit_block_shapes, self._vit_layouts[storage])

    @property
    def cached_bytes(self) -> int:
        """Of one picture in a feature cache."""
        return sum(record_bytes(self.config, self.shapes.blip2, self.shapes.dtype))

    def opt_layout(self, storage: Storage) -> BlockLayout:
        """How a block of OPT is packed in host memory."""
        return self._opt_layouts[storage]

    def at_once(self, mode: Mode) -> int:
        """Micro-batches that go through OPT together: all of a step where its blocks are fetched for them."""
        return self.accumulation if mode.opt == "stream" else 1

    def kept_bytes(self, mode: Mode, kept_blocks: int) -> int:
        """Activations that so many blocks keep, of all micro-batches that are there at a time."""
        extra_bytes = self._extras(mode).outputs * self.activations.block.recomputed_bytes
        return kept_blocks * (self.activations.block.stored_bytes + extra_bytes) * self.at_once(mode)

    def kept_blocks(self, mode: Mode, budget_bytes: int | None) -> int | None:
        """How many blocks keep their activations within a budget; None: all."""
        if budget_bytes is None:
            return None
        kept = budget_bytes // self.kept_bytes(mode, 1)
        return None if kept >= self.num_opt_blocks else kept

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
        loads = loads_per_training_pass(streamed, mode.slots)  # once a step
        vit_loads = vit.num_blocks if streams_vit else 0
        moved_bytes = loads * opt.block_bytes + vit_loads * vit.block_bytes * self.accumulation
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
            pcie_bytes_per_step=moved_bytes,
            hidden_from_tokens=hidden_from_tokens(opt, self.gpu) if mode.opt == "stream" else None,
            step_seconds=self._step_seconds(mode, features, streamed, vit_loads),
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
            art_encoders_bytes=self.frozen.art_encoders if computes else 0,
            qformer_bytes=self.frozen.qformer,
            opt_outside_blocks_bytes=self.frozen.opt_outside_blocks,
            opt_blocks_bytes=self._opt_blocks_bytes(mode),
            trainables_bytes=self.trainables.device_bytes if self.trains else self.trainables.weights_bytes,
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
        encodes = features != "cached"
        if not self.trains:
            assert self.activations.evaluation is not None
            return answering_peak_bytes(self.activations.evaluation, encodes)
        return self.training_peak_bytes(mode, encodes, self.activations)

    def training_peak_bytes(self, mode: Mode, encodes: bool, acts: Activations) -> int:
        """Peak of a step's activations, `acts` being those of a micro-batch."""
        num_blocks = self.num_opt_blocks
        return peak_activation_bytes(
            acts,
            num_blocks,
            num_blocks if mode.kept_blocks is None else mode.kept_blocks,
            encodes,
            MicroBatches(self.accumulation, self.at_once(mode)),
            self._extras(mode),
        )

    def _extras(self, mode: Mode) -> QuantisedExtras:
        if mode.opt not in ("int8", "nf4"):
            return QuantisedExtras()
        largest = max(prod(shape) for shape in self.shapes.opt_block_shapes.values())
        return QuantisedExtras(
            # Its int8 products keep their inputs; the LayerNorms' two outputs are those that nothing else keeps.
            outputs=2 if mode.opt == "int8" else 0,
            # bitsandbytes dequantises a matrix whole for backward.
            workspace_bytes=largest * self.shapes.dtype.itemsize,
        )

    def _step_seconds(self, mode: Mode, features: Features, num_streamed: int, vit_loads: int) -> float:
        text = self.shapes.blip2.text_config
        at_once, num_blocks = self.at_once(mode), self.num_opt_blocks
        seconds = (self.accumulation // at_once) * training_pass_seconds(
            self.opt_stack(mode.storage),
            self.gpu,
            self.sequences.rows * self.sequences.columns * at_once,
            0 if mode.kept_blocks is None else num_blocks - mode.kept_blocks,
            num_streamed,
            mode.slots,
            QUANTISED_SLOWDOWN if mode.opt in ("int8", "nf4") else 1.0,
        )
        # The head: 2 FLOP an element of its matrix and answer token for the logits, 2 for their gradient.
        head_elements = text.vocab_size * text.word_embed_proj_dim
        seconds += self.accumulation * 4 * head_elements * self.sequences.answer_tokens / self.gpu.effective_flops
        if features == "cached":
            return seconds
        image_tokens = self.batch.paintings * _image_tokens(self.shapes.blip2.vision_config)
        vit = self.vit_stack(mode.storage)
        return seconds + self.accumulation * forward_pass_seconds(
            vit, self.gpu, image_tokens, vit_loads, mode.vit_slots
        )


def record_bytes(config: Config, blip2: Any, dtype: torch.dtype) -> list[int]:
    """Of one picture in a feature cache: the ViT's tokens in the compute dtype, each art encoder's features in fp32.

    blip2: the transformers config.
    """
    vision = blip2.vision_config
    sources = [art_source(encoder) for encoder in config.used_encoders]
    return [
        _image_tokens(vision) * vision.hidden_size * dtype.itemsize,
        *(source.feature_dim * (source.num_tokens or 1) * torch.float32.itemsize for source in sources),
    ]


def _trainables(config: Config, shapes: ModelShapes, world_size: int) -> TrainableMemory:
    training, trainable_shapes = config.training, shapes.trainable_shapes()
    num_elements = sum(prod(shape) for shape in trainable_shapes.values())
    filled: dict[str, Any] = fill_deepspeed_config(
        load_deepspeed_config(training.deepspeed), training, training.gradient_accumulation_steps, world_size,
        shapes.dtype == torch.bfloat16, num_elements,
    )  # fmt: skip
    return trainable_memory(trainable_shapes, shapes.dtype, world_size, filled)


def _layouts(shapes: dict[str, tuple[int, ...]]) -> dict[Storage, BlockLayout]:
    return {"bf16": block_layout(shapes, "bf16"), "int8": block_layout(shapes, "int8")}


def _image_tokens(vision: Any) -> int:
    """Tokens that the ViT makes of a picture, the class token included."""
    return (vision.image_size // vision.patch_size) ** 2 + 1


def _evaluation_batch(config: Config, batch: BatchShape) -> tuple[BatchShape, int]:
    evaluation = config.evaluation
    text_tokens = batch.longest_text or batch.text_tokens
    of_config = _QUESTIONS_OF_AUTO if evaluation.batch_size == "auto" else evaluation.batch_size
    questions = batch.answered_at_once or of_config
    return BatchShape(questions, questions, text_tokens), evaluation.max_new_tokens


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
