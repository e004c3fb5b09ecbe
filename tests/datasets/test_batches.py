"""Whole batches, the same from any number of workers."""

import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artkv.batch import AnsweringBatch, Batch, PaintingViews
from artkv.datasets.batches import AnsweringBatchMaker, BatchMaker, Shown, answering_loader, training_loader
from artkv.datasets.decoding import decoded
from artkv.datasets.order import MicroBatch, plan_epoch, plan_evaluation
from artkv.datasets.packing import PackingSettings
from artkv.datasets.painting_source import DecodedPictures
from artkv.datasets.pictures import PaintingTransform, View, open_picture
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import ImageIndex, QuestionTable, read_table
from artkv.datasets.tokenization import encode_for_training, encode_prompt
from artkv.datasets.tokenized_table import tokenize_table
from artkv.distributed import World
from artkv.errors import UserError

PROMPT = "Question: {question} Short answer:"
TRANSFORM = PaintingTransform(
    View(8, (0.5,) * 3, (0.5,) * 3, is_whole=True), [View(10, (0.4,) * 3, (0.2,) * 3, is_whole=False)]
)
NUM_PAINTINGS = 9


@pytest.fixture
def table(tmp_path: Path) -> QuestionTable:
    """Nine paintings of one colour each, one to five questions, a painting's rows not adjacent."""
    (tmp_path / "images").mkdir()
    lines = ["image,question,answer"]
    for painting in range(NUM_PAINTINGS):
        Image.new("RGB", (16, 12), (25 * painting, 0, 0)).save(tmp_path / f"images/{painting}.png")
        lines += [f"{painting}.png,What is {painting} {n}?,answer {painting}{n}" for n in range(1 + painting % 5)]
    order = np.random.default_rng(0).permutation(len(lines) - 1) + 1
    (tmp_path / "train.csv").write_text("\n".join([lines[0], *[lines[i] for i in order]]))
    return read_table(tmp_path / "train.csv", ImageIndex(tmp_path / "images"))


def rank_of(rank: int, size: int) -> World:
    return World(rank, rank, size, torch.device("cpu"))


def question_set(table: QuestionTable, tokenizer: Any) -> QuestionSet:
    tokenized, _ = tokenize_table(table, tokenizer, PROMPT)
    return QuestionSet(table, tokenized, DecodedPictures(table, TRANSFORM))


def load_training(table: QuestionTable, tokenizer: Any, **changes: Any) -> list[list[Batch]]:
    plan = plan_epoch(table.painting_of_row, batch_size=4, seed=1, epoch=changes.pop("epoch", 0))
    settings: dict[str, Any] = {"first_step": 0, "accumulation": 1, "workers": 1} | changes
    settings["world"] = rank_of(settings.pop("rank", 0), settings.pop("world", 1))
    return list(training_loader(question_set(table, tokenizer), plan, **settings))


def assert_same(one: Batch, other: Batch) -> None:
    assert one.rows == other.rows
    for part in ("paintings", "questions"):
        for name, value in vars(getattr(one, part)).items():
            theirs = getattr(getattr(other, part), name)
            pairs = zip(value, theirs, strict=True) if isinstance(value, tuple) else [(value, theirs)]
            assert all(torch.equal(ours, their) for ours, their in pairs), name


def painting_number(table: QuestionTable, row: int) -> int:
    return int(table.painting_paths[table.painting_of_row[row]].stem)


def check_views(table: QuestionTable, batch: Batch) -> None:
    """Each question's painting_index leads to its own painting's colour, in both views."""
    assert len(batch.paintings) == len({painting_number(table, row) for row in batch.rows})
    for row, place in zip(batch.rows, batch.questions.painting_index.tolist(), strict=True):
        red = 25 * painting_number(table, row) / 255
        vit, efficientnet = batch.paintings.vit_pixels[place], batch.paintings.art_pixels[0][place]
        assert vit.shape == (3, 8, 8)
        assert efficientnet.shape == (3, 10, 10)
        torch.testing.assert_close(vit[0], torch.full((8, 8), (red - 0.5) / 0.5))
        torch.testing.assert_close(efficientnet[0], torch.full((10, 10), (red - 0.4) / 0.2))


def check_texts(table: QuestionTable, tokenizer: Any, batch: Batch) -> None:
    for index, row in enumerate(batch.rows):
        length = int(batch.questions.attention_mask[index].sum())
        ids = batch.questions.input_ids[index, :length].tolist()
        labels = batch.questions.labels[index].tolist()
        expected = encode_for_training(tokenizer, PROMPT, table.questions[row], table.answers[row])
        assert (ids, labels[:length]) == expected
        assert set(labels[length:]) <= {-100}


