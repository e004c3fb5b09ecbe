"""OPT's loss and gradient made together, against transformers' own decoder and autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import artkv.planning.shapes as shapes_module
from artkv.batch import Batch, PackedQuestions
from artkv.config import Config
from artkv.models.assembly import BuiltModel
from artkv.models.cuda_graphs import GraphedTower
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.models.opt.answer_gradients import (
    AnswerGradients,
    _questions_of,
    _read_by_opt,
    decode_packed,
    packed_answer_losses,
)
from artkv.models.opt.answers import answer_cross_entropy, hidden_at_answers
from artkv.models.opt.packed_sequences import tree_attention_mask
from tests.models.opt.test_packed_sequences import LORA, batches
from tests.models.test_cuda_graphs import Rerun

Build = Callable[..., BuiltModel]


def packed(model: KVModulatedBlip2, **layout: int) -> Batch:
    return batches(model, **layout)[1]


def embeds_of(model: KVModulatedBlip2, batch: Batch, seed: int = 0) -> Tensor:
    shape = (*batch.questions.token_ids.shape, model.backbone.language_model_width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def stock_loss(model: KVModulatedBlip2, embeds_RLD: Tensor, questions: PackedQuestions) -> Tensor:
    """By transformers' decoder from its front door."""
    language_model = model.backbone.language_model
    hidden_RCD = language_model.model.decoder(
        inputs_embeds=embeds_RLD,
        attention_mask=tree_attention_mask(questions.subtree_end, embeds_RLD.dtype),
        position_ids=questions.position_ids,
        answer_columns=questions.answer_columns,
        use_cache=False,
    ).last_hidden_state
    hidden_AD = hidden_at_answers(hidden_RCD, questions.answer_places)
    return answer_cross_entropy(hidden_AD, language_model.lm_head, questions.answer_ids, questions.answer_weight)


def test_the_loop_over_blocks_is_transformers_decoder(build: Build) -> None:
    model = build().model
    questions = packed(model).questions
    embeds_RLD = embeds_of(model, packed(model))
    expected = stock_loss(model, embeds_RLD, questions)
    (loss,) = packed_answer_losses(model.backbone.language_model, [embeds_RLD], [questions])
    assert torch.equal(loss, expected)
    assert torch.equal(*(torch.autograd.grad(one, embeds_RLD)[0] for one in (loss, expected)))


@pytest.mark.parametrize("frozen", [{"opt": "resident"}, {"opt": "stream", "slots": 1}])
def test_losses_and_gradients_of_several_batches_are_those_of_each_alone(build: Build, frozen: dict) -> None:
    model = build(frozen=frozen).model
    reference = build(frozen=frozen).model
    layouts = [{}, {"max_columns": 40}, {"hidden_size": 10**9}]
    parts = [packed(model, **layout) for layout in layouts]
    embeds = [embeds_of(model, part, seed) for seed, part in enumerate(parts)]
    losses = AnswerGradients(model.backbone.language_model).losses(embeds, [part.questions for part in parts])
    for number, (loss, embeds_RLD, part) in enumerate(zip(losses, embeds, parts, strict=True)):
        expected = stock_loss(reference, embeds_RLD, part.questions)
        assert torch.equal(loss, expected)
        scale = 0.25 * (number + 1)  # as the step's answer tokens scale it
        (found,) = torch.autograd.grad(loss * scale, embeds_RLD)
        (wanted,) = torch.autograd.grad(expected * scale, embeds_RLD)
        # The scale comes after OPT's backward and not before it: fp32 rounds twice at other places.
        assert (found - wanted).norm() <= 1e-6 * wanted.norm()
        (unscaled,) = torch.autograd.grad(stock_loss(reference, embeds_RLD, part.questions), embeds_RLD)
        assert torch.equal(found, unscaled * scale)


def test_streamed_blocks_are_fetched_once_for_all_batches(build: Build) -> None:
    model = build(frozen={"opt": "stream", "slots": 1}).model
    streamed = model.backbone.streamed["opt"]
    loads = []
    for count in (1, 4):
        part = packed(model)
        before = streamed.total_loads
        model.answer_losses([model(part, only_visual=True)] * count, [part.questions] * count)
        loads.append(streamed.total_loads - before)
    # Blocks 0 and 1 forward, 0 backward; then 0 is there already.
    assert loads == [3, 2]


def test_replayed_losses_are_the_eager_ones(build: Build) -> None:
    model = build().model
    recorder = Rerun()
    graphed = AnswerGradients(model.backbone.language_model, recorder)
    part = packed(model)
    for seed in range(4):
        embeds_RLD = embeds_of(model, part, seed)
        (loss,) = graphed.losses([embeds_RLD], [part.questions])
        expected = stock_loss(model, embeds_RLD, part.questions)
        assert torch.equal(loss, expected)
        assert torch.equal(*(torch.autograd.grad(one, embeds_RLD)[0] for one in (loss, expected)))
    assert recorder.records == 1
    assert recorder.replays == 1 + 2  # tried once, then used


