"""The art encoder's training on tiny pictures: it learns, resumes exactly, and says what is wrong with its data."""

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from artkv.art_encoder import training as art_encoder
from artkv.art_encoder.arguments import ArtEncoderSettings, add_arguments, settings_from_arguments
from artkv.art_encoder.data import (
    BalancedBatches,
    PictureDataset,
    check_pictures,
    read_style_data,
)
from artkv.art_encoder.timm_parts import create_classifier, evaluation_transform, target_mixer
from artkv.art_encoder.training import evaluate, train_art_encoder
from artkv.config import EfficientNetConfig
from artkv.datasets.pictures import PaintingTransform
from artkv.errors import RunFailed, UserError
from artkv.models.efficientnet import load_efficientnet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FAST = {
    "architecture": "efficientnet_lite0",
    "image_size": 32,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
    "drop_rate": 0.1,
    "drop_path_rate": 0.1,
}


def write_picture(path: Path, style: str, number: int) -> None:
    """Horizontal stripes of random warm colours, or vertical ones of cold colours."""
    rng = np.random.default_rng([number, len(style)])
    pixels = np.repeat(rng.integers(0, 256, (10, 1, 3), dtype=np.uint8), 4, axis=0).repeat(40, axis=1)
    pixels[:, :, 2 if style == "rows" else 0] //= 3
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if style == "rows" else pixels.transpose(1, 0, 2)).save(path)


