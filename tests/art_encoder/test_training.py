"""The art encoder's training on tiny pictures: it learns, resumes exactly, and stops where its pictures are damaged."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from artkv.art_encoder import training as art_encoder
from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.batches import BalancedBatches, PictureDataset
from artkv.art_encoder.data import Head, read_style_data
from artkv.art_encoder.output import ArtEncoderFolder
from artkv.art_encoder.scores import evaluate
from artkv.art_encoder.timm_parts import create_classifier, evaluation_transform
from artkv.art_encoder.training import ArtEncoderResult, train_art_encoder
from artkv.config import ArtEncoderConfig, load_config
from artkv.config.art_encoders import BLIND
from artkv.distributed import single_process
from artkv.errors import Preempted, RunFailed, UserError
from artkv.models.art_encoder import art_source, load_art_encoder
from artkv.run_folder.run_lock import RunLock, read_lock
from tests.art_encoder.conftest import FAST, write_styles


def configured(result: ArtEncoderResult, tmp_path: Path) -> ArtEncoderConfig:
    """The encoder of a config that says what the training told to say."""
    path = tmp_path / "told.yaml"
    path.write_text(result.setting, encoding="utf-8")
    (encoder,) = load_config(path).encoders
    return encoder


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

    trained = configured(result, tmp_path)
    assert (trained.architecture, trained.image_size) == ("efficientnet_lite0", 64)
    encoder = load_art_encoder(trained)
    with pytest.raises(UserError, match="was trained at 64 pixels, but efficientnet.image_size is 300"):
        load_art_encoder(trained.model_copy(update={"image_size": 300}))
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
    heads = [Head("style", result.classes)]
    loader = DataLoader(PictureDataset(held_out, heads, evaluation_transform("efficientnet_lite0", 64)), batch_size=5)
    assert evaluate(model, loader, heads, single_process(torch.device("cpu"))).top1 == result.scores.top1


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def uninterrupted(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    train_art_encoder(ArtEncoderSettings(**FAST, data=folders, output_dir=output, epochs=3))
    return output


@pytest.mark.parametrize(
    ("function", "call"),
    [("train_on_batch", 6), ("evaluate", 2), ("add_metrics", 2), ("write_tensors", 1), ("save_state", 2)],
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
    place = ArtEncoderFolder if function == "add_metrics" else art_encoder
    original = getattr(place, function)
    calls = 0

    def killed_at_the_call(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            if function == "add_metrics":
                (tmp_path / "metrics.jsonl").open("a").write('{"epoch": 2, "ste')
            if function == "write_tensors":
                (tmp_path / ".state.safetensors.tmp").write_bytes(b"half")
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, function, killed_at_the_call)
        with pytest.raises(Killed):
            train_art_encoder(settings)
    torch.rand(3), np.random.rand(3)  # another process has other generators
    # the number of worker processes does not matter either
    train_art_encoder(settings.model_copy(update={"resume": True, "workers": 1 if function == "evaluate" else 0}))

    for name in ("efficientnet_lite0.safetensors", "state.safetensors"):
        assert_same_tensors(tmp_path / name, uninterrupted / name)
    assert untimed(tmp_path) == untimed(uninterrupted)


def untimed(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what depends on the machine."""
    timed = {"train_seconds", "pictures_per_second"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def test_each_epoch_is_a_point_of_the_curves(uninterrupted: Path) -> None:
    events = EventAccumulator(str(uninterrupted)).Reload()
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    for tag, name in {
        "train/loss": "train_loss", "validation/loss": "validation_loss", "validation/top1": "top1",
        "validation/mean_style_top1": "mean_style_top1", "train/learning_rate": "learning_rate",
        "vitals/pictures_per_second": "pictures_per_second",
    }.items():  # fmt: skip
        curve = [(event.step, event.value) for event in events.Scalars(tag)]
        assert curve == [(line["epoch"], pytest.approx(line[name])) for line in lines], tag


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


def test_two_trainings_do_not_write_one_folder(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path / "out", epochs=1)
    lock = RunLock(settings.output_dir)
    assert lock.try_take()
    with pytest.raises(UserError, match=f"--output-dir {tmp_path / 'out'}: is in use by process .*, which is alive"):
        train_art_encoder(settings)
    lock.release()
    original = art_encoder.train_on_batch

    def lost(*arguments: Any) -> torch.Tensor:
        """Another has taken the folder, since this one stood still."""
        record = read_lock(settings.output_dir)
        assert record is not None
        (settings.output_dir / "run.lock").write_text(json.dumps(asdict(replace(record, token="other"))))
        return original(*arguments)

    monkeypatch.setattr(art_encoder, "train_on_batch", lost)
    with pytest.raises(RunFailed, match="has taken its folder"):
        train_art_encoder(settings)
    assert not (settings.output_dir / "state.safetensors").exists()


def test_a_diverging_loss_fails_the_run(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(art_encoder, "train_on_batch", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(RunFailed, match=r"loss is nan in epoch 1.*lower --learning-rate"):
        train_art_encoder(ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path, epochs=1))
    assert not (tmp_path / "efficientnet_lite0.safetensors").exists()


def test_each_epoch_has_its_own_order(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, list[int]]] = []
    original = BalancedBatches.order

    def recorded(batches: BalancedBatches) -> NDArray[np.int64]:
        order = original(batches)
        orders.append((batches.epoch, order.tolist()))
        return order

    monkeypatch.setattr(BalancedBatches, "order", recorded)
    monkeypatch.setattr(art_encoder, "train_on_batch", lambda *_: torch.zeros(()))
    train_art_encoder(ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path, epochs=2))
    assert [epoch for epoch, _ in orders] == [0, 1, 2]  # 0 is for BatchNorm's statistics
    assert len({tuple(order) for _, order in orders}) == 3


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


