from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Blip2VisionConfig, Blip2VisionModel

from artkv.batch import Batch, PackedQuestions, PaintingViews, QuestionBatch
from artkv.config import Config, load_config, recipe_path
from artkv.datasets.packing import PackingSettings, pack_questions
from artkv.frozen.recompute import ActivationBudget, recompute_blocks
from artkv.models.art_encoder import ArtEncoder
from artkv.models.timm_networks import create_network, network_shapes
from artkv.planning.activations import (
    AllocationCounter,
    _art_encoding,
    activations,
    block_activations,
    peak_activation_bytes,
)
from artkv.planning.batch_shape import BatchShape, sequences
from artkv.planning.shapes import RUN_VIT_BLOCKS, ModelShapes, model_shapes
from tests.planning.conftest import build

BATCH = BatchShape(paintings=6, questions=16, text_tokens=40)
NUM_VISUAL = 6
TINY_WIDTH = 40


def test_counter_counts_each_storage_once_and_until_it_is_gone() -> None:
    before = torch.ones(1000)
    with AllocationCounter() as counter:
        first = before * 2
        view = first.view(10, 100)[3]
        first.add_(1)
        assert (counter.live_bytes, counter.peak_bytes) == (4000, 4000)  # `before` and views are not new
        second = view.double()
        assert counter.live_bytes == 4000 + 800
        del first, second
        assert counter.live_bytes == 4000  # the view holds it
        del view
        assert (counter.live_bytes, counter.peak_bytes) == (0, 4800)


def _views(config: Config) -> PaintingViews:
    side = config.encoders[0].image_size
    return PaintingViews(torch.randn(BATCH.paintings, 3, 28, 28), (torch.randn(BATCH.paintings, 3, side, side),))


def _questions() -> QuestionBatch:
    ids = torch.randint(5, 100, (BATCH.questions, BATCH.text_tokens))
    painting = torch.arange(BATCH.questions) % BATCH.paintings
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0  # padding, so that a mask is made
    labels = ids.clone()
    labels[:, 0] = -100
    places = (labels.flatten() != -100).nonzero().squeeze(1)
    return QuestionBatch(ids, mask, labels, places, painting, torch.ones(BATCH.questions))


def _packed_questions() -> PackedQuestions:
    """The same questions, alike in BOS alone."""
    encoded = []
    for question in range(BATCH.questions):
        ids = [5 + question, *range(20, 19 + BATCH.text_tokens)]
        encoded.append(([0, *ids[:-1]], [-100, *ids[:-1]]))
    painting = [question % BATCH.paintings for question in range(BATCH.questions)]
    return pack_questions(encoded, painting, 1.0, 1, PackingSettings(NUM_VISUAL, TINY_WIDTH))


@pytest.mark.parametrize("lora", [(), ("opt",)])
def test_a_block_stores_what_autograd_saves(settings: Callable[..., Config], lora: tuple[str, ...]) -> None:
    config = settings(trainable={"lora": {"targets": lora, "rank": 3}})
    block = build(config).model.backbone.language_model.model.decoder.layers[-1]
    positions = NUM_VISUAL + BATCH.text_tokens
    hidden_QSD = torch.randn(BATCH.questions, positions, TINY_WIDTH, requires_grad=True)
    mask_Q1SS = torch.ones(BATCH.questions, 1, positions, positions, dtype=torch.bool)
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output_QSD = block(hidden_QSD, attention_mask=mask_Q1SS)
    predicted = block_activations(model_shapes(config, torch.float32, lora), BATCH)
    # To the byte. Autograd saves the block's input and not its output, which is as large.
    assert predicted.stored_bytes == sum(saved.values())
    assert predicted.recomputed_bytes == output_QSD.numel() * 4


def test_a_recomputed_block_keeps_its_input_alone(tiny_config: Config) -> None:
    block = build(tiny_config).model.backbone.language_model.model.decoder.layers[-1]
    recompute_blocks([block], ActivationBudget(0))
    positions = NUM_VISUAL + BATCH.text_tokens
    hidden_QSD = torch.randn(BATCH.questions, positions, TINY_WIDTH, requires_grad=True)
    mask_Q1SS = torch.ones(BATCH.questions, 1, positions, positions, dtype=torch.bool)
    gradient_QSD = torch.ones_like(hidden_QSD)
    predicted = block_activations(model_shapes(tiny_config, torch.float32, []), BATCH)
    with AllocationCounter() as counter:
        output_QSD = block(hidden_QSD, attention_mask=mask_Q1SS)
        assert counter.live_bytes == predicted.recomputed_bytes
        counter.peak_bytes = 0
        torch.autograd.grad(output_QSD, hidden_QSD, gradient_QSD)
    # To the byte: this output is kept here, and the gradient, as large, was made before.
    assert counter.peak_bytes == predicted.recomputed_backward_bytes


def test_a_true_size_block_is_ten_widths_a_token() -> None:
    """Input, q, k, v, attention's output, LayerNorm's input, four of ReLU's; all bf16."""
    shapes = model_shapes(load_config(recipe_path("artquest.yaml")), torch.bfloat16, [])
    batch = BatchShape(8, 8, 32)
    tokens = 8 * (32 + 32)
    predicted = block_activations(shapes, batch).stored_bytes
    # Beside them statistics of LayerNorm and softmax and the mask, under 1%.
    assert 1.0 < predicted / (10 * tokens * 2560 * 2) < 1.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_peak_of_a_real_step(settings: Callable[..., Config], is_packed: bool, recompute: bool, dtype: str) -> None:
    config = settings(training={"activation_checkpointing": recompute}, model={"dtype": dtype})
    model = build(config).model
    questions = _packed_questions() if is_packed else _questions()
    batch = Batch(_views(config), questions, ())
    trainables = list(model.parameters())
    with AllocationCounter() as counter:
        loss = model(batch).loss_sum
        torch.autograd.grad(loss, trainables)
    shapes = model_shapes(config, getattr(torch, dtype), [])
    acts = activations(shapes, replace(BATCH, is_packed=is_packed), [config.encoders[0].image_size])
    predicted = peak_activation_bytes(acts, num_blocks=2, kept_blocks=0 if recompute else 2) - acts.inputs_bytes
    # 2% (measured: 1.5% at most): OPT's forward makes masks and position ids, and at two blocks of width 40 they show.
    # 7% packed (measured: 1.6% too little, 5.9% too much): at width 40 the masks are a tenth of all, and the last block
    # computes fewer columns than it counts for. At the true width both are nothing.
    assert predicted == pytest.approx(counter.peak_bytes, rel=0.07 if is_packed else 0.02)