def write_styles(root: Path, count: int, styles: tuple[str, ...] = ("columns", "rows")) -> Path:
    for style in styles:
        for number in range(count):
            write_picture(root / style / f"{number}.png", style, number)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_styles(tmp_path_factory.mktemp("styles"), 16)


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same_tensors(one: Path, other: Path) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_it_learns_and_its_checkpoint_loads(tmp_path: Path) -> None:
    data = write_styles(tmp_path / "styles", 48)
    settings = ArtEncoderSettings(
        **FAST | {"image_size": 64, "batch_size": 16, "drop_rate": 0.0, "drop_path_rate": 0.0},
        data=data,
        output_dir=tmp_path / "out",
        epochs=4,
        learning_rate=1e-3,
        validation_fraction=0.25,
        mixup=0,
        cutmix=0,
        smallest_crop=0.8,
    )
    result = train_art_encoder(settings)
    # 20 steps from random weights; 1.0 was measured, 0.5 is chance on these 24 pictures
    assert result.scores.top1 >= 0.9
    assert result.classes == ("columns", "rows")

    trained = EfficientNetConfig(architecture="efficientnet_lite0", checkpoint=result.checkpoint, image_size=64)
    encoder = load_efficientnet(trained)
    with pytest.raises(UserError, match="was trained at 64 pixels, but efficientnet.image_size is 300"):
        load_efficientnet(trained.model_copy(update={"image_size": 300}))
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)
    with safe_open(result.checkpoint, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["columns", "rows"]
    assert (metadata["architecture"], metadata["image_size"]) == ("efficientnet_lite0", "64")

    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 5))
    assert max(line["top1"] for line in lines) == result.scores.top1 == lines[result.epoch - 1]["top1"]
    with (tmp_path / "out/per_style.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["style"], row["n"]) for row in rows] == [("columns", "12"), ("rows", "12")]
    assert np.mean([float(row["top1"]) for row in rows]) == pytest.approx(result.scores.top1)

    # what is saved is what was scored: the classifier of the file, scored again, gives the recorded top-1
    model = create_classifier("efficientnet_lite0", 2, 0.0, 0.0)
    model.load_state_dict(tensors(result.checkpoint))
    held_out = read_style_data(data, None, None, 0.25, settings.seed).validation
    loader = DataLoader(PictureDataset(held_out, result.classes, evaluation_transform(64)), batch_size=5)
    assert evaluate(model, loader, result.classes, torch.device("cpu")).top1 == result.scores.top1


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def uninterrupted(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    train_art_encoder(ArtEncoderSettings(**FAST, data=folders, output_dir=output, epochs=3))
    return output


@pytest.mark.parametrize(
    ("function", "call"),
    [("train_step", 6), ("evaluate", 2), ("_append_metrics", 2), ("write_tensors", 1), ("save_state", 2)],
)
def test_killed_and_resumed_is_the_same_to_the_bit(
    function: str,
    call: int,
    folders: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path, epochs=3)
    original = getattr(art_encoder, function)
    calls = 0

    def killed_at_the_call(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            if function == "_append_metrics":
                (tmp_path / "metrics.jsonl").open("a").write('{"epoch": 2, "ste')
            if function == "write_tensors":
                (tmp_path / ".state.safetensors.tmp").write_bytes(b"half")
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(art_encoder, function, killed_at_the_call)
        with pytest.raises(Killed):
            train_art_encoder(settings)
    torch.rand(3), np.random.rand(3)  # another process has other generators
    # the number of worker processes does not matter either
    train_art_encoder(settings.model_copy(update={"resume": True, "workers": 1 if function == "evaluate" else 0}))

    for name in ("efficientnet_lite0.safetensors", "state.safetensors"):
        assert_same_tensors(tmp_path / name, uninterrupted / name)
    timed = {"train_seconds", "pictures_per_second"}
    ours, theirs = (
        [
            {name: value for name, value in json.loads(line).items() if name not in timed}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (tmp_path, uninterrupted)
    )
    assert ours == theirs


def test_a_damaged_state_is_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"half")
    settings = ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path, epochs=1, resume=True)
    with pytest.raises(UserError, match=r"is damaged .*; delete it and start again"):
        train_art_encoder(settings)


def test_a_finished_training_resumes_to_its_result(folders: Path, uninterrupted: Path) -> None:
    settings = ArtEncoderSettings(**FAST, data=folders, output_dir=uninterrupted, epochs=3, resume=True)
    before = (uninterrupted / "state.safetensors").read_bytes()
    result = train_art_encoder(settings)
    assert result.checkpoint.is_file()
    assert (uninterrupted / "state.safetensors").read_bytes() == before
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert lines[result.epoch - 1]["top1"] == result.scores.top1


def test_what_must_not_change_between_stop_and_resume(folders: Path, uninterrupted: Path, tmp_path: Path) -> None:
    settings = ArtEncoderSettings(**FAST, data=folders, output_dir=uninterrupted, epochs=3)
    with pytest.raises(UserError, match="holds a training already; give --resume"):
        train_art_encoder(settings)
    with pytest.raises(UserError, match=r"other settings \(epochs 3 -> 4; learning_rate 0\.0003 -> 0\.1\)"):
        train_art_encoder(settings.model_copy(update={"resume": True, "epochs": 4, "learning_rate": 0.1}))
    other = write_styles(tmp_path / "other", 17)
    with pytest.raises(UserError, match="the pictures, their styles or the split"):
        train_art_encoder(settings.model_copy(update={"resume": True, "data": other}))


def test_a_diverging_loss_fails_the_run(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(art_encoder, "train_step", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(RunFailed, match=r"loss is nan in epoch 1.*lower --learning-rate"):
        train_art_encoder(ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path, epochs=1))
    assert not (tmp_path / "efficientnet_lite0.safetensors").exists()


def test_the_view_validated_on_is_the_view_served() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (57, 91, 3), dtype=np.uint8))
    served = PaintingTransform(28, *IMAGENET, 32, *IMAGENET).efficientnet_view(picture)
    # both resize 8-bit pixels; what follows is one subtraction and one division in float32
    torch.testing.assert_close(evaluation_transform(32)(picture), served, atol=1e-6, rtol=0)


def test_targets_are_smoothed_and_mixed() -> None:
    pixels, styles = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 4).clone(), torch.tensor([0, 2])
    same, smooth = target_mixer(4, 0.2, 0, 0, 1.0)(pixels, styles)
    assert torch.equal(same, pixels)
    torch.testing.assert_close(smooth, torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]]))
    np.random.seed(0)
    mixed, targets = target_mixer(4, 0.0, 1.0, 0, 1.0)(pixels.clone(), styles)
    share = mixed[0, 0, 0, 0].item()  # of picture 1 in picture 0
    assert 0 < share < 1
    torch.testing.assert_close(targets, torch.tensor([[1 - share, 0, share, 0], [share, 0, 1 - share, 0]]))


