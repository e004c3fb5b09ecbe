"""No `.pth` runs code, asks for memory that it does not have, or is waited for."""

import ast
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from artkv.errors import UserError
from artkv.models.files.efficientnet_files import read_efficientnet_file
from artkv.models.files.pickled_files import check_sums, plain_tensors, read_pickle

ROOT = Path(__file__).resolve().parents[3] / "artkv"


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    """Every call in artkv of what ends in `name`."""
    return [
        (path, node)
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name)
    ]


def said(call: ast.Call, keyword: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == keyword), None)


def test_nothing_is_unpickled_but_by_torchs_restricted_reader() -> None:
    loads = calls("torch.load")
    assert loads
    assert all(said(call, "weights_only") == "True" for _, call in loads)
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "cPickle", "dill", "joblib", "shelve"}, path


def test_no_code_of_a_hub_is_run() -> None:
    loads = calls(".from_pretrained") + [c for c in calls(".from_config") if "Auto" in ast.unparse(c[1].func)]
    assert len(loads) > 5
    assert [str(path) for path, call in loads if said(call, "trust_remote_code") != "False"] == []


class Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("touch ran",))


def test_code_is_neither_run_nor_recommended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    for write in (
        lambda: torch.save({"model": Evil()}, path),
        lambda: torch.save({"model": Evil()}, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(Evil(), protocol=2)),
    ):
        write()
        with pytest.raises(UserError, match=r"evil\.pth: may hold code \(it needs posix\.system\); not read") as caught:
            read_pickle(path, "model.blip2")
        assert "weights_only" not in str(caught.value)
        assert not (tmp_path / "ran").exists()


def test_a_pickle_that_torch_cannot_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "new.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with pytest.raises(
        UserError, match=r"not a readable PyTorch checkpoint \(Unsupported operand 149\); fetch or write"
    ):
        read_pickle(tmp_path / "new.pth")


def cycle() -> dict[str, Any]:
    wrapped: dict[str, Any] = {}
    wrapped["model"] = wrapped
    return wrapped


def nested(depth: int) -> dict[str, Any]:
    state: dict[str, Any] = {"conv_stem.weight": torch.zeros(1)}
    for _ in range(depth):
        state = {"model": state}
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cycle(), "wraps its state dict more than 8 times"),
        (nested(20), "wraps its state dict more than 8 times"),
        (
            {"conv_stem.weight": torch.zeros(1).expand(10**6, 10**6)},
            r"shape \(1000000, 1000000\), of which the file hol",
        ),
        ({"conv_stem.weight": torch.zeros(9).as_strided((3, 9), (0, 1))}, "holds what is no weight"),
        ({"conv_stem.weight": torch.eye(3).to_sparse()}, "layout sparse_coo, not dense"),
        ({"conv_stem.weight": torch.zeros(3, dtype=torch.complex64)}, "holds complex numbers"),
        ({"conv_stem.weight": torch.zeros(3, device="meta")}, "has a shape and no values"),
        (
            {"blocks.0": torch.zeros(4), 7: torch.zeros(1)},
            "the name 7 is no text",
        ),
        ([torch.zeros(1)], "holds a list, expected a dict"),
        (torch.zeros(1), "holds a Tensor, expected a dict"),
        ({}, "it is empty; the weights"),
        ({"conv_stem.weight": "text"}, "it has other values under conv_stem.weight"),
        ({"conv_stem.\x1b[31m": 3}, r"other values under conv_stem\.\\x1b\[31m"),
    ],
)
def test_what_is_no_state_dict_is_told(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as caught:
        read_efficientnet_file(tmp_path / "other.pth")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_many_views_of_one_storage_are_refused(tmp_path: Path) -> None:
    big = torch.zeros(1000)
    path = tmp_path / "views.pth"
    torch.save({f"blocks.{n}.weight": big.view(10, 100) for n in range(200)}, path)
    with pytest.raises(UserError, match=r"its tensors have 800,000 bytes, the file [0-9,]+; give a checkpoint"):
        plain_tensors(read_pickle(path), path)
    tied = torch.zeros(1000)
    torch.save({"one": tied, "other": tied.view(10, 100), "turned": tied.view(10, 100).t()}, path)
    assert list(plain_tensors(read_pickle(path), path)) == ["one", "other", "turned"]


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": torch.zeros(100_000)}, tmp_path / "plain.pth")
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "plain.pth") as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(UserError, match="parts are compressed, as torch.save never does; not read"):
        read_pickle(bomb)


def test_an_archive_of_something_else_is_told(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pth"))
    with pytest.raises(
        UserError, match=r"is TorchScript, which holds code; not read, .*torch\.save\(model\.state_dict"
    ):
        read_pickle(tmp_path / "script.pth")
    with zipfile.ZipFile(tmp_path / "table.pth", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("train.csv", "image,question\n")
    with pytest.raises(
        UserError, match=r"is a zip archive, and none of torch\.save \(it holds train\.csv\); unpack it"
    ):
        read_pickle(tmp_path / "table.pth")


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    os.symlink("loop.pth", tmp_path / "loop.pth")
    for path, reason in [
        (tmp_path / "pipe.pth", r"cannot be read \(is a pipe"),
        (tmp_path, r"cannot be read \(is a folder"),
        (tmp_path / "loop.pth", r"cannot be read \(Too many levels of symbolic links"),
        (tmp_path / "none.pth", "no such file; give an existing one"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(UserError, match=reason):
            read_pickle(path)


def test_a_part_that_is_not_what_was_written_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(5000)}, path)
    check_sums(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + bytes(512) + whole[9512:])
    assert read_pickle(path)["weight"].sum() < 5000  # torch itself does not see it
    with pytest.raises(UserError, match=r"its part weights/data/0 does not match its checksum: the file is damaged"):
        check_sums(path)


def test_files_without_checksums_have_none_to_match(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(5000)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    check_sums(path)
    torch.save({"weight": torch.ones(5)}, path, _use_new_zipfile_serialization=False)
    check_sums(path)
    assert read_pickle(path)["weight"].sum() == 5
