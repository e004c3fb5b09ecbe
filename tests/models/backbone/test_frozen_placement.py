"""The assembled model with frozen blocks streamed or quantised, against the resident one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from artkv.models.assembly import BuiltModel
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from tests.models.conftest import greedy_answers, training_batch, views

Build = Callable[..., BuiltModel]
LORA = {"lora": {"targets": ["qformer", "opt"], "rank": 2, "alpha": 4}}


def loss_and_gradients(model: KVModulatedBlip2) -> tuple[Tensor, list[Tensor]]:
    for parameter in model.parameters():
        parameter.grad = None
    # Adapters' B matrices start at zero and would hide what is behind them.
    with torch.no_grad():
        for name, parameter in model.named_trainables().items():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    loss = model(training_batch(model.backbone.tokenizer)).loss_sum
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trainable", [{}, LORA], ids=["plain", "lora"])
@pytest.mark.parametrize("frozen", [{"slots": 1}, {"slots": 2, "vit": "stream"}, {"resident_blocks": 1}])
def test_streamed_equals_resident_bit_for_bit(
    build: Build, bf16_folder: Path, dtype: str, trainable: dict, frozen: dict
) -> None:
    model_section = {"blip2": str(bf16_folder), "dtype": dtype}
    resident = build(model=model_section, trainable=trainable).model
    streamed = build(model=model_section, trainable=trainable, frozen={"opt": "stream", **frozen}).model
    for _ in range(2):  # the second step finds the slots as the first left them
        (loss, grads), (streamed_loss, streamed_grads) = loss_and_gradients(resident), loss_and_gradients(streamed)
        assert torch.equal(loss, streamed_loss)
        assert len(grads) == len(streamed_grads) == len(list(resident.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(grads, streamed_grads, strict=True))
    handles = streamed.backbone.streamed
    assert set(handles) == ({"opt", "vit"} if "vit" in frozen else {"opt"})
    streaming, slots = 2 - frozen.get("resident_blocks", 0), min(frozen.get("slots", 2), 2)
    slots = min(slots, streaming)
    assert handles["opt"].total_loads == (2 * streaming - slots) + (2 * streaming - 2 * slots)


def test_answers_are_the_same_streamed(build: Build, bf16_folder: Path) -> None:
    from tests.models.test_kv_modulated_blip2 import prompts

    answers = []
    for frozen in ({}, {"opt": "stream", "vit": "stream", "slots": 1}):
        model = build(model={"blip2": str(bf16_folder)}, frozen=frozen).model
        visual = model.visual_tokens(model.encode(views())).detach()
        answers.append(greedy_answers(model, visual, prompts(model.backbone.tokenizer, [0, 1, 2]), max_new_tokens=5))
    assert answers[0] == answers[1]


def test_the_frozen_hash_does_not_depend_on_where_weights_are(build: Build, bf16_folder: Path) -> None:
    hashes = {
        build(model={"blip2": str(bf16_folder)}, frozen=frozen).frozen_hash
        for frozen in ({}, {"opt": "stream"}, {"opt": "stream", "vit": "stream", "storage": "int8"})
    }
    assert len(hashes) == 1


# Relative error of the loss on random weights. Seen: int8 storage 4e-4, int8 2e-4, nf4 1.8e-3.
@pytest.mark.parametrize(
    ("frozen", "tolerance"),
    [({"opt": "stream", "storage": "int8"}, 5e-3), ({"opt": "int8"}, 5e-3), ({"opt": "nf4"}, 5e-2)],
)
def test_quantised_weights_are_close_and_adapters_train_over_them(
    build: Build, bf16_folder: Path, frozen: dict, tolerance: float
) -> None:
    if frozen["opt"] in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is optional: pip install 'artkv[quantised]'")
    model_section = {"blip2": str(bf16_folder)}
    loss, _ = loss_and_gradients(build(model=model_section, trainable=LORA).model)
    quantised = build(model=model_section, trainable=LORA, frozen=frozen).model
    quantised_loss, gradients = loss_and_gradients(quantised)
    assert 0 < abs(quantised_loss - loss) < tolerance * loss
    assert len(gradients) == len(list(quantised.parameters()))