def test_training_batches(table: QuestionTable, tiny_tokenizer: Any) -> None:
    steps = load_training(table, tiny_tokenizer)
    for (batch,) in steps:
        check_views(table, batch)
        check_texts(table, tiny_tokenizer, batch)
        assert batch.questions.weight.tolist() == [1.0] * len(batch.rows)
    assert sorted(row for (batch,) in steps for row in batch.rows) == list(range(len(table)))


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (3, 2), (4, 1)])
def test_weights_count_each_question_once(
    table: QuestionTable, tiny_tokenizer: Any, world: int, accumulation: int
) -> None:
    counted = np.zeros(len(table))
    num_steps = set()
    for rank in range(world):
        steps = load_training(table, tiny_tokenizer, rank=rank, world=world, accumulation=accumulation)
        num_steps.add(len(steps))
        for step in steps:
            assert len(step) == accumulation
            for batch in step:
                np.add.at(counted, list(batch.rows), batch.questions.weight.numpy())
    assert counted.tolist() == [1.0] * len(table)
    assert len(num_steps) == 1


def test_a_step_is_the_same_however_it_is_split(table: QuestionTable, tiny_tokenizer: Any) -> None:
    alone = load_training(table, tiny_tokenizer, accumulation=4)
    by_two = [load_training(table, tiny_tokenizer, accumulation=2, world=2, rank=rank) for rank in range(2)]
    by_four = [load_training(table, tiny_tokenizer, world=4, rank=rank) for rank in range(4)]
    for step, whole in enumerate(alone):
        split = [by_two[rank][step][micro_step] for micro_step in range(2) for rank in range(2)]
        for one, other in zip(whole, split, strict=True):
            assert_same(one, other)
        for one, other in zip(whole, [ranks[step][0] for ranks in by_four], strict=True):
            assert_same(one, other)


def test_resuming_in_the_middle_gives_the_remaining_batches(table: QuestionTable, tiny_tokenizer: Any) -> None:
    whole = load_training(table, tiny_tokenizer, accumulation=2)
    rest = load_training(table, tiny_tokenizer, accumulation=2, first_step=2)
    assert len(rest) == len(whole) - 2 > 1
    for one, other in zip(whole[2:], rest, strict=True):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)


