"""What would stop a run is found before it, each obstacle by itself and all of them at once."""

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from artkv.config import Config, override_config
from artkv.preflight import find_obstacles
from tests.models.lavis_writing import write_lavis_folder

BadSettings = Callable[[Path, Path], list[str]]


def test_the_tiny_world_has_none(tiny_config: Config) -> None:
    assert find_obstacles(tiny_config) == []
    assert not tiny_config.run.output_dir.exists()


def test_answers_that_cannot_be_given_whole_are_noted_and_stop_nothing(tiny_config: Config, tmp_path: Path) -> None:
    long = tmp_path / "long.csv"
    answers = ["oil", "oil on canvas, in a frame of gold", "oil", "the portrait of a man who reads a book"]
    rows = [f'val{number}.png,What is it?,"{answer}"' for number, answer in enumerate(answers)]
    long.write_text("\n".join(["image,question,answer", *rows]))
    notes: list[str] = []
    settings = [f"dataset.val={long}", "evaluation.max_new_tokens=12"]
    assert find_obstacles(override_config(tiny_config, settings), notes.append) == []
    assert notes == [
        f"{long}:3: the first of 2 answers of the file with more than evaluation.max_new_tokens = 12 tokens, which "
        "cannot be given whole; raise it"
    ]
    notes.clear()
    assert (
        find_obstacles(override_config(tiny_config, [*settings[:1], "evaluation.max_new_tokens=100"]), notes.append)
        == []
    )
    assert notes == []


def test_texts_with_a_lost_character_are_noted_and_stop_nothing(tiny_config: Config, tmp_path: Path) -> None:
    lost = tmp_path / "lost.csv"
    lost.write_text("image,question,answer\nval0.png,What?,oil\nval1.png,What\ufffd,oil\nval1.png,Who?,D\ufffdrer\n")
    notes: list[str] = []
    assert find_obstacles(override_config(tiny_config, [f"dataset.val={lost}"]), notes.append) == []
    assert [note for note in notes if "U+FFFD" in note] == [
        f"{lost}:3: the first of 2 rows of the file with U+FFFD, which stands where a character was lost when the file "
        "was made; make it anew from its source"
    ]


def test_a_wrong_image_root_hides_no_table_that_cannot_be_read(tiny_config: Config, tmp_path: Path) -> None:
    settings = [
        f"dataset.image_root={tmp_path / 'none'}",
        f"dataset.train={tmp_path}",
        f"dataset.val={tmp_path}/no.csv",
    ]
    told = "\n".join(find_obstacles(override_config(tiny_config, settings), lambda note: None))
    assert f"dataset.image_root {tmp_path / 'none'}" in told
    assert f"dataset.train: {tmp_path}: cannot be read (is a folder" in told
    assert f"dataset.val: {tmp_path}/no.csv: cannot be read (No such file" in told
    assert told.count("give the path of a CSV file") == 2


