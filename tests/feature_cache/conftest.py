"""A tiny world of one's own to change, caches of it, and ranks that are threads."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from artkv.config import Config, load_config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.table import QuestionTable, read_table
from artkv.distributed import World, single_process
from artkv.feature_cache import CachedTables, CacheSettings, prepare_features
from artkv.session import Session

SHARD_SIZE = 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some shards even of the tiny world, the last one not full; 13 pictures of `train` with the blank one.

    Its files are some seconds young at most, and are remembered all the same.
    """
    monkeypatch.setattr("artkv.feature_cache.filling.RECORDS_A_SHARD", SHARD_SIZE)
    monkeypatch.setattr("artkv.datasets.member_index.SETTLED_SECONDS", 0.0)


@pytest.fixture
def world_folder(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world that a test may change."""
    return Path(shutil.copytree(tiny_world, tmp_path / "world"))


@pytest.fixture
def config(world_folder: Path, tmp_path: Path) -> Config:
    return load_config(
        world_folder / "config.yaml",
        [f"frozen.feature_cache={tmp_path / 'features'}", f"run.output_dir={tmp_path / 'run'}"],
    )


def tables_of(config: Config, *splits: str) -> list[QuestionTable]:
    assert config.dataset.image_root is not None
    images = ImageIndex(config.dataset.image_root)
    return [read_table(getattr(config.dataset, split), images) for split in splits]


def cache_settings(config: Config) -> CacheSettings:
    return Session(config, single_process()).cache_settings


def prepare(config: Config, *splits: str, world: World | None = None) -> CachedTables:
    """Fills the config's cache with the pictures of the splits (train)."""
    tables = tables_of(config, *(splits or ("train",)))
    return prepare_features(cache_settings(config), tables, world or single_process())


def files_of(config: Config, *but: str) -> dict[str, bytes]:
    """Every file of the cache by name."""
    folder = config.frozen.feature_cache
    assert folder is not None
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }


class ThreadWorld(World):
    """A rank that is a thread; its collectives meet in memory."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, box: list[Any]) -> None:
        super().__init__(rank, rank, size, torch.device("cpu"))
        object.__setattr__(self, "meeting", meeting)
        object.__setattr__(self, "box", box)

    def _exchange(self, value: Any) -> list[Any]:
        self.box[self.rank] = value
        self.meeting.wait(timeout=60)
        values = list(self.box)
        self.meeting.wait(timeout=60)
        return values

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self.gather(tensor.clone())).sum(0))

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def barrier(self) -> None:
        self.meeting.wait(timeout=60)


def on_ranks(size: int, action: Callable[[World], Any]) -> list[Any]:
    """What `action` returned, or the exception it raised, on each of so many ranks."""
    meeting, box = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = action(ThreadWorld(rank, size, meeting, box))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results
