"""Packed questions against one row a question: loss and every gradient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from artkv.batch import Batch, PackedQuestions, PaintingViews
from artkv.datasets.packing import PackingSettings, pack_questions
from artkv.datasets.tokenization import collate_questions, encode_for_training
from artkv.models.assembly import BuiltModel
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.models.opt.answer_columns import read_answer_columns
from artkv.models.opt.packed_sequences import tree_attention_mask
from tests.models.conftest import PROMPT

Build = Callable[..., BuiltModel]

# Painting, question, answer: uneven groups, not in order; the same question with other answers, one answer the
# beginning of another, the very same row twice.
ROWS = [
    (1, "Who painted this picture of a thing?", "Jan van Eyck"),
    (0, "What is it?", "oil"),
    (0, "What is the technique of this?", "oil on canvas"),
    (2, "Style?", "baroque"),
    (0, "What is it?", "canvas"),
    (0, "Who is it?", "a b"),
    (0, "What is it?", "oil on canvas"),
    (0, "Who is it?", "a b"),
    (2, "What is it?", "oil"),
]
# Columns that a row may have at most: all in few rows, the usual bound; then pieces of two or three questions.
LAYOUTS = {"natural": {}, "one row": {"hidden_size": 10**9}, "split": {"max_columns": 40}}
LORA = {"lora": {"targets": ["qformer", "opt"], "rank": 2, "alpha": 4}}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"checkpointing": True},
    "lora": {"trainable": LORA},
    "lora alone, recomputed": {"trainable": {**LORA, "qformer_cross_attention": False}, "checkpointing": True},
    "gate": {"kv_modulation": {"gate": "zero"}},
    "prefix a layer": {"kv_modulation": {"shared_across_layers": False}},
    "control": {"kv_modulation": {"enabled": False}},
}
STREAMED: dict[str, dict[str, Any]] = {
    "streamed": {"frozen": {"opt": "stream", "slots": 1}},
    "streamed with vit": {"frozen": {"opt": "stream", "vit": "stream", "slots": 2}},
    "streamed, one block resident": {"frozen": {"opt": "stream", "resident_blocks": 1}},
    "streamed, lora": {"frozen": {"opt": "stream", "slots": 1}, "trainable": LORA},
}


def batches(model: KVModulatedBlip2, weight: float = 1.0, **layout: Any) -> tuple[Batch, Batch]:
    """The same questions, one row each and packed."""
    tokenizer = model.backbone.tokenizer
    generator = torch.Generator().manual_seed(4)
    views = PaintingViews(
        torch.randn(3, 3, 28, 28, generator=generator), (torch.randn(3, 3, 32, 32, generator=generator),)
    )
    encoded = [encode_for_training(tokenizer, PROMPT, question, answer) for _, question, answer in ROWS]
    places = [painting for painting, _, _ in ROWS]
    plain = collate_questions(encoded, places, weight, tokenizer.pad_token_id)
    backbone = model.backbone
    settings = replace(PackingSettings(backbone.num_query_tokens, backbone.language_model_width), **layout)
    packed = pack_questions(encoded, places, weight, tokenizer.pad_token_id, settings)
    rows = tuple(range(len(ROWS)))
    return Batch(views, plain, rows), Batch(views, packed, rows)


def loss_and_gradients(model: KVModulatedBlip2, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(batch).loss_sum
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_trainables().items() if p.grad is not None}


def open_up(model: KVModulatedBlip2) -> None:
    """Adapters' B matrices and the gate start at zero and would hide what is behind them."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_trainables().items():
            if ".lora_B." in name or name == "kv_prefix_gate":
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def to_float64(model: KVModulatedBlip2) -> None:
    for module in (model.backbone._model, model.parts.generator, model.parts.art_encoders[0]):
        if module is not None:
            module.double()
    model.double()
    model.backbone.dtype = torch.float64


def errors(model: KVModulatedBlip2, **layout: Any) -> tuple[float, float]:
    """Norm-wise relative difference of the loss and of all gradients together, packed against unpacked."""
    plain, packed = batches(model, **layout)
    (loss, gradients), (packed_loss, packed_gradients) = (loss_and_gradients(model, b) for b in (plain, packed))
    assert packed_gradients.keys() == gradients.keys() == model.named_trainables().keys()
    assert packed_loss.dtype == loss.dtype
    difference = torch.cat([(packed_gradients[n] - gradients[n]).flatten().double() for n in gradients]).norm()
    norm = torch.cat([gradient.flatten().double() for gradient in gradients.values()]).norm()
    assert norm > 1e-2
    return float((packed_loss - loss).abs() / loss), float(difference / norm)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_in_fp64(build: Build, variant: dict[str, Any], layout: dict[str, Any]) -> None:
    model = build(**variant).model
    to_float64(model)
    open_up(model)
    # The worst seen is 4e-16 for the loss, 2e-15 for the gradients.
    assert max(errors(model, **layout)) < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("variant", [*VARIANTS.values(), *STREAMED.values()], ids=[*VARIANTS, *STREAMED])
