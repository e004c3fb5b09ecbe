"""The small BLIP-2's making, cut short: its format, its frozen parts, its repeatability."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Blip2ForConditionalGeneration, BlipImageProcessor

from artkv.errors import RunFailed
from artkv.quickstart import alignment, language, vision, world
from artkv.quickstart.language import train_language_model, train_world_tokenizer
from artkv.quickstart.paintings import paint
from artkv.quickstart.settings import PaintedWorld
from artkv.quickstart.underpainting import Composition
from artkv.quickstart.vision import coarse_look, image_processor


@pytest.fixture(autouse=True)
def cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (language, vision, alignment):
        monkeypatch.setattr(module, "STEPS", 2)
        monkeypatch.setattr(module, "NEEDED_ACCURACY", 0.0, raising=False)
    monkeypatch.setattr(language, "NUM_HELD_OUT", 8)
    monkeypatch.setattr(alignment, "NUM_SIGHTS", 8)
    monkeypatch.setattr(alignment, "NUM_HELD_OUT", 8)


def test_stock_transformers_loads_and_runs_it(tmp_path: Path) -> None:
    made = PaintedWorld(tmp_path)
    for folder in (made.language_model, made.blip2):
        folder.mkdir()
    world.make_language_model(made.language_model, seed=1)
    world.make_blip2(made, made.blip2, seed=1)

    # Saved in bfloat16, and loaded in what the file has unless something else is asked for.
    model, info = Blip2ForConditionalGeneration.from_pretrained(made.blip2, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    opt = language.OPTForCausalLM.from_pretrained(made.language_model)
    for name, tensor in opt.state_dict().items():
        assert torch.equal(model.language_model.state_dict()[name], tensor.bfloat16()), name
    for layer in model.vision_model.encoder.layers:  # EVA's form, without which LAVIS could not hold it
        query, key, value = layer.self_attn.qkv.bias.chunk(3)
        assert query.any()
        assert value.any()
        assert not key.any()
    dropouts = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert not any(dropouts)
    assert model.config.text_config.dropout == 0

    tokenizer = AutoTokenizer.from_pretrained(made.blip2)
    picture = paint(Composition("blue", "boat", "day", seed=1), "mosaic")
    pixels = BlipImageProcessor.from_pretrained(made.blip2)(picture, return_tensors="pt")["pixel_values"]
    image_tokens = "<image>" * model.config.num_query_tokens
    prompt = tokenizer(f"{image_tokens}Question: What does it show? Short answer:", return_tensors="pt")
    answer = model.generate(pixel_values=pixels, max_new_tokens=3, **prompt)
    assert answer.shape[0] == 1


def test_coarse_look_is_what_the_image_processor_gives() -> None:
    picture = paint(Composition("green", "tower", "dusk", seed=2), "impasto")
    expected = image_processor()(picture, return_tensors="pt")["pixel_values"][0]
    # The processor may round to whole pixel values elsewhere: a 255th is 0.015 deviations of CLIP.
    assert float((coarse_look(picture) - expected).abs().max()) < 0.04


def test_training_repeats_itself_and_leaves_torchs_generator_alone() -> None:
    tokenizer = train_world_tokenizer()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = train_language_model(tokenizer, seed=1), train_language_model(tokenizer, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    models = [alignment.align_blip2(first, tokenizer, seed=1) for _ in range(2)]
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_that_did_not_learn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "NEEDED_ACCURACY", 0.98)
    with pytest.raises(RunFailed, match="another --seed"):
        train_language_model(train_world_tokenizer(), seed=1)
