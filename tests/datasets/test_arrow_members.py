"""Pictures of datasets that the library `datasets` has saved are found by their names, and are the same bytes."""

import builtins
import io
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image

from artkv.datasets.image_index import ImageIndex
from artkv.datasets.member_index import read_member_index
from artkv.datasets.picture_files import open_picture_file
from artkv.datasets.pictures import open_picture
from artkv.errors import UserError

NAMES = [f"p{number}.png" for number in range(5)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without bars."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        noise = np.random.default_rng(number).integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def dataset_of(pictures: Path, **columns: list) -> datasets.Dataset:
    paths = [str(pictures / name) for name in NAMES]
    return datasets.Dataset.from_dict({"image": paths, **columns}).cast_column("image", datasets.Image())


def content_of(path: Path) -> bytes:
    with open_picture_file(path) as opened:
        assert opened.num_bytes == len(opened.file.read())
        opened.file.seek(0)
        return opened.file.read()


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_pictures_are_found_by_the_names_of_their_files(pictures: Path, tmp_path: Path, shards: int) -> None:
    root = tmp_path / "saved"
    dataset_of(pictures, question=["Who?"] * 5).save_to_disk(root, num_shards=shards)
    images = ImageIndex(root)
    assert len(images) == len(NAMES)
    reference = datasets.load_from_disk(str(root))
    for number, name in enumerate(NAMES):
        path = images.find(name)
        assert content_of(path) == (pictures / name).read_bytes()
        assert np.array_equal(np.asarray(open_picture(path)), np.asarray(reference[number]["image"]))
        assert images.find(str(path.relative_to(root))) == path
    assert content_of(ImageIndex(images.find(NAMES[0]).parent).find(NAMES[0])) == (pictures / NAMES[0]).read_bytes()


def test_columns_of_names_count_before_the_path_and_all_names_are_known(pictures: Path, tmp_path: Path) -> None:
    ids, files = [10, 11, 12, 13, 14], [f"rooms/{name}" for name in NAMES]
    dataset_of(pictures, image_id=ids, file_name=files, other=[0.5] * 5).save_to_disk(tmp_path / "saved")
    images = ImageIndex(tmp_path / "saved")
    assert len(images) == 5
    for number, name in enumerate(NAMES):
        path = images.find(files[number])
        assert path.name == name
        assert path.parent.name == "rooms"
        assert images.find(str(ids[number])) == images.find(name) == path
        assert content_of(path) == (pictures / name).read_bytes()


def test_the_splits_of_a_dataset_tell_same_names_apart(pictures: Path, tmp_path: Path) -> None:
    whole = dataset_of(pictures)
    others = tmp_path / "others"
    shutil.copytree(pictures, others)
    shutil.copy(pictures / "p4.png", others / "p0.png")
    splits = {"train": whole.select([1, 2, 0]), "test": dataset_of(others).select([3, 4, 0])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    images = ImageIndex(tmp_path / "saved")
    assert images.find("p1.png").parent.parent.name == "train"
    with pytest.raises(
        UserError, match=r"'p0\.png' is ambiguous: 'test/data-.*', 'train/data-.*' under .*; give one of these"
    ):
        images.find("p0.png")
    assert images.find("test/p0.png").parent.parent.name == "test"
    assert images.find("train/p0.png").parent.parent.name == "train"
    assert content_of(images.find("test/p0.png")) == (pictures / "p4.png").read_bytes()


def test_rows_about_the_same_picture_have_one_place(pictures: Path, tmp_path: Path) -> None:
    rows = [0, 0, 1, 0, 4]
    dataset_of(pictures).select(rows).save_to_disk(tmp_path / "saved")
    images = ImageIndex(tmp_path / "saved")
    assert len(images) == 3
    assert content_of(images.find("p4.png")) == (pictures / "p4.png").read_bytes()


def test_a_picture_in_several_files_has_one_place(pictures: Path, tmp_path: Path) -> None:
    dataset_of(pictures).select([0, 1, 1, 2, 0]).save_to_disk(tmp_path / "saved", num_shards=3)
    images = ImageIndex(tmp_path / "saved")
    for name in ("p0.png", "p1.png"):
        assert images.find(name) == images.find(f"data-00000-of-00003.arrow/{name}")
        assert content_of(images.find(name)) == (pictures / name).read_bytes()


def test_another_picture_of_the_same_name_is_told(pictures: Path, tmp_path: Path) -> None:
    dataset_of(pictures, image_id=[1, 2, 3, 2, 4]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"row 3 \(from 0\): another picture '2' is in a row above; give each its own"):
        ImageIndex(tmp_path / "saved")


def test_rows_without_a_picture_are_none(pictures: Path, tmp_path: Path) -> None:
    rows = [{"bytes": (pictures / "p0.png").read_bytes(), "path": "p0.png"}, None]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(tmp_path / "saved")
    images = ImageIndex(tmp_path / "saved")
    assert len(images) == 1
    assert content_of(images.find("p0.png")) == (pictures / "p0.png").read_bytes()


def test_files_that_datasets_put_beside_its_own_do_not_count(pictures: Path, tmp_path: Path) -> None:
    dataset_of(pictures).save_to_disk(tmp_path / "saved")
    shutil.copy(tmp_path / "saved/data-00000-of-00001.arrow", tmp_path / "saved/cache-1f.arrow")
    assert ImageIndex(tmp_path / "saved").find("p0.png").parent.name == "data-00000-of-00001.arrow"


def test_the_library_is_asked_for_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset_of(pictures).save_to_disk(tmp_path / "saved")
    imported = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "pyarrow":
            raise ImportError(name)
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package pyarrow; pip install 'artkv\[arrow\]'"):
        ImageIndex(tmp_path / "saved")


def written(path: Path, table: pyarrow.Table, **options: Any) -> Path:
    """By Arrow itself."""
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=2)
    path.write_bytes(sink.getvalue())
    return path


def table_of(images: list, number: Any = None, **columns: list) -> pyarrow.Table:
    kind = pyarrow.struct({"bytes": number or pyarrow.binary(), "path": pyarrow.string()})
    return pyarrow.table({"image": pyarrow.array(images, kind), **columns})


def test_large_binaries_and_batches_have_the_same_places(tmp_path: Path) -> None:
    contents = [bytes([number]) * (number * 40) for number in range(1, 6)]
    rows = [{"bytes": content, "path": f"{len(content)}.png"} for content in contents]
    for number in (pyarrow.binary(), pyarrow.large_binary()):
        path = written(tmp_path / "x.arrow", table_of(rows, number, n=list(range(5))))
        index, content = read_member_index(path), path.read_bytes()
        found = [content[start : start + size] for start, size in zip(index.offsets, index.sizes, strict=True)]
        assert found == contents
        assert list(index.row_of_name) == [f"{len(content)}.png" for content in contents]


def test_a_file_that_ends_between_its_parts_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "x.arrow", table_of([{"bytes": b"1", "path": "a"}]))
    path.write_bytes(path.read_bytes()[:-8])  # which Arrow takes for the end of the stream
    assert pyarrow.ipc.open_stream(path.read_bytes()).read_all().num_rows == 1
    with pytest.raises(UserError, match="has no end mark"):
        read_member_index(path)


