"""Datasets on disk that are damaged, were made otherwise than `Dataset.save_to_disk` makes them, or lack names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.bad_inputs.cases import Area, BadInput, Make, Place

_IMAGE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
_FILE = "data-00000-of-00001.arrow"
_Change = Callable[[list[dict[str, Any]]], object]


def _rows(place: Place) -> list[dict[str, Any]]:
    """The world's pictures."""
    paths = sorted((place.world / "images").rglob("*.png"))
    return [{"bytes": path.read_bytes(), "path": path.name} for path in paths]


def _write(path: Path, table: pyarrow.Table, options: Any = None) -> None:
    with pyarrow.ipc.new_stream(str(path), table.schema, options=options) as writer:
        writer.write_table(table)


def _saved(place: Place, columns: dict[str, Any], options: Any = None) -> Path:
    """A dataset in the folder `saved`, with these columns."""
    folder = place.folder / "saved"
    folder.mkdir()
    _write(folder / _FILE, pyarrow.table(columns), options)
    place.write("saved/state.json", json.dumps({"_data_files": [{"filename": _FILE}]}))
    return folder


def _check(place: Place, root: str = "saved") -> list[str]:
    return ["check", *place.config(f"dataset.image_root={place.folder / root}")]


def with_rows(change: _Change = lambda rows: None, **columns: Callable[[int], list]) -> Make:
    """`artkv check` where the rows of pictures are changed so, and other columns stand beside them."""

    def make(place: Place) -> list[str]:
        rows = _rows(place)
        change(rows)
        others = {name: values(len(rows)) for name, values in columns.items()}
        _saved(place, {"image": pyarrow.array(rows, _IMAGE), **others})
        return _check(place)

    return make


def changed(change: Callable[[bytes], bytes], name: str = _FILE) -> Make:
    """`artkv check` where the bytes of a file are changed so."""

    def make(place: Place) -> list[str]:
        path = _saved(place, {"image": pyarrow.array(_rows(place), _IMAGE)}) / name
        path.write_bytes(change(path.read_bytes()))
        return _check(place)

    return make


def of_columns(columns: Callable[[list[dict[str, Any]]], dict[str, Any]], options: Any = None) -> Make:
    """`artkv check` of a dataset with these columns, made of the rows of pictures."""

    def make(place: Place) -> list[str]:
        _saved(place, columns(_rows(place)), options)
        return _check(place)

    return make


def _parquet(root: str) -> Make:
    def make(place: Place) -> list[str]:
        (place.folder / "hub/data").mkdir(parents=True)
        table = pyarrow.table({"image": pyarrow.array(_rows(place), _IMAGE)})
        pyarrow.parquet.write_table(table, place.folder / "hub/data/train-00000-of-00001.parquet")
        return _check(place, root)

    return make


def _file_format(place: Place) -> list[str]:
    folder = place.folder / "saved"
    folder.mkdir()
    table = pyarrow.table({"image": pyarrow.array(_rows(place), _IMAGE)})
    with pyarrow.ipc.new_file(str(folder / _FILE), table.schema) as writer:
        writer.write_table(table)
    return _check(place)


def _file_is_missing(place: Place) -> list[str]:
    (_saved(place, {"image": pyarrow.array(_rows(place), _IMAGE)}) / _FILE).rename(place.folder / "saved/other.arrow")
    return _check(place)


def _split_twice(place: Place) -> list[str]:
    for split in ("train", "test"):
        rows = _rows(place)
        rows[0]["bytes"] = rows[len(split)]["bytes"]
        (place.folder / "saved" / split).mkdir(parents=True)
        _write(place.folder / "saved" / split / _FILE, pyarrow.table({"image": pyarrow.array(rows, _IMAGE)}))
    return _check(place)


def _rename(name: str | None) -> _Change:
    return lambda rows: rows[0].update(path=name)


def _set(**values: Any) -> _Change:
    return lambda rows: rows[1].update(values)


