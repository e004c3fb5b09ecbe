"""What has changed since a cache was made is noticed, with the reason; what has not is not made again."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from artkv.config import Config, override_config
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.feature_cache import check_cache, decoded_before, verify_store
from artkv.feature_cache.contents import PictureMemo
from artkv.feature_cache.store import FeatureStore, open_store
from tests.damage import check, damaged
from tests.feature_cache.conftest import cache_settings, files_of, prepare, tables_of
from tests.mounted import Disk


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the encoders was given, the filling of batches included."""
    from artkv.models.frozen_encoders import FrozenEncoders

    calls: list[int] = []
    true_encode = FrozenEncoders.encode
    monkeypatch.setattr(
        FrozenEncoders, "encode", lambda self, views: calls.append(len(views)) or true_encode(self, views)
    )
    return calls


def refused(config: Config) -> str:
    """Why the cache is refused; nothing in it may change."""
    before = files_of(config)
    with pytest.raises(UserError) as error:
        prepare(config)
    assert files_of(config) == before
    with pytest.raises(UserError) as checked:
        check_cache(cache_settings(config), single_process())
    assert str(checked.value) == str(error.value)
    return str(error.value)


def change_weight(path: Path, name: str) -> None:
    """The smallest change that bfloat16 shows, in one value."""
    weights = load_file(path)
    weights[name].view(-1)[0] += weights[name].view(-1)[0].abs() * 2**-6 + 1e-3
    save_file(weights, path, {"format": "pt"})


def other_vit(folder: Path) -> list[str]:
    change_weight(folder / "blip2/model.safetensors", "vision_model.encoder.layers.1.mlp.fc2.weight")
    return []


def other_layer_norm(folder: Path) -> list[str]:
    change_weight(folder / "blip2/model.safetensors", "vision_model.post_layernorm.bias")
    return []


def other_efficientnet(folder: Path) -> list[str]:
    encoder = timm.create_model("test_efficientnet", num_classes=3)
    save_file(encoder.state_dict(), folder / "efficientnet.safetensors")
    return []


def other_running_statistics(folder: Path) -> list[str]:
    change_weight(folder / "efficientnet.safetensors", "bn1.running_var")
    return []


def other_vit_view(folder: Path) -> list[str]:
    path = folder / "blip2/preprocessor_config.json"
    path.write_text(path.read_text().replace("0.48145466", "0.5"))
    return []


def other_heads(folder: Path) -> list[str]:
    path = folder / "blip2/config.json"
    text = path.read_text()
    vision = text.index('"vision_config"')
    path.write_text(text[:vision] + text[vision:].replace('"num_attention_heads": 4', '"num_attention_heads": 2', 1))
    return []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_vit, "with other ViT weights than model.blip2 has"),
        (other_layer_norm, "with other ViT weights than model.blip2 has"),
        (other_efficientnet, "with other EfficientNet weights than efficientnet.checkpoint has"),
        (other_running_statistics, "with other EfficientNet weights than efficientnet.checkpoint has"),
        (other_vit_view, "with another size, mean or std of the ViT's pictures"),
        (other_heads, 'with a ViT of other settings than model.blip2 has ({"activation": "gelu", "heads": 4'),
        (lambda _: ["efficientnet.image_size=64"], "with another efficientnet.image_size, mean or std ([32, "),
        (lambda _: ["efficientnet.std=[0.2, 0.2, 0.3]"], "with another efficientnet.image_size, mean or std ([32, "),
        (lambda _: ["model.dtype=bfloat16"], "features in float32, but this run computes in bfloat16"),
    ],
)
def test_stale_caches_are_refused(
    config: Config, world_folder: Path, change: Callable[[Path], list[str]], reason: str
) -> None:
    prepare(config)
    message = refused(override_config(config, change(world_folder)))
    folder = config.frozen.feature_cache
    assert message.startswith(f"frozen.feature_cache = {folder}: was made with ")
    assert reason in message
    assert message.count(" with ") == 1  # that reason alone
    assert message.endswith(f"; give another folder, or delete {folder}")


def test_all_reasons_are_told(config: Config, world_folder: Path) -> None:
    prepare(config)
    other_vit(world_folder)
    other_efficientnet(world_folder)
    message = refused(config)
    assert "other ViT weights" in message
    assert "other EfficientNet weights" in message


def test_what_does_not_matter_does_not_matter(config: Config, world_folder: Path, encoded: list[int]) -> None:
    prepare(config)
    change_weight(world_folder / "blip2/model.safetensors", "qformer.encoder.layer.0.attention.attention.query.weight")
    change_weight(world_folder / "blip2/model.safetensors", "language_model.model.decoder.final_layer_norm.weight")
    encoded.clear()
    prepare(override_config(config, ["training.seed=4", "kv_modulation.num_prefix_tokens=5"]))
    assert encoded == []