@pytest.mark.parametrize(
    ("architecture", "image_size", "channel_mean"),
    [
        ("convnext_atto", 32, 0.485),
        ("vit_tiny_patch16_224", 48, 0.5),
        ("test_resnet", 32, 0.5),
        ("levit_128s", 64, 0.485),  # its classifier has a norm, and is two
    ],
)
def test_any_architecture_of_timm_trains_and_loads_as_an_encoder(
    architecture: str, image_size: int, channel_mean: float, folders: Path, tmp_path: Path
) -> None:
    fast = FAST | {"architecture": architecture, "image_size": image_size, "batch_size": 16}
    result = train_art_encoder(ArtEncoderSettings(**fast, data=folders, output_dir=tmp_path, epochs=1))
    with safe_open(result.checkpoint, framework="pt") as file:
        recorded = file.metadata()
    mean, std = json.loads(recorded["mean"]), json.loads(recorded["std"])
    assert mean[0] == channel_mean
    config = configured(result, tmp_path)
    assert (config.architecture, config.image_size) == (architecture, image_size)
    assert (list(config.mean), list(config.std)) == (mean, std)
    encoder = load_art_encoder(config)
    pixels = torch.rand(2, 3, image_size, image_size)
    # the features are those that the classifier of the file was trained on: with it they give the file's logits
    classifier = create_classifier(architecture, 2, 0.0, 0.0, image_size)
    classifier.load_state_dict(tensors(result.checkpoint))
    with torch.no_grad():
        features = encoder(pixels)
        assert features.shape == (2, art_source(config).feature_dim)
        expected = classifier.eval().forward_head(classifier.forward_features(pixels), pre_logits=True)
    assert torch.equal(features, expected)
    with pytest.raises(UserError, match=r"set art_encoders\.0\.mean: \["):
        load_art_encoder(config.model_copy(update={"mean": (0.1, 0.1, 0.1)}))
    # Blind to a channel it is on purpose; nothing else may differ.
    load_art_encoder(config.model_copy(update={"std": (BLIND, *std[1:])}))
    with pytest.raises(UserError, match=r"set art_encoders\.0\.std: \["):
        load_art_encoder(config.model_copy(update={"std": (BLIND, 0.111, std[2])}))


def test_initial_weights_of_another_size_are_resampled(tmp_path: Path) -> None:
    donor = create_classifier("test_vit", 10, 0.0, 0.0)  # of its own 160 pixels
    torch.save(donor.state_dict(), tmp_path / "donor.pth")
    model = create_classifier("test_vit", 2, 0.0, 0.0, 64, tmp_path / "donor.pth")
    assert torch.equal(model.blocks[0].attn.qkv.weight, donor.blocks[0].attn.qkv.weight)
    assert model.pos_embed.shape[1] == 4 * 4 + 1 < donor.pos_embed.shape[1]
    donor.set_input_size(img_size=(64, 64))
    assert torch.equal(model.pos_embed, donor.pos_embed)


