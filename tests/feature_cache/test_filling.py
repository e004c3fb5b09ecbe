"""Records are what the encoders say, and the same bytes whoever makes them and however often he is killed."""

import errno
import fcntl
import gc
import itertools
import multiprocessing
import os
import signal
import stat
import threading
import weakref
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Blip2ForConditionalGeneration

from artkv.config import Config, override_config
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.feature_cache import filling, preparation, prepare_features, shared_files
from artkv.feature_cache.filling import decoding_threads, plan_shards
from artkv.models.backbone.transformers_backend import TransformersBackbone
from artkv.models.frozen_encoders import open_frozen_encoders
from tests.feature_cache.conftest import SHARD_SIZE, cache_settings, files_of, on_ranks, prepare, tables_of


def views_of(config: Config, path: Path) -> list[torch.Tensor]:
    encoders = open_frozen_encoders(config, single_process())
    return [encoder.view.of(Image.open(path).convert("RGB")) for encoder in encoders]


def test_features_are_those_of_stock_encoders(config: Config, world_folder: Path) -> None:
    cached = prepare(config)
    (table,) = tables_of(config, "train")
    numbers = np.arange(table.num_paintings)
    features = cached.paintings(table).load(numbers, numbers, pin_memory=False)
    stock = Blip2ForConditionalGeneration.from_pretrained(world_folder / "blip2").eval()
    encoder = timm.create_model("test_efficientnet", num_classes=0).eval()
    weights = load_file(world_folder / "efficientnet.safetensors")
    encoder.load_state_dict({name: w for name, w in weights.items() if not name.startswith("classifier.")})
    (art_features,) = features.art_features
    assert art_features.dtype == torch.float32
    for number, path in enumerate(table.painting_paths):
        vit_view, art_view = views_of(config, path)
        with torch.no_grad():
            image = stock.vision_model(vit_view[None]).last_hidden_state[0]
            art = encoder(art_view[None])[0]
        # fp32 in batches of 16 against one by one, values to 3: worst seen 0 and 7e-9; other kernels may round more.
        torch.testing.assert_close(features.image_features[number], image, rtol=0, atol=1e-5)
        torch.testing.assert_close(art_features[number], art, rtol=0, atol=1e-5)