@pytest.mark.parametrize(
    ("dtype", "storage"), [("float32", "bf16"), ("float32", "int8"), ("bfloat16", "bf16"), ("bfloat16", "int8")]
)
def test_records_do_not_depend_on_how_the_vit_is_held(config: Config, tmp_path: Path, dtype: str, storage: str) -> None:
    """Or an exact run would read the features of rounded weights."""
    resident = override_config(config, [f"model.dtype={dtype}"])
    held = ["frozen.vit=stream", f"frozen.storage={storage}", f"frozen.feature_cache={tmp_path / 'held'}"]
    streamed = override_config(resident, held)
    prepare(resident)
    prepare(streamed)
    assert files_of(streamed) == files_of(resident)


def test_another_format_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(config)
    monkeypatch.setattr("artkv.feature_cache.fingerprint.FORMAT", 3)
    assert "a feature cache of format 2, not 3; give another folder" in refused(config)


def test_control_reads_a_cache_with_art_features_and_adds_to_it(config: Config, tmp_path: Path) -> None:
    prepare(config)
    control = override_config(config, ["kv_modulation.enabled=false"])
    (table,) = tables_of(config, "train")
    one = np.array([0])
    assert prepare(control).paintings(table).load(one, one, pin_memory=False).art_features is None
    prepare(control, "train", "val")
    prepare(config, "train", "val")
    whole = override_config(config, [f"frozen.feature_cache={tmp_path / 'whole'}"])
    prepare(whole)
    prepare(whole, "train", "val")
    assert files_of(config) == files_of(whole)
    without = override_config(control, ["efficientnet.checkpoint=null"])
    prepare(without, "train", "val")  # complete: the EfficientNet is not asked for
    (next((tmp_path / "features/shards").iterdir())).unlink()
    with pytest.raises(UserError, match="set efficientnet.checkpoint to the one it was made with"):
        prepare(without, "train", "val")


def test_cache_of_a_control_is_no_cache_for_prefixes(config: Config) -> None:
    prepare(override_config(config, ["kv_modulation.enabled=false"]))
    assert "was made with kv_modulation.enabled: false, without EfficientNet features" in refused(config)