def test_rates_that_an_architecture_does_not_take(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = FAST | {"architecture": "densenet121", "image_size": 32}
    with pytest.raises(UserError, match=r"--drop-path-rate 0\.1: densenet121 has no such thing; leave it out"):
        train_art_encoder(ArtEncoderSettings(**fast, data=folders, output_dir=tmp_path / "out", epochs=1))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def labels(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of styles, and of genres that half of the pictures have."""
    file = tmp_path_factory.mktemp("labels") / "labels.csv"
    rows = [
        f"{style}/{number}.png,{style},{'' if number % 2 else 'abc'[number % 3]}"
        for style in ("rows", "columns")
        for number in range(16)
    ]
    file.write_text("\n".join(["image,style,genre", *rows]) + "\n")
    return file


def heads_settings(folders: Path, labels: Path, output: Path, **more: object) -> ArtEncoderSettings:
    fast = FAST | {"architecture": "test_efficientnet", "validation_fraction": 0.4} | more
    return ArtEncoderSettings(**fast, data=labels, image_root=folders, heads="style,genre", output_dir=output, epochs=2)


def test_several_heads_are_scored_recorded_and_ignored_by_the_encoder(
    folders: Path, labels: Path, tmp_path: Path
) -> None:
    result = train_art_encoder(heads_settings(folders, labels, tmp_path))
    style, genre = result.scores.heads
    assert (style.name, sum(one.count for one in style.per_class)) == ("style", 12)
    assert 0 < sum(one.count for one in genre.per_class) < 12
    assert result.scores.top1 == pytest.approx((style.top1 + genre.top1) / 2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = lines[result.epoch - 1]
    assert (best["style_top1"], best["genre_top1"]) == (style.top1, genre.top1)
    assert best["validation_loss"] == pytest.approx(best["style_loss"] + best["genre_loss"])
    assert {"style_top5", "genre_top5", "mean_style_top1", "mean_genre_top1"} <= best.keys()
    for head, classes in (("style", ["columns", "rows"]), ("genre", ["a", "b", "c"])):
        with (tmp_path / f"per_{head}.csv").open(newline="") as stream:
            assert [row[head] for row in csv.DictReader(stream)] == classes
    events = EventAccumulator(str(tmp_path)).Reload()
    curve = [event.value for event in events.Scalars("validation/genre_top1")]
    assert curve == [pytest.approx(line["genre_top1"]) for line in lines]

    with safe_open(result.checkpoint, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["heads"]) == {"style": ["columns", "rows"], "genre": ["a", "b", "c"]}
    assert tensors(result.checkpoint)["classifier.weight"].shape[0] == 5
    encoder = load_art_encoder(
        ArtEncoderConfig(architecture="test_efficientnet", checkpoint=result.checkpoint, image_size=32)
    )
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 256)


@pytest.mark.parametrize(("call", "step"), [(1, 1), (3, 3), (4, 3), (6, 5)])
def test_a_training_stopped_within_an_epoch_goes_on_to_the_same_bytes(
    call: int, step: int, folders: Path, labels: Path, tmp_path: Path
) -> None:
    """call: asked after each of 3 steps and after the epoch. With dropout, mixing and several heads."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train_art_encoder(heads_settings(folders, labels, whole, class_balance=0.5))
    settings = heads_settings(folders, labels, halves, class_balance=0.5)
    done = 0

    def reason() -> str | None:
        nonlocal done
        done += 1
        return "SIGTERM" if done >= call else None

    with pytest.raises(Preempted, match=f"stopped by SIGTERM after step {step}"):
        train_art_encoder(settings, stop_reason=reason)
    torch.rand(3), np.random.rand(3)
    train_art_encoder(settings.model_copy(update={"resume": True}))
    for name in ("test_efficientnet.safetensors", "state.safetensors"):
        assert_same_tensors(halves / name, whole / name)
    assert untimed(halves) == untimed(whole)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, r"metrics\.jsonl is a folder; give a file in it, or another place"),
        ("checked_pictures", None, "checked_pictures is a folder"),
        ("per_style.csv", None, r"per_style\.csv is a folder"),
        ("efficientnet_lite0.safetensors", None, r"efficientnet_lite0\.safetensors is a folder"),
        ("state.safetensors", None, r"state\.safetensors is a folder"),
        ("state.safetensors", bytes(200), r"state\.safetensors is damaged .*; delete it and start again"),
        ("state.safetensors", b"", r"state\.safetensors is damaged"),
        ("metrics.jsonl", b'{"kind": "train", "step": 1}\n', r"metrics\.jsonl:1: is no line of a training of the art"),
        ("metrics.jsonl", b"\xff\xfe\n", r"metrics\.jsonl:1: is no line of a training"),
        ("efficientnet_lite0.safetensors", b"mine", "is there already, and no training's; move it elsewhere"),
    ],
)
def test_a_refused_start_leaves_nothing(
    name: str, content: bytes | None, message: str, folders: Path, tmp_path: Path
) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        train_art_encoder(ArtEncoderSettings(**FAST, data=folders, output_dir=tmp_path, epochs=1, resume=True))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert content is None or (tmp_path / name).read_bytes() == content
