"""The assembled model against stock transformers, and what trains in it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

from artkv.batch import Batch, PackedPrompts, PaintingFeatures
from artkv.datasets.choice_packing import PossibleAnswer, pack_choices
from artkv.datasets.packing import PackingSettings
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.tokenization import encode_prompt
from artkv.models.assembly import BuiltModel
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from tests.models.conftest import (
    PAINTING_OF_QUESTION,
    PROMPT,
    QUESTIONS,
    greedy_answers,
    training_batch,
    views,
)

Build = Callable[..., BuiltModel]
IMAGE_TOKEN, NUM_VISUAL = 4, 6


@pytest.fixture
def stock(tiny_world: Path) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(tiny_world / "blip2").eval()


def stock_losses_and_logits(stock: Blip2ForConditionalGeneration, tokenizer: object) -> tuple[Tensor, list[Tensor]]:
    """Each question's summed answer loss, and its logits for each text token, by stock BLIP-2.

    Each question is alone and unpadded, its labels made by hand. Logits: (text tokens, vocabulary), the
    first those of the last visual token, which predict BOS.
    """
    losses, logits = [], []
    for (question, answer), painting in zip(QUESTIONS, PAINTING_OF_QUESTION, strict=True):
        prompt = tokenizer(f"Question: {question} Short answer:").input_ids
        answer_ids = tokenizer(f" {answer}\n", add_special_tokens=False).input_ids
        ids = torch.tensor([[IMAGE_TOKEN] * NUM_VISUAL + prompt + answer_ids])
        labels = torch.tensor([[-100] * (NUM_VISUAL + len(prompt)) + answer_ids])
        output = stock(pixel_values=views().vit_pixels[painting : painting + 1], input_ids=ids, labels=labels)
        losses.append(output.loss * len(answer_ids))
        logits.append(output.logits[0, NUM_VISUAL - 1 : -1])
    return torch.stack(losses), logits


def stock_losses(stock: Blip2ForConditionalGeneration, tokenizer: object) -> Tensor:
    return stock_losses_and_logits(stock, tokenizer)[0]


def answer_loss(model: KVModulatedBlip2, batch: Batch) -> Tensor:
    return model(batch).loss_sum


def test_without_modulation_loss_and_logits_are_stock_blip2s(
    build: Build, stock: Blip2ForConditionalGeneration
) -> None:
    model = build(kv_modulation={"enabled": False}).model
    tokenizer = model.backbone.tokenizer
    batch = training_batch(tokenizer)
    outputs: list[Tensor] = []
    with torch.no_grad():
        last = model.backbone.language_model.model.decoder.final_layer_norm
        hook = last.register_forward_hook(lambda *call: outputs.append(call[-1]))
        result = model(batch)
        hook.remove()
        expected, expected_logits = stock_losses_and_logits(stock, tokenizer)
    # fp32; padding and batching change the order of sums. The worst seen is 2e-7 relative.
    torch.testing.assert_close(result.loss_sum, expected.sum(), rtol=2e-6, atol=0)
    newline_and_answer = sum(len(tokenizer(f" {a}\n", add_special_tokens=False).input_ids) for _, a in QUESTIONS)
    assert result.answer_tokens == newline_and_answer

    (hidden_QSD,) = outputs
    logits_QTV = model.backbone.language_model.lm_head(hidden_QSD[:, NUM_VISUAL - 1 : -1])
    lengths = batch.questions.attention_mask.sum(dim=1).tolist()
    assert len(set(lengths)) > 1  # some rows are padded
    assert lengths == [len(logits) for logits in expected_logits]
    for logits_TV, length, stock_logits_TV in zip(logits_QTV, lengths, expected_logits, strict=True):
        # fp32, logits of up to 1.7; the worst seen is 4e-7.
        assert (logits_TV[:length] - stock_logits_TV).abs().max() < 4e-6


@pytest.mark.parametrize("shared", [True, False])
def test_a_zero_gate_starts_as_stock_blip2_and_an_open_one_does_not(
    build: Build, stock: Blip2ForConditionalGeneration, shared: bool
) -> None:
    built = build(kv_modulation={"gate": "zero", "shared_across_layers": shared})
    batch = training_batch(built.model.backbone.tokenizer)
    with torch.no_grad():
        expected = stock_losses(stock, built.model.backbone.tokenizer).sum()
        torch.testing.assert_close(answer_loss(built.model, batch), expected, rtol=2e-6, atol=0)
        built.model.named_trainables()["kv_prefix_gate"].fill_(1.0)
        assert abs(answer_loss(built.model, batch) - expected) > 1e-3


def test_the_prefix_can_be_switched_off_and_depends_on_the_art_features(build: Build) -> None:
    model = build().model
    control = build(kv_modulation={"enabled": False}).model
    features = model.encode(views())
    with torch.no_grad():
        off = model.visual_tokens(features, use_prefix=False)
        on = model.visual_tokens(features)
        assert torch.equal(off, control.visual_tokens(control.encode(views())))
        swapped = PaintingFeatures(features.image_features, (features.art_features[0].flip(0),))
        assert not torch.allclose(on, off)
        assert not torch.allclose(model.visual_tokens(swapped), on)


def test_an_answers_probability_is_the_product_of_its_tokens(
    build: Build, stock: Blip2ForConditionalGeneration
) -> None:
    """By the scores that transformers' `generate` gives out of stock BLIP-2."""
    model = build(kv_modulation={"enabled": False}).model
    tokenizer = model.backbone.tokenizer
    with torch.no_grad():
        visual = model.visual_tokens(model.encode(views()))
    answers = model.generate_with_probability(visual, prompts(tokenizer, [0, 1, 2]), max_new_tokens=4)
    assert [answer.text for answer in answers] == greedy_answers(
        model, visual, prompts(tokenizer, [0, 1, 2]), max_new_tokens=4
    )
    newline = tokenizer("\n", add_special_tokens=False).input_ids[-1]
    for (question, _), painting, answer in zip(QUESTIONS, PAINTING_OF_QUESTION, answers, strict=True):
        ids = torch.tensor([[IMAGE_TOKEN] * NUM_VISUAL + tokenizer(PROMPT.format(question=question)).input_ids])
        generated = stock.generate(
            pixel_values=views().vit_pixels[painting : painting + 1], input_ids=ids, max_new_tokens=4, do_sample=False,
            eos_token_id=[newline, tokenizer.eos_token_id], output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        probabilities = [float(scores.softmax(dim=-1).max()) for scores in generated.scores]
        # fp32, up to four factors; the worst seen is 2e-6 relative.
        assert answer.probability == pytest.approx(math.prod(probabilities), rel=2e-5)
        assert answer.token_probability == pytest.approx(math.prod(probabilities) ** (1 / len(probabilities)), rel=2e-5)


CANDIDATES = ["oil", "oil on canvas", "Jan van Eyck", "Jan", "o", "canvas"]


def test_log_likelihoods_are_stock_blip2s_one_candidate_at_a_time(
    build: Build, stock: Blip2ForConditionalGeneration
) -> None:
    """Candidates that begin alike, and some that are others' beginnings; three questions, packed into one batch."""
    model = build(kv_modulation={"enabled": False}).model
    tokenizer = model.backbone.tokenizer
    packing = PackingSettings(NUM_VISUAL, model.backbone.language_model_width)
    possible, expected = [], []
    for (question, _), painting in zip(QUESTIONS, PAINTING_OF_QUESTION, strict=True):
        prompt = tokenizer(f"Question: {question} Short answer:").input_ids
        for candidate in CANDIDATES:
            answer = tokenizer(f" {candidate}\n", add_special_tokens=False).input_ids
            possible.append(PossibleAnswer(painting, tuple(prompt), tuple(answer)))
            ids = torch.tensor([[IMAGE_TOKEN] * NUM_VISUAL + prompt + answer])
            with torch.no_grad():
                logits = stock(pixel_values=views().vit_pixels[painting : painting + 1], input_ids=ids).logits[0]
            log_p = logits[-len(answer) - 1 : -1].log_softmax(dim=-1)
            expected.append(log_p[range(len(answer)), answer].sum())
    with torch.no_grad():
        visual = model.visual_tokens(model.encode(views()))
    together = model.log_likelihoods(visual, [pack_choices(possible, tokenizer.pad_token_id, packing)])
    parts = [pack_choices([one], tokenizer.pad_token_id, packing) for one in possible]
    alone = [model.log_likelihoods(visual, [part]) for part in parts]
    torch.testing.assert_close(model.log_likelihoods(visual, parts), torch.cat(alone), rtol=0, atol=0)
    # fp32, from -12 to -42; the worst seen is 1.5e-7 relative.
    torch.testing.assert_close(together, torch.stack(expected).double(), rtol=2e-6, atol=0)
    torch.testing.assert_close(together, torch.cat(alone), rtol=2e-6, atol=0)
    assert together.std() > 1


def test_attention_with_the_prefix_off_is_stock_blip2s(build: Build, tiny_world: Path) -> None:
    """Of transformers' eager attention, which gives its probabilities out."""
    eager = Blip2ForConditionalGeneration.from_pretrained(tiny_world / "blip2", attn_implementation="eager").eval()
    model = build().model
    features = model.encode(views())
    expected: list[Tensor] = []
    for layer in eager.qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.attention.register_forward_hook(lambda *call: expected.append(call[-1][1]))
    with torch.no_grad():
        queries = eager.query_tokens.expand(2, -1, -1)
        eager.qformer(query_embeds=queries, encoder_hidden_states=features.image_features)
    found = model.cross_attention(features, use_prefix=False)
    assert len(found) == len(expected) == 2
    for one, probabilities in zip(found, expected, strict=True):
        # fp32; the worst seen is 2e-7.
        torch.testing.assert_close(one.on_image_IHKN, probabilities, rtol=0, atol=2e-6)
    on = model.cross_attention(features)
    assert [layer.on_prefix_IHKP.shape for layer in on] == [(2, 4, 6, 2)] * 2


def test_gradients_reach_exactly_what_trains(build: Build) -> None:
    model = build().model
    answer_loss(model, training_batch(model.backbone.tokenizer)).backward()
    trainables = model.named_trainables()
    # The key bias shifts all scores of a query alike, so softmax takes its gradient away, but for rounding.
    for name, parameter in trainables.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name
    blocks = [f"qformer.encoder.layer.{index}.crossattention" for index in (0, 2)]
    expected = {
        f"{block}.{part}.{kind}"
        for block in blocks
        for part in ("attention.query", "attention.key", "attention.value", "output.dense", "output.LayerNorm")
        for kind in ("weight", "bias")
    }
    expected |= {name for name, _ in model.parts.injection.named_parameters()}
    assert trainables.keys() == expected
    for name, parameter in model.backbone.named_parameters().items():
        assert parameter.requires_grad == (name in expected), name
        assert (parameter.grad is not None) == (name in expected), name
    assert all(not p.requires_grad for p in model.parts.art_encoders[0].parameters())


def test_deepspeed_would_see_the_trainables_alone(build: Build) -> None:
    model = build().model
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.named_trainables().values()}
    assert list(model.buffers()) == []
    frozen_before = next(iter(model.parts.art_encoders[0].parameters())).dtype
    model.to(torch.float64)
    assert next(iter(model.parts.art_encoders[0].parameters())).dtype == frozen_before
    model.train()
    modules = [model.backbone.qformer, model.backbone.language_model, model.parts.art_encoders[0]]
    assert not any(module.training for part in modules for module in part.modules())