def test_places_that_lead_out_of_a_picture_column_are_told(tmp_path: Path) -> None:
    path = written(tmp_path / "x.arrow", table_of([{"bytes": b"123", "path": "a"}, {"bytes": b"45", "path": "b"}]))
    places, beyond = np.array([0, 3, 5], np.int32).tobytes(), np.array([0, 3, 2**30], np.int32).tobytes()
    assert path.read_bytes().count(places) == 1
    path.write_bytes(path.read_bytes().replace(places, beyond))
    with pytest.raises(UserError, match=r"x\.arrow: damaged \(.*fetch it whole"):
        read_member_index(path)


@pytest.mark.parametrize("place", range(0, 1400, 97))
def test_damaged_and_cut_files_are_told_or_read_within_the_file(tmp_path: Path, place: int) -> None:
    rows = [{"bytes": bytes(range(200)), "path": f"p{number}.png"} for number in range(4)]
    path = written(tmp_path / "x.arrow", table_of(rows))
    content = path.read_bytes()
    path.write_bytes(content[:place])
    with pytest.raises(UserError, match=r"Arrow file .*x\.arrow: (is empty|has no end mark|damaged).*save it anew"):
        read_member_index(path)
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
    with suppress(UserError):  # none is raised for a byte of a picture, which its decoding tells
        index = read_member_index(path)
        ends = index.offsets + index.sizes
        assert index.offsets.min() >= 0
        assert ends.max() <= len(content)
