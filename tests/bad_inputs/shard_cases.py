"""Tars of pictures that are damaged, were made otherwise than shards are, or are named wrongly."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.cases import Area, BadInput, Make, Place

_Add = Callable[[tarfile.TarFile], None]


def _shard(place: Place, add: _Add = lambda tar: None) -> Path:
    """The world's pictures in a tar, and what `add` puts behind them."""
    path = place.folder / "shards" / "00.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(place.world / "images", ".")
        add(tar)
    return path


def _check(place: Place, root: str = "shards") -> list[str]:
    return ["check", *place.config(f"dataset.image_root={place.folder / root}")]


def with_member(add: _Add) -> Make:
    """`artkv check` where the tar holds that too."""

    def make(place: Place) -> list[str]:
        _shard(place, add)
        return _check(place)

    return make


def changed(change: Callable[[bytes], bytes]) -> Make:
    """`artkv check` where the tar's bytes are changed so."""

    def make(place: Place) -> list[str]:
        path = _shard(place)
        path.write_bytes(change(path.read_bytes()))
        return _check(place)

    return make


def named(root: str) -> Make:
    """`artkv check` with this image_root, where there is `shards/00.tar` alone."""

    def make(place: Place) -> list[str]:
        _shard(place)
        return _check(place, root)

    return make


def _entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> _Add:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        content = b"picture" if kind == tarfile.REGTYPE else b""
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

    return add


