"""Which texts are ids of the hub, and what its answers mean."""

from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.sharing.fetching import open_shared
from artkv.sharing.hub_names import HubName, hub_name, required_hub_name
from artkv.sharing.pushing import PushOptions, upload
from tests.hub_server import hub_here


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("user/painter", HubName("user/painter")),
        ("user/painter@early", HubName("user/painter", "early")),
        ("a-b/c_d.e@refs/pr/1", HubName("a-b/c_d.e", "refs/pr/1")),
        ("painter", None), ("./user/painter", None), ("/user/painter", None), ("user/a/b", None), ("user/", None),
        ("user/painter.safetensors", None), ("outputs/dmeo", None), ("demo/best", None), ("../painter", None),
        ("user/pa..nter", None), ("user/painter@", None), ("user/painter@../x", None), ("us er/painter", None),
        ("user/-painter", None), ("~user/painter", None), ("user\0/painter", None), (f"user/{'x' * 97}", None),
    ],
)  # fmt: skip
def test_a_text_is_an_id_or_a_path(
    text: str, name: HubName | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "\0" not in text:
        assert hub_name(text) == name
    assert hub_name(Path("user/painter")) is None
    if name is not None:
        assert required_hub_name(name.repo, name.revision) == name


def test_a_path_that_exists_wins_over_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "painter").mkdir(parents=True)
    with pytest.raises(UserError, match=r"user/painter: no checkpoint there"):
        open_shared("user/painter")
    with pytest.raises(UserError, match=r"user/paintre: no checkpoint there"):  # mistyped in a folder that is there
        open_shared("user/paintre")


@pytest.mark.parametrize("text", ["painter", "a/b/c", "", "user/..", "/etc/passwd", "user/\x1b[2J", "user/a b"])
def test_what_is_no_id_cannot_be_pushed_to(text: str) -> None:
    with pytest.raises(UserError, match=r"is no id of the hub; give USER/NAME") as caught:
        required_hub_name(text, None)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("revision", ["a..b", "", "-rf", "a b", "\x1b[2J", "x" * 300])
def test_what_is_no_branch_cannot_be_pushed_to(revision: str) -> None:
    with pytest.raises(UserError, match="--revision '.*': is no name of a branch; give letters") as caught:
        required_hub_name("user/painter", revision)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"user/painter: cannot be fetched: the hub knows no such model, or it is private \(401\)"),
        (403, r"the token may not do that \(403\); give one that may, with HF_TOKEN"),
        (404, r"the hub knows no such model, or it is private \(404\)"),
        (500, "the hub answers 500; try again"),
        (503, "the hub answers 503; try again"),
    ],
)
def test_what_the_hub_answers_is_explained(
    status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with hub_here(monkeypatch, tmp_path / "cache") as hub:
        hub.status = status
        with pytest.raises(UserError, match=message):
            open_shared("user/painter")


def test_no_hub_and_no_token_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with hub_here(monkeypatch, tmp_path / "cache"):
        pass  # and gone
    with pytest.raises(UserError, match=r"the hub is not reached \(\w+: [^)]+\); (look|HF_ENDPOINT is)"):
        open_shared("user/painter")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=r"cannot be pushed without a token; log in with `hf auth login`, or"):
        upload(PushOptions("run", HubName("user/painter")), tmp_path)
