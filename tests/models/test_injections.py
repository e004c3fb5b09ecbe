"""The assembled model with each way of injecting art features: against stock transformers, on both backends."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

from artkv.batch import PaintingFeatures
from artkv.datasets.choice_packing import PossibleAnswer, pack_choices
from artkv.datasets.packing import PackingSettings
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.tokenization import encode_prompt
from artkv.kv_modulation import ArtSource, ModelSizes, make_injection
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2, ModelParts
from tests.models.conftest import PAINTING_OF_QUESTION, PROMPT, QUESTIONS, Build, training_batch, views

IMAGE_TOKEN, NUM_VISUAL, NUM_PROMPT = 4, 6, 2
WAYS: dict[str, dict[str, Any]] = {
    "concat": {"injection": "concat"},
    "decoupled": {"injection": "decoupled"},
    "film": {"injection": "film", "num_prefix_tokens": 8},
    "film of queries": {"injection": "film", "num_prefix_tokens": 8, "film": "queries"},
    "prompt": {"injection": "prompt"},
}
GATED = [
    {"injection": "concat", "gate": "zero", "gate_per": "layer"},
    {"injection": "concat", "gate": "zero", "gate_per": "head", "shared_across_layers": False},
    {"injection": "decoupled", "gate": "zero"},
    {"injection": "decoupled", "gate": "zero", "gate_per": "head"},
    {"injection": "film", "num_prefix_tokens": 8, "gate": "zero", "gate_per": "layer"},
    {"injection": "film", "num_prefix_tokens": 8, "film": "queries", "gate": "zero"},
    # Its last layer of zeros stands for the gate.
    {"injection": "film", "num_prefix_tokens": 8},
    {"injection": "film", "num_prefix_tokens": 8, "film": "queries"},
]


def open_up(model: KVModulatedBlip2) -> None:
    """Gates and FiLM's last layer start at zero."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_trainables().items():
            if name == "kv_prefix_gate" or name.startswith("film_generator."):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("settings", GATED)
def test_a_closed_gate_is_the_control_bit_for_bit_and_an_open_one_is_not(
    build: Build, settings: dict[str, Any]
) -> None:
    """The control's loss is stock transformers', by `test_kv_modulated_blip2.py`."""
    model, control = build(kv_modulation=settings).model, build(kv_modulation={"enabled": False}).model
    batch = training_batch(control.backbone.tokenizer)
    with torch.no_grad():
        assert torch.equal(model(batch).loss_sum, control(batch).loss_sum)
        open_up(model)
        assert (model(batch).loss_sum - control(batch).loss_sum).abs() > 1e-3


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_off_is_stock_and_what_is_injected_depends_on_the_art_features(build: Build, settings: dict[str, Any]) -> None:
    model, control = build(kv_modulation=settings).model, build(kv_modulation={"enabled": False}).model
    open_up(model)
    features = model.encode(views())
    with torch.no_grad():
        off = model.visual_tokens(features, use_prefix=False)
        assert torch.equal(off, control.visual_tokens(control.encode(views())))
        assert torch.equal(off, model.visual_tokens(features, use_prefix=[False]))
        on = model.visual_tokens(features)
        assert on.shape[1] == model.num_visual_tokens == NUM_VISUAL + NUM_PROMPT * (settings["injection"] == "prompt")
        assert torch.equal(on, model.visual_tokens(features, use_prefix=[True]))
        assert on.shape != off.shape or not torch.allclose(on, off)
        swapped = PaintingFeatures(features.image_features, tuple(one.flip(0) for one in features.art_features))
        assert not torch.allclose(model.visual_tokens(swapped), on)


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_gradients_reach_everything_and_recomputation_changes_none(build: Build, settings: dict[str, Any]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(checkpointing=checkpointing, kv_modulation=settings).model
        model(training_batch(model.backbone.tokenizer)).loss_sum.backward()
        # As it starts: AdamW would shrink what has no gradient.
        assert all(parameter.grad is not None for parameter in model.parameters())
        open_up(model)
        model.zero_grad()
        model(training_batch(model.backbone.tokenizer)).loss_sum.backward()
        for name, parameter in model.named_trainables().items():
            assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_two_live_graphs_keep_their_own_modulation(build: Build, settings: dict[str, Any]) -> None:
    model = build(kv_modulation=settings).model
    open_up(model)
    features = model.encode(views())
    other = PaintingFeatures(features.image_features, tuple(one.flip(0) for one in features.art_features))

    def gradients(loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return [one for one in found if one is not None]

    alone = [gradients(model.visual_tokens(one).square().sum()) for one in (features, other)]
    losses = [model.visual_tokens(one).square().sum() for one in (features, other)]
    together = [gradients(losses[1]), gradients(losses[0])][::-1]
    for one, same in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(*alone, strict=True))


@pytest.mark.parametrize("settings", [*WAYS.values(), *GATED], ids=str)
def test_both_backends_agree(build_on: Build, settings: dict[str, Any]) -> None:
    results = []
    for backend in ("transformers", "lavis"):
        model = build_on(backend, kv_modulation=settings).model
        open_up(model)
        loss = model(training_batch(model.backbone.tokenizer)).loss_sum
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_trainables().items()}))
    (loss, gradients), (lavis_loss, lavis_gradients) = results
    # fp32; the worst seen is 3e-7 for the loss, 2e-6 of the norm of all gradients.
    torch.testing.assert_close(lavis_loss, loss, rtol=3e-6, atol=0)
    assert gradients.keys() == lavis_gradients.keys()
    difference = torch.cat([(gradients[name] - lavis_gradients[name]).flatten() for name in gradients]).norm()
    assert difference < 2e-5 * torch.cat([one.flatten() for one in gradients.values()]).norm()