def test_in_fp32(build: Build, bf16_folder: Path, variant: dict[str, Any], layout: dict[str, Any]) -> None:
    model = build(**variant, model={"blip2": str(bf16_folder)}).model
    open_up(model)
    for _ in range(2):  # streaming: the second step finds the slots as the first left them
        assert max(errors(model, **layout)) < 2e-6


@pytest.mark.parametrize("frozen", [{}, {"opt": "stream"}], ids=["resident", "streamed"])
def test_in_bfloat16(build: Build, bf16_folder: Path, frozen: dict[str, Any]) -> None:
    """Rounding of 2^-9 at each of some dozen products."""
    model = build(model={"blip2": str(bf16_folder), "dtype": "bfloat16"}, frozen=frozen).model
    loss_error, gradient_error = errors(model)
    assert loss_error < 1e-3
    assert gradient_error < 3e-2


def test_fillers_count_nothing(build: Build) -> None:
    model = build().model
    for batch in batches(model, weight=0.0):
        result = model(batch)
        result.loss_sum.backward()
        assert (result.loss_sum, result.answer_tokens) == (0, 0)
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_answer_tokens_are_counted_alike(build: Build) -> None:
    plain, packed = batches(build().model)
    assert packed.questions.answer_token_count() == plain.questions.answer_token_count() > 20


def test_layouts_are_what_their_names_say(build: Build) -> None:
    shapes = {}
    for name, layout in LAYOUTS.items():
        questions = batches(build().model, **layout)[1].questions
        assert isinstance(questions, PackedQuestions)
        shapes[name] = (questions.token_ids.shape[0], questions.piece_places.shape[0])
    assert shapes["one row"] == (1, 3)
    assert shapes["split"][1] > 3
    assert shapes["natural"][0] < len(ROWS)


def test_mask_by_brute_force(build: Build) -> None:
    """Each text token sees exactly the visual tokens and the tokens of one question up to itself."""
    model = build().model
    for layout in LAYOUTS.values():
        plain, packed = (batch.questions for batch in batches(model, **layout))
        assert isinstance(packed, PackedQuestions)
        mask_RLL = tree_attention_mask(packed.subtree_end, torch.float32)[:, 0] == 0
        num_visual = model.backbone.num_query_tokens
        places = packed.answer_columns + packed.token_ids.shape[1] * torch.arange(len(mask_RLL))[:, None]
        found = []
        for place, answer in zip(packed.answer_places.tolist(), packed.answer_ids.tolist(), strict=True):
            row, column = divmod(int(places.flatten()[place]), packed.token_ids.shape[1])
            seen = mask_RLL[row, column].nonzero().flatten()
            assert packed.position_ids[row, seen].tolist() == list(range(len(seen)))
            start = int(seen[0])
            assert seen[:num_visual].tolist() == list(range(start, start + num_visual))
            piece = packed.piece_places.tolist().index(row * packed.token_ids.shape[1] + start)
            text = packed.token_ids[row, seen[num_visual:]].tolist()
            found.append((int(packed.piece_painting[piece]), text, answer))
        expected = []
        for ids, labels, painting in zip(plain.input_ids, plain.labels, plain.painting_index, strict=True):
            expected += [
                (int(painting), ids[:t].tolist(), int(label)) for t, label in enumerate(labels) if label != -100
            ]
        assert sorted(found) == sorted(expected)


def test_all_blocks_share_one_mask(build: Build) -> None:
    """A boolean mask would be turned into numbers, and kept for backward, in each block."""
    model = build().model
    model.backbone.language_model.set_attn_implementation("sdpa")  # as on CUDA
    decoder = model.backbone.language_model.model.decoder
    masks: list[Tensor] = []
    for block in decoder.layers:
        block.register_forward_pre_hook(
            lambda _, args, options: masks.append(options["attention_mask"]), with_kwargs=True
        )
    _, packed = batches(model)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if masks and tensor.shape == masks[0].shape:
            saved.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(packed)
    pointers = {mask.untyped_storage().data_ptr() for mask in masks}
    assert len(masks) == 2
    assert len(pointers) == 1
    assert pointers == set(saved)
    assert all(stride % 8 == 0 for stride in masks[0].stride()[:-1])


def test_a_backend_that_forgot_the_last_block_is_told(build: Build) -> None:
    model = build().model
    last: nn.Module = model.backbone.language_model.model.decoder.layers[-1]
    del last.forward  # the class's own again
    with pytest.raises(RuntimeError, match="read_answer_columns"):
        model(batches(model)[1])
    read_answer_columns(last)
    model(batches(model)[1])
