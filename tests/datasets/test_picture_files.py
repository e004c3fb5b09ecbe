"""Pictures in tars are the same as pictures in a folder, wherever a picture is named."""

import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artkv.datasets.image_index import ImageIndex
from artkv.datasets.picture_files import open_picture_file, picture_bytes, picture_stamp, picture_stamps
from artkv.datasets.pictures import open_picture, picture_damage
from artkv.datasets.shards import folder_of_names
from artkv.datasets.shared_pictures import same_pictures
from artkv.datasets.table import find_problems, read_table
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.feature_cache.contents import PictureMemo, picture_contents
from artkv.report.pictures import take_pictures

NAMES = ["a.jpg", "sub/b.jpg", "sub/c.png", "d.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return tmp_path / "images"


@pytest.fixture
def shards(folder: Path) -> Path:
    shards = folder.parent / "shards"
    shards.mkdir()
    for number in range(2):
        with tarfile.open(shards / f"{number:02}.tar", "w") as tar:
            for name in NAMES[number::2]:
                tar.add(folder / name, name)
    return shards


@pytest.mark.parametrize("root", ["shards", "shards/{00..01}.tar"])
def test_a_member_is_found_by_its_name_and_is_the_same_picture(folder: Path, shards: Path, root: str) -> None:
    images = ImageIndex(shards.parent / root)
    assert len(images) == len(NAMES)
    for number, name in enumerate(NAMES):
        path = images.find(name)
        assert path == shards / f"{number % 2:02}.tar" / name
        assert images.find(Path(name).name) == path
        assert images.find(str(path.relative_to(folder_of_names(shards.parent / root)))) == path
        with open_picture_file(path) as opened:
            assert opened.file.read() == (folder / name).read_bytes()
        assert picture_bytes(path) == (folder / name).stat().st_size
        assert np.array_equal(np.asarray(open_picture(path)), np.asarray(open_picture(folder / name)))
        assert picture_damage(path) is None


def test_one_tar_is_a_root(shards: Path) -> None:
    assert ImageIndex(shards / "00.tar").find("c.png") == shards / "00.tar/sub/c.png"
    with pytest.raises(UserError, match=r"'d\.png' is missing"):
        ImageIndex(shards / "00.tar").find("d.png")


def test_threads_read_the_same_bytes(folder: Path, shards: Path) -> None:
    images = ImageIndex(shards)

    def read(name: str) -> bytes:
        with open_picture_file(images.find(name)) as opened:
            opened.file.seek(-3, 2)
            tail = opened.file.read()
            opened.file.seek(0)
            return opened.file.read() + tail

    with ThreadPoolExecutor(8) as pool:
        read_bytes = list(pool.map(read, NAMES * 50))
    wholes = [(folder / name).read_bytes() for name in NAMES * 50]
    assert read_bytes == [whole + whole[-3:] for whole in wholes]


def test_contents_and_thumbnails_are_those_of_the_folder(folder: Path, shards: Path, tmp_path: Path) -> None:
    world, memo = single_process(torch.device("cpu")), PictureMemo(tmp_path / "pictures.json")
    images = ImageIndex(shards)
    of_folder = picture_contents([folder / name for name in NAMES], memo, world)
    of_shards = picture_contents([images.find(name) for name in NAMES], memo, world)
    assert list(of_shards.values()) == list(of_folder.values())
    assert same_pictures([images.find("d.png"), folder / "a.jpg", folder / "d.png"]) == [0, 1, 0]
    names = [str(images.find(name).relative_to(shards)) for name in NAMES]
    wanted = take_pictures(NAMES, folder, None, 10**6)
    for root in (shards, shards / "{00..01}.tar"):
        taken = take_pictures(names, root, None, 10**6)
        assert taken.jpegs == wanted.jpegs
        assert not taken.missing


def test_a_table_of_shards_is_that_of_the_folder(folder: Path, shards: Path, tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_text("image,question,answer\n" + "".join(f"{name},What?,{name}\n" for name in NAMES * 2))
    images = ImageIndex(shards)
    assert find_problems(csv, images) == []
    table = read_table(csv, images)
    assert table.painting_of_row.tolist() == read_table(csv, ImageIndex(folder)).painting_of_row.tolist()
    assert [path.name for path in table.painting_paths] == [Path(name).name for name in NAMES]


def test_a_name_in_two_tars_is_ambiguous(folder: Path, shards: Path) -> None:
    shutil.copy(shards / "00.tar", shards / "02.tar")
    with pytest.raises(UserError, match=r"'a\.jpg' is ambiguous: '00\.tar/a\.jpg', '02\.tar/a\.jpg'.*give one"):
        ImageIndex(shards).find("a.jpg")


def test_tars_beside_loose_pictures_are_no_shards(folder: Path, shards: Path) -> None:
    shutil.copy(shards / "00.tar", folder / "backup.tar")
    assert ImageIndex(folder).find("a.jpg") == folder / "a.jpg"


def test_a_folder_named_like_a_tar_is_a_folder(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.tar"
    shutil.copytree(folder, odd)
    assert open_picture(ImageIndex(odd).find("a.jpg")).size == (40, 30)


def test_a_tar_that_is_replaced_is_read_anew(folder: Path, shards: Path) -> None:
    path = ImageIndex(shards).find("a.jpg")
    with tarfile.open(shards / "new", "w") as tar:
        tar.add(folder / "d.png", "before.png")
        tar.add(folder / "d.png", "a.jpg")
    (shards / "new").replace(shards / "00.tar")
    with open_picture_file(path) as opened:
        assert opened.file.read() == (folder / "d.png").read_bytes()


def test_a_member_that_is_gone_is_told(shards: Path) -> None:
    with pytest.raises(UserError, match=r"picture .*00\.tar/none\.jpg: no such file"):
        open_picture(shards / "00.tar/none.jpg")


def test_stamps_of_many_are_those_of_each(folder: Path, shards: Path) -> None:
    images = ImageIndex(shards)
    paths = [images.find("a.jpg"), folder / "a.jpg", images.find("d.png"), images.find("c.png"), folder / "d.png"]
    stamps = picture_stamps(map(str, paths))
    assert stamps is not None
    assert stamps.tolist() == [list(picture_stamp(path)) for path in paths]
    assert picture_stamps([str(folder / "gone.png")]) is None