def test_blank_picture_is_a_record(config: Config) -> None:
    cached = prepare(config)
    (table,) = tables_of(config, "train")
    blank = cached.paintings(table).load_blank(2, pin_memory=False)
    encoders = open_frozen_encoders(config, single_process())
    for encoder in encoders:
        encoder.load(single_process())
    grey = Image.new("RGB", (32, 32), (127, 127, 127))
    image, art = (encoder.encode(encoder.view.of(grey)[None])[0] for encoder in encoders)
    for row in range(2):
        torch.testing.assert_close(blank.image_features[row], image, rtol=0, atol=1e-5)
        torch.testing.assert_close(blank.art_features[0][row], art, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_make_the_same_bytes(config: Config, tmp_path: Path, size: int) -> None:
    prepare(config)
    shared = override_config(config, [f"frozen.feature_cache={tmp_path / 'shared'}"])
    results = on_ranks(size, lambda world: prepare(shared, world=world).stores[0].place_of)
    assert all(result == results[0] and len(result) == 13 for result in results)
    assert files_of(config) == files_of(shared)
    assert len(files_of(config)) == 2 + 2 * (2 + 4)


@pytest.mark.parametrize(("size", "rounds"), [(1, 4), (2, 2)])
def test_ranks_meet_after_each_batch(config: Config, monkeypatch: pytest.MonkeyPatch, size: int, rounds: int) -> None:
    monkeypatch.setattr(filling, "RECORDS_A_BATCH", 2)
    told: list[list[bool]] = [[] for _ in range(size)]

    def on_rank(world: World) -> None:
        prepare_features(cache_settings(config), tables_of(config, "train"), world, told[world.rank].append)

    assert on_ranks(size, on_rank) == [None] * size
    # Two batches of a shard and its writing; the last of 13 pictures has a shard of its own.
    assert told == [[False, False, True, *[True] * 3 * (rounds - 1)]] * size


def test_what_ends_a_filling_after_each_batch_keeps_the_shards(config: Config) -> None:
    class Stop(Exception):
        pass

    def stop(has_shards: bool) -> None:
        if has_shards:
            raise Stop

    tables = tables_of(config, "train")
    results = on_ranks(2, lambda world: prepare_features(cache_settings(config), tables, world, stop))
    assert [type(result) for result in results] == [Stop, Stop]
    kept = {name for name in files_of(config) if "/shards/" in name}
    assert len(kept) == 2 * 2
    prepare(config)
    assert kept < files_of(config).keys()


def test_an_error_of_one_rank_ends_all(config: Config, world_folder: Path) -> None:
    """A picture that is whole when checked and cannot be decoded when its turn comes."""
    (table,) = tables_of(config, "train")
    table.painting_paths[3].write_bytes(b"no picture")
    results = on_ranks(2, lambda world: prepare(config, world=world))
    assert all(isinstance(result, UserError) for result in results)
    assert str(results[0]) == str(results[1])
    assert f"picture {table.painting_paths[3]}: not a picture of a known format" in str(results[0])


def test_full_disk_of_one_rank_ends_all(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second file, a shard."""
    number = itertools.count()  # drawn from atomically by both ranks
    true_fsync = os.fsync

    def fsync(file: int) -> None:
        if not stat.S_ISDIR(os.fstat(file).st_mode) and next(number) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        true_fsync(file)

    monkeypatch.setattr(shared_files.os, "fsync", fsync)
    results = on_ranks(2, lambda world: prepare(config, world=world))
    assert all(isinstance(result, UserError) for result in results)
    assert "/shards: features-" in str(results[0])
    assert "cannot be written (No space left on device); give frozen.feature_cache a folder that has room" in str(
        results[1]
    )
    assert not [name for name in files_of(config) if name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("is_complete", "message"),
    [(True, "of 13 pictures are there for other ranks and not seen here"), (False, "(No such file or directory)")],
)
def test_rank_that_does_not_see_the_folder_ends_all(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_complete: bool, message: str
) -> None:
    monkeypatch.setattr(preparation, "SEEN_WITHIN_SECONDS", 0.0)
    if is_complete:
        prepare(config)
    hidden = override_config(config, [f"frozen.feature_cache={tmp_path / 'elsewhere'}"])
    results = on_ranks(2, lambda world: prepare((config, hidden)[world.rank], world=world))
    assert all(isinstance(result, UserError) for result in results)
    assert all(message in str(result) and str(result).endswith("that all hosts share") for result in results)


def test_encoders_are_gone_afterwards(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though streamed blocks are reference cycles; their memory is wanted for training."""
    parts: list[weakref.ref[torch.nn.Module]] = []
    true_load = TransformersBackbone.load_vit

    def load(backbone: TransformersBackbone, world: World) -> None:
        true_load(backbone, world)
        parts.extend(weakref.ref(part) for part in backbone._modules.root.modules())  # type: ignore[attr-defined]

    monkeypatch.setattr(TransformersBackbone, "load_vit", load)
    gc.disable()
    try:
        prepare(override_config(config, ["frozen.vit=stream", "model.dtype=bfloat16"]))
        assert parts
        assert not any(part() for part in parts)
    finally:
        gc.enable()


@pytest.mark.parametrize(("wanted", "cores", "expected"), [(0, 8, 4), (1, 8, 4), (6, 8, 6), (2, 64, 16), (0, 1, 1)])
def test_decoders_are_at_least_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, wanted: int, cores: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert on_ranks(2, lambda world: decoding_threads(wanted, world)) == [expected] * 2


def test_ranks_with_cores_of_their_own_share_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cores_of: dict[int, set[int]] = {0: {0, 1, 2}, 1: {3, 4, 5}}
    rank = threading.local()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores_of[rank.number])

    def count(world: World) -> int:
        rank.number = world.rank
        return decoding_threads(1, world)

    assert on_ranks(2, count) == [3, 3]


def _killed_at(config: Config, number: int) -> int:
    """Exit code of a process that fills the cache and is killed at its fsync of that number."""

    def fill() -> None:
        count = 0
        true_fsync = os.fsync

        def fsync(file: int) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            true_fsync(file)

        shared_files.os.fsync = fsync  # type: ignore[attr-defined]
        prepare(config)

    process = multiprocessing.get_context("fork").Process(target=fill)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def test_killed_and_begun_again_it_ends_with_the_same_bytes(config: Config, tmp_path: Path) -> None:
    """Killed at every point where something gets to the disk: before and after each rename."""
    prepare(config)
    whole = files_of(config)
    num_points = 2 * len(whole)
    for number in range(1, num_points + 1):
        other = override_config(config, [f"frozen.feature_cache={tmp_path / f'killed_{number}'}"])
        assert _killed_at(other, number) == -signal.SIGKILL
        before = files_of(other)
        assert before != whole or number == num_points  # the last fsync is of the folder: all is there
        kept = {name for name in before if "/shards/features" in name}
        made_at = {name: (other.frozen.feature_cache / name).stat().st_mtime_ns for name in kept}  # type: ignore[operator]
        prepare(other)
        assert files_of(other) == whole, f"killed at {number}"
        for name, made in made_at.items():  # a shard that was whole is not made again
            assert (other.frozen.feature_cache / name).stat().st_mtime_ns == made  # type: ignore[operator]
    assert _killed_at(override_config(config, [f"frozen.feature_cache={tmp_path / 'last'}"]), num_points + 1) == 0


def test_twice_killed_by_turns_of_two_ranks(config: Config, tmp_path: Path) -> None:
    """What one rank had made when all were killed is kept by any number of ranks."""
    prepare(config)
    other = override_config(config, [f"frozen.feature_cache={tmp_path / 'killed'}"])
    assert _killed_at(other, 7) == -signal.SIGKILL
    assert _killed_at(other, 3) == -signal.SIGKILL
    on_ranks(2, lambda world: prepare(other, world=world))
    assert files_of(other) == files_of(config)


def test_temporary_files_of_the_living_are_left_alone(tmp_path: Path) -> None:
    dead = tmp_path / ".a.safetensors.0123456789ab.tmp"
    dead.write_bytes(b"half")
    living = tmp_path / ".b.safetensors.ba9876543210.tmp"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shared_files.remove_abandoned(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [living.name]
    shared_files.remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())


def test_abandoned_files_are_known_where_only_writers_may_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".a.safetensors.0123456789ab.tmp").write_bytes(b"half")

    def flock(file: BinaryIO, operation: int) -> None:  # NFS's, as of flock(2)
        if operation & fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(shared_files.fcntl, "flock", flock)
    shared_files.remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("replaces", [True, False])