def test_initial_weights_keep_the_backbone_and_replace_the_classifier(tmp_path: Path) -> None:
    donor = create_classifier("efficientnet_lite0", 1000, 0.0, 0.0)
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "imagenet.pth")
    model = create_classifier("efficientnet_lite0", 3, 0.0, 0.0, tmp_path / "imagenet.pth")
    assert torch.equal(model.conv_stem.weight, donor.conv_stem.weight)
    assert model.classifier.weight.shape == (3, 1280)


def test_every_style_is_drawn_equally_often() -> None:
    styles = np.array([0] * 50 + [1] * 5 + [2] * 9)
    batches = BalancedBatches(styles, 8, balance=1.0, seed=3)
    order = batches.order()
    assert len(order) == 64 == 8 * len(batches)
    assert sorted(Counter(styles[order]).values()) == [21, 21, 22]
    drawn = Counter(order.tolist())
    assert max(drawn[index] for index in range(50)) == 1  # none again before all others have come
    assert {drawn[index] for index in range(50, 55)} <= {4, 5}
    assert len({seed for batch in batches for _, seed in batch}) == 64  # each draw has its own augmentation

    assert batches.order().tolist() == order.tolist()
    batches.epoch = 1
    assert batches.order().tolist() != order.tolist()
    natural = styles[BalancedBatches(styles, 8, balance=0.0, seed=3).order()]
    assert Counter(natural) == {0: 50, 1: 5, 2: 9}


def test_each_epoch_has_its_own_order(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, list[int]]] = []
    original = BalancedBatches.order

    def recorded(batches: BalancedBatches) -> NDArray[np.int64]:
        order = original(batches)
        orders.append((batches.epoch, order.tolist()))
        return order

    monkeypatch.setattr(BalancedBatches, "order", recorded)
    monkeypatch.setattr(art_encoder, "train_step", lambda *_: torch.zeros(()))
    train_art_encoder(ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path, epochs=2))
    assert [epoch for epoch, _ in orders] == [0, 1, 2]  # 0 is for BatchNorm's statistics
    assert len({tuple(order) for _, order in orders}) == 3