def test_any_number_of_workers_gives_the_same_batches(
    table: QuestionTable, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though later batches are ready first: paintings take longer the earlier they come."""
    alone = load_training(table, tiny_tokenizer)
    places = {batch.rows: place for place, (batch,) in enumerate(alone)}
    prepared: list[int] = []
    make = BatchMaker.__call__

    def slow_at_first(maker: BatchMaker, micro_batch: MicroBatch) -> Batch:
        place = places[tuple(micro_batch.rows.tolist())]
        time.sleep(max(0.0, 0.2 - 0.1 * place))
        prepared.append(place)
        return make(maker, micro_batch)

    monkeypatch.setattr(BatchMaker, "__call__", slow_at_first)
    together = load_training(table, tiny_tokenizer, workers=3)
    assert prepared != sorted(prepared)
    assert len(alone) == len(together)
    for (one,), (other,) in zip(alone, together, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [1, 3])
def test_few_batches_are_prepared_ahead_and_none_after_the_end(
    table: QuestionTable, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    prepared: list[MicroBatch] = []
    make = BatchMaker.__call__

    def counting(maker: BatchMaker, micro_batch: MicroBatch) -> Batch:
        prepared.append(micro_batch)
        return make(maker, micro_batch)

    monkeypatch.setattr(BatchMaker, "__call__", counting)
    plan = plan_epoch(table.painting_of_row, batch_size=2, seed=1, epoch=0)
    steps = training_loader(question_set(table, tiny_tokenizer), plan, 0, 1, rank_of(0, 1), workers)
    next(steps)
    ahead = workers + 2
    deadline = time.monotonic() + 60
    while len(prepared) < ahead:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(prepared) == ahead < plan.num_steps(1)
    assert "artkv-batches_0" in {thread.name for thread in threading.enumerate()}
    steps.close()
    assert len(prepared) == ahead
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("artkv-batches")]


def test_training_random_numbers_are_not_drawn_from(table: QuestionTable, tiny_tokenizer: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_training(table, tiny_tokenizer)
    assert torch.equal(before, torch.get_rng_state())


def load_answering(table: QuestionTable, tokenizer: Any, shown: Shown, **place: int) -> list[AnsweringBatch]:
    plan = plan_evaluation(table.painting_of_row, batch_size=4)
    world = rank_of(place.get("rank", 0), place.get("world", 1))
    packing = PackingSettings(num_visual_tokens=2, hidden_size=64)
    make = AnsweringBatchMaker(question_set(table, tokenizer), shown, packing, choices_at_once=8)
    return list(answering_loader(make, plan, world, 1))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_question_is_asked_once_with_its_own_painting(
    table: QuestionTable, tiny_tokenizer: Any, world: int
) -> None:
    asked = []
    for rank in range(world):
        for batch in load_answering(table, tiny_tokenizer, Shown(), rank=rank, world=world):
            asked += batch.rows
            assert len(batch.prompts) == len(batch.rows)
            for row, place in zip(batch.rows, batch.prompts.places.tolist(), strict=True):
                number, text = prompt_at(batch, place)
                assert text == encode_prompt(tiny_tokenizer, PROMPT, table.questions[row])
                views = TRANSFORM(open_picture(table.painting_paths[int(table.painting_of_row[row])]))
                assert isinstance(batch.paintings, PaintingViews)
                assert torch.equal(batch.paintings.vit_pixels[number], views[0])
                assert torch.equal(batch.paintings.art_pixels[0][number], views[1][0])
            assert batch.blank is batch.other_art is None
    assert sorted(asked) == list(range(len(table)))


def prompt_at(batch: AnsweringBatch, place: int) -> tuple[int, list[int]]:
    """The painting that a question's piece shows, as the pieces count, and its text."""
    prompts = batch.prompts
    row, slot = divmod(place, prompts.last_columns.shape[1])
    column, ends = int(prompts.last_columns[row, slot]), prompts.subtree_end[row].tolist()
    seen = [j for j in range(column + 1) if column < ends[j]]
    piece = prompts.piece_places.tolist().index(row * prompts.token_ids.shape[1] + seen[0])
    return int(prompts.piece_painting[piece]), prompts.token_ids[row, seen[2:]].tolist()


def test_ways_of_showing_count_their_paintings_one_after_the_other(table: QuestionTable, tiny_tokenizer: Any) -> None:
    """Shown twice, blank in between, with what the EfficientNet sees of another painting beside it."""
    art_source = np.roll(np.arange(NUM_PAINTINGS), 1)
    shown = Shown(are_blank=(False, True, False), art_source=art_source)
    grey_vit, (grey_efficientnet,) = TRANSFORM.blank()
    for batch in load_answering(table, tiny_tokenizer, shown):
        assert isinstance(batch.paintings, PaintingViews)
        assert isinstance(batch.blank, PaintingViews)
        assert batch.other_art is not None
        number = len(batch.paintings)
        assert torch.equal(batch.blank.vit_pixels, grey_vit[None])
        assert torch.equal(batch.blank.art_pixels[0], grey_efficientnet[None])
        shown_at = [prompt_at(batch, place)[0] for place in batch.prompts.places.tolist()]
        first, blank, second = (shown_at[n * len(batch.rows) : (n + 1) * len(batch.rows)] for n in range(3))
        assert set(blank) == {number}
        assert second == [number + 1 + place for place in first]
        assert len(batch.prompts) == 3 * len(batch.rows)
        for row, place in zip(batch.rows, first, strict=True):
            other = table.painting_paths[int(art_source[table.painting_of_row[row]])]
            assert torch.equal(batch.other_art[0][place], TRANSFORM(open_picture(other))[1][0])


def test_only_what_is_shown_is_loaded(table: QuestionTable, tiny_tokenizer: Any) -> None:
    art_source = np.roll(np.arange(NUM_PAINTINGS), 1)
    for batch in load_answering(table, tiny_tokenizer, Shown(has_own_art=False, art_source=art_source)):
        assert batch.other_art is None
        for row, place in zip(batch.rows, batch.prompts.places.tolist(), strict=True):
            painting = int(table.painting_of_row[row])
            own = TRANSFORM(open_picture(table.painting_paths[painting]))[0]
            others = TRANSFORM(open_picture(table.painting_paths[int(art_source[painting])]))[1][0]
            assert isinstance(batch.paintings, PaintingViews)
            assert torch.equal(batch.paintings.vit_pixels[prompt_at(batch, place)[0]], own)
            assert torch.equal(batch.paintings.art_pixels[0][prompt_at(batch, place)[0]], others)
    for batch in load_answering(table, tiny_tokenizer, Shown(are_blank=(True,), has_own_art=False)):
        assert batch.paintings is batch.other_art is None
        assert batch.blank is not None
        assert len(batch.blank) == 1


def test_each_painting_is_decoded_once_a_micro_batch(
    table: QuestionTable, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counting(path: Path, max_pixels: int) -> AbstractContextManager[Image.Image]:
        opened.append(path)
        return decoded(path, max_pixels=max_pixels)

    monkeypatch.setattr("artkv.datasets.painting_source.decoded", counting)
    steps = load_training(table, tiny_tokenizer)
    expected = [len({painting_number(table, row) for row in batch.rows}) for (batch,) in steps]
    assert len(opened) == sum(expected) < len(table)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_picture_that_fails_later_is_named(table: QuestionTable, tiny_tokenizer: Any, workers: int) -> None:
    path = table.painting_paths[table.painting_of_row[3]]
    os.truncate(path, 40)
    rows = np.flatnonzero(table.painting_of_row == table.painting_of_row[3])
    with pytest.raises(UserError) as error:
        load_training(table, tiny_tokenizer, workers=workers)
    message = str(error.value)
    assert message.startswith(tuple(f"{table.place(int(row))}: picture {path}: " for row in rows))
    assert "replace the file" in message
    assert "Traceback" not in message
