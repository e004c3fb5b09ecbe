"""Files are hashed whole, also where Python lacks `hashlib.file_digest`."""

import hashlib
import io

import pytest

from artkv.file_hash import file_sha256


@pytest.mark.parametrize("size", [0, 5, 1 << 20, (1 << 21) + 3])
def test_is_the_sha256_of_all_bytes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    expected = hashlib.sha256(content).hexdigest()
    monkeypatch.delattr(hashlib, "file_digest", raising=False)  # Python 3.10 has none
    assert file_sha256(io.BytesIO(content)) == expected