def with_two_sources(model: KVModulatedBlip2, **settings: Any) -> KVModulatedBlip2:
    """The model with a pooled source and one of tokens in place of its one."""
    old = model.parts.injection
    sources = [*old.sources, ArtSource("tokens", 5, num_tokens=3)]
    backbone = model.backbone
    sizes = ModelSizes(
        backbone.qformer_width,
        backbone.num_qformer_heads,
        backbone.num_cross_attention_layers,
        backbone.language_model_width,
    )
    torch.manual_seed(0)
    injection = make_injection(old.settings.model_copy(update=settings), sources, sizes)
    return KVModulatedBlip2(ModelParts(backbone, None, injection), dict(injection.named_parameters()))


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_one_of_two_sources_can_be_off(build: Build, settings: dict[str, Any]) -> None:
    model = with_two_sources(build(kv_modulation=settings).model)
    open_up(model)
    injection = model.parts.injection
    generator = torch.Generator().manual_seed(8)
    image = torch.randn(2, 5, 32, generator=generator)
    art = [
        torch.randn(2, injection.sources[0].feature_dim, generator=generator),
        torch.randn(2, 3, 5, generator=generator),
    ]

    def tokens(parts: list[Tensor], use: list[bool]) -> Tensor:
        modulation = injection(parts, use)
        visual = model.backbone.project_queries(model.backbone.query_images(image, modulation))
        return modulation.visual_tokens(visual)

    with torch.no_grad():
        both, first, second = (tokens(art, use) for use in ([True, True], [True, False], [False, True]))
        counts = [model.visual_token_count(use) for use in ([True, True], [True, False], [False, True], [False, False])]
        assert [one.shape[1] for one in (both, first, second)] == counts[:3]
        assert counts[3] == NUM_VISUAL
        if settings["injection"] == "prompt":
            assert counts == [6 + 2 + 3, 6 + 2, 6 + 3, 6]
        assert torch.equal(tokens([art[0], art[1].flip(0)], [True, False]), first)
        assert torch.equal(tokens([art[0].flip(0), art[1]], [False, True]), second)
        shuffled = tokens([art[0], art[1].flip(0)], [True, True])
        for other in (first, second, shuffled):
            assert other.shape != both.shape or not torch.allclose(other, both)


# `prompt`: OPT reads more tokens where it is on than where it is off.


def stock_logits(stock: Any, visual_KD: Tensor, ids: list[int]) -> Tensor:
    """Of stock OPT alone, after its embedding of visual tokens and text: (tokens, vocabulary)."""
    language_model = stock.language_model
    text = language_model.get_input_embeddings()(torch.tensor(ids))
    return language_model(inputs_embeds=torch.cat([visual_KD, text])[None]).logits[0]


@pytest.fixture
def stock(tiny_world: Any) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(tiny_world / "blip2").eval()


