"""The embedded world's pictures and questions: determinism, balance, and where the style is to be seen."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from artkv.config import load_config, recipe_path
from artkv.errors import UserError
from artkv.quickstart import world as world_module
from artkv.quickstart.language import NUM_QUERY_TOKENS, Phrasebook, train_world_tokenizer
from artkv.quickstart.paintings import STYLES, paint
from artkv.quickstart.questions import ANSWERS
from artkv.quickstart.settings import PaintedWorld
from artkv.quickstart.underpainting import COLOURS, SUBJECTS, Composition, underpainting
from artkv.quickstart.vision import VISION_SIDE, coarse_look
from artkv.quickstart.world import compose, make_world

CHANCE = 1 / len(STYLES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data stage alone, with one composition for every second pair of colour and subject in training."""
    folder = tmp_path_factory.mktemp("world") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_module, "COMPOSITIONS_PER_PAIR", {"train": 1, "val": 1, "test": 1})
        patch.setattr(world_module, "PAIR_STEP", {"train": 2, "val": 6, "test": 3})
        world_module.make_data(folder, seed=5)
    return folder


def rows_of(data: Path, split: str) -> list[dict[str, str]]:
    with (data / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_paintings_are_a_function_of_their_seed() -> None:
    composition = Composition("blue", "boat", "dusk", seed=11)
    for style in STYLES:
        first, again = paint(composition, style), paint(composition, style)
        assert first.mode == "RGB"
        assert first.tobytes() == again.tobytes()
    other = Composition("blue", "boat", "dusk", seed=12)
    assert paint(other, "mosaic").tobytes() != paint(composition, "mosaic").tobytes()


def test_a_painting_can_be_larger() -> None:
    composition = Composition("red", "tree", "night", seed=3)
    large = paint(composition, "pointillism", side=256)
    assert large.size == (256, 256)


@pytest.mark.parametrize("style", STYLES)
def test_coarse_look_is_that_of_the_underpainting(style: str) -> None:
    for seed, (colour, subject) in enumerate(zip(COLOURS, SUBJECTS, strict=True)):
        composition = Composition(colour, subject, ("day", "night")[seed % 2], seed)
        base = Image.fromarray(np.round(underpainting(composition) * 255).astype(np.uint8))
        size = (VISION_SIDE, VISION_SIDE)
        expected = np.asarray(base.resize(size, Image.Resampling.BICUBIC), np.float32)
        got = np.asarray(paint(composition, style).resize(size, Image.Resampling.BICUBIC), np.float32)
        # Of 255. What is left comes from rounding and from clipping bright and dark strokes.
        assert np.abs(got - expected).mean() < 1.0
        assert np.abs(got - expected).max() < 12.0


def least_squares_accuracy(
    train_x: NDArray[np.float64], train_y: NDArray[np.int64], test_x: NDArray[np.float64], test_y: NDArray[np.int64]
) -> float:
    """Accuracy of a ridge regression onto the classes, on standardised features."""
    mean, deviation = train_x.mean(0), train_x.std(0) + 1e-9
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    penalty = 0.1 * len(train_x) * np.eye(train_x.shape[1])
    targets = np.eye(len(STYLES))[train_y] - CHANCE
    weights = np.linalg.solve(train_x.T @ train_x + penalty, train_x.T @ targets)
    return float(((test_x @ weights).argmax(1) == test_y).mean())


def fine_texture(picture: Image.Image) -> NDArray[np.float64]:
    """How strong the detail is at several scales and directions, without where it is."""
    grey = np.asarray(picture.convert("L"), np.float64)
    features = []
    for step in (1, 2, 4):
        for dy, dx in ((0, step), (step, 0), (step, step), (step, -step)):
            difference = grey - np.roll(grey, (dy, dx), (0, 1))
            features += [np.abs(difference).mean(), np.abs(difference).std(), (difference**3).mean() / 100]
    return np.log1p(np.abs(np.asarray(features)))


def test_style_is_in_the_brushwork_only(data: Path) -> None:
    looks: dict[str, list[NDArray[np.float64]]] = {"train": [], "test": []}
    textures: dict[str, list[NDArray[np.float64]]] = {"train": [], "test": []}
    truths: dict[str, list[int]] = {"train": [], "test": []}
    paths = {path.name: path for path in (data / "images").rglob("*.jpg")}
    for split in looks:
        for row in rows_of(data, split):
            if row["question_type"] == "style":
                with Image.open(paths[row["image"]]) as picture:
                    picture.load()
                looks[split].append(coarse_look(picture).flatten().double().numpy())
                textures[split].append(fine_texture(picture))
                truths[split].append(STYLES.index(row["answer"]))
    train_y, test_y = np.asarray(truths["train"]), np.asarray(truths["test"])
    coarse = least_squares_accuracy(np.stack(looks["train"]), train_y, np.stack(looks["test"]), test_y)
    fine = least_squares_accuracy(np.stack(textures["train"]), train_y, np.stack(textures["test"]), test_y)
    deviation = np.sqrt(CHANCE * (1 - CHANCE) / len(test_y))
    assert abs(coarse - CHANCE) < 3 * deviation
    assert fine > 0.8


def test_styles_are_exactly_balanced_and_say_nothing_about_the_rest(data: Path) -> None:
    for split in ("train", "val", "test"):
        by_picture: dict[str, dict[str, str]] = {}
        for row in rows_of(data, split):
            by_picture.setdefault(row["image"], {})[row["question_type"]] = row["answer"]
        styles = Counter(picture["style"] for picture in by_picture.values())
        assert len(styles) == len(STYLES)
        assert len(set(styles.values())) == 1
        joint = Counter((p["style"], p["colour"], p["subject"], p["time"]) for p in by_picture.values())
        for (_, *rest), number in joint.items():
            assert {joint[(style, *rest)] for style in STYLES} == {number}


def test_splits_share_no_composition() -> None:
    seeds = [composition.seed for split in ("train", "val", "test") for composition in compose(split, 1337)]
    assert len(seeds) == 108 + 18 + 36
    assert len(set(seeds)) == len(seeds)
    test = compose("test", 1337)
    assert set(Counter(composition.colour for composition in test).values()) == {6}
    assert set(Counter((composition.colour, composition.subject) for composition in test).values()) == {1}


def test_csv_has_artquests_columns_and_finds_its_pictures(data: Path) -> None:
    paths = list((data / "images").rglob("*.jpg"))
    names = [path.name for path in paths]
    assert len(set(names)) == len(names)
    assert any(path.parent.name == "images" for path in paths)
    assert any(path.parent.name != "images" for path in paths)
    pictures: dict[str, set[str]] = {}
    ids: list[str] = []
    for split in ("train", "val", "test"):
        rows = rows_of(data, split)
        assert list(rows[0]) == ["image", "question", "answer", "question_id", "question_type"]
        for row in rows:
            assert row["answer"] in ANSWERS[row["question_type"]]
            assert row["question"].endswith("?")
        pictures[split] = {row["image"] for row in rows}
        ids += [row["question_id"] for row in rows]
        assert len(rows) == len(ANSWERS) * len(pictures[split])
    assert len(set(ids)) == len(ids)
    assert set.union(*pictures.values()) == set(names)
    assert sum(map(len, pictures.values())) == len(names)


def test_tokenizer_gives_back_questions_and_answers() -> None:
    tokenizer = train_world_tokenizer()
    text = "Question: Which style is this? Short answer: cross hatching\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.bos_token_id
    phrasebook = Phrasebook(tokenizer)
    for answer, tokens in phrasebook.answers.items():
        assert tokenizer.decode(tokens) == f" {answer}\n"
        assert tokens[-1] == phrasebook.newline_id
    rng = np.random.default_rng(0)
    attributes = {kind: answers[-1] for kind, answers in ANSWERS.items()}
    caption = phrasebook.caption(attributes, rng)
    assert caption.shape == (NUM_QUERY_TOKENS,)
    assert all(word in tokenizer.decode(caption) for word in attributes.values())


def test_labels_are_on_the_answer_and_its_newline() -> None:
    tokenizer = train_world_tokenizer()
    phrasebook = Phrasebook(tokenizer)
    conversation = phrasebook.converse([("style", "stained glass"), ("time", "day")], np.random.default_rng(0))
    for row, answer in enumerate(["stained glass", "day"]):
        is_label = conversation.labels_QT[row] != -100
        assert tokenizer.decode(conversation.labels_QT[row][is_label]) == f" {answer}\n"
        torch.testing.assert_close(conversation.tokens_QT[row][is_label], conversation.labels_QT[row][is_label])


def test_finished_stages_are_kept_and_another_seed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(name: str, fails: bool = False):  # type: ignore[no-untyped-def]
        def stage(folder: Path, *_: object) -> None:
            (folder / "file").write_text(name)
            made.append(name)
            if fails:
                raise KeyboardInterrupt

        return stage

    monkeypatch.setattr(world_module, "make_data", make("data"))
    monkeypatch.setattr(world_module, "sort_by_style", lambda world, split, folder: made.append(split))
    monkeypatch.setattr(world_module, "make_language_model", make("language", fails=True))
    monkeypatch.setattr(world_module, "make_blip2", lambda world, folder, seed: made.append("blip2"))
    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path, seed=1)
    assert not PaintedWorld(tmp_path).language_model.exists()
    monkeypatch.setattr(world_module, "make_language_model", make("language"))
    world = make_world(tmp_path, seed=1)
    assert made == ["data", "train", "val", "language", "language", "blip2"]
    assert world.language_model.is_dir()
    assert json.loads((tmp_path / "world.json").read_text())["seed"] == 1
    with pytest.raises(UserError, match="another one"):
        make_world(tmp_path, seed=2)


def test_recipe_is_valid() -> None:
    config = load_config(recipe_path("quickstart.yaml"))
    assert config.kv_modulation.enabled
    assert config.dataset.train is not None