def test_lavis_files_are_checked_like_a_folder(
    tiny_config: Config, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lavis = write_lavis_folder(tmp_path, tiny_tokenizer)
    good = [f"model.blip2={lavis.pth}", f"model.vit={lavis.vit}", f"model.opt={lavis.opt}"]
    assert find_obstacles(override_config(tiny_config, good)) == []
    obstacles = find_obstacles(override_config(tiny_config, good[:1]))
    assert len(obstacles) == 1
    assert "model.opt is not set" in obstacles[0]


def setting(*texts: str) -> BadSettings:
    return lambda world, folder: list(texts)


def output_below_a_file(world: Path, folder: Path) -> list[str]:
    (folder / "notes.txt").write_text("no folder")
    (folder / "notes.txt").chmod(0o755)  # what may be executed is no folder for that
    return [f"run.output_dir={folder / 'notes.txt' / 'run'}"]


def deepspeed_file(text: str) -> BadSettings:
    def write(world: Path, folder: Path) -> list[str]:
        (folder / "bad.json").write_text(text)
        return [f"training.deepspeed={folder / 'bad.json'}"]

    return write


def csv_with_a_missing_picture(world: Path, folder: Path) -> list[str]:
    (folder / "bad.csv").write_text("image,question,answer\ntrain0.png,What?,oil\nnowhere.png,What?,oil\n")
    return [f"dataset.val={folder / 'bad.csv'}"]


def missing_checkpoint(world: Path, folder: Path) -> list[str]:
    return [f"efficientnet.checkpoint={folder / 'nowhere.safetensors'}"]


def missing_blip2(world: Path, folder: Path) -> list[str]:
    return [f"model.blip2={folder / 'nowhere'}"]


def empty_blip2(world: Path, folder: Path) -> list[str]:
    (folder / "blip2").mkdir()
    return [f"model.blip2={folder / 'blip2'}"]


def blip2_of_another_depth(world: Path, folder: Path) -> list[str]:
    shutil.copytree(world / "blip2", folder / "blip2")
    config = json.loads((folder / "blip2" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (folder / "blip2" / "config.json").write_text(json.dumps(config))
    return [f"model.blip2={folder / 'blip2'}"]


# 'FOLDER' stands for the test's folder: the message must name the thing and its place.
OBSTACLES: list[tuple[BadSettings, str]] = [
    (setting("dataset.train=null"), "dataset.train is not set; give the CSV file"),
    (
        setting("dataset.val=null", "evaluation.each_epoch=true"),
        "dataset.val is not set; give a CSV file, or set evaluation.each_epoch=false",
    ),
    (setting("training.warmup_steps=18"), "training.warmup_steps = 18: the run has 18 steps, and its learning rate "),
    (setting("dataset.image_root=null"), "dataset.image_root is not set; give the folder"),
    (csv_with_a_missing_picture, "FOLDER/bad.csv:3: picture 'nowhere.png' is missing"),
    (setting("dataset.test=/nowhere/test.csv"), "/nowhere/test.csv: cannot be read"),
    (output_below_a_file, "run.output_dir = FOLDER/notes.txt/run: FOLDER/notes.txt is not a folder"),
    (
        setting("training.deepspeed=zero9.json"),
        "training.deepspeed = 'zero9.json': no such file; give a path or one of",
    ),
    (deepspeed_file("{"), "training.deepspeed = FOLDER/bad.json: not readable JSON"),
    (deepspeed_file('{"zero_optimization": {"stage": 3}}'), "FOLDER/bad.json:\n  zero_optimization.stage = 3"),
    (
        deepspeed_file('{"zero_optimization": {"stage": 2}, "gradient_clipping": 7.5}'),
        "training.deepspeed: gradient_clipping is 7.5 in the JSON but 1.0 by the YAML",
    ),
    (setting("frozen.opt=stream", "frozen.resident_blocks=3"), "frozen.resident_blocks = 3: must be auto or 0 to 2"),
    (missing_checkpoint, "FOLDER/nowhere.safetensors does not exist; efficientnet.checkpoint must name"),
    (setting("efficientnet.checkpoint=null"), "efficientnet.checkpoint: null: it must name a checkpoint"),
    (setting("efficientnet.architecture=efficientnet_b33"), "'efficientnet_b33' is no model of timm; near it:"),
    (missing_blip2, "model.blip2 = 'FOLDER/nowhere': no such folder; give a hub id or an existing folder"),
    (empty_blip2, "model.blip2 = 'FOLDER/blip2': FOLDER/blip2 has no config.json; give"),
    (blip2_of_another_depth, "FOLDER/blip2: weights do not fit config.json: 16 missing: language_model."),
]


@pytest.mark.parametrize(("make", "message"), OBSTACLES, ids=[message[:40] for _, message in OBSTACLES])
def test_each_obstacle_by_itself(
    tiny_config: Config, tiny_world: Path, tmp_path: Path, make: BadSettings, message: str
) -> None:
    obstacles = find_obstacles(override_config(tiny_config, make(tiny_world, tmp_path)))
    assert len(obstacles) == 1, obstacles
    assert message.replace("FOLDER", str(tmp_path)) in obstacles[0]


def test_half_a_launchers_environment_is_one(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (obstacle,) = find_obstacles(tiny_config)
    assert "environment: RANK or WORLD_SIZE is set but" in obstacle
    assert "WORLD_SIZE" in obstacle


@pytest.mark.parametrize("opt", ["int8", "nf4"])
def test_quantised_weights_need_bitsandbytes(tiny_config: Config, monkeypatch: pytest.MonkeyPatch, opt: str) -> None:
    quantised = override_config(tiny_config, [f"frozen.opt={opt}"])
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    assert find_obstacles(quantised) == []
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # its import fails
    (obstacle,) = find_obstacles(quantised)
    assert obstacle.startswith(f"frozen.opt = '{opt}': needs the package bitsandbytes; pip install 'artkv[quantised]'")
    assert find_obstacles(tiny_config) == []


@pytest.mark.parametrize(
    "settings",
    [
        ["dataset.val=null", "evaluation.each_epoch=false"],
        ["dataset.val=null"],
        ["training.warmup_steps=17"],
        ["efficientnet.checkpoint=null", "kv_modulation.enabled=false"],
        ["run.output_dir=FOLDER/a/new/folder"],
    ],
)
def test_what_a_run_does_not_need_is_no_obstacle(tiny_config: Config, tmp_path: Path, settings: list[str]) -> None:
    overrides = [text.replace("FOLDER", str(tmp_path)) for text in settings]
    assert find_obstacles(override_config(tiny_config, overrides)) == []


def test_one_obstacle_hides_no_other(tiny_config: Config, tiny_world: Path, tmp_path: Path) -> None:
    makers = [
        csv_with_a_missing_picture, output_below_a_file, deepspeed_file("{"), missing_checkpoint, empty_blip2,
    ]  # fmt: skip
    settings = [text for make in makers for text in make(tiny_world, tmp_path)]
    obstacles = find_obstacles(override_config(tiny_config, settings))
    assert len(obstacles) == len(makers)
    for part in ("run.output_dir", "bad.json", "bad.csv:3", "has no config.json", "nowhere.safetensors"):
        assert sum(part in obstacle for obstacle in obstacles) == 1, part


def test_pictures_that_are_trained_on_and_judged_by_are_noted(tiny_config: Config, tiny_world: Path) -> None:
    notes: list[str] = []
    assert find_obstacles(tiny_config, notes.append) == []
    assert notes == []
    same = override_config(tiny_config, [f"dataset.val={tiny_world / 'train.csv'}"])
    assert find_obstacles(same, notes.append) == []
    (note,) = notes
    assert note.startswith("12 of the 12 pictures of dataset.val are pictures of dataset.train too, the first ")


def test_pictures_that_are_chosen_by_and_judged_by_are_noted(tiny_config: Config, tiny_world: Path) -> None:
    notes: list[str] = []
    same = override_config(tiny_config, [f"dataset.{split}={tiny_world / 'val.csv'}" for split in ("val", "test")])
    assert find_obstacles(same, notes.append) == []
    (note,) = notes
    assert " pictures of dataset.test are pictures of dataset.val too, the first " in note
    assert note.endswith("are of pictures that the checkpoint was chosen by; keep each painting in one split")


def test_lora_settings_that_train_nothing_are_noted(tiny_config: Config) -> None:
    notes: list[str] = []
    settings = ["trainable.lora.rank=64", "trainable.lora.alpha=3"]
    assert find_obstacles(override_config(tiny_config, settings), notes.append) == []
    assert [note for note in notes if "lora" in note] == [
        f"trainable.lora.{key}: trains nothing, as trainable.lora.targets is empty; name some"
        for key in ("rank = 64", "alpha = 3.0")
    ]
    notes.clear()
    find_obstacles(override_config(tiny_config, [*settings, "trainable.lora.targets=[opt]"]), notes.append)
    assert not [note for note in notes if "lora" in note]


def test_a_copy_under_another_name_is_noted(tiny_config: Config, tiny_world: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_world / "images", tmp_path / "images")
    shutil.copy(tmp_path / "images/sub/train3.png", tmp_path / "images/copy.png")
    (tmp_path / "val.csv").write_text("image,question,answer\nval0.png,q,a\ncopy.png,q,a\n")
    notes: list[str] = []
    settings = [f"dataset.image_root={tmp_path / 'images'}", f"dataset.val={tmp_path / 'val.csv'}"]
    assert find_obstacles(override_config(tiny_config, settings), notes.append) == []
    (note,) = notes
    assert note.startswith("1 of the 2 pictures of dataset.val are pictures of dataset.train too")
    assert f"the first {tmp_path / 'images/copy.png'} = {tmp_path / 'images/sub/train3.png'}: " in note
