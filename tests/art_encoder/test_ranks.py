"""Ranks of an art encoder's training, forked: the result of one alone, stops that are saved, a rank that dies."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.ranks import check_batch_can_be_shared
from artkv.distributed import World
from artkv.errors import UserError
from tests.system.ranks import SECONDS, Ranks, run_to_end, started


def training(folders: Path, output: Path, *more: str) -> list[str]:
    """Arguments for a network with BatchNorm, two heads, mixing, and an odd number of pictures to validate on."""
    rows = [
        f"{style}/{number}.png,{style},{'' if number % 3 == 0 else 'ab'[number % 2]}"
        for style in ("rows", "columns")
        for number in range(16 if style == "rows" else 15)
    ]
    table = output.parent / "labels.csv"
    table.write_text("\n".join(["image,style,genre", *rows]) + "\n")
    words = ["--data", table, "--image-root", folders, "--heads", "style,genre", "--output-dir", output]
    shape = ["--architecture", "test_efficientnet", "--image-size", "32", "--batch-size", "8", "--workers", "0"]
    return ["art-encoder", *map(str, words), *shape, "--device", "cpu", "--epochs", "2", *more]


def metrics(output: Path) -> list[dict[str, float]]:
    timed = {"train_seconds", "pictures_per_second"}
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_two_ranks_learn_what_one_learns(folders: Path, tmp_path: Path) -> None:
    still = ["--drop-rate", "0", "--drop-path-rate", "0", "--validation-fraction", "0.3"]
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        run_to_end(training(folders, tmp_path / str(number) / "out", *still), tmp_path / str(number), number)
    one, two = tmp_path / "1" / "out", tmp_path / "2" / "out"
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        # float32 sums in another order; the worst seen is 2e-7
        assert ours == pytest.approx(theirs, abs=1e-5)
    ours, theirs = tensors(two / "test_efficientnet.safetensors"), tensors(one / "test_efficientnet.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        # AdamW makes a step of the learning rate, 3e-4 at most, of a gradient that is nothing but rounding; 8 steps
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-3, rtol=1e-3, msg=name)
    counts = [line.split(",")[1] for line in (two / "per_style.csv").read_text().splitlines()[1:]]
    assert list(map(int, counts)) == [4, 5]  # 0.3 of 15 and of 16, each counted once


def test_a_stop_of_one_rank_is_saved_by_all_and_goes_on_to_the_same_bytes(folders: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    long = ["--epochs", "40"]
    run_to_end(training(folders, whole, *long), tmp_path / "first")
    with started(training(folders, halves, *long), tmp_path / "second") as ranks:
        wait_for(halves / "metrics.jsonl", ranks)
        os.kill(ranks.pid(1), signal.SIGTERM)
        assert ranks.exit_codes() == [75, 75], ranks.told()
        assert "stopped by SIGTERM after step" in ranks.told()
        assert "go on with --resume\n" in ranks.told()
    assert len(metrics(halves)) < 40
    run_to_end(training(folders, halves, *long, "--resume"), tmp_path / "third")
    assert metrics(halves) == metrics(whole)
    for name in ("state.safetensors", "test_efficientnet.safetensors"):
        ours, theirs = tensors(halves / name), tensors(whole / name)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_a_dead_rank_ends_the_others(folders: Path, tmp_path: Path) -> None:
    with started(training(folders, tmp_path / "out", "--epochs", "1000"), tmp_path) as ranks:
        wait_for(tmp_path / "out" / "metrics.jsonl", ranks)
        ranks.send(signal.SIGKILL, [1])
        assert ranks.exit_codes() == [3, -9], ranks.told()
        assert "another rank is gone" in ranks.told()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heads", "style,school"], "missing column 'school'"),
        (["--batch-size", "6"], "--batch-size 6: are the pictures of a step on all ranks together, which 2 ranks"),
    ],
)
def test_wrong_input_is_told_once_by_all_ranks(
    more: Sequence[str], message: str, folders: Path, tmp_path: Path
) -> None:
    with started(training(folders, tmp_path / "out", *more), tmp_path) as ranks:
        assert ranks.exit_codes() == [1, 1], ranks.told()
        assert ranks.told().count(message) == 1
    assert not (tmp_path / "out").exists()


def wait_for(file: Path, ranks: Ranks) -> None:
    """Until an epoch is done."""
    deadline = time.monotonic() + SECONDS
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline
        assert ranks.all_live(), ranks.told()
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("size", "mixup", "given", "remedy"), [(4, 0.2, 12, "16"), (3, 0.0, 16, "18"), (2, 0.2, 6, "8")]
)
def test_a_batch_that_ranks_cannot_share_is_refused(size: int, mixup: float, given: int, remedy: str) -> None:
    settings = ArtEncoderSettings(data="x", batch_size=given, mixup=mixup, cutmix=0)
    with pytest.raises(UserError, match=f"--batch-size {given}: .* {size} ranks cannot share evenly.*; give {remedy}$"):
        check_batch_can_be_shared(settings, World(0, 0, size, torch.device("cpu")))
    good = settings.model_copy(update={"batch_size": int(remedy)})
    check_batch_can_be_shared(good, World(0, 0, size, torch.device("cpu")))