@pytest.mark.parametrize(("questions", "paintings"), [(16, 6), (5, 1), (4, 4)])
def test_packed_sequences_are_those_of_training(questions: int, paintings: int) -> None:
    encoded = [([0, *[99 + n] * 9], [-100, *[99 + n] * 9]) for n in range(questions)]
    packed = pack_questions(
        encoded, [n % paintings for n in range(questions)], 1.0, 1, PackingSettings(NUM_VISUAL, TINY_WIDTH)
    )
    predicted = sequences(BatchShape(paintings, questions, 10, is_packed=True), NUM_VISUAL, TINY_WIDTH)
    assert (predicted.rows, predicted.columns) == packed.token_ids.shape
    assert predicted.predicting_columns == packed.answer_columns.shape[1]
    assert predicted.answer_tokens == len(packed.answer_ids)


def test_encoding_of_real_pictures(tiny_config: Config) -> None:
    model = build(tiny_config).model
    views = _views(tiny_config)
    with AllocationCounter() as counter:
        model.encode(views)
    acts = activations(model_shapes(tiny_config, torch.float32, []), BATCH, [tiny_config.encoders[0].image_size])
    # 1% (measured: 0.1%): on the meta device a BatchNorm makes statistics of its channels.
    assert acts.encoding_bytes == pytest.approx(counter.peak_bytes, rel=0.01)
    assert acts.inputs_bytes == sum(view.numel() * 4 for view in (views.vit_pixels, *views.art_pixels))


@pytest.mark.parametrize(
    ("architecture", "side", "read", "size"),
    [
        ("test_efficientnet", 64, "pooled", None),
        ("test_nfnet", 96, "map", 2),  # its weights are made anew in each pass, once for all pictures
        ("test_convnext", 64, "pooled", None),
        ("test_vit", 160, "tokens", 8),
        ("test_vit", 160, "pooled", None),  # the class token, behind which all others stay in memory
        ("vit_tiny_patch16_384", 384, "pooled", None),  # attention without its fused form would take twice as much
    ],
)
def test_encoding_of_many_pictures_by_any_network(
    architecture: str, side: int, read: Literal["pooled", "map", "tokens"], size: int | None
) -> None:
    paintings = 5
    encoder = ArtEncoder(create_network(architecture, image_size=side), read, size)
    pixels = torch.randn(paintings, 3, side, side)
    with AllocationCounter() as counter:
        features = encoder(pixels)
    in_shapes = ArtEncoder(network_shapes(architecture, side), read, size)
    shapes = ModelShapes(None, None, (in_shapes,), None, torch.float32, FakeTensorMode())  # type: ignore[arg-type]
    found = _art_encoding(shapes, paintings, [side])
    # 1%: a BatchNorm's statistics on the meta device.
    assert found.peak_bytes == pytest.approx(counter.peak_bytes, rel=0.01)
    assert found.features_bytes == counter.live_bytes
    assert found.features == [tuple(features.shape)]


def _vit_peak_bytes(num_blocks: int) -> int:
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=num_blocks, num_attention_heads=4, image_size=28
    )
    vit, pixels = Blip2VisionModel(vision), torch.randn(BATCH.paintings, 3, 28, 28)
    with AllocationCounter() as counter, torch.no_grad():
        vit(pixels)
    return counter.peak_bytes


def test_more_vit_blocks_take_no_more_than_those_that_are_run(tiny_config: Config) -> None:
    assert _vit_peak_bytes(1) < _vit_peak_bytes(RUN_VIT_BLOCKS) == _vit_peak_bytes(7)
    shapes = model_shapes(tiny_config, torch.float32, [])
    shapes.vit_blocks.extend(shapes.vit_blocks[:1])
    with shapes.short_vit():
        assert len(shapes.vit_blocks) == RUN_VIT_BLOCKS
    assert len(shapes.vit_blocks) == 3


def test_validation_is_in_proportion(tiny_config: Config) -> None:
    shapes = model_shapes(tiny_config, torch.float32, [])
    double = BatchShape(2 * BATCH.paintings, 2 * BATCH.questions, BATCH.text_tokens)
    acts = activations(shapes, BATCH, [tiny_config.encoders[0].image_size], (double, 5))
    assert acts.evaluation is not None
    alone = activations(shapes, double, [tiny_config.encoders[0].image_size])
    # What an encoder takes whatever the number of paintings is doubled too: here the statistics of BatchNorms.
    assert acts.evaluation.encoding_bytes == pytest.approx(alone.encoding_bytes, rel=1e-3)
    assert acts.evaluation.features_bytes == alone.features_bytes
    keys_and_values = 2 * 2 * double.questions * (NUM_VISUAL + BATCH.text_tokens + 5) * TINY_WIDTH * 4
    assert acts.evaluation.answering_bytes > keys_and_values
    assert peak_activation_bytes(acts, 2, 0) >= acts.evaluation.answering_bytes
