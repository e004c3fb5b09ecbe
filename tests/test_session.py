"""A config opened once: its data at the start, its model and questions when they are wanted."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import artkv
import artkv.models.backbone.backends as backends
from artkv.config import Config, ModelConfig, override_config
from artkv.datasets.painting_source import DecodedPictures
from artkv.datasets.tokenization import encode_prompt
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.feature_cache.reading import CachedPaintings
from artkv.models.backbone.backends import dtype_note
from artkv.models.files.blip2_files import Blip2Files, open_blip2
from artkv.planning.device import Device
from artkv.planning.placement import Use
from artkv.session import Session


@pytest.fixture
def alone() -> World:
    return single_process(torch.device("cpu"))


def test_data_is_read_at_the_start_and_a_model_only_when_asked_for(
    tiny_config: Config, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artkv.session.build_model", lambda *_: pytest.fail("a model was built"))
    session = Session(tiny_config, alone, ["train", "val"])
    assert {split: len(table) for split, table in session.tables.items()} == {"train": 30, "val": 11}
    with pytest.raises(AttributeError):
        _ = session.model


def test_questions_hold_table_texts_and_paintings_of_their_split(tiny_config: Config, alone: World) -> None:
    session = Session(tiny_config, alone, ["val"]).load()
    assert list(session.questions) == ["val"]
    questions = session.questions["val"]
    assert questions.table is session.tables["val"]
    assert len(questions) == len(questions.tokenized) == 11
    tokenizer = session.model.backbone.tokenizer
    prompt_ids, _ = questions.tokenized.for_generation(3)
    prompt = tiny_config.dataset.prompt.format(question=questions.table.questions[3])
    assert tokenizer.decode(prompt_ids, skip_special_tokens=True) == prompt
    assert isinstance(questions.paintings, DecodedPictures)


def test_with_a_feature_cache_paintings_come_from_it(tiny_config: Config, alone: World, tmp_path: Path) -> None:
    config = override_config(tiny_config, [f"frozen.feature_cache={tmp_path / 'features'}"])
    questions = Session(config, alone, ["val"]).load().questions["val"]
    assert isinstance(questions.paintings, CachedPaintings)
    assert (tmp_path / "features" / "cache.json").is_file()


def test_a_start_opens_the_files_once_and_the_next_one_anew(
    tiny_config: Config, alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache to be chosen, memory to be predicted, features to be made, a tokenizer and weights to be read."""
    opened = []

    def counting(model: ModelConfig) -> Blip2Files:
        opened.append(model)
        return open_blip2(model)

    monkeypatch.setattr(backends, "open_blip2", counting)
    monkeypatch.setattr("artkv.planning.device.ask_device", lambda _: Device("fake", 8 * 2**30, 8 * 2**30))
    monkeypatch.setenv("ARTKV_CACHE", str(tmp_path))
    config = override_config(tiny_config, ["frozen={opt: auto, vit: auto, feature_cache: auto}"])
    for start in (1, 2):
        assert Session(config, alone, ["train", "val"]).load(use=Use(trains=True)).placement.choice is not None
        assert opened == [config.model] * start
    with backends.files_opened_once():
        for _ in range(2):
            backends.open_backbone(config.model, config.frozen, alone)
        assert len(opened) == 3
        (weights,) = Path(config.model.blip2).glob("*.safetensors")
        os.utime(weights)  # as whoever writes it anew does
        backends.open_backbone(config.model, config.frozen, alone)
        assert len(opened) == 4
    backends.open_backbone(config.model, config.frozen, alone)
    assert len(opened) == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.test=null", "dataset.test is not set; give a CSV file, as with --set dataset.test=PATH"),
        ("dataset.image_root=null", "dataset.image_root is not set; give the folder that holds the pictures"),
    ],
)
def test_data_that_is_not_set_is_told(tiny_config: Config, alone: World, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Session(override_config(tiny_config, ["dataset.test=val.csv", override]), alone, ["test"])


def test_every_row_that_is_too_long_is_told_of_all_splits(tiny_config: Config, alone: World) -> None:
    long = override_config(tiny_config, [f"dataset.prompt={'very ' * 27}long {{question}}"])
    session = Session(long, alone, ["train", "val"])
    with pytest.raises(UserError) as error:
        session.load()
    assert "train.csv:2: the row needs" in str(error.value)
    assert "val.csv" in str(error.value) or "more" in str(error.value)


def test_an_answer_ends_with_the_positions_and_a_question_that_leaves_none_is_told(
    tiny_config: Config, alone: World, tiny_world: Path
) -> None:
    session = Session(override_config(tiny_config, ["evaluation.max_new_tokens=500"]), alone, ["train"]).load()
    picture = tiny_world / "images" / "val0.png"
    assert isinstance(session.ask(picture, "Who?"), str)
    with pytest.raises(
        UserError, match=r"the question 'why why .* tokens with dataset\.prompt .* has room for 121; shorten it"
    ):
        session.ask(picture, ["Who?", "why " * 100])


def test_a_model_is_had_from_a_path_a_config_or_a_checkpoint_alone(
    tiny_config: Config, tiny_world: Path, run_training: Any
) -> None:
    run_training(["training.num_epochs=1", "evaluation.each_epoch=false"])
    picture = tiny_world / "images" / "val0.png"
    run_dir = tiny_config.run.output_dir
    by_checkpoint = artkv.load_model(checkpoint=run_dir)
    assert by_checkpoint.config.training.num_epochs == 1
    by_both = artkv.load_model(tiny_world / "config.yaml", run_dir)
    questions = ["Who?", "What is it?"]
    assert by_checkpoint.ask(picture, questions) == by_both.ask(picture, questions)
    assert by_checkpoint.ask(picture, "Who?") == by_both.ask(picture, questions)[0]
    with pytest.raises(UserError, match="neither a config nor a checkpoint is given"):
        artkv.load_model()


def test_the_longest_question_is_answered_and_one_token_more_is_not(tiny_config: Config, alone: World) -> None:
    session = Session(tiny_config, alone).load()
    assert tiny_config.dataset.image_root is not None
    picture = tiny_config.dataset.image_root / "train0.png"
    tokenizer = session.model.backbone.tokenizer
    # 128 positions, 6 of them visual tokens, and one for the answer's first.
    number = 121 - len(encode_prompt(tokenizer, tiny_config.dataset.prompt, "")) + 1
    longest = next(
        "x" * n for n in range(number) if len(encode_prompt(tokenizer, tiny_config.dataset.prompt, "x" * n)) == 121
    )
    assert isinstance(session.ask(picture, longest), str)
    with pytest.raises(UserError, match=r"has 122 tokens with dataset\.prompt around it, .* has room for 121; shorten"):
        session.ask(picture, longest + "x")


@pytest.mark.parametrize(
    ("question", "message"),
    [("", "is empty"), ("\n", "is empty"), ("a\x07", r"'a\\x07' holds a control character"), ("a\ud800", "no UTF-8")],
)
def test_a_question_that_is_none_is_told(tiny_config: Config, alone: World, question: str, message: str) -> None:
    session = Session(tiny_config, alone).load()
    with pytest.raises(UserError, match=message):
        session.ask("nowhere.png", question)


def test_a_gpu_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for has_bf16 in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_bf16=has_bf16: has_bf16)
        note = dtype_note("auto", gpu)
        assert (
            note is None if has_bf16 else note is not None and note.startswith("Tesla T4 has no bfloat16: model.dtype")
        )
    assert dtype_note("float32", gpu) is None
    assert dtype_note("auto", torch.device("cpu")) is None