def test_a_temporary_file_that_another_host_removed_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    """Where locks are each host's own (Lustre with localflock) a living writer's file looks abandoned."""
    true_fsync = os.fsync
    removed: list[Path] = []

    def fsync(file: int) -> None:
        true_fsync(file)
        if not removed:
            removed.extend(tmp_path.glob(".*.tmp"))
            removed[0].unlink()

    monkeypatch.setattr(shared_files.os, "fsync", fsync)
    shared_files.write_shared(tmp_path / "shard", b"content", replaces)
    assert removed
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
    assert (tmp_path / "shard").read_bytes() == b"content"


def test_complete_shards_do_not_move_the_others() -> None:
    contents = [f"{number:064x}" for number in range(3 * SHARD_SIZE + 2)]
    whole = plan_shards(contents)
    assert plan_shards(contents[::-1]) == whole
    for kept in range(len(whole)):
        missing = [content for content in contents if content not in whole[kept]]
        assert plan_shards(missing) == [shard for number, shard in enumerate(whole) if number != kept]


def test_two_jobs_at_once(config: Config) -> None:
    """Two jobs fill one folder, each a world of its own."""
    both = on_ranks(2, lambda world: prepare(config, world=World(0, 0, 1, torch.device("cpu"))).stores[0].place_of)
    assert both[0] == both[1]
    together = files_of(config)
    for path in config.frozen.feature_cache.glob("*/shards/*"):  # type: ignore[union-attr]
        path.unlink()
    prepare(config)
    assert files_of(config) == together


@pytest.mark.parametrize("has_links", [True, False])
def test_a_shard_of_another_job_is_left_as_it_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Whoever has it open could not read it any more on NFS before version 4."""
    if not has_links:

        def link(*arguments: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    lone = World(0, 0, 1, torch.device("cpu"))
    true_fill = filling.fill
    inodes: list[dict[Path, int]] = []

    def late(*arguments: object) -> None:
        """The other job was quicker."""
        if not inodes:
            inodes.append({})
            prepare(config, world=lone)
            inodes[0] = {path: path.stat().st_ino for path in config.frozen.feature_cache.rglob("*/*")}  # type: ignore[union-attr]
        true_fill(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "fill", late)
    prepare(config, world=lone)
    assert len(inodes[0]) == 2 * (3 + 4)
    assert inodes[0] == {path: path.stat().st_ino for path in inodes[0]}


def test_two_writers_of_one_name_leave_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that there is none."""
    path = tmp_path / "shard"
    path.write_bytes(b"first")
    inode = path.stat().st_ino
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    true_link = os.link

    def link(source: Path, target: Path) -> None:
        monkeypatch.undo()
        true_link(source, target)

    monkeypatch.setattr(os, "link", link)
    shared_files.write_shared(path, b"second", replaces=False)
    assert path.read_bytes() == b"first"
    assert path.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [path]
