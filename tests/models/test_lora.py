"""LoRA adapters: their names, their start and what else trains."""

from collections.abc import Callable

import torch

from artkv.models.assembly import BuiltModel
from tests.models.conftest import training_batch

Build = Callable[..., BuiltModel]


def lora(targets: list[str], cross_attention: bool = False) -> dict:
    return {"qformer_cross_attention": cross_attention, "lora": {"targets": targets, "rank": 2, "alpha": 4}}


def test_adapters_start_as_nothing_train_alone_and_are_registered(build: Build) -> None:
    plain = build(kv_modulation={"enabled": False}).model
    model = build(kv_modulation={"enabled": False}, trainable=lora(["qformer", "opt"])).model
    batch = training_batch(model.backbone.tokenizer)
    loss = model(batch).loss_sum
    with torch.no_grad():
        torch.testing.assert_close(loss, plain(batch).loss_sum, rtol=0, atol=0)
    loss.backward()
    names = set(model.named_trainables())
    opt = {
        f"language_model.model.decoder.layers.{layer}.self_attn.{part}_proj.lora_{side}.weight"
        for layer in range(2)
        for part in "qv"
        for side in "AB"
    }
    qformer = {
        f"qformer.encoder.layer.{layer}.{block}.attention.{part}.lora_{side}.weight"
        for layer in range(4)
        for block in ("attention", *(["crossattention"] if layer % 2 == 0 else []))
        for part in ("query", "value")
        for side in "AB"
    }
    assert names == opt | qformer
    for name, parameter in model.named_trainables().items():
        assert parameter.grad is not None
        # B starts at zero, so A has no gradient yet and B has.
        assert parameter.grad.any() == (".lora_B." in name), name
    assert not any(p.grad is not None for p in model.backbone.named_parameters().values())


def test_where_cross_attention_trains_in_full_it_gets_no_adapter(build: Build) -> None:
    names = set(build(trainable=lora(["qformer"], cross_attention=True)).model.named_trainables())
    assert not any("crossattention" in name and "lora" in name for name in names)
    assert "qformer.encoder.layer.0.crossattention.attention.query.weight" in names
    assert "qformer.encoder.layer.1.attention.attention.query.lora_A.weight" in names


def test_the_frozen_hash_does_not_depend_on_adapters(build: Build) -> None:
    with_adapters = build(trainable=lora(["opt"]))
    without = build(trainable={"qformer_cross_attention": False})
    assert with_adapters.frozen_hash == without.frozen_hash
    assert with_adapters.frozen_hash != build().frozen_hash  # there the cross-attention is not frozen
