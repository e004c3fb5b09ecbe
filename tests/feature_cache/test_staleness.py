"""What has changed since a cache was made is noticed, with the reason; what has not is not made again."""

import hashlib
import itertools
import json
import os
import re
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
from artkv.models.frozen_encoders import open_frozen_encoders
from tests.damage import check, damaged
from tests.feature_cache.conftest import cache_settings, files_of, prepare, tables_of
from tests.mounted import Disk


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The encoder and the pictures of each call, the filling of batches included."""
    from artkv.models.frozen_encoders import FrozenEncoder

    calls: list[tuple[str, int]] = []
    true_encode = FrozenEncoder.encode
    monkeypatch.setattr(
        FrozenEncoder,
        "encode",
        lambda self, pixels: calls.append((self.identity.encoder, len(pixels))) or true_encode(self, pixels),
    )
    return calls


VIT, ART = "vit", "test_efficientnet"


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
    ("change", "of"),
    [
        (other_vit, {VIT}),
        (other_layer_norm, {VIT}),
        (other_efficientnet, {ART}),
        (other_running_statistics, {ART}),
        (other_vit_view, {VIT}),
        (other_heads, {VIT}),
        (lambda _: ["efficientnet.image_size=64"], {ART}),
        (lambda _: ["efficientnet.std=[0.2, 0.2, 0.3]"], {ART}),
        (lambda _: ["model.dtype=bfloat16"], {VIT}),
    ],
)
def test_what_changes_an_encoders_features_has_it_alone_compute_anew(
    config: Config,
    world_folder: Path,
    change: Callable[[Path], list[str]],
    of: set[str],
    encoded: list[tuple[str, int]],
) -> None:
    prepare(config)
    before = files_of(config)
    encoded.clear()
    changed = override_config(config, change(world_folder))
    prepare(changed)
    assert {name for name, _ in encoded} == of
    assert len(encoded) == 4 * len(of)  # shards
    assert files_of(config).items() > before.items()
    encoded.clear()
    prepare(changed)
    assert encoded == []


def test_adding_an_encoder_computes_its_part_alone(config: Config, encoded: list[tuple[str, int]]) -> None:
    checkpoint = config.encoders[0].checkpoint
    one = f"{{architecture: {ART}, checkpoint: {checkpoint}, image_size: 32}}"
    map_of_it = f"{{name: grid, architecture: {ART}, checkpoint: {checkpoint}, image_size: 64, read: map, size: 2}}"
    again = f"{{name: again, architecture: {ART}, checkpoint: {checkpoint}, image_size: 32}}"
    alone = prepare(config)
    encoded.clear()
    several = override_config(config, ["efficientnet=null", f"art_encoders=[{one}, {map_of_it}, {again}]"])
    cached = prepare(several)
    assert encoded == [(ART, 16)] * 4  # the map's, and of no other
    (table,) = tables_of(config, "train")
    numbers = np.arange(12)
    first, grid, twin = cached.paintings(table).load(numbers, numbers, pin_memory=False).art_features
    assert torch.equal(first, alone.paintings(table).load(numbers, numbers, pin_memory=False).art_features[0])
    assert torch.equal(first, twin)
    assert grid.shape == (12, 4, 256)
    encoded.clear()
    prepare(override_config(several, [f"art_encoders=[{map_of_it}]"]))
    assert encoded == []
    # Of new pictures all lack the same: one decoding of each serves all three.
    prepare(several, "train", "val")
    assert sorted(encoded) == sorted([(VIT, 16), (ART, 16), (ART, 16)] * 2)


def test_a_sweep_encodes_each_picture_once_per_encoder(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    """Counted from what is said, over three lists of encoders in any order and four injections."""
    checkpoint = config.encoders[0].checkpoint
    palette = f"{{name: palette, architecture: {ART}, checkpoint: {checkpoint}, image_size: 32}}"
    brushwork = (
        f"{{name: brushwork, architecture: {ART}, checkpoint: {checkpoint}, image_size: 64, read: map, size: 2}}"
    )
    lists = [palette, brushwork, f"{brushwork}, {palette}"]
    for injection, encoders in itertools.product(("concat", "decoupled", "film", "prompt"), lists):
        tokens = [f"kv_modulation.num_prefix_tokens={8 if injection == 'film' else 3}"]
        changed = ["efficientnet=null", f"art_encoders=[{encoders}]", f"kv_modulation.injection={injection}", *tokens]
        prepare(override_config(config, changed))
    said = re.findall(r"encoded (\d+) pictures with ([\w, ]+) in", capfd.readouterr().err)
    (pictures,) = {int(number) for number, _ in said}
    assert sum(len(names.split(", ")) for _, names in said) == 3  # the ViT and two
    (table,) = tables_of(config, "train")
    assert pictures == len(table.painting_paths) + 1  # the blank one


def test_what_does_not_matter_does_not_matter(
    config: Config, world_folder: Path, encoded: list[tuple[str, int]]
) -> None:
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
    monkeypatch.setattr("artkv.feature_cache.fingerprint.FORMAT", 4)
    assert "a feature cache of format 3, not 4; give another folder" in refused(config)


def test_control_reads_a_cache_with_art_features_and_adds_to_it(
    config: Config, tmp_path: Path, encoded: list[tuple[str, int]]
) -> None:
    prepare(config)
    control = override_config(config, ["kv_modulation.enabled=false", "efficientnet.checkpoint=null"])
    (table,) = tables_of(config, "train")
    one = np.array([0])
    encoded.clear()
    assert prepare(control).paintings(table).load(one, one, pin_memory=False).art_features == ()
    assert encoded == []
    prepare(control, "train", "val")
    assert encoded == [(VIT, 16)] * 2
    encoded.clear()
    prepare(config, "train", "val")
    assert encoded == [(ART, 16)] * 2
    whole = override_config(config, [f"frozen.feature_cache={tmp_path / 'whole'}"])
    prepare(whole)
    prepare(whole, "train", "val")
    assert files_of(config) == files_of(whole)


def test_changed_picture_is_computed_anew(config: Config, encoded: list[tuple[str, int]]) -> None:
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
    assert encoded == [(VIT, 16), (ART, 16)]
    old, new = (c.paintings(table).load(np.arange(12), np.arange(12), False).image_features for c in (cached, renewed))
    assert [not torch.equal(a, b) for a, b in zip(old, new, strict=True)] == [n == 2 for n in range(12)]
    assert files_of(config).items() > shards.items()  # added, and nothing rewritten


def test_just_written_picture_is_not_remembered(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change again within a tick of the clock, with the same size and time."""
    monkeypatch.setattr("artkv.datasets.member_index.SETTLED_SECONDS", 3600.0)
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


