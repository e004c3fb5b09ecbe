"""Files of other kinds are told by their first bytes, and no text is taken for one of them."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from artkv.errors import UserError
from artkv.file_kinds import kind_of_file, no_text_kind
from artkv.reading import LfsPointer, read_object, read_regular, remedy_for

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))


def _zip(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", "a,b\n")


def _database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "a.db") as database:
        database.execute("create table questions (image, question, answer)")
    return (folder / "a.db").read_bytes()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"a,b\n"), "compressed by gzip"),
        (bz2.compress(b"a,b\n"), "compressed by bzip2"),
        (lzma.compress(b"a,b\n"), "compressed by xz"),
        (b"\x28\xb5\x2f\xfd\x24\x04\x21\0\0a,b\n", "compressed by zstd"),
        (_written(_zip), "a zip archive"),
        (_written(_tar), "a tar archive"),
        *((pickle.dumps({"a": 1}, protocol), "a pickle of Python") for protocol in (2, 3, 4, 5)),
        (_written(lambda file: torch.save({"a": torch.zeros(1)}, file)), "a zip archive"),
        (save({"a": torch.zeros(1)}), "a safetensors file"),
        (_written(lambda file: np.save(file, np.zeros(3))), "an array of NumPy"),
        *(
            (_written(lambda file, kind=kind: Image.new("RGB", (2, 2)).save(file, kind)), "a picture")
            for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")
        ),
        (b"PAR1\x15\x04\x15", "a Parquet file"),
        (b"ARROW1\0\0", "an Arrow file"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"{\\rtf1\\ansi", "a text of RTF"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>', "XML"),
    ],
    # Not the bytes, which hold the time: all workers have to find the same names.
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_libraries_write_is_told_by_its_kind(content: bytes, kind: str) -> None:
    found = kind_of_file(content)
    assert (found or "").startswith(kind)
    assert no_text_kind(content) == found


def test_a_database_is_told(tmp_path: Path) -> None:
    assert kind_of_file(_database(tmp_path)) == "an SQLite database"


def test_an_arrow_stream_is_told() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    file = io.BytesIO()
    table = pyarrow.table({"a": ["b"]})
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write(table)
    assert kind_of_file(file.getvalue()) == "an Arrow file"


@pytest.mark.parametrize("seed", range(20))
def test_data_without_a_mark_are_told(seed: int) -> None:
    assert no_text_kind(b"\x01" + random.Random(seed).randbytes(5000)) == "binary data"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"image,question,answer\na.jpg,What?,oil\n",
        "image,question,answer\na.jpg,Où?,à l'huile\n".encode("latin-1"),
        "image,question,answer\na.jpg,Что это?,масло\n".encode("cp1251"),
        "画像,質問,答え\n".encode("shift_jis"),
        "image,question\n".encode("utf-16"),
        "image,question\n".encode("utf-16-le"),
        "image,question\n".encode("utf-32-le"),
        b"\x01\x02\x03\x04\x05\x06\x07",  # wrong, and told by its line
        b"BMI,question\n", b"MZ,question\n", b"PK,question\n", b"BZh,question\n", b"Object,question\n",
        b"{\n", b"<a>,b\n",
    ],
)  # fmt: skip
def test_a_text_is_of_no_other_kind(text: bytes) -> None:
    assert no_text_kind(text) is None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=1100))
def test_no_text_of_utf_8_is_binary_data_wherever_it_is_cut(text: str) -> None:
    assert no_text_kind(text.encode()) != "binary data"


def test_a_pointer_of_git_lfs_is_no_file_and_its_remedy_is_told(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text(POINTER)
    with pytest.raises(LfsPointer) as caught:
        read_regular(path)
    assert caught.value.strerror == "is a pointer of Git LFS, not the file"
    assert remedy_for(caught.value, "delete it") == "run git lfs pull"
    with pytest.raises(UserError, match=r"cannot be read \(is a pointer of Git LFS, not the file\); run git lfs pull$"):
        read_object(path, "delete it")


def test_what_artkv_writes_as_json_and_is_another_file_is_told_by_its_kind(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UserError, match=r"is compressed by gzip, and not what artkv writes; delete it"):
        read_object(tmp_path / "status.json", "delete it")
