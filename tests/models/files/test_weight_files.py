"""What is told of weights' values: their digests, and whether they are numbers. Reading is tested with the backends."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from artkv.errors import UserError
from artkv.models.files.weight_files import digests, is_finite

_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("place", [0, 77_777, 199_999])  # of so many several threads take a part each
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_no_number_is_found_wherever_it_is(dtype: torch.dtype, place: int, value: float) -> None:
    values = torch.randn(200_000).to(dtype)
    assert is_finite(values)
    values[place] = value
    assert not is_finite(values)
    assert not is_finite(values.view(2, 100_000).T)  # whatever the order in memory
    assert not is_finite(values[place])  # without a dimension


@pytest.mark.parametrize("dtype", _DTYPES)
def test_the_largest_numbers_are_numbers(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    assert is_finite(torch.tensor([limits.max, limits.min, limits.tiny, -0.0], dtype=dtype))


def test_what_holds_no_fractions_or_nothing_is_finite() -> None:
    assert is_finite(torch.tensor([2**62, -1]))
    assert is_finite(torch.tensor([True, False]))
    assert is_finite(torch.empty(0, 3))


def _tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"t{n}": torch.randn(50 + n, 7).to(_DTYPES[n % 4]) for n in range(40)}


def _reference(tensor: Tensor) -> str:
    """Of shape and bfloat16 bits, which NumPy cuts out of rounded float32 ones."""
    rounded = tensor.to(torch.bfloat16).float().numpy()
    return hashlib.sha256(
        repr(tuple(tensor.shape)).encode() + (rounded.view(np.uint32) >> 16).astype("<u2").tobytes()
    ).hexdigest()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"whatever")
    return path


@pytest.mark.parametrize("threads", [1, 4])
def test_digests_are_those_of_each_tensor_in_their_order(file: Path, threads: int) -> None:
    tensors, before = _tensors(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = digests(iter(tensors.items()), [file])
    finally:
        torch.set_num_threads(before)
    assert list(found.items()) == [(name, _reference(tensor)) for name, tensor in tensors.items()]
    # Remembered: nothing is read again.
    assert digests(iter(()), [file]) == found


def test_what_is_no_number_is_told_and_what_cannot_be_read_is_raised_and_neither_is_remembered(file: Path) -> None:
    def read(last: Tensor | None) -> object:
        yield from _tensors().items()
        if last is None:
            raise OSError("gone")
        yield "last", last

    with pytest.raises(UserError, match=r"hold values that are not finite numbers \(NaN or infinity\): 2 in last"):
        digests(read(torch.tensor([1.0, float("nan"), float("inf")])), [file])  # type: ignore[arg-type]
    with pytest.raises(OSError, match="gone"):
        digests(read(None), [file])  # type: ignore[arg-type]
    assert len(digests(read(torch.ones(3)), [file])) == 41  # type: ignore[arg-type]