def test_equal_pictures_share_a_record(config: Config, world_folder: Path, encoded: list[tuple[str, int]]) -> None:
    (table,) = tables_of(config, "train")
    shutil.copy(table.painting_paths[1], table.painting_paths[5])
    cached = prepare(config)
    assert len(cached.stores[0].place_of) == 12
    numbers = np.array([1, 5])
    features = cached.paintings(table).load(numbers, numbers, pin_memory=False)
    assert torch.equal(features.image_features[0], features.image_features[1])


def test_pictures_are_added_without_rewriting(config: Config, encoded: list[tuple[str, int]]) -> None:
    prepare(config)
    before = files_of(config, "index.json", "pictures.json")
    encoded.clear()
    both = prepare(config, "train", "val")
    assert len(both.stores[0].place_of) == 13 + 5
    assert encoded == [(VIT, 16), (ART, 16)] * 2  # two shards, of 4 and of 1
    assert files_of(config).items() > before.items()


def test_lost_index_and_memo_cost_nothing_but_time(config: Config, encoded: list[tuple[str, int]]) -> None:
    prepare(config, "train", "val")
    whole = files_of(config)
    folder = cache_settings(config).folder
    for index in folder.glob("*/index.json"):
        index.unlink()
    (folder / "pictures.json").write_text("{")
    encoded.clear()
    prepare(config, "train", "val")
    assert encoded == []
    assert files_of(config) == whole


