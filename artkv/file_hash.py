"""SHA-256 of files of any size."""

import hashlib
from typing import BinaryIO


def file_sha256(file: BinaryIO) -> str:
    """SHA-256 in hex of an open file from where it stands, read a MiB at a time.

    `hashlib.file_digest` came with Python 3.11.
    """
    sha = hashlib.sha256()
    while chunk := file.read(1 << 20):
        sha.update(chunk)
    return sha.hexdigest()
