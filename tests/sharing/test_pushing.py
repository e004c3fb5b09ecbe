"""A model that was pushed is loaded by its id, answers as the run does, and tells nothing of the author's disk."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import huggingface_hub.constants
import pytest

import artkv.cli as cli
from artkv import load_model
from artkv.config import load_config
from artkv.distributed import World
from artkv.errors import UserError
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.serve.asking import AskedModel
from artkv.sharing.fetching import open_shared
from artkv.training.run import train
from tests.hub_server import Hub, Repository, hub_here

BASE = "Salesforce/blip2-opt-2.7b"
FILES = {"README.md", "adapter.safetensors", "art_encoder.safetensors", "artkv.json", "comparison.json", "scores.json"}


@pytest.fixture(scope="module")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    output = tmp_path_factory.mktemp("pushed") / "run"
    train(
        load_config(tiny_world / "config.yaml", [f"run.output_dir={output}", "training.num_epochs=1"]),
        None,
        one_process,
    )
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "run", symlinks=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_here(monkeypatch, tmp_path / "hub_cache") as hub:
        yield hub


def push(run: Path, *options: str, name: str = "user/painter") -> int:
    return cli.main(["push", str(run), name, "--base-model", BASE, "--yes", *options])


def test_a_pushed_model_answers_as_the_run_does(
    run: Path, hub: Hub, tiny_world: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "--checkpoint", str(run / "best"), "--all-ablations"]) == 0
    assert push(run, "--license", "apache-2.0") == 0, capsys.readouterr().err
    assert "uploaded: http" in capsys.readouterr().out
    files = hub.repositories["user/painter"].files("main")
    assert set(files) == FILES
    for name, data in files.items():
        assert str(tiny_world).encode() not in data, name
        assert str(run.parent).encode() not in data, name
    card = files["README.md"].decode()
    for part in (f'base_model: "{BASE}"', 'license: "apache-2.0"', "| all | ", "What the prefix adds", "load_model("):
        assert part in card, part
    overall = json.loads(files["scores.json"])["scores"]["prefix on"]["overall"]["exact_match"]
    assert f"| all | {overall['value']:.3f} [{overall['low']:.3f}, {overall['high']:.3f}] |" in card

    picture = tiny_world / "images" / "val0.png"
    capsys.readouterr()
    base = ["--set", f"model.blip2={tiny_world / 'blip2'}"]
    assert cli.main(["ask", "--checkpoint", "user/painter", *base, str(picture), "What is thing 0?"]) == 0
    shared = capsys.readouterr().out
    assert cli.main(["ask", "--checkpoint", str(run / "best"), str(picture), "What is thing 0?"]) == 0
    assert capsys.readouterr().out == shared
    gets = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert {request.rsplit("/", 1)[1] for request in gets} == {
        "artkv.json", "adapter.safetensors", "art_encoder.safetensors",
    }  # fmt: skip
    opened = open_shared("user/painter")
    assert opened.config.model.blip2 == BASE
    assert opened.run_dir == Path.cwd() / "outputs" / "user--painter"  # not in the hub's cache
    config = opened.config.model_copy(
        update={"model": opened.config.model.model_copy(update={"blip2": str(tiny_world / "blip2")})}
    )
    assert isinstance(load_model(config, "user/painter").ask(picture, "What is thing 0?"), str)


def test_a_private_model_needs_its_token_and_the_cache_needs_no_hub(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(run, "--private") == 0
    assert hub.repositories["user/painter"].private
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=r"user/painter: cannot be fetched: .* or it is private \(401\).*HF_TOKEN"):
        open_shared("user/painter")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_owner")
    fetched = open_shared("user/painter")
    hub.status = 500
    with pytest.raises(UserError, match="the hub answers 500"):
        open_shared("user/painter")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    again = open_shared("user/painter")
    assert again == fetched
    assert len(hub.requests) == asked
    with pytest.raises(UserError, match=r"user/other: artkv\.json cannot be fetched: it is not in the cache"):
        open_shared("user/other")


def test_a_branch_is_pushed_and_loaded_by_its_name(run: Path, hub: Hub) -> None:
    assert push(run) == 0
    assert push(open_checkpoint(run).path.parent / "step_00000004", "--revision", "early") == 0
    assert open_shared("user/painter@early").step == 4
    assert open_shared("user/painter").step != 4
    with pytest.raises(UserError, match=r"user/painter@none: cannot be fetched: the hub has no revision 'none'"):
        open_shared("user/painter@none")


def test_what_cannot_be_pushed_is_told(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*options: str, name: str = "user/painter") -> str:
        assert push(run, *options, name=name) == 1
        return capsys.readouterr().err

    assert "the token may not do that (403)" in told(name="other/painter")
    hub.repositories["user/painter"] = theirs = Repository(branches={"main": ""})
    theirs.commit("main", {"README.md": b"a person's", "weights.bin": b"x"})
    assert "is a repository that artkv push did not write; give another name" in told()
    theirs.commit("main", {"artkv.json": b"{}"})
    assert "is public already" in told("--private")
    assert cli.main(["push", str(run), "user/painter", "--yes"]) == 1
    assert "is a file or folder of this machine; add --base-model" in capsys.readouterr().err
    assert cli.main(["push", str(run), "user/painter", "--base-model", BASE]) == 1  # nobody to ask
    assert "nothing was uploaded; answer y, or add --yes" in capsys.readouterr().err


def test_the_file_that_is_not_there_is_named_and_not_the_folder_that_is_written_to(
    run: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny_world / "efficientnet.safetensors"
    weights.rename(tiny_world / "away")
    try:
        assert push(run) == 1
    finally:
        (tiny_world / "away").rename(weights)
    told = capsys.readouterr().err
    assert f"efficientnet.checkpoint = {weights}: no such file; put it back, or add --leave-out-art-encoder" in told
    assert "TMPDIR" not in told


def test_a_base_model_that_the_hub_does_not_have_is_told_before_anything_is_made(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(base: str) -> str:
        assert cli.main(["push", str(run), "user/painter", "--base-model", base, "--yes"]) == 1
        assert "user/painter" not in hub.repositories
        return capsys.readouterr().err

    for base in ("no/such", "not_an_id"):
        before = len(hub.requests)
        place = f"--base-model {base}: cannot be found on the hub"
        assert f"{place}: the hub knows no such model, or it is private (404); check the name, and see" in told(base)
        assert len(hub.requests) == before + 1
    hub.repositories["my/blip2"] = Repository(private=True, branches={"main": ""})
    monkeypatch.setenv("HF_TOKEN", "")
    assert "or it is private (401); check the name, and log in" in told("my/blip2")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_owner")
    assert cli.main(["push", str(run), "user/painter", "--base-model", "my/blip2", "--yes"]) == 0
    hub.repositories["my/gpt"] = Repository(branches={"main": ""}, config={"model_type": "gpt2"})
    capsys.readouterr()
    del hub.repositories["user/painter"]
    assert "--base-model my/gpt: is 'gpt2', expected blip-2; give the id of the frozen weights" in told("my/gpt")
    theirs = hub.repositories["my/notes"] = Repository(branches={"main": ""})
    theirs.commit("main", {"README.md": b"a person's"})
    assert "--base-model my/notes: holds no weights (README.md); give the id of the frozen weights" in told("my/notes")
    hub.status = 503
    assert "--base-model no/such: cannot be found on the hub: the hub answers 503; try again" in told("no/such")


def test_what_an_exported_model_needs_is_not_pushed_without_it(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--checkpoint", str(run), "--format", "transformers", "--output", "whole"]) == 0
    assert push(Path("whole")) == 1
    told = capsys.readouterr().err
    assert "whole/kv_prefix.safetensors: belongs to the exported model beside it, whose weights hold what was" in told
    assert "give the run's folder, a checkpoint's, or a file of artkv export --format adapter" in told
    assert "user/painter" not in hub.repositories
    assert cli.main(["export", "--checkpoint", str(run), "--format", "adapter", "--output", "a.safetensors"]) == 0
    assert push(Path("a.safetensors")) == 0


def test_a_token_that_the_hub_does_not_know_is_told_as_such(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_another_time")
    assert push(run) == 1
    assert "the hub does not accept the token in HF_TOKEN (401); copy one anew from" in capsys.readouterr().err


def test_nothing_is_pushed_with_the_hub_switched_off(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert push(run) == 1
    assert "user/painter: cannot be pushed: HF_HUB_OFFLINE is set; unset it" in capsys.readouterr().err


def test_a_file_that_is_gone_from_the_hub_is_named(run: Path, hub: Hub) -> None:
    assert push(run) == 0
    repository = hub.repositories["user/painter"]
    for name, message in [
        ("art_encoder.safetensors", "art_encoder.safetensors cannot be fetched: the hub has the model, but not this"),
        ("adapter.safetensors", "adapter.safetensors is gone from it; ask its author to push it again"),
    ]:
        files = repository.commits[repository.branches["main"]]
        kept = files.pop(name)
        with pytest.raises(UserError, match=message):
            open_shared("user/painter")
        files[name] = kept


def test_what_was_damaged_or_planted_is_refused(run: Path, hub: Hub) -> None:
    assert push(run) == 0
    repository = hub.repositories["user/painter"]
    whole = dict(repository.files("main"))
    description = json.loads(whole["artkv.json"])
    for change, message in [
        ({"format_version": 9}, "has format 9, this artkv reads 1"),
        ({"base_model": "/etc/passwd"}, r"base_model = '/etc/passwd': is no id of the hub"),
        ({"base_model": "../../x"}, "is no id of the hub"),
        ({"base_revision": "main"}, r"base_revision = 'main': is no commit"),
        ({"step": -1}, "step = -1"),
        ({"frozen_hash": "0" * 64}, "are of two models"),
        ({"sha256": {}}, "names no adapter.safetensors"),
        ({"code": "x"}, "has 'code', which is unknown"),
    ]:
        repository.commit("main", {"artkv.json": json.dumps({**description, **change}).encode()})
        with pytest.raises(UserError, match=message):
            open_shared("user/painter")
    repository.commit("main", {**whole, "adapter.safetensors": whole["adapter.safetensors"][:-1] + b"\1"})
    with pytest.raises(UserError, match=r"adapter\.safetensors does not match its checksum; delete .*") as told:
        open_shared("user/painter")
    # What is fetched again once it is gone: the hub's cache would take a blob that stays for what it links to.
    blob = Path(str(told.value).partition("delete ")[2].partition(", and try")[0])
    assert blob.is_file()
    assert not blob.is_symlink()
    cut = whole["adapter.safetensors"][:-1]
    sums = description["sha256"] | {"adapter.safetensors": hashlib.sha256(cut).hexdigest()}
    described = json.dumps({**description, "sha256": sums}).encode()
    repository.commit("main", {**whole, "adapter.safetensors": cut, "artkv.json": described})
    with pytest.raises(
        UserError, match=r"^user/painter: adapter\.safetensors: not a readable .*; ask its author to push"
    ):
        open_shared("user/painter")
    repository.commit("main", {**whole, "artkv.json": b" " * 2**21})
    with pytest.raises(UserError, match=r"artkv\.json has 2,097,152 bytes, of 1,048,576 at most; it is not fetched"):
        open_shared("user/painter")
    hub.repositories["user/empty"] = Repository(branches={"main": ""})
    with pytest.raises(UserError, match="holds no model that artkv push has written"):
        open_shared("user/empty")


def test_a_model_whose_base_is_on_the_hub_is_loaded_by_its_id_alone(
    run: Path, hub: Hub, tiny_world: Path, in_process: None
) -> None:
    hub.repositories["tiny/blip2"] = theirs = Repository(branches={"main": ""})
    first = theirs.commit("main", {path.name: path.read_bytes() for path in (tiny_world / "blip2").iterdir()})
    huggingface_hub.HfApi().hf_hub_download("tiny/blip2", "config.json")  # as a training on it would have
    assert cli.main(["push", str(run), "user/painter", "--base-model", "tiny/blip2", "--yes"]) == 0
    theirs.commit("main", {"model.safetensors": b"other weights"})
    model = load_model("user/painter")
    assert model.config.model.revision == first
    picture = tiny_world / "images" / "val0.png"
    assert model.ask(picture, "What is thing 0?") == load_model(checkpoint=run / "best").ask(
        picture, "What is thing 0?"
    )


def test_serve_evaluate_and_export_take_an_id_and_tell_it(
    run: Path, hub: Hub, tiny_world: Path, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert push(run) == 0
    capsys.readouterr()
    base = ["--checkpoint", "user/painter", "--set", f"model.blip2={tiny_world / 'blip2'}"]

    named = []

    def serve(_: object, model: AskedModel) -> NoReturn:
        named.append(model.facts().name)
        raise KeyboardInterrupt

    monkeypatch.setattr("artkv.serve.server.PageServer.serve", serve)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert cli.main(["serve", *base, "--port", "0"]) == 0
    assert named == ["user/painter"]

    assert cli.main(["evaluate", *base, "--split", "val"]) == 1  # the author's tables do not travel
    assert "dataset.val is not set; give a CSV file, as with --set dataset.val=PATH" in capsys.readouterr().err
    data = ["--set", f"dataset.val={tiny_world / 'val.csv'}", "--set", f"dataset.image_root={tiny_world / 'images'}"]
    assert cli.main(["evaluate", *base, *data, "--split", "val", "--all-ablations"]) == 0, capsys.readouterr().err
    output = capsys.readouterr()
    assert "artkv: checkpoint user/painter\n" in output.err
    assert "/blobs/" not in output.out + output.err
    place = Path("eval/val-on/predictions.csv")
    assert cli.main(["evaluate", "--checkpoint", str(run / "best"), "--split", "val"]) == 0
    assert (Path("outputs/user--painter") / place).read_bytes() == (run / place).read_bytes()

    for kind, name in (("adapter", "mine.safetensors"), ("transformers", "mine")):
        assert cli.main(["export", *base, "--format", kind, "--output", name]) == 0, capsys.readouterr().err
        picture = tiny_world / "images" / "val0.png"
        again = load_model(checkpoint=name)
        assert again.ask(picture, "What is thing 0?") == load_model(checkpoint=run / "best").ask(
            picture, "What is thing 0?"
        )


def test_other_frozen_weights_are_refused_by_their_hash(run: Path, hub: Hub, tiny_world: Path, tmp_path: Path) -> None:
    assert push(run, "--leave-out-art-encoder") == 0
    opened = open_shared("user/painter")
    assert opened.config.efficientnet.checkpoint is None
    assert "not in this repository" in hub.repositories["user/painter"].files("main")["README.md"].decode()
    with pytest.raises(UserError, match="was trained on other frozen weights"):
        opened.check_frozen_weights("0" * 64)