def one_shard(config: Config) -> Path:
    return sorted(cache_settings(config).folder.glob("*/shards/*"))[1]


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated_shard_is_named(config: Config, size: int, with_index: bool) -> None:
    prepare(config)
    whole = files_of(config)
    path = one_shard(config)
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    if not with_index:
        (path.parents[1] / "index.json").unlink()
    with pytest.raises(UserError, match="delete this file, `artkv cache` makes it again") as error:
        prepare(config)
    assert str(path) in str(error.value)
    path.unlink()
    prepare(config)
    assert files_of(config) == whole


def test_flipped_bit_is_found_by_verifying(config: Config) -> None:
    prepare(config)
    assert verify_store(cache_settings(config).folder, single_process()) == 2 * 13
    for offset_from_end in (1, 3000):
        path = one_shard(config)
        whole = path.read_bytes()
        content = bytearray(whole)
        content[-offset_from_end] ^= 4
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"record \d+ \(picture .*is not what was written; delete this file"):
            verify_store(cache_settings(config).folder, single_process())
        path.write_bytes(whole)
    assert verify_store(cache_settings(config).folder, single_process()) == 2 * 13


def test_shard_of_another_cache_is_refused(config: Config, tmp_path: Path) -> None:
    prepare(config)
    other = override_config(config, [f"frozen.feature_cache={tmp_path / 'other'}", "efficientnet.image_size=40"])
    prepare(other, "val")
    stray = next((tmp_path / "other").glob(f"{ART}-*/shards/*"))
    shutil.copy(stray, next((tmp_path / "features").glob(f"{ART}-*/shards")))
    with pytest.raises(UserError, match="was not made with what .*cache.json says; delete this file"):
        prepare(config)


def test_folder_of_something_else_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features/thesis.tex").write_text("dear")
    assert "holds something else; give a new or an empty folder" in refused(config)


@pytest.mark.parametrize("name", ["index.json", "pictures.json", "cache.json", "root", "shard"])
def test_damaged_files_are_refused_or_do_without(config: Config, name: str) -> None:
    """None makes a picture another's: what is read is what was written."""
    root = cache_settings(config).folder
    identity = open_frozen_encoders(config, single_process())[0].identity
    folder = prepare(config).stores[0].folder
    path = (root if name in ("pictures.json", "root") else folder) / ("cache.json" if name == "root" else name)
    if name == "shard":
        path = sorted((folder / "shards").glob("*"))[0]
    content = path.read_bytes()
    if name == "shard":
        (folder / "index.json").unlink()
    whole, known = open_store(root, identity), PictureMemo(root / "pictures.json")._known
    assert known
    new_ones = [new for number, new in enumerate(damaged(content[:3000])) if number % 2 == 0]
    for new in new_ones:
        path.write_bytes(new + content[3000:])
        found: list[FeatureStore] = []
        if not check(lambda: found.append(open_store(root, identity)), new):  # noqa: B023
            assert [shard.features for shard in found[0].shards] == [shard.features for shard in whole.shards]
            assert name == "shard" or found[0].place_of == whole.place_of
        remembered = PictureMemo(root / "pictures.json")._known
        assert remembered in (known, {})


def test_a_memo_of_an_earlier_artkv_is_read(config: Config) -> None:
    path = prepare(config).root / "pictures.json"
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
    shards = {path: path.read_bytes() for path in folder.glob("*/shards/*")}
    assert shards  # there was room for some
    assert all(path.name.startswith("features-") for path in shards)
    assert not list(folder.rglob(".*.tmp"))
    disk.free()
    assert [len(store.place_of) for store in prepare(here).stores] == [13, 13]
    assert all(path.read_bytes() == content for path, content in shards.items())
