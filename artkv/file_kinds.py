"""What a file is by its first bytes, where one of another kind belongs: one wording for all that read files."""

import re
from typing import NamedTuple

# Bytes to look at: as many as hold the mark of a tar, which is the last to come.
START_BYTES = 1024
PICTURE = "a picture"
SAFETENSORS = "a safetensors file"
TAR_ARCHIVE = "a tar archive"
_PICKLE = "a pickle of Python"
_ZIP = "a zip archive, as spreadsheets and PyTorch's files are"
# What files of weights are: safetensors, and PyTorch's of each age.
WEIGHTS = (SAFETENSORS, _ZIP, _PICKLE)


class _Kind(NamedTuple):
    name: str
    begins: bytes  # a pattern of the first bytes


# Those that texts may begin with are told by as much as no text has.
_KINDS = [
    _Kind("a Parquet file", rb"PAR[1E]"),
    _Kind("an Arrow file", rb"ARROW1"),
    _Kind("an Arrow file", rb"\xff{4}"),
    _Kind("an Avro file", rb"Obj\x01"),
    _Kind("a Feather file", rb"FEA1"),
    _Kind("an SQLite database", rb"SQLite format 3\0"),
    _Kind(_ZIP, rb"PK(?:\x03\x04|\x05\x06)"),
    _Kind("compressed by gzip", rb"\x1f\x8b"),
    _Kind("compressed by bzip2", rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    _Kind("compressed by xz", rb"\xfd7zXZ\0"),
    _Kind("compressed by zstd", rb"[\x22-\x28]\xb5\x2f\xfd"),
    _Kind("compressed by lz4", rb"\x04\x22\x4d\x18"),
    _Kind("compressed by compress", rb"\x1f\x9d"),
    _Kind("a 7-Zip archive", rb"7z\xbc\xaf\x27\x1c"),
    _Kind("a RAR archive", rb"Rar!\x1a\x07"),
    _Kind(TAR_ARCHIVE, rb"(?s:.{257})ustar"),
    _Kind(_PICKLE, rb"\x80[\x02-\x05]"),
    _Kind("an array of NumPy", rb"\x93NUMPY"),
    _Kind("an HDF5 file", rb"\x89HDF\r\n\x1a\n"),
    _Kind(SAFETENSORS, rb"(?s:.{5})\0\0\0\{"),
    _Kind("a GGUF file", rb"GGUF[\x01-\x09]\0\0\0"),
    _Kind(PICTURE, rb"\x89PNG\r|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|(?s:RIFF....WEBP)|BM(?s:....)\0\0\0\0"),
    _Kind("a PDF", rb"%PDF-"),
    _Kind("a spreadsheet or document of an old kind", rb"\xd0\xcf\x11\xe0"),
    _Kind("a text of RTF, as word processors write it", rb"\{\\rtf"),
    _Kind("a program", rb"\x7fELF|MZ[^\n\r]{0,62}\0"),
    # What a server answers in the place of a file, and what spreadsheets and databases export.
    _Kind("a web page", rb"(?i:\s*(?:<!doctype html|<html|<head)[\s>])"),
    _Kind("XML", rb"(?i:\s*<\?xml\s)"),
]
_BYTE_ORDER_MARK = rb"\xef\xbb\xbf"
_LFS = re.compile(rb"version https://git-lfs\.")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_PATTERNS = [(kind.name, re.compile(rb"(?:%s)?(?:%s)" % (_BYTE_ORDER_MARK, kind.begins))) for kind in _KINDS]
# Control characters that no text has: of data of any kind a ninth is such. A text that was damaged has one or two.
_NO_TEXT = frozenset({*range(0x20)} - {*b"\a\b\t\n\v\f\r\x1a\x1b"})
_FEWEST_OF_DATA, _LEAST_SHARE_OF_DATA = 5, 0.02


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file holds what Git leaves in the place of one that Git LFS keeps elsewhere."""
    return _LFS.match(start) is not None


def kind_of_file(start: bytes) -> str | None:
    """What a file is by its first bytes, such as `a Parquet file`; None where they tell nothing, as of plain text.

    start: `START_BYTES` of it, or more.
    """
    start = start[:START_BYTES]
    return next((name for name, pattern in _PATTERNS if pattern.match(start)), None)


def is_packed(kind: str) -> bool:
    """Whether what `kind_of_file` tells is compressed, or an archive."""
    return kind.startswith("compressed") or " archive" in kind


def no_text_kind(start: bytes) -> str | None:
    """The same of what is to be a text, in UTF-8 or another encoding; data without a mark of a kind are told too."""
    start = start[:START_BYTES]
    return kind_of_file(start) or ("binary data" if _is_binary(start) else None)


def every_second_byte_is_nul(start: bytes) -> bool:
    """Whether it begins as Latin letters do in UTF-16."""
    return any(set(start[half:64:2]) == {0} for half in (0, 1))


def _is_binary(start: bytes) -> bool:
    """Whether it has more control characters than a damaged text has, and is not UTF-8 either."""
    try:
        start[:-3].decode("utf-8")  # without what may be a part of a character
        return False
    except UnicodeDecodeError as error:
        if error.start > len(start) - 7:
            return False
    if start.startswith(_UTF16) or every_second_byte_is_nul(start):
        return False  # a text in which NUL bytes are half of a character
    num_wrong = sum(byte in _NO_TEXT for byte in start)
    return num_wrong >= max(_FEWEST_OF_DATA, _LEAST_SHARE_OF_DATA * len(start))
