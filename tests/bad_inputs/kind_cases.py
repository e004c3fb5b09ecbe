"""Files of another kind than belongs there, and what Git leaves in the place of a file that Git LFS keeps."""

import bz2
import gzip
import pickle
import random
from collections.abc import Callable

from tests.bad_inputs.cases import Area, BadInput, Make, Place
from tests.bad_inputs.checkpoint_cases import adapter, export
from tests.bad_inputs.csv_cases import HEADER, ROW, table, table_with
from tests.bad_inputs.init_cases import ROWS, folder
from tests.bad_inputs.picture_cases import picture

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
POINTED = "is a pointer of Git LFS, not the file); run git lfs pull"

WEB_PAGE = b"<!DOCTYPE html>\n<html><body>404</body></html>\n"
PARQUET = b"PAR1" + b"\x15\x04" * 20 + b"PAR1"
DATABASE = b"SQLite format 3\0" + bytes(100)
ZSTD = b"\x28\xb5\x2f\xfd" + random.Random(0).randbytes(200)
# Without a mark of its kind.
DATA = b"\x01" + random.Random(1).randbytes(2000)


def _config(content: str | bytes) -> Make:
    return lambda place: ["check", "--config", str(place.write("my.yaml", content))]


def _named(verb: Callable[[str], list[str]], content: str | bytes, name: str) -> Make:
    return lambda place: verb(str(place.write(name, content)))


def _setting(setting: str, name: str, content: str | bytes) -> Make:
    return lambda place: ["check", *place.config(f"{setting}={place.write(name, content)}")]


def _run_file(verb: list[str], name: str, content: str | bytes) -> Make:
    def make(place: Place) -> list[str]:
        (place.run() / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [*verb, "run"]

    return make


def _sweep(path: str) -> list[str]:
    return ["sweep", path]


KINDS = Area(
    "Files of another kind",
    [
        *(
            BadInput(
                f"{what} for a table", table(content), ("my.csv:1: the file is " + told + "; save the table as CSV",)
            )
            for what, content, told in [
                ("a Parquet file", PARQUET, "a Parquet file"),
                ("a database", DATABASE, "an SQLite database"),
                ("what zstd compressed", ZSTD, "compressed by zstd"),
                ("what bzip2 compressed", bz2.compress(ROWS.encode()), "compressed by bzip2"),
                ("a pickle", pickle.dumps([HEADER, ROW]), "a pickle of Python"),
                ("a web page", WEB_PAGE, "a web page"),
                ("data of no known kind", DATA, "binary data"),
            ]
        ),
        BadInput(
            "a Parquet file for a table that is to be Latin-1",
            table_with(PARQUET, "encoding=latin-1"),
            ("my.csv:1: the file is a Parquet file; save the table as CSV",),
        ),
        BadInput("a pointer of Git LFS for a table", table(POINTER), ("my.csv: cannot be read (" + POINTED,)),
        BadInput("a pointer of Git LFS for a config", _config(POINTER), ("my.yaml: cannot be read (" + POINTED,)),
        *(
            BadInput(
                f"{what} for a config",
                _config(content),
                (f"my.yaml: is {told}, and no text; give an existing config file, in YAML",),
            )
            for what, content, told in [
                ("what gzip compressed", gzip.compress(b"model: {}\n"), "compressed by gzip"),
                ("a word processor's text", b"{\\rtf1\\ansi}\n", "a text of RTF, as word processors write it"),
                ("a web page", WEB_PAGE, "a web page"),
                ("data of no known kind", DATA, "binary data"),
            ]
        ),
        BadInput(
            "a pointer of Git LFS for DeepSpeed's JSON",
            _setting("training.deepspeed", "ds.json", POINTER),
            ("ds.json: not readable JSON (" + POINTED,),
        ),
        BadInput(
            "what gzip compressed for DeepSpeed's JSON",
            _setting("training.deepspeed", "ds.json", gzip.compress(b"{}")),
            ("ds.json: not readable JSON (it is compressed by gzip)",),
        ),
        BadInput(
            "a pointer of Git LFS for an adapter",
            adapter(lambda content, _: POINTER.encode()),
            ("adapter.safetensors: ", POINTED),
        ),
        *(
            BadInput(
                f"{what} for an adapter",
                adapter(lambda *_, content=content: content),
                (f"adapter.safetensors: is {told}, and no adapter; give a checkpoint's folder, or a file",),
            )
            for what, content, told in [
                ("a web page", WEB_PAGE, "a web page"),
                ("a pickle", pickle.dumps({}), "a pickle of Python"),
                ("a zip archive", b"PK\x03\x04" + bytes(50), "a zip archive, as spreadsheets and PyTorch's files are"),
            ]
        ),
        BadInput(
            "a checkpoint whose weights are a pointer of Git LFS",
            export(lambda path: (path / "adapter.safetensors").write_text(POINTER)),
            ("adapter.safetensors cannot be read (" + POINTED,),
        ),
        BadInput(
            "a checkpoint whose description is a pointer of Git LFS",
            export(lambda path: (path / "checkpoint.json").write_text(POINTER)),
            ("checkpoint.json cannot be read (" + POINTED,),
        ),
        BadInput(
            "a pointer of Git LFS for a run's state",
            _run_file(["status"], "status.json", POINTER),
            ("status.json: cannot be read (" + POINTED,),
        ),
        BadInput(
            "a pointer of Git LFS for a picture",
            picture(POINTER.encode()),
            ("train0.png: cannot be read (" + POINTED,),
        ),
        BadInput(
            "a pointer of Git LFS for a tar of pictures",
            _setting("dataset.image_root", "0.tar", POINTER),
            ("0.tar: cannot be read (" + POINTED,),
        ),
        BadInput(
            "a pointer of Git LFS for a sweep",
            _named(_sweep, POINTER, "my.yaml"),
            ("my.yaml: cannot be read (" + POINTED,),
        ),
        BadInput(
            "a pointer of Git LFS among `init`'s tables",
            folder({"train.csv": ROWS, "val.csv": POINTER}),
            ("val.csv: cannot be read (" + POINTED + ", or give a folder without it",),
        ),
        BadInput(
            "a pointer of Git LFS among `init`'s lists",
            folder({"all.json": POINTER}),
            ("all.json: cannot be read (" + POINTED + ", or give a folder without it",),
        ),
        BadInput(
            "what gzip compressed among `init`'s lists",
            folder({"all.json": gzip.compress(b"[]")}),
            ("all.json: is no JSON (it is compressed by gzip)",),
        ),
        BadInput(
            "a Parquet file among `init`'s tables, with an encoding",
            folder({"all.csv": PARQUET}, "--encoding", "latin-1"),
            ("all.csv: the file is a Parquet file; save the table as CSV",),
        ),
    ],
)  # fmt: skip