def _flat(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"picture": [row["bytes"] for row in rows], "name": [row["path"] for row in rows]}


def _two(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: pyarrow.array(rows, _IMAGE) for name in ("front", "back")}


def _image(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"image": pyarrow.array(rows, _IMAGE)}


ARROWS = Area(
    "Pictures in a dataset on disk",
    [
        BadInput("a file that was cut off", changed(lambda content: content[:900]), (_FILE, "end mark", "fetch it")),
        BadInput("a file without its end mark", changed(lambda content: content[:-8]), ("has no end mark", "fetch it")),
        BadInput("an empty file", changed(lambda content: b""), (f"{_FILE}: is empty (0 bytes)", "fetch it whole")),
        BadInput("a page in place of a file", changed(lambda content: b"<html>" * 99), ("has no end mark", "fetch it")),
        BadInput(
            "a schema that is garbled", changed(lambda content: content[:8] + b"\xff" * 60 + content[68:]),
            (f"{_FILE}: damaged", "fetch it whole"),
        ),
        BadInput(
            "a damaged picture in it", with_rows(lambda rows: rows[-1].update(bytes=rows[-1]["bytes"][:60])),
            (f"{_FILE}/val4.png: ", "replace the file"),
        ),
        BadInput("a picture without bytes in it", with_rows(_set(bytes=b"")), ("an empty file (0 bytes)", "replace")),
        BadInput("Arrow's file format", _file_format, (f"{_FILE}: is Arrow's file format", "save_to_disk")),
        BadInput(
            "compressed buffers", of_columns(_image, pyarrow.ipc.IpcWriteOptions(compression="zstd")),
            ("is compressed", "Dataset.save_to_disk"),
        ),
        BadInput("paths in place of bytes", with_rows(_set(bytes=None)), ("row 1", "the path", "save_to_disk")),
        BadInput("a picture without a name", with_rows(_rename(None)), ("row 0", "without a name", "add_column")),
        BadInput("a picture whose name is empty", with_rows(_rename("")), ("row 0", "without a name", "add_column")),
        BadInput("an absolute path for a name", with_rows(_rename("/etc/x")), ("'/etc/x' lies outside", "a name")),
        BadInput("a name that leads upwards", with_rows(_rename("a/../../x")), ("x' lies outside", "a name below")),
        BadInput("a NUL in a name", with_rows(_rename("a\0.png")), ("lies outside the file", "give it a name")),
        BadInput(
            "one name for all", with_rows(file_name=lambda number: ["image.png"] * number),
            ("another picture 'image.png'", "give each its own"),
        ),
        BadInput(
            "another id than the CSV's", with_rows(lambda rows: [row.update(path=None) for row in rows],
            image_id=lambda number: list(range(number))), ("'train0.png' is missing", "correct the name"),
        ),
        BadInput("no column of pictures", of_columns(_flat), ("0 of its columns", "'picture'", "cast the one to read")),
        BadInput("two columns of pictures", of_columns(_two), ("2 of its columns", "'front', 'back'", "name it image")),
        BadInput("other pictures in two splits", _split_twice, ("is ambiguous", "give one of these paths")),
        BadInput("a file of the dataset is missing", _file_is_missing, ("state.json", _FILE, "fetch it too")),
        BadInput(
            "a state that is garbled", changed(lambda content: b"{", "state.json"),
            ("state.json: is not what datasets writes", "save the dataset anew"),
        ),
        BadInput(
            "a state of something else", changed(lambda content: b'{"_data_files": 3}', "state.json"),
            ("state.json: is not what datasets writes", "save the dataset anew"),
        ),
        BadInput("a folder of Parquet files", _parquet("hub"), ("hub: is Parquet", "load_dataset(", "save_to_disk")),
        BadInput(
            "a Parquet file", _parquet("hub/data/train-00000-of-00001.parquet"), ("is Parquet", "save_to_disk"),
        ),
    ],
)  # fmt: skip
