"""Which id of the hub a text means that is none."""

import pytest

from artkv.models.files.hub_ids import did_you_mean, meant_id


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/user/painter", "http://hf.co/user/painter/", "huggingface.co/user/painter?x=1",
        "https://huggingface.co/user/painter/tree/main", "https://huggingface.co/user/painter/blob/main/a.safetensors",
        "hf://user/painter", "hf://models/user/painter", "user/painter/", "user//painter",
        "user/painter@", "user/painter@a@b", "user/painter.git", "user\\painter", " user/painter ",
    ],
)  # fmt: skip
def test_what_is_nearly_an_id_means_one(text: str) -> None:
    assert meant_id(text) == "user/painter"
    assert did_you_mean(text) == "did you mean 'user/painter'? "


@pytest.mark.parametrize(
    "text",
    [
        "user/painter",
        "painter",
        "",
        "a/b/c",
        "/etc/passwd",
        "us er/painter",
        "../painter/",
        "user/..",
        "user/-x/",
        "@",
        "hf://",
    ],
)
def test_what_is_an_id_or_nothing_like_it_means_none(text: str) -> None:
    assert meant_id(text) is None
    assert did_you_mean(text) == ""