def test_changed_picture_is_computed_anew(config: Config, encoded: list[int]) -> None:
    """Though its size and the time of its content are what they were."""
    cached = prepare(config)
    (table,) = tables_of(config, "train")
    path = table.painting_paths[2]
    before = path.stat()
    picture = np.array(Image.open(path))
    encoded.clear()
    picture[0, 0] += 1
    Image.fromarray(picture).save(path, compress_level=0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    is_known = decoded_before(config.frozen.feature_cache)
    assert not is_known(path)
    assert is_known(table.painting_paths[3])
    shards = files_of(config, "index.json", "pictures.json")
    renewed = prepare(config)
    assert encoded == [16]
    old, new = (c.paintings(table).load(np.arange(12), np.arange(12), False).image_features for c in (cached, renewed))
    assert [not torch.equal(a, b) for a, b in zip(old, new, strict=True)] == [n == 2 for n in range(12)]
    assert files_of(config).items() > shards.items()  # added, and nothing rewritten


def test_just_written_picture_is_not_remembered(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change again within a tick of the clock, with the same size and time."""
    monkeypatch.setattr("artkv.feature_cache.contents.SETTLED_SECONDS", 3600.0)
    prepare(config)
    assert "pictures.json" not in files_of(config)


def test_unchanged_pictures_are_not_read_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(config)

    def poisoned(name: str) -> None:
        raise AssertionError(f"{name} was hashed")

    monkeypatch.setattr("artkv.feature_cache.contents._hash", poisoned)
    prepare(config)


def test_pictures_are_hashed_by_python_3_10(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    cached = prepare(config)
    assert all(hashlib.sha256(Path(name).read_bytes()).hexdigest() == found for name, found in cached.contents.items())


def test_equal_pictures_share_a_record(config: Config, world_folder: Path, encoded: list[int]) -> None:
    (table,) = tables_of(config, "train")
    shutil.copy(table.painting_paths[1], table.painting_paths[5])
    cached = prepare(config)
    assert len(cached.store.place_of) == 12
    numbers = np.array([1, 5])
    features = cached.paintings(table).load(numbers, numbers, pin_memory=False)
    assert torch.equal(features.image_features[0], features.image_features[1])


def test_pictures_are_added_without_rewriting(config: Config, encoded: list[int]) -> None:
    prepare(config)
    before = files_of(config, "index.json", "pictures.json")
    encoded.clear()
    both = prepare(config, "train", "val")
    assert len(both.store.place_of) == 13 + 5
    assert encoded == [16, 16]  # two shards, of 4 and of 1
    assert files_of(config).items() > before.items()


def test_lost_index_and_memo_cost_nothing_but_time(config: Config, encoded: list[int]) -> None:
    prepare(config, "train", "val")
    whole = files_of(config)
    folder = cache_settings(config).folder
    (folder / "index.json").unlink()
    (folder / "pictures.json").write_text("{")
    encoded.clear()
    prepare(config, "train", "val")
    assert encoded == []
    assert files_of(config) == whole


def one_shard(config: Config) -> Path:
    return sorted((cache_settings(config).folder / "shards").iterdir())[1]


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated_shard_is_named(config: Config, size: int, with_index: bool) -> None:
    prepare(config)
    whole = files_of(config)
    path = one_shard(config)
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    if not with_index:
        (cache_settings(config).folder / "index.json").unlink()
    with pytest.raises(UserError, match="delete this file, `artkv cache` makes it again") as error:
        prepare(config)
    assert str(path) in str(error.value)
    path.unlink()
    prepare(config)
    assert files_of(config) == whole


def test_flipped_bit_is_found_by_verifying(config: Config) -> None:
    prepare(config)
    assert verify_store(cache_settings(config).folder, single_process()) == 13
    for offset_from_end in (1, 3000):  # in the last art features, and in image features
        path = one_shard(config)
        whole = path.read_bytes()
        content = bytearray(whole)
        content[-offset_from_end] ^= 4
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"record \d+ \(picture .*is not what was written; delete this file"):
            verify_store(cache_settings(config).folder, single_process())
        path.write_bytes(whole)
    assert verify_store(cache_settings(config).folder, single_process()) == 13


def test_shard_of_another_cache_is_refused(config: Config, tmp_path: Path) -> None:
    prepare(config)
    other = override_config(config, [f"frozen.feature_cache={tmp_path / 'other'}", "efficientnet.image_size=40"])
    prepare(other, "val")
    stray = next((tmp_path / "other/shards").iterdir())
    shutil.copy(stray, tmp_path / "features/shards")
    with pytest.raises(UserError, match="was not made with what .*cache.json says; delete this file"):
        prepare(config)


def test_folder_of_something_else_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features/thesis.tex").write_text("dear")
    assert "holds something else; give a new or an empty folder" in refused(config)


@pytest.mark.parametrize("name", ["index.json", "pictures.json", "cache.json", "shard"])
def test_damaged_files_are_refused_or_do_without(config: Config, name: str) -> None:
    """None makes a picture another's: what is read is what was written."""
    folder = prepare(config).store.folder
    path = sorted((folder / "shards").glob("*"))[0] if name == "shard" else folder / name
    content = path.read_bytes()
    if name == "shard":
        (folder / "index.json").unlink()
    whole, known = open_store(folder), PictureMemo(folder / "pictures.json")._known
    assert known
    new_ones = [new for number, new in enumerate(damaged(content[:3000])) if number % 2 == 0]
    for new in new_ones:
        path.write_bytes(new + content[3000:])
        found: list[FeatureStore] = []
        if not check(lambda: found.append(open_store(folder)), new):  # noqa: B023
            assert [shard.image for shard in found[0].shards] == [shard.image for shard in whole.shards]
            assert name == "shard" or found[0].place_of == whole.place_of
        remembered = PictureMemo(folder / "pictures.json")._known
        assert remembered in (known, {})


def test_a_memo_of_an_earlier_artkv_is_read(config: Config) -> None:
    path = prepare(config).store.folder / "pictures.json"
    known = PictureMemo(path)._known
    path.write_text(json.dumps(json.loads(path.read_text())["files"]))
    assert PictureMemo(path)._known == known


@pytest.mark.parametrize("disk", [1], indirect=True)
def test_a_disk_that_fills_up_leaves_a_cache_that_goes_on(config: Config, disk: Disk) -> None:
    folder = disk.folder / "features"
    here = override_config(config, [f"frozen.feature_cache={folder}"])
    disk.fill(leave=24_576)
    with pytest.raises(UserError, match=r"features-.*.safetensors cannot be written \(No space left on device\); give"):
        prepare(here)
    shards = [path.name for path in (folder / "shards").iterdir()]
    assert shards  # there was room for some
    assert all(path.name.startswith("features-") for path in (folder / "shards").iterdir())
    before = {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}
    disk.free()
    assert len(prepare(here).store.place_of) == 13
    assert all((folder / "shards" / name).read_bytes() == content for name, content in before.items())