def _old_sparse(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("hole.png")
    info.type = tarfile.GNUTYPE_SPARSE
    tar.addfile(info)


def _empty_folder(place: Place) -> list[str]:
    path = place.folder / "shards" / "00.tar"
    path.parent.mkdir(parents=True)
    tarfile.open(path, "w").close()
    return _check(place)


def _folder_of_tars_with_folder(place: Place) -> list[str]:
    _shard(place)
    (place.folder / "shards/01.tar").mkdir()
    return _check(place, "shards/{00..01}.tar")


def _same_picture_twice(place: Place) -> list[str]:
    content = _shard(place).read_bytes()
    (place.folder / "shards/01.tar").write_bytes(content)
    return _check(place)


def _damaged_picture(place: Place) -> list[str]:
    images = place.copy("images")
    (images / "train0.png").write_bytes((images / "train0.png").read_bytes()[:60])
    (place.folder / "shards").mkdir()
    with tarfile.open(place.folder / "shards/00.tar", "w") as tar:
        tar.add(images, ".")
    return _check(place)


def _beside(*names: str, tar: bool = True) -> Make:
    """`artkv check` of a folder with files of these names beside the tar, or without it."""

    def make(place: Place) -> list[str]:
        if tar:
            _shard(place)
        for name in names:
            place.write(f"shards/{name}", gzip.compress(name.encode()))
        return _check(place)

    return make


def _in_folder(place: Place) -> list[str]:
    path = _shard(place)
    (path.parent / "sub").mkdir()
    path.rename(path.parent / "sub" / path.name)
    return _check(place)


_PATTERN = "a pattern such as {000..099}.tar"

SHARDS = Area(
    "Pictures in tar files",
    [
        BadInput("a tar that was cut off", changed(lambda content: content[:1500]), ("00.tar", "fetch it whole")),
        BadInput("a tar without its end mark", changed(lambda c: c.rstrip(b"\0")), ("00.tar", "fetch it whole")),
        BadInput("an empty tar", changed(lambda content: b""), ("00.tar: is empty (0 bytes)", "fetch it whole")),
        BadInput("a page in place of a tar", changed(lambda c: b"<html>" * 99), ("is a web page, and", "fetch it")),
        BadInput("a tar of zeros", changed(lambda c: bytes(len(c))), ("'train0.png' is missing", "add the picture")),
        BadInput("a compressed tar", changed(gzip.compress), ("is compressed by gzip, and no tar", "unpack it")),
        BadInput("a tar behind another", changed(lambda c: c + c), ("goes on after its end mark", "make the tar anew")),
        BadInput("a name twice", with_member(_entry("train0.png")), ("'train0.png' is there twice", "keep one")),
        BadInput("./name and name", with_member(_entry("./train0.png")), ("'train0.png' is there twice", "make")),
        BadInput("a path upwards", with_member(_entry("../x.png")), ("'../x.png' lies outside the tar", "pack it")),
        BadInput("upwards inside", with_member(_entry("a/../../x.png")), ("x.png' lies outside the tar", "pack it")),
        BadInput("an absolute path", with_member(_entry("/etc/x.png")), ("'/etc/x.png' lies outside", "pack it")),
        BadInput(
            "a symbolic link", with_member(_entry("l.png", tarfile.SYMTYPE, "/etc/passwd")),
            ("'l.png' is a link to '/etc/passwd'", "--dereference"),
        ),
        BadInput(
            "a hard link", with_member(_entry("l.png", tarfile.LNKTYPE, "train0.png")),
            ("'l.png' is a link to 'train0.png'", "pack the file itself"),
        ),
        BadInput("a device", with_member(_entry("tty.png", tarfile.CHRTYPE)), ("'tty.png' is no file", "leave it out")),
        BadInput("a pipe", with_member(_entry("p.png", tarfile.FIFOTYPE)), ("'p.png' is no file", "leave it out")),
        BadInput("a sparse member", with_member(_old_sparse), ("'hole.png' is sparse", "without tar --sparse")),
        BadInput("a tar without members", _empty_folder, ("'train0.png' is missing", "add the picture")),
        BadInput("a picture in two tars", _same_picture_twice, ("'train0.png' is ambiguous", "give one of these")),
        BadInput("a damaged picture in a tar", _damaged_picture, ("00.tar/train0.png: damaged", "replace the file")),
        BadInput("a tar that is missing", named("shards/{00..02}.tar"), ("2 of its 3 shards", "01.tar", "fetch them")),
        BadInput("a folder among the tars", _folder_of_tars_with_folder, ("1 of its 2 shards", "01.tar", "correct")),
        BadInput("a pattern backwards", named("shards/{02..00}.tar"), ("{02..00} names no shards", "{FIRST..LAST}")),
        BadInput("a pattern of very many", named("shards/{0..99999999}.tar"), ("{0..99999999}", "give {FIRST..LAST}")),
        BadInput("two patterns", named("{0..1}/{00..01}.tar"), ("has 2 patterns", "give the folder")),
        BadInput("a pattern of no tars", named("shards/{00..01}.zip"), ("a pattern names shards", "end it with .tar")),
        BadInput("a pattern of the shell", named("shards/*.tar"), ("*.tar: no such file; give the folder", _PATTERN)),
        BadInput("three dots in a pattern", named("shards/{0...3}.tar"), ("{0...3}.tar: no such file;", _PATTERN)),
        BadInput("a tar that is not there", named("shards/1.tar"), ("1.tar: no such file; give the", _PATTERN)),
        BadInput(
            "a loose picture beside tars", _beside("sub/cover.JPG"),
            ("'train0.png' is missing", "(00.tar lies there and not looked into: for there are loose pictures, such as "
             "sub/cover.JPG; move those elsewhere)"),
        ),
        BadInput(
            "tars in a sub-folder", _in_folder,
            ("(sub/00.tar lies there and not looked into: move what holds pictures into the folder itself)",),
        ),
        *(
            BadInput(
                f"a folder of {ending}", _beside(f"0{ending}", f"1{ending}", tar=False),
                ("'train0.png' is missing", f"(2 such as 0{ending} lie there and not looked into: unpack what holds"),
            )
            for ending in (".tgz", ".tar.gz", ".zip", ".7z", ".h5")
        ),
        BadInput(
            "a compressed tar for the folder",
            lambda place: [*_beside("0.tgz", tar=False)(place)[:-1], f"dataset.image_root={place.folder}/shards/0.tgz"],
            ("0.tgz: is a file that is not looked into, as a plain .tar is; unpack it; give the folder",),
        ),
        BadInput("a pattern of words", named("shards/{a..b}.tar"), ("{a..b}.tar: no such file; give the", _PATTERN)),
    ],
)  # fmt: skip
