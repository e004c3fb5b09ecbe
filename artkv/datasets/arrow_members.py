"""Finds the pictures in an Arrow file, as the library `datasets` saves them.

Such a file is a stream of record batches, whose buffers lie in it as they are, so that a picture's bytes have a place.
"""

import mmap
import os
from typing import Any, BinaryIO

import numpy as np

from artkv.datasets.members import MOST_MEMBERS, Members, checked_name
from artkv.errors import UserError
from artkv.reading import printable

ARROW = ".arrow"
# Columns whose text or number names a row's picture, before the path in the picture's own column.
_NAME_COLUMNS = ("file_name", "image_id")
# Of several columns of pictures the one of this name is read.
_IMAGE = "image"
_FILE_FORMAT = b"ARROW1"
# What a stream ends with: the mark of a message, and its length, 0.
_END = b"\xff\xff\xff\xff\0\0\0\0"
_FETCH = "fetch it whole, or save it anew"
_SAVE = "save the dataset with Dataset.save_to_disk"


def read_arrow_members(file: BinaryIO, num_bytes: int, place: str) -> Members:
    """The pictures in a file of `Dataset.save_to_disk`; `UserError` unless it is whole, and each has bytes and a name.

    A row without a picture is none. Rows of one name are one picture, and must have the same bytes. num_bytes: of the
    file. place: the file, for messages.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{place}: needs the package pyarrow; pip install 'artkv[arrow]'") from None
    if not num_bytes:
        raise UserError(f"{place}: is empty (0 bytes); {_FETCH}")
    # Closed when nothing of Arrow points into it any more.
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[: len(_FILE_FORMAT)] == _FILE_FORMAT:
        raise UserError(f"{place}: is Arrow's file format, and no stream; {_SAVE}")
    if mapped[-len(_END) :] != _END:
        raise UserError(f"{place}: has no end mark: it was cut off, or is no Arrow stream; {_FETCH}")
    whole = pyarrow.py_buffer(mapped)
    pictures = _Pictures(mapped, place)
    try:
        with pyarrow.ipc.open_stream(whole) as stream:
            column = _picture_column(stream.schema, place)
            for batch in stream:
                batch.validate(full=True)
                pictures.add(_places(batch, column, whole, place), _names(batch, column))
    except (pyarrow.ArrowException, OSError) as error:
        reason = printable(str(error).split("\n")[0])[:200] or type(error).__name__
        raise UserError(f"{place}: damaged ({reason}); {_FETCH}") from None
    return pictures.members()


class _Pictures:
    """Those that were found so far."""

    def __init__(self, mapped: mmap.mmap, place: str) -> None:
        self._mapped, self._place = mapped, place
        self._rows = 0
        self._limits: list[tuple[int, int]] = []
        self._row_of_name: dict[str, int] = {}
        self._other_names: dict[tuple[str, int], None] = {}

    def add(self, places: list[tuple[int, int] | None], names: list[tuple[str | None, ...]]) -> None:
        """Takes the rows of a record batch: see `_places` and `_names`."""
        for limits, all_names in zip(places, names, strict=True):
            what = f"{self._place}: row {self._rows} (from 0)"
            self._rows += 1
            if limits is None:
                if all_names[-1]:
                    raise UserError(f"{what} has the path of picture {all_names[-1]!r:.200} and not its bytes; {_SAVE}")
                continue
            known_as = [name for name in all_names if name]
            if not known_as:
                raise UserError(
                    f"{what} has a picture without a name; give each one, with Dataset.add_column('file_name', names)"
                )
            name = checked_name(known_as[0], f"{what}: picture {known_as[0]!r:.200}", "file; give it a name below it")
            row = self._row_of_name.setdefault(name, len(self._limits))
            if row == len(self._limits):
                self._limits.append(limits)
            elif self._mapped[slice(*limits)] != self._mapped[slice(*self._limits[row])]:
                raise UserError(f"{what}: another picture {name!r:.200} is in a row above; give each its own name")
            self._other_names |= {(os.path.normpath(other), row): None for other in known_as[1:] if "\0" not in other}
        if len(self._limits) > MOST_MEMBERS:
            raise UserError(f"{self._place}: holds more than {MOST_MEMBERS:,} pictures; save it in several files")

    def members(self) -> Members:
        """See `Members`."""
        limits = np.array(self._limits, dtype=np.int64).reshape(-1, 2)
        other_names = [(name, row) for name, row in self._other_names if self._row_of_name.get(name) != row]
        return Members(list(self._row_of_name), limits[:, 0].copy(), limits[:, 1] - limits[:, 0], other_names)


def _picture_column(schema: Any, place: str) -> int:
    """The column of structs of `bytes` and `path`, as `datasets.Image` makes them."""
    import pyarrow

    def is_picture(kind: Any) -> bool:
        if not pyarrow.types.is_struct(kind) or min(map(kind.get_field_index, ("bytes", "path"))) < 0:
            return False
        is_bytes = kind.field("bytes").type in (pyarrow.binary(), pyarrow.large_binary())
        return is_bytes and _is_name(kind.field("path").type)

    found = [number for number, field in enumerate(schema) if is_picture(field.type)]
    named = [number for number in found if schema.names[number] == _IMAGE] if len(found) > 1 else found
    if len(named) != 1:
        names = ", ".join(repr(name)[:80] for name in schema.names[:20])
        raise UserError(
            f"{place}: {len(found)} of its columns hold pictures (of {names}); cast the one to read to datasets.Image, "
            f"and name it {_IMAGE}"
        )
    return named[0]


def _places(batch: Any, column: int, whole: Any, place: str) -> list[tuple[int, int] | None]:
    """Of each row where its picture begins and ends in the file; None where there is none."""
    import pyarrow

    pictures = batch.column(column)
    content = pictures.flatten()[pictures.type.get_field_index("bytes")]
    if not len(content):  # may be without buffers
        return []
    _, offsets, data = content.buffers()
    start = 0 if data is None or not data.size else data.address - whole.address
    if not 0 <= start < whole.size:
        raise UserError(f"{place}: is compressed, so that pictures have no places to be read at; {_SAVE}")
    number = np.int64 if pyarrow.types.is_large_binary(content.type) else np.int32
    limits = start + np.frombuffer(offsets, number)[content.offset :][: len(content) + 1].astype(np.int64)
    is_there = content.is_valid().to_pylist()
    pairs = zip(limits[:-1].tolist(), limits[1:].tolist(), is_there, strict=True)
    return [(begin, end) if there else None for begin, end, there in pairs]


def _names(batch: Any, column: int) -> list[tuple[str | None, ...]]:
    """Of each row what may name its picture, best first; the path in its own column is the last."""
    import pyarrow

    pictures = batch.column(column)
    found = [batch.schema.get_field_index(name) for name in _NAME_COLUMNS]
    columns = [batch.column(place) for place in found if place >= 0 and _is_name(batch.schema.field(place).type)]
    columns.append(pictures.flatten()[pictures.type.get_field_index("path")])
    return list(zip(*(values.cast(pyarrow.large_string()).to_pylist() for values in columns), strict=True))


def _is_name(kind: Any) -> bool:
    """Whether it is a type of texts or whole numbers."""
    import pyarrow

    kinds = pyarrow.types
    return any(is_kind(kind) for is_kind in (kinds.is_string, kinds.is_large_string, kinds.is_integer))
