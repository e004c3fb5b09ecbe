"""OPT with the kernels' attention against OPT with a dense mask."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from artkv.batch import PackedQuestions
from artkv.distributed import World, single_process
from artkv.models.assembly import BuiltModel
from artkv.models.opt import tree_attention
from artkv.models.opt.answer_columns import read_answer_columns
from artkv.models.opt.answer_gradients import AnswerGradients, decode_packed
from artkv.models.opt.tree_attention import TREE_ATTENTION, seen_in_packed_rows, use_tree_attention, why_kernels_fail
from tests.models.opt.test_packed_sequences import batches
from tests.models.opt.trees import DEVICE, tree_kernels

Build = Callable[..., BuiltModel]


@pytest.fixture
def kernels() -> Iterator[ModuleType]:
    module = tree_kernels()
    why_kernels_fail.cache_clear()
    yield module
    why_kernels_fail.cache_clear()


def small_opt() -> OPTForCausalLM:
    """Three blocks with two heads of 32."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=400, hidden_size=64, num_hidden_layers=3, ffn_dim=128, num_attention_heads=2,
        max_position_embeddings=256, word_embed_proj_dim=64, dropout=0.0, attention_dropout=0.0, init_std=0.2,
    )  # fmt: skip
    model = OPTForCausalLM(config).to(DEVICE).eval().requires_grad_(False)
    read_answer_columns(model.model.decoder.layers[-1])
    return model


def packed_questions(build: Build) -> PackedQuestions:
    questions = batches(build().model)[1].questions
    assert isinstance(questions, PackedQuestions)
    return questions.to(DEVICE)


def loss_and_gradient(model: OPTForCausalLM, questions: PackedQuestions) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeds_RLD = torch.randn(*questions.token_ids.shape, 64, generator=generator).to(DEVICE).requires_grad_()
    (loss,) = AnswerGradients(model).losses([embeds_RLD], [questions])
    return [loss.detach(), *torch.autograd.grad(loss, embeds_RLD)]


def test_loss_and_gradient_are_those_with_a_dense_mask(build: Build, kernels: ModuleType) -> None:
    questions, model = packed_questions(build), small_opt()
    model.set_attn_implementation("eager")
    expected = loss_and_gradient(model, questions)
    model.set_attn_implementation(TREE_ATTENTION)
    assert seen_in_packed_rows(model, questions.subtree_end, torch.float32) is questions.subtree_end
    found = loss_and_gradient(model, questions)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()  # fp32 in another order, through three blocks


def test_every_block_but_the_last_asks_the_kernels(
    build: Build, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("attend", "attend_backward"):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, o=original, n=name: (calls.append(n), o(*a))[1])
    model = small_opt()
    model.set_attn_implementation(TREE_ATTENTION)
    loss_and_gradient(model, packed_questions(build))
    assert calls == ["attend"] * 2 + ["attend_backward"] * 2


def test_with_a_mask_it_is_transformers_sdpa(build: Build) -> None:
    model, ids = small_opt(), torch.arange(12, device=DEVICE).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6], device=DEVICE)
    outputs = []
    for name in ("sdpa", TREE_ATTENTION):
        model.set_attn_implementation(name)
        outputs.append(model(ids, attention_mask=mask).logits)
    assert torch.equal(*outputs)


def test_without_kernels_a_dense_mask_is_read(build: Build) -> None:
    questions, model = packed_questions(build), small_opt()
    model.set_attn_implementation("sdpa")
    assert seen_in_packed_rows(model, questions.subtree_end, torch.float32).dim() == 4
    embeds = torch.zeros(*questions.token_ids.shape, 64, device=DEVICE)
    assert torch.isfinite(decode_packed(model, [embeds], [questions])[0]).all()


class Ranks(World):
    """A rank that is told it has a card, and what another one said."""

    others: tuple[str | None, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def rank_with(*others: str | None) -> Ranks:
    ranks = Ranks(0, 0, 1 + len(others), torch.device("cuda", 0))
    object.__setattr__(ranks, "others", others)
    return ranks


@pytest.fixture
def implementation_after(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What attention OPT has after `use_tree_attention`; kernels are tried on this machine, card or not."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    why = why_kernels_fail
    monkeypatch.setattr(tree_attention, "why_kernels_fail", lambda width, dtype, device: why(width, dtype, DEVICE))
    model = small_opt()

    def after(world: World, dtype: torch.dtype = torch.float16) -> str:
        model.set_attn_implementation("sdpa")
        why.cache_clear()
        use_tree_attention(model, dtype, world)
        return str(model.config._attn_implementation)

    return after


def test_kernels_are_used_where_they_are_right(
    implementation_after: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert implementation_after(rank_with()) == TREE_ATTENTION
    assert implementation_after(rank_with(None, None)) == TREE_ATTENTION
    assert implementation_after(rank_with(), torch.float32) == "sdpa"
    assert implementation_after(single_process(torch.device("cpu"))) == "sdpa"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert implementation_after(rank_with()) == "sdpa"
    assert capsys.readouterr().err == ""


def test_ranks_have_one_attention(implementation_after: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert implementation_after(rank_with(None, "RuntimeError: no C compiler")) == "sdpa"
    assert capsys.readouterr().err.endswith("Triton's kernels failed on rank 2 with RuntimeError: no C compiler\n")


def wrong_gradients(*_: Any) -> tuple[Tensor, ...]:
    return tuple(torch.full((2, 2, 80, 32), float("nan"), device=DEVICE, dtype=torch.float16) for _ in range(3))


def fail(text: str) -> None:
    raise RuntimeError(text)


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        (
            "attend",
            lambda right: lambda q, k, v, ends, scale: right(q, k, v, ends + 1, scale),
            "results that differ by 0",
        ),
        ("attend_backward", lambda right: wrong_gradients, "results that differ by nan"),
        ("attend", lambda right: lambda *_: fail("no C compiler\nmore"), "RuntimeError: no C compiler; Triton needs"),
    ],
)
def test_kernels_are_not_used_where_they_are_wrong(
    name: str, wrong: Any, reason: str, kernels: ModuleType, implementation_after: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(kernels, name, wrong(getattr(kernels, name)))
    assert implementation_after(rank_with()) == "sdpa"
    said = capsys.readouterr().err
    assert (
        f"artkv: attention within packed rows is PyTorch's, which is slower: Triton's kernels failed with {reason}"
        in said
    )
    assert said.count("\n") == 1
    # Results that differ are nothing that a user could mend.
    assert said.endswith("and a TRITON_CACHE_DIR that can be written\n") == ("Error" in reason)


def test_heads_that_the_kernels_are_not_for_say_nothing(kernels: ModuleType) -> None:
    assert why_kernels_fail(10, torch.float16, DEVICE) == ""
    assert tree_attention.is_subtree_end(torch.zeros(2, 3, dtype=torch.int64))
    assert not tree_attention.is_subtree_end(torch.zeros(2, 3))