def test_the_whole_model_with_replays_has_the_same_gradients(build: Build) -> None:
    """Prefix and Q-Former with three paintings, filled up to four; OPT replayed too."""
    model, plain = build().model, build().model
    before_opt = [p for _, p in sorted(model.named_trainables().items())]
    model._graphed_tower = GraphedTower("a tower", model._tower, before_opt, Rerun())
    model._answer_gradients = AnswerGradients(model.backbone.language_model, Rerun())
    for _ in range(4):
        for one in (model, plain):
            for parameter in one.parameters():
                parameter.grad = None
            one(packed(one)).loss_sum.backward()
        for (name, found), expected in zip(model.named_trainables().items(), plain.parameters(), strict=True):
            # fp32: products of four paintings round otherwise than those of three.
            assert found.grad is not None
            assert (found.grad - expected.grad).norm() <= 3e-6 * expected.grad.norm().clamp_min(1e-3), name
    assert len(model._graphed_tower.calls.graphs) == 1


def test_nothing_in_a_step_waits_for_the_device_or_depends_on_values(build: Build) -> None:
    """What a CUDA graph cannot hold fake tensors cannot compute: shapes that depend on values, values on the host."""
    model = build().model
    part = packed(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        read = [fake.from_tensor(tensor) for tensor in _read_by_opt(embeds_of(model, part).detach(), part.questions)]
        graphed = AnswerGradients(model.backbone.language_model)
        loss, gradient = graphed._of_tensors(*read)
        features = model.encode(part.paintings)
        visual = model._tower(features.image_features, *features.art_features)
        torch.autograd.grad(visual.sum(), list(model.parameters()), allow_unused=True)
    assert loss.shape == ()
    assert gradient.shape == (*part.questions.token_ids.shape, model.backbone.language_model_width)


def test_opt_that_trains_has_its_own_graph(build: Build) -> None:
    model = build(trainable=LORA).model
    assert not model.reads_opt_once
    loss = model(packed(model)).loss_sum
    loss.backward()
    adapters = [p for name, p in model.named_trainables().items() if name.startswith("language_model.")]
    assert adapters
    assert all(parameter.grad is not None for parameter in adapters)


def test_a_block_that_ignores_answer_columns_is_an_error(build: Build) -> None:
    model = build().model
    part = packed(model)
    last = model.backbone.language_model.model.decoder.layers[-1]
    last.forward = type(last).forward.__get__(last)
    with pytest.raises(RuntimeError, match="read_answer_columns"):
        decode_packed(model.backbone.language_model, [embeds_of(model, part)], [part.questions])


class _Crossings(TorchDispatchMode):
    """Operations between host and device, and those that bring a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        if len(devices) > 1 or "_local_scalar_dense" in str(function):
            self.found.append(str(function))
        return result


def test_at_the_true_size_no_forward_pass_crosses_between_host_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph would hold a copy from the host at an address that is gone; on fake CUDA tensors, which need no card."""
    try:
        with FakeTensorMode():
            torch.zeros(1, device="cuda")[None, :]
    except RuntimeError as error:  # torch 2.6: indexing sets the current device, of fake tensors too
        pytest.skip(f"fake CUDA tensors of torch {torch.__version__} need a driver: {str(error).splitlines()[0]}")
    make_fake = shapes_module._make_fake

    def on_cuda(modules: Any, idle: Any, *others: Any) -> None:
        with torch.device("cuda"):
            make_fake(modules, [], *others)  # all of OPT is run here

    monkeypatch.setattr(shapes_module, "_make_fake", on_cuda)
    shapes = shapes_module.model_shapes(Config(), torch.bfloat16, [])
    rows, columns, answer_columns, answers = 2, 456, 112, 208
    with shapes.fake:
        with torch.device("cuda"):
            embeds_RLD = torch.empty(rows, columns, 2560, dtype=torch.bfloat16)
            positions, ends = (torch.zeros(rows, columns, dtype=torch.int64) for _ in range(2))
            columns_RC = torch.zeros(rows, answer_columns, dtype=torch.int64)
            places, ids = (torch.zeros(answers, dtype=torch.int64) for _ in range(2))
            read = [positions, ends, columns_RC, places, ids, torch.ones(answers)]
            features = torch.empty(8, 257, 1408, dtype=torch.bfloat16), torch.empty(8, 1536)
        with _Crossings() as crossings:
            packed_answer_losses(shapes.model.backbone.language_model, [embeds_RLD], [_questions_of(read)])
            visual = shapes.model._tower(*features)
    assert visual.shape == (8, 32, 2560)
    assert crossings.found == []
