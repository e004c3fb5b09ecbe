import pytest

from artkv.config.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GiB", 8 * 2**30), ("24GB", 24 * 10**9), (" 512 MiB", 512 * 2**20), ("1.5GiB", 3 * 2**29)],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "8 GiBs", "-8GiB", "0GiB", "8G8", "nan", "1e3MB"])
def test_no_size_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size of memory; give one such as 8GiB"):
        parse_size(text)