def test_rows_of_weight_zero_carry_neither_loss_nor_tokens_nor_gradient(build: Build) -> None:
    model = build().model
    result = model(training_batch(model.backbone.tokenizer, weight=0.0))
    result.loss_sum.backward()
    assert result.loss_sum == 0
    assert result.answer_tokens == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_recomputation_changes_no_gradient(build: Build) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(checkpointing=checkpointing).model
        answer_loss(model, training_batch(model.backbone.tokenizer)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def prompts(tokenizer: object, rows: list[int]) -> PackedPrompts:
    encoded = [encode_prompt(tokenizer, PROMPT, QUESTIONS[row][0]) for row in rows]
    paintings = [PAINTING_OF_QUESTION[row] for row in rows]
    return pack_prompts(encoded, paintings, tokenizer.pad_token_id, PackingSettings(NUM_VISUAL, 40))


def test_answers_are_the_same_alone_and_in_a_batch_and_as_stock_blip2s(
    build: Build, stock: Blip2ForConditionalGeneration
) -> None:
    model = build(kv_modulation={"enabled": False}).model
    tokenizer = model.backbone.tokenizer
    visual = model.visual_tokens(model.encode(views())).detach()
    together = greedy_answers(model, visual, prompts(tokenizer, [0, 1, 2]), max_new_tokens=6)
    alone = [greedy_answers(model, visual, prompts(tokenizer, [row]), max_new_tokens=6)[0] for row in range(3)]
    assert together == alone
    assert len(set(together)) > 1  # random weights, but not the same answer to everything
    newline = tokenizer("\n", add_special_tokens=False).input_ids[0]
    for row, answer in enumerate(alone):
        prompt = tokenizer(PROMPT.replace("{question}", QUESTIONS[row][0])).input_ids
        generated = stock.generate(
            pixel_values=views().vit_pixels[PAINTING_OF_QUESTION[row]][None],
            input_ids=torch.tensor([[IMAGE_TOKEN] * NUM_VISUAL + prompt]),
            attention_mask=torch.ones(1, NUM_VISUAL + len(prompt), dtype=torch.long),
            max_new_tokens=6,
            eos_token_id=[newline, 2],
            do_sample=False,
        )
        new_tokens = generated[0, NUM_VISUAL + len(prompt) :] if generated.shape[1] > 6 else generated[0]
        text = tokenizer.decode(new_tokens, skip_special_tokens=True)
        assert answer == text.split("\n")[0].strip()


def test_trainables_load_by_name_or_not_at_all(build: Build) -> None:
    built = build()
    values = {name: torch.full_like(value, 0.5) for name, value in built.initial_values.items()}
    built.model.load_trainables(values)
    assert all((p == 0.5).all() for p in built.model.parameters())
    some_name = next(iter(values))
    with pytest.raises(ValueError, match="trainables differ"):
        built.model.load_trainables({k: v for k, v in values.items() if k != some_name})
