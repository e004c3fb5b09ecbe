"""Packed greedy decoding against transformers' own `generate`, one question at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from artkv.batch import PackedPrompts
from artkv.datasets.packing import PackingSettings
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.tokenization import encode_prompt
from artkv.models.assembly import BuiltModel
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.models.opt import decoding
from artkv.models.opt.decoding import Decoded, DecodingLimits, EndWatch, decode_greedily
from artkv.models.opt.packed_sequences import packed_embeddings
from tests.models.conftest import PROMPT

Build = Callable[..., BuiltModel]

# Painting, question: uneven groups, not in order, one the beginning of another, one twice.
QUESTIONS = [
    (1, "Who painted this picture of a thing?"),
    (0, "What is it?"),
    (0, "What is the technique of this?"),
    (2, "Style?"),
    (0, "Who is it?"),
    (2, "What is it?"),
    (0, "Who is it?"),
    (0, "Who is it? Short answer: oil"),
    (1, "Style?"),
    (2, "Which style is this?"),
]
NUM_VISUAL = 6
FROZEN: dict[str, dict[str, Any]] = {
    "resident": {"opt": "resident"},
    "streamed": {"opt": "stream", "slots": 1},
    "one block resident": {"opt": "stream", "resident_blocks": 1},
}


class Ends:
    """A tokenizer as decoding sees it, with a token of choice as the newline: random weights hardly ever say one."""

    pad_token_id = 1

    def __init__(self, newline: int, eos: int) -> None:
        self.newline, self.eos_token_id = newline, eos

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        assert text == "\n"
        return {"input_ids": [self.newline]}


def visual_tokens(seed: int = 1) -> Tensor:
    return torch.randn(3, NUM_VISUAL, 40, generator=torch.Generator().manual_seed(seed))


def prompt_ids(model: KVModulatedBlip2, questions: Sequence[tuple[int, str]] = QUESTIONS) -> list[list[int]]:
    return [encode_prompt(model.backbone.tokenizer, PROMPT, question) for _, question in questions]


def packed(model: KVModulatedBlip2, questions: Sequence[tuple[int, str]], **layout: Any) -> PackedPrompts:
    settings = PackingSettings(NUM_VISUAL, **({"hidden_size": 40} | layout))
    return pack_prompts(prompt_ids(model, questions), [painting for painting, _ in questions], 1, settings)


def by_generate(model: KVModulatedBlip2, ends: Ends, max_new_tokens: int) -> list[list[int]]:
    """The new tokens of each question, by stock decoding of one row without padding."""
    language_model, visual_IKD = model.backbone.language_model, visual_tokens()
    found = []
    for (painting, _), ids in zip(QUESTIONS, prompt_ids(model), strict=True):
        text_1TD = language_model.get_input_embeddings()(torch.tensor([ids]))
        embeds_1SD = torch.cat([visual_IKD[painting][None], text_1TD], dim=1)
        with torch.no_grad():
            new = language_model.generate(
                inputs_embeds=embeds_1SD,
                attention_mask=torch.ones(embeds_1SD.shape[:2], dtype=torch.long),
                max_new_tokens=min(max_new_tokens, 128 - embeds_1SD.shape[1]),
                do_sample=False,
                eos_token_id=[ends.newline, ends.eos_token_id],
                pad_token_id=1,
            )
        found.append(new[0].tolist())
    return found


@torch.no_grad()
def greedy(model: KVModulatedBlip2, ends: Ends, prompts: PackedPrompts, limits: DecodingLimits) -> Decoded:
    language_model = model.backbone.language_model
    embeds_RLD = packed_embeddings(language_model.get_input_embeddings()(prompts.token_ids), visual_tokens(), prompts)
    return decode_greedily(language_model, ends, prompts, embeds_RLD, limits)


def decoded(
    model: KVModulatedBlip2,
    ends: Ends,
    max_new_tokens: int,
    questions: Sequence[tuple[int, str]] = QUESTIONS,
    parts: int = 1,
    **layout: Any,
) -> list[list[int]]:
    """The same by packed decoding, cut behind their ends; all that follows is padding."""
    limits = DecodingLimits(max_new_tokens, max_positions=128, parts=parts)
    answers = []
    for ids in greedy(model, ends, packed(model, questions, **layout), limits).token_ids.tolist():
        end = next((n + 1 for n, one in enumerate(ids) if one in (ends.newline, ends.eos_token_id)), len(ids))
        padding = next((n for n, one in enumerate(ids) if one == 1), len(ids))
        assert set(ids[min(end, padding) :]) <= {1}
        answers.append(ids[: min(end, padding)])
    return answers


def telling_ends(model: KVModulatedBlip2) -> Ends:
    """Two tokens on which random answers end at many different lengths."""
    free = by_generate(model, Ends(-1, -1), 40)
    counts = {one: len({ids.index(one) for ids in free if one in ids}) for ids in free for one in ids if one != 1}
    newline, eos = sorted(counts, key=lambda one: (-counts[one], one))[:2]
    return Ends(newline, eos)


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_tokens_are_those_of_generate(build: Build, bf16_folder: Path, frozen: dict[str, Any]) -> None:
    model = build(frozen=frozen, model={"blip2": str(bf16_folder)}).model
    ends = telling_ends(model)
    expected = by_generate(model, ends, 40)
    lengths = {len(ids) for ids in expected}
    assert len(lengths) > 3
    assert max(lengths) > 2 * decoding.CHUNK_STEPS
    assert decoded(model, ends, 40) == expected
    for layout in ({"hidden_size": 10**9}, {"max_columns": 30}):  # one row, then pieces of one or two questions
        assert decoded(model, ends, 40, **layout) == expected
    for number, question in enumerate(QUESTIONS):
        assert decoded(model, ends, 40, [question]) == [expected[number]]
    assert decoded(model, ends, 40, QUESTIONS[3:7]) == expected[3:7]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 8, 9, 10, 17])
def test_answers_are_cut_at_the_limit(build_on: Build, max_new_tokens: int) -> None:
    model = build_on("transformers").model
    ends = Ends(-1, -1)
    expected = by_generate(model, ends, max_new_tokens)
    assert {len(ids) for ids in expected} == {max_new_tokens}
    assert decoded(model, ends, max_new_tokens) == expected


def test_answers_end_where_the_positions_do(build_on: Build) -> None:
    """Each question by itself: a longer one beside it takes no token from it."""
    model = build_on("transformers").model
    ends = Ends(-1, -1)
    expected = by_generate(model, ends, 200)
    lengths = [128 - NUM_VISUAL - len(ids) for ids in prompt_ids(model)]
    assert [len(ids) for ids in expected] == lengths
    assert len(set(lengths)) > 3
    assert decoded(model, ends, 200) == expected


@pytest.mark.parametrize("parts", [2, 3, 100])
def test_parts_of_the_rows_have_the_same_tokens(build_on: Build, parts: int) -> None:
    model = build_on("transformers").model
    ends = telling_ends(model)
    expected = by_generate(model, ends, 40)
    calls = Counter(model)
    assert decoded(model, ends, 40, parts=parts, max_columns=30) == expected
    rows = len(packed(model, QUESTIONS, max_columns=30).token_ids)
    assert rows > 3
    assert max(rows for rows, _ in calls.shapes) == -(-rows // min(parts, rows))


@pytest.mark.parametrize(("leave", "parts"), [(3, 1), (4, 2), (8, 2), (2, 3)])
def test_few_are_left_as_they_are(build_on: Build, leave: int, parts: int) -> None:
    """Of nine different questions, with the tokens that they have at a layout; each part leaves its share at most."""
    model = build_on("transformers").model
    ends = telling_ends(model)
    expected = by_generate(model, ends, 40)
    calls = Counter(model)
    prompts = packed(model, QUESTIONS, max_columns=30)
    found = greedy(model, ends, prompts, DecodingLimits(40, 128, leave=leave, parts=parts))
    left = set()
    for place, ids, length, whole in zip(
        prompts.places.tolist(), found.token_ids.tolist(), found.new_tokens.tolist(), expected, strict=True
    ):
        if length:
            assert length in (1, 9, 17, 33)
            assert ids[:length] == whole[:length]
            assert set(ids[length:]) == {1}
            assert len(whole) > length
            left.add(place)
        else:
            assert ids[: len(whole)] == whole
    assert (leave >= parts) <= len(left) <= leave
    if parts == 1:
        assert len(calls.shapes) == found.new_tokens.max() < max(map(len, expected))


class Counter:
    """Shapes of what the decoder was given, a call each."""

    def __init__(self, model: KVModulatedBlip2) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.backbone.language_model.model.decoder.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, inputs: Any, options: dict[str, Any]) -> None:
        self.shapes.append(tuple(options["inputs_embeds"].shape[:2]))


def test_a_call_a_token_of_the_longest_answer(build_on: Build) -> None:
    model = build_on("transformers").model
    ends = telling_ends(model)
    longest = max(len(ids) for ids in by_generate(model, ends, 40))
    calls = Counter(model)
    decoded(model, ends, 40)
    assert len(calls.shapes) == longest  # the first token is the prompts' own pass
    assert longest < 40


def test_fewer_columns_than_one_row_a_question(build_on: Build) -> None:
    """What the first pass computes; six questions on a painting, as ArtQuest has, share 32 visual tokens there."""
    model = build_on("transformers").model
    calls = Counter(model)
    prompts = packed(model, QUESTIONS)
    decoded(model, Ends(-1, -1), 1)
    rows, columns = calls.shapes[0]
    lengths = [NUM_VISUAL + len(ids) for ids in prompt_ids(model)]
    assert rows * columns == prompts.token_ids.numel()
    assert rows * columns < 0.6 * len(lengths) * max(lengths)
    assert prompts.is_asked.sum() == len(set(QUESTIONS)) < len(QUESTIONS)


def test_what_has_ended_is_dropped(build_on: Build) -> None:
    model = build_on("transformers").model
    ends = telling_ends(model)
    expected = by_generate(model, ends, 40)
    calls = Counter(model)
    decoded(model, ends, 40)
    steps = calls.shapes[1:]
    for chunk in (0, 8, 16, 32):  # as many steps as there have been, and eight at first
        shapes = set(steps[chunk : 2 * chunk or decoding.CHUNK_STEPS])
        assert len(shapes) == 1  # all alike in between
        ((rows, slots),) = shapes
        alive = sum(len(ids) > chunk + 1 for ids in expected)
        assert rows <= alive <= rows * slots + 1  # one question is asked twice
    assert steps[-1] < steps[0]


def test_streamed_blocks_are_loaded_once_a_token_whatever_the_batch(build_on: Build, bf16_folder: Path) -> None:
    model = build_on("transformers", frozen={"opt": "stream", "slots": 1}, model={"blip2": str(bf16_folder)}).model
    ends, streamed = telling_ends(model), model.backbone.streamed["opt"]

    def loads(questions: Sequence[tuple[int, str]]) -> int:
        before = streamed.total_loads
        longest = max(len(ids) for ids in decoded(model, ends, 40, questions))
        loaded = streamed.total_loads - before
        assert loaded == streamed.num_blocks * longest
        return loaded

    alone = sum(loads([question]) for question in QUESTIONS)
    by_two = sum(loads(QUESTIONS[start : start + 2]) for start in range(0, len(QUESTIONS), 2))
    assert loads(QUESTIONS) < by_two < alone


def test_a_look_back_sees_the_end_a_step_later() -> None:
    flags = [torch.tensor([[True, False]]), torch.tensor([[True, True]]), torch.tensor([[True, True]])]
    at_once, later = EndWatch(0), EndWatch(1)
    assert [at_once.have_all_ended(flag) for flag in flags[:2]] == [False, True]
    assert [later.have_all_ended(flag) for flag in flags] == [False, False, True]


def test_probabilities_are_those_of_stock_opts_logits(build_on: Build) -> None:
    """Of each answer's tokens, its end included, from one forward pass over prompt and answer; in any company."""
    model = build_on("transformers").model
    language_model, visual_IKD = model.backbone.language_model, visual_tokens()
    ends = telling_ends(model)
    prompts = packed(model, QUESTIONS)
    embed = language_model.get_input_embeddings()
    limits = DecodingLimits(12, max_positions=128)
    with torch.no_grad():
        embeds_RLD = packed_embeddings(embed(prompts.token_ids), visual_IKD, prompts)
        found = decode_greedily(language_model, ends, prompts, embeds_RLD, limits, with_probability=True)
        plain = decode_greedily(language_model, ends, prompts, embeds_RLD, limits)
    assert plain.log_probabilities is None
    assert found.log_probabilities is not None
    assert torch.equal(plain.token_ids, found.token_ids)
    answers = by_generate(model, ends, 12)
    assert len({len(answer) for answer in answers}) > 2
    for (painting, _), ids, answer, logs in zip(
        QUESTIONS, prompt_ids(model), answers, found.log_probabilities, strict=True
    ):
        with torch.no_grad():
            embeds_1SD = torch.cat([visual_IKD[painting][None], embed(torch.tensor([ids + answer[:-1]]))], dim=1)
            logits_SO = language_model(inputs_embeds=embeds_1SD).logits[0, -len(answer) :]
        expected = logits_SO.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        # fp32; the worst seen is 2e-6.
        torch.testing.assert_close(logs[: len(answer)], expected, rtol=0, atol=2e-5)
        assert not logs[len(answer) :].any()