def test_csv_and_folders_give_the_same_data(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "styles.csv"
    rows = [f"x,{path.relative_to(folders)},{path.parent.name}" for path in sorted(folders.rglob("*.png"))]
    table.write_text("artist,image,style\n" + "\n".join(rows) + "\n")
    from_csv = read_style_data(table, folders, None, 0.2, 7)
    from_folders = read_style_data(folders, None, None, 0.2, 7)
    assert from_csv.digest() == from_folders.digest()
    assert Counter(picture.style for picture in from_csv.validation) == {"columns": 3, "rows": 3}
    assert not {picture.name for picture in from_csv.validation} & {picture.name for picture in from_csv.training}
    assert from_csv.digest() != read_style_data(table, folders, None, 0.2, 8).digest()

    settings = ArtEncoderSettings(**FAST, data=table, image_root=folders, output_dir=tmp_path / "out", epochs=1)
    assert sum(score.count for score in train_art_encoder(settings).scores.per_style) == 4


def test_an_own_validation_set(folders: Path, tmp_path: Path) -> None:
    data = read_style_data(folders, None, write_styles(tmp_path, 2), 0.1, 0)
    assert (len(data.training), len(data.validation)) == (32, 4)


def test_all_problems_of_a_csv_come_at_once(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "styles.csv"
    table.write_text(
        'image,style,note\nrows/0.png,rows,"two\nlines"\nrows/1.png,,\n,rows,\nrows/2.png,rows\nrows/0.png,rows,\n'
        "columns/0.png,columns,\n"
    )
    validation = tmp_path / "val.csv"
    validation.write_text("image,style\nrows/0.png,rows\nrows/3.png,cubism\n")
    with pytest.raises(UserError) as error:
        read_style_data(table, folders, validation, 0.1, 0)
    assert str(error.value).splitlines()[1:] == [
        f"  {table}:4: empty style; fill it in or remove the row",
        f"  {table}:5: empty image; fill it in or remove the row",
        f"  {table}:6: the row has 2 fields, the header 3; put double quotes around a text that holds a comma",
        f"  {table}:7: rows/0.png is named in line 2 already; keep one of them",
        f"  {validation}:2: rows/0.png is also a training picture; keep it in one set",
        f"  {validation}:3: rows/3.png: the style 'cubism' does not occur in {table}",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("picture,style\na.png,x\n", ":1: needs one column named image; its columns are picture, style"),
        ("file,genre\na.png,x\n", ":1: needs one column named image and one named style"),
        ("", "its columns are none"),
        ("image,style\n", "names no pictures"),
        ("image,style\na.png,one\nb.png,one\n", "has only the style 'one'; a classifier needs at least 2"),
        ("image,style\na.png,one\nb.png,two\nc.png,two\n", ":2: a.png is the only picture of the style 'one'"),
    ],
)
def test_a_csv_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text(content)
    with pytest.raises(UserError) as error:
        read_style_data(tmp_path / "styles.csv", None, None, 0.1, 0)
    assert message in str(error.value)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give a folder of style folders or a CSV"):
        read_style_data(tmp_path / "absent", None, None, 0.1, 0)
    with pytest.raises(UserError, match="holds no folders"):
        read_style_data(tmp_path, None, None, 0.1, 0)
    write_styles(tmp_path, 2)
    (tmp_path / "cubism").mkdir()
    with pytest.raises(UserError, match="the style 'cubism' has no pictures"):
        read_style_data(tmp_path, None, None, 0.1, 0)
    write_styles(tmp_path / "split", 2, ("train", "val"))
    with pytest.raises(UserError, match=r"train, val, which are no styles; .*--validation"):
        read_style_data(tmp_path / "split", None, None, 0.1, 0)


def test_damaged_pictures_stop_the_training_before_it_starts(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "styles", 4)
    (root / "rows/0.png").write_bytes((root / "rows/0.png").read_bytes()[:-40])
    (root / "columns/1.png").write_text("not a picture")
    settings = ArtEncoderSettings(**FAST, data=root, output_dir=tmp_path / "out", epochs=1)
    with pytest.raises(UserError, match="have 2 problems") as error:
        train_art_encoder(settings)
    assert "rows/0.png: damaged" in str(error.value)
    assert "columns/1.png: not a picture" in str(error.value)
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_whole_pictures_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_style_data(write_styles(tmp_path / "styles", 2), None, None, 0.1, 0)
    check_pictures(data.training, tmp_path / "memory")
    with monkeypatch.context() as patch:
        patch.setattr("artkv.art_encoder.data.picture_damage", lambda _: pytest.fail("decoded again"))
        check_pictures(data.training, tmp_path / "memory")
    data.training[0].path.write_text("changed since")
    with pytest.raises(UserError, match="not a picture"):
        check_pictures(data.training, tmp_path / "memory")


def parse(*arguments: str) -> ArtEncoderSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_from_arguments(parser.parse_args(arguments))


def test_arguments() -> None:
    settings = parse("--data", "wikiart", "--batch-size", "16", "--resume", "--validation", "val.csv")
    assert settings == ArtEncoderSettings(data="wikiart", batch_size=16, resume=True, validation="val.csv")
    assert settings.architecture == "efficientnet_b3"
    assert (settings.image_size, settings.epochs, settings.learning_rate) == (300, 30, 3e-4)


def test_wrong_arguments_are_named_together() -> None:
    with pytest.raises(UserError) as error:
        parse("--data", "wikiart", "--epochs", "zero", "--validation-fraction", "1.5")
    assert "--epochs zero: " in str(error.value)
    assert "--validation-fraction 1.5: " in str(error.value)
    with pytest.raises(UserError, match="batch_size is 7: it must be even with mixup"):
        parse("--data", "wikiart", "--batch-size", "7")
    assert parse("--data", "wikiart", "--batch-size", "7", "--mixup", "0", "--cutmix", "0").batch_size == 7


def test_help_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    assert "(default: 0.0003)" in capsys.readouterr().out