def test_a_prompts_loss_is_that_of_stock_opt_after_all_its_tokens(
    build: Build, stock: Blip2ForConditionalGeneration
) -> None:
    model = build(kv_modulation=WAYS["prompt"]).model
    tokenizer = model.backbone.tokenizer
    expected = torch.zeros(())
    with torch.no_grad():
        visual = model.visual_tokens(model.encode(views()))
        assert visual.shape[1] == NUM_VISUAL + NUM_PROMPT
        for (question, answer), painting in zip(QUESTIONS, PAINTING_OF_QUESTION, strict=True):
            prompt = tokenizer(PROMPT.format(question=question)).input_ids
            answer_ids = tokenizer(f" {answer}\n", add_special_tokens=False).input_ids
            log_p = stock_logits(stock, visual[painting], prompt + answer_ids).log_softmax(dim=-1)
            log_p = log_p[-len(answer_ids) - 1 : -1]
            expected -= log_p[range(len(answer_ids)), answer_ids].sum()
        found = model(training_batch(tokenizer)).loss_sum
    # fp32; padding and batching change the order of sums. The worst seen is 2e-7 relative.
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("is_split", [False, True])
def test_with_a_prompt_off_beside_one_that_is_on_each_is_stock_opts(
    build: Build, stock: Blip2ForConditionalGeneration, is_split: bool
) -> None:
    """Answers and log-likelihoods of both ways in one batch, as an evaluation packs them."""
    model = build(kv_modulation=WAYS["prompt"]).model
    tokenizer = model.backbone.tokenizer
    packing = PackingSettings(model.num_visual_tokens, 40, max_columns=40 if is_split else 4096)
    features = model.encode(views())
    with torch.no_grad():
        on, off = model.visual_tokens(features), model.visual_tokens(features, use_prefix=False)
    # What stands in the place of the tokens that are off is seen by nothing.
    hidden = torch.full((2, NUM_PROMPT, on.shape[2]), 1e3)
    visual = torch.cat([on, torch.cat([off, hidden], dim=1)])
    num_seen = [NUM_VISUAL + NUM_PROMPT] * 2 + [NUM_VISUAL] * 2
    prompts = [encode_prompt(tokenizer, PROMPT, question) for question, _ in QUESTIONS] * 2
    places = [*PAINTING_OF_QUESTION, *(2 + place for place in PAINTING_OF_QUESTION)]
    packed = pack_prompts(prompts, places, tokenizer.pad_token_id, packing, num_seen)
    answers = model.generate_with_probability(visual, packed, max_new_tokens=4)
    possible, expected_log_p = [], []
    newline = tokenizer("\n", add_special_tokens=False).input_ids[-1]
    for number, (prompt, place, answer) in enumerate(zip(prompts, places, answers, strict=True)):
        own = on[place] if place < 2 else off[place - 2]
        ids, probability = list(prompt), 1.0
        for _ in range(4):
            with torch.no_grad():
                of_next = stock_logits(stock, own, ids)[-1].softmax(dim=-1)
            ids.append(int(of_next.argmax()))
            probability *= float(of_next.max())
            if ids[-1] in (newline, tokenizer.eos_token_id):
                break
        text = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).split("\n", 1)[0].strip()
        assert answer.text == text
        # fp32, up to four factors; the worst seen is 3e-6 relative.
        assert answer.probability == pytest.approx(probability, rel=3e-5), number
        for candidate in ("oil", "oil on canvas"):
            candidate_ids = tokenizer(f" {candidate}\n", add_special_tokens=False).input_ids
            possible.append(PossibleAnswer(place, tuple(prompt), tuple(candidate_ids)))
            with torch.no_grad():
                log_p = stock_logits(stock, own, list(prompt) + candidate_ids).log_softmax(dim=-1)
            log_p = log_p[-len(candidate_ids) - 1 : -1]
            expected_log_p.append(log_p[range(len(candidate_ids)), candidate_ids].sum())
    choices = pack_choices(possible, tokenizer.pad_token_id, packing, num_seen)
    found = model.log_likelihoods(visual, [choices])
    # fp32; the worst seen is 2e-7 relative.
    torch.testing.assert_close(found, torch.stack(expected_log_p).double(), rtol=2e-6, atol=0)
