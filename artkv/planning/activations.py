"""Device memory that activations take.

They are not estimated by formulas: the model's own code runs on fake tensors and every storage it makes
is counted from its birth to its death. Letters in tensor names are explained in `artkv.batch`.
"""

import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from artkv.batch import PaintingFeatures, PaintingViews
from artkv.models.opt.answers import answer_cross_entropy, hidden_at_answers
from artkv.models.opt.packed_sequences import tree_attention_mask
from artkv.planning.batch_shape import BatchShape, Sequences, sequences
from artkv.planning.shapes import ModelShapes


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of tensor storages made inside the `with`; works on real and on fake tensors.

    A storage counts once, however many views it has, and until the last of them is gone. What was there before
    does not count. Workspaces inside a kernel are not seen.

    live_bytes: what is alive now. peak_bytes: the most there has been at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors_in((args, kwargs)):
            self._know(tensor, counts=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors_in(result):
            self._know(tensor, counts=True)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _know(self, tensor: Tensor, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        num_bytes = storage.nbytes() if counts else 0
        self.live_bytes += num_bytes
        weakref.finalize(storage, self._forget, key, num_bytes).atexit = False

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live_bytes -= num_bytes


@dataclass(frozen=True)
class BlockActivations:
    """Device memory of one OPT block's activations.

    stored_bytes: what forward leaves for backward and the next block, all of it kept.
    recomputed_bytes: the same where only the block's input is kept: its output.
    stored_backward_bytes, recomputed_backward_bytes: the most that backward takes beyond that at a time.
    """

    stored_bytes: int
    recomputed_bytes: int
    stored_backward_bytes: int
    recomputed_backward_bytes: int


@dataclass(frozen=True)
class Activations:
    """Device memory of activations by part, for one micro-batch.

    inputs_bytes: the pictures' pixels, fp32; features_bytes: what the frozen encoders make of them.
    encoding_bytes: the most that ViT and art encoders take at a time, without gradients, their output included.
    qformer_bytes: what prefix generator, Q-Former and projection leave for backward, visual tokens included.
    qformer_backward_bytes: the most that their backward takes beyond that, gradients of weights included.
    embeddings_bytes: input of OPT's first block, with the attention mask.
    last_mask_bytes: what the last block copies of the mask.
    block: one OPT block.
    logits_bytes: the most that final LayerNorm, a chunk of fp32 logits and loss take, forward and backward.
    evaluation: validation between epochs; None where there is none.
    """

    inputs_bytes: int
    features_bytes: int
    encoding_bytes: int
    qformer_bytes: int
    qformer_backward_bytes: int
    embeddings_bytes: int
    last_mask_bytes: int
    block: BlockActivations
    logits_bytes: int
    evaluation: "EvaluationActivations | None"


@dataclass(frozen=True)
class EvaluationActivations:
    """Device memory while answers are generated, for one batch of questions.

    answering_bytes: keys and values of all blocks, the input, and the most that one block takes at a time.
    """

    inputs_bytes: int
    features_bytes: int
    encoding_bytes: int
    answering_bytes: int


def activations(
    shapes: ModelShapes,
    batch: BatchShape,
    art_image_sizes: Sequence[int],
    evaluation: tuple[BatchShape, int] | None = None,
) -> Activations:
    """Runs the parts of the model on fake tensors, one OPT block for all, and counts.

    art_image_sizes: of each art encoder of the model.
    evaluation: batch of validation, with the most new tokens of an answer; None for no validation.
    """
    art = _art_encoding(shapes, batch.paintings, art_image_sizes)
    with shapes.fake:
        views = _views(shapes, batch, art_image_sizes)
        with AllocationCounter() as vit, shapes.short_vit(), torch.no_grad():
            image_features = shapes.model.backbone.encode_images(views.vit_pixels)
        features = PaintingFeatures(image_features, tuple(torch.empty(shape) for shape in art.features))
        encoding_bytes = max(art.peak_bytes, art.features_bytes + vit.peak_bytes)
        with AllocationCounter() as qformer:
            visual_IKD = shapes.model.visual_tokens(features)
            qformer_bytes = qformer.live_bytes
            if visual_IKD.requires_grad:
                gradient_IKD = torch.empty_like(visual_IKD)
                torch.autograd.grad(visual_IKD, _qformer_trainables(shapes), gradient_IKD, allow_unused=True)
        trained = (batch, _bytes(features), encoding_bytes)
        return Activations(
            inputs_bytes=_bytes(views),
            features_bytes=_bytes(features),
            encoding_bytes=encoding_bytes,
            qformer_bytes=qformer_bytes,
            qformer_backward_bytes=max(0, qformer.peak_bytes - qformer_bytes),
            embeddings_bytes=_embeddings_bytes(shapes, batch),
            last_mask_bytes=_last_mask_bytes(shapes, batch),
            block=block_activations(shapes, batch),
            logits_bytes=_logits_bytes(shapes, batch),
            evaluation=evaluation and _evaluation(shapes, *trained, *evaluation, art_image_sizes),
        )


def block_activations(shapes: ModelShapes, batch: BatchShape) -> BlockActivations:
    """Those of one OPT block alone; what LoRA on OPT changes.

    Packed, the last block computes some columns only; it counts as the others.
    """
    block = shapes.opt_blocks[-1]
    read = _sequences(shapes, batch)
    with shapes.fake:
        shape_RLD = (read.rows, read.columns, shapes.blip2.text_config.hidden_size)
        hidden_RLD = torch.empty(shape_RLD, dtype=shapes.dtype, requires_grad=True)
        if batch.is_packed:
            mask_R1LL = tree_attention_mask(torch.empty(shape_RLD[:2], dtype=torch.int64), shapes.dtype)
        else:
            mask_R1LL = torch.empty(read.rows, 1, read.columns, read.columns, dtype=torch.bool)
        adapters = [parameter for parameter in block.parameters() if parameter.requires_grad]
        gradient_RLD = torch.empty(shape_RLD, dtype=shapes.dtype)
        with AllocationCounter() as counter:
            output_RLD = block(hidden_RLD, attention_mask=mask_R1LL)
            stored_bytes = counter.live_bytes
            forward_peak_bytes = counter.peak_bytes
            counter.peak_bytes = stored_bytes
            torch.autograd.grad(output_RLD, [hidden_RLD, *adapters], gradient_RLD)
            backward_peak_bytes = counter.peak_bytes
    gradient_bytes = _bytes(gradient_RLD)  # it comes from the block after this one
    return BlockActivations(
        stored_bytes=stored_bytes,
        recomputed_bytes=_bytes(output_RLD),
        stored_backward_bytes=gradient_bytes + backward_peak_bytes - stored_bytes,
        # Recomputation stops once it has all that backward needs, and so never makes the output.
        recomputed_backward_bytes=gradient_bytes + max(forward_peak_bytes, backward_peak_bytes - _bytes(output_RLD)),
    )


@dataclass(frozen=True)
class MicroBatches:
    """Micro-batches of a step: per_step, all of which are put on the device at its start.

    at_once: how many go through OPT together, block by block, and so keep their activations at a time.
    """

    per_step: int = 1
    at_once: int = 1


@dataclass(frozen=True)
class QuantisedExtras:
    """What a quantised block takes beyond a plain one.

    outputs: tensors of a block's output size that a kept block keeps. workspace_bytes: more that backward takes.
    """

    outputs: int = 0
    workspace_bytes: int = 0


def peak_activation_bytes(
    acts: Activations,
    num_blocks: int,
    kept_blocks: int,
    encodes: bool = True,
    micro_batches: MicroBatches = MicroBatches(),
    extras: QuantisedExtras = QuantisedExtras(),
) -> int:
    """The largest moment: a micro-step's encoding, loss, backward of a block or of the Q-Former, or validation.

    kept_blocks: how many of `num_blocks` keep their activations; the others keep their input, and backward recomputes
    their inside. encodes: False where features come from a cache.
    """
    block, at_once = acts.block, micro_batches.at_once
    recomputed_blocks = num_blocks - kept_blocks
    extra_bytes = extras.outputs * block.recomputed_bytes
    kept_bytes = kept_blocks * (block.stored_bytes + extra_bytes)
    backward_bytes = max(
        block.stored_backward_bytes if kept_blocks else 0,
        block.recomputed_backward_bytes + extra_bytes if recomputed_blocks else 0,
    )
    inputs_bytes = (acts.inputs_bytes if encodes else acts.features_bytes) * micro_batches.per_step
    through_qformer = ((acts.features_bytes if encodes else 0) + acts.qformer_bytes) * at_once
    through_opt = through_qformer + at_once * (
        acts.embeddings_bytes + acts.last_mask_bytes + kept_bytes + recomputed_blocks * block.recomputed_bytes
    )
    training_bytes = inputs_bytes + max(
        acts.encoding_bytes if encodes else 0,
        through_opt + acts.logits_bytes,
        # A block's output is gone by then: only the backward of what follows it reads it. Of other micro-batches that
        # are under way the gradient is in its place, as large.
        through_opt - block.recomputed_bytes + backward_bytes + extras.workspace_bytes,
        through_qformer + acts.qformer_backward_bytes,
    )
    if acts.evaluation is None:
        return training_bytes
    return max(training_bytes, answering_peak_bytes(acts.evaluation, encodes))


def answering_peak_bytes(answering: EvaluationActivations, encodes: bool) -> int:
    """The largest moment of generating answers: the encoders, or the keys and values."""
    if not encodes:
        return answering.features_bytes + answering.answering_bytes
    return answering.inputs_bytes + max(answering.encoding_bytes, answering.features_bytes + answering.answering_bytes)


class _ArtEncoding(NamedTuple):
    """What the art encoders make of a micro-batch's paintings, one encoder after the other.

    features: shapes, fp32. features_bytes: what stays with them. peak_bytes: the most at a time, features of those that
    are done included.
    """

    features: list[tuple[int, ...]]
    features_bytes: int
    peak_bytes: int


def _art_encoding(shapes: ModelShapes, paintings: int, image_sizes: Sequence[int]) -> _ArtEncoding:
    """On the meta device, which is several times as fast as fake tensors; on these where the network has attention.

    Attention is fused on them alone.
    """
    encoding = _ArtEncoding([], 0, 0)
    for encoder, side in zip(shapes.art_encoders, image_sizes, strict=True):
        mode: AbstractContextManager[Any] = torch.device("meta")
        if any(hasattr(part, "fused_attn") for part in encoder.modules()):
            encoder, mode = shapes.fake_copy(encoder), shapes.fake
        with mode:
            pixels = torch.empty(paintings, 3, side, side)
            with AllocationCounter() as counter:
                features = encoder(pixels)
        encoding = _ArtEncoding(
            [*encoding.features, tuple(features.shape)],
            encoding.features_bytes + counter.live_bytes,
            max(encoding.peak_bytes, encoding.features_bytes + counter.peak_bytes),
        )
    return encoding


def _views(shapes: ModelShapes, batch: BatchShape, art_image_sizes: Sequence[int]) -> PaintingViews:
    side = shapes.blip2.vision_config.image_size
    return PaintingViews(
        torch.empty(batch.paintings, 3, side, side),
        tuple(torch.empty(batch.paintings, 3, art_side, art_side) for art_side in art_image_sizes),
    )


def _qformer_trainables(shapes: ModelShapes) -> list[Tensor]:
    trainables = shapes.model.named_trainables()
    return [p for name, p in trainables.items() if not name.startswith("language_model.")]


def _sequences(shapes: ModelShapes, batch: BatchShape) -> Sequences:
    return sequences(batch, shapes.model.num_visual_tokens, shapes.blip2.text_config.hidden_size)


def _embeddings_bytes(shapes: ModelShapes, batch: BatchShape) -> int:
    """Embeddings of a batch, and its mask: boolean, or of the compute dtype where packed."""
    read = _sequences(shapes, batch)
    width, itemsize = shapes.blip2.text_config.hidden_size, shapes.dtype.itemsize
    return read.rows * read.columns * (width * itemsize + read.columns * (itemsize if batch.is_packed else 1))


def _last_mask_bytes(shapes: ModelShapes, batch: BatchShape) -> int:
    """The rows of the mask that the last block copies, where packed."""
    read = _sequences(shapes, batch)
    return read.rows * read.predicting_columns * read.columns * shapes.dtype.itemsize if batch.is_packed else 0


def _evaluation(
    shapes: ModelShapes,
    trained: BatchShape,
    trained_features_bytes: int,
    trained_encoding_bytes: int,
    batch: BatchShape,
    max_new_tokens: int,
    art_image_sizes: Sequence[int],
) -> EvaluationActivations:
    """What the encoders take is in proportion to the paintings of `trained`."""
    width = shapes.blip2.text_config.hidden_size
    num_positions = shapes.model.num_visual_tokens + batch.text_tokens
    hidden_QSD = torch.empty(batch.questions, num_positions, width, dtype=shapes.dtype)
    mask_Q1SS = torch.empty(batch.questions, 1, num_positions, num_positions, dtype=torch.bool)
    with torch.no_grad(), AllocationCounter() as block:
        shapes.opt_blocks[-1](hidden_QSD, attention_mask=mask_Q1SS)
    cached_positions = batch.questions * (num_positions + max_new_tokens)
    kv_cache_bytes = 2 * len(shapes.opt_blocks) * cached_positions * width * shapes.dtype.itemsize
    return EvaluationActivations(
        inputs_bytes=_bytes(_views(shapes, batch, art_image_sizes)),
        features_bytes=trained_features_bytes // trained.paintings * batch.paintings,
        encoding_bytes=trained_encoding_bytes // trained.paintings * batch.paintings,
        answering_bytes=kv_cache_bytes + _embeddings_bytes(shapes, batch) + block.peak_bytes,
    )


def _logits_bytes(shapes: ModelShapes, batch: BatchShape) -> int:
    read = _sequences(shapes, batch)
    shape_RCD = (read.rows, read.predicting_columns, shapes.blip2.text_config.hidden_size)
    hidden_RCD = torch.empty(shape_RCD, dtype=shapes.dtype, requires_grad=True)
    num_visual = 0 if batch.is_packed else shapes.model.num_visual_tokens
    places_A = torch.empty(read.answer_tokens, dtype=torch.int64)
    head = shapes.model.backbone.language_model.lm_head
    with AllocationCounter() as counter:
        hidden_AD = hidden_at_answers(_after_the_blocks(shapes, hidden_RCD), places_A, num_visual)
        loss = answer_cross_entropy(hidden_AD, head, places_A, torch.ones(read.answer_tokens))
        del hidden_AD
        torch.autograd.grad(loss, hidden_RCD)
    return counter.peak_bytes


def _after_the_blocks(shapes: ModelShapes, hidden_RCD: Tensor) -> Tensor:
    """As transformers' decoder ends; a function of its own, since a name kept for a tensor keeps its memory."""
    decoder: Any = shapes.model.backbone.language_model.model.decoder
    if decoder.final_layer_norm is not None:
        hidden_RCD = decoder.final_layer_norm(hidden_RCD)
    if decoder.project_out is not None:
        hidden_RCD = decoder.project_out(hidden_RCD)
    return hidden_RCD


def _tensors_in(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(values: Tensor | PaintingViews | PaintingFeatures) -> int:
    tree = values if isinstance(values, Tensor) else list(vars(values).values())
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(tree))
