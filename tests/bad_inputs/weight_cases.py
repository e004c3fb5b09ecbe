"""Weights that are damaged, planted, or another model's."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.cases import Area, BadInput, Make, Place
from tests.bad_inputs.model_folder_cases import blip2, cut, folder, pipe, text


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    """With changed weights."""

    def damage(blip2: Path) -> None:
        state = load_file(blip2 / "model.safetensors")
        change(state)
        save_file(state, blip2 / "model.safetensors", {"format": "pt"})

    return folder(damage)


def index(tree: object) -> Make:
    """With an index in the place of the whole file, which would be read before it."""

    def change(blip2: Path) -> None:
        (blip2 / "model.safetensors").rename(blip2 / "model-00001.safetensors")
        (blip2 / "model.safetensors.index.json").write_text(json.dumps(tree))

    return folder(change)


def header(tree: object) -> Make:
    """With safetensors of this header, and eight bytes of data."""
    content = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return folder(
        lambda blip2: (blip2 / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(8))
    )


def art(name: str, content: bytes | Callable[[Path], object]) -> Make:
    """`artkv check` with this file of the art encoder."""

    def make(place: Place) -> list[str]:
        path = place.folder / name
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        return ["check", *place.config(f"efficientnet.checkpoint={path}")]

    return make


def _renamed(path: Path) -> None:
    save_file({"conv_stem.weight": torch.ones(1)}, path)


def changed_art(name: str, number: float) -> Make:
    """`artkv check` with an art encoder one of whose tensors has this number throughout."""

    def make(place: Place) -> list[str]:
        state = load_file(place.world / "efficientnet.safetensors")
        state[name].fill_(number)
        path = place.folder / "art.safetensors"
        save_file(state, path)
        return ["check", *place.config(f"efficientnet.checkpoint={path}")]

    return make


def lavis(content: object) -> Make:
    """`artkv check` with this LAVIS `.pth`."""

    def make(place: Place) -> list[str]:
        torch.save(content, place.folder / "blip2.pth")
        return ["check", *place.config("model.blip2=blip2.pth", f"model.opt={place.world / 'blip2'}")]

    return make


class Evil:
    """What runs a program where it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch ran",))


def _cycle() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["model"] = state
    return state


def _nan(state: dict[str, torch.Tensor]) -> None:
    state["query_tokens"][0, 0, :3] = float("nan")
    state["qformer.layernorm.bias"][0] = float("inf")


def _art_of_shapes(path: Path) -> None:
    torch.save({"conv_stem.weight": torch.zeros(1).expand(10**5, 10**5)}, path)


def _with_a_block_of_zeros(path: Path) -> None:
    torch.save({"conv_stem.weight": torch.ones(5000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:9000] + bytes(512) + content[9512:])


_ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

WEIGHTS = Area(
    "Weights",
    [
        BadInput(
            "no weights",
            folder(lambda path: (path / "model.safetensors").unlink()),
            ("blip2: holds neither model.safetensors nor pytorch_model.bin",),
        ),
        BadInput(
            "weights that are cut off",
            cut("model.safetensors", 20_000),
            ("model.safetensors: is not a readable safetensors file (", "fetch it again"),
        ),
        BadInput(
            "weights of a web page",
            text("model.safetensors", "<html>not found</html>"),
            ("model.safetensors: is not a readable safetensors file (",),
        ),
        BadInput(
            "Git LFS's pointer",
            text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
            ("is a pointer of Git LFS, not the file); run git lfs pull",),
        ),
        BadInput(
            "weights that are a pipe", pipe("model.safetensors"), ("model.safetensors: cannot be read (is a pipe",)
        ),
        BadInput(
            "a header that is longer than the file",
            folder(lambda path: (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**60))),
            ("is not a readable safetensors file (",),
        ),
        BadInput("a header that is no JSON", header(b"{garbled"), ("is not a readable safetensors file (",)),
        BadInput("tensors that overlap", header({"a": _ROW, "b": _ROW}), ("is not a readable safetensors file (",)),
        BadInput(
            "a tensor larger than its bytes",
            header({"a": _ROW | {"shape": [10**12]}}),
            ("is not a readable safetensors file (",),
        ),
        BadInput(
            "numbers of a kind that is none",
            header({"a": _ROW | {"dtype": "F99"}}),
            ("is not a readable safetensors file (",),
        ),
        BadInput(
            "a tensor that is missing",
            tensors(lambda state: state.pop("query_tokens")),
            ("weights do not fit config.json: 1 missing: query_tokens",),
        ),
        BadInput(
            "a tensor too many",
            tensors(lambda state: state.update(extra=torch.zeros(1))),
            ("weights do not fit config.json: 1 unexpected: extra",),
        ),
        BadInput(
            "escape codes in a tensor's name",
            tensors(lambda state: state.update({"a\x1b[2J": torch.zeros(1)})),
            (r"1 unexpected: a\x1b[2J",),
        ),
        BadInput(
            "a tensor of another shape",
            tensors(lambda state: state.update(query_tokens=torch.zeros(1, 6, 47))),
            ("query_tokens has shape (1, 6, 47), config.json says (1, 6, 48)",),
        ),
        BadInput(
            "whole numbers for weights",
            tensors(lambda state: state.update(query_tokens=state["query_tokens"].long())),
            ("query_tokens holds int64, no plain floating-point numbers",),
        ),
        BadInput(
            "NaN and infinity in frozen weights",
            tensors(_nan),
            (
                "the weights hold values that are not finite numbers (NaN or infinity): ",
                "3 in query_tokens",
                "1 in qformer.layernorm.bias",
            ),
        ),
        BadInput(
            "an index that names a file elsewhere",
            index({"weight_map": {"query_tokens": "../../secret.safetensors"}}),
            ("query_tokens is in '../../secret.safetensors', which is no name of a .safetensors file", "not read"),
        ),
        BadInput(
            "an index that names an absolute path",
            index({"weight_map": {"query_tokens": "/etc/passwd"}}),
            ("is in '/etc/passwd', which is no name of a .safetensors file",),
        ),
        BadInput(
            "an index that names missing shards",
            index({"weight_map": {"query_tokens": "model-1.safetensors"}}),
            ("model.safetensors.index.json names ['model-1.safetensors'], not there; fetch",),
        ),
        BadInput(
            "an index whose shard lacks a tensor",
            index({"weight_map": {"nothing": "model-00001.safetensors"}}),
            ("says that nothing is in model-00001.safetensors, which lacks it",),
        ),
        BadInput("an index that is a list", index([1]), ("index.json: holds a list, where a JSON object belongs",)),
        BadInput(
            "an index without a map",
            index({"weight_map": [1]}),
            ("index.json: its weight_map is no object with a file for each",),
        ),
        BadInput(
            "an index of numbers",
            index({"weight_map": {"query_tokens": 7}}),
            ("query_tokens is in 7, which is no name of a .safetensors",),
        ),
        BadInput(
            "a .bin that runs a program",
            folder(
                lambda path: ((path / "model.safetensors").unlink(), torch.save(Evil(), path / "pytorch_model.bin"))
            ),
            ("pytorch_model.bin: may hold code (it needs posix.system); not read, for artkv never runs code",),
        ),
        BadInput(
            "a LAVIS file that runs a program",
            lavis({"model": Evil()}),
            ("blip2.pth: may hold code (it needs posix.system); not read",),
        ),
        BadInput(
            "a LAVIS file of something else",
            lavis({"model": {"weight": torch.zeros(1)}}),
            ("blip2.pth: holds 1 unexpected: weight; give the checkpoint of a Blip2OPT",),
        ),
        BadInput(
            "a LAVIS file of tensors without a side",
            lavis({"model": {"query_tokens": torch.tensor(1.0), "visual_encoder.pos_embed": torch.tensor(1.0)}}),
            ("blip2.pth", "; give "),
        ),
        BadInput(
            "a LAVIS file whose settings are a list",
            lavis({"artkv": "[1]", "model": {"query_tokens": torch.zeros(1)}}),
            ("its 'artkv' is not the JSON that artkv export writes; export it again",),
        ),
        BadInput(
            "no art encoder",
            blip2("efficientnet.checkpoint=none.pth"),
            ("none.pth does not exist; efficientnet.checkpoint must name a .pth",),
        ),
        BadInput(
            "an art encoder in safetensors that is called a .pth",
            art("art.pth", _renamed),
            ("art.pth: is not a readable PyTorch checkpoint (it holds safetensors)", "rename it to art.safetensors"),
        ),
        BadInput(
            "an art encoder in safetensors without an ending",
            art("art", _renamed),
            ("it holds safetensors); if it belongs here, rename it to art.safetensors",),
        ),
        BadInput(
            "an art encoder of PyTorch that is called .safetensors",
            art("art.safetensors", lambda path: torch.save({"conv_stem.weight": torch.ones(1)}, path)),
            ("art.safetensors: is no safetensors file but PyTorch's, as its first bytes say", "rename it to art.pth"),
        ),
        BadInput(
            "a pickle of old that is called .safetensors",
            art("art.safetensors", lambda path: path.write_bytes(pickle.dumps({"a": 1}))),
            ("art.safetensors: is no safetensors file but PyTorch's", "rename it to art.pth"),
        ),
        BadInput(
            "an art encoder that is a folder",
            blip2("efficientnet.checkpoint=/tmp"),
            ("/tmp is a folder; efficientnet.checkpoint must name",),
        ),
        BadInput(
            "an art encoder with negative variances",
            changed_art("bn1.running_var", -1.0),
            ("art.safetensors holds negative variances: bn1.running_var; use another checkpoint",),
        ),
        *(
            BadInput(
                what,
                art("m.pth", lambda path, content=content: torch.save(content, path)),  # type: ignore[misc]
                (
                    f"m.pth{trail} is not a state dict of named tensors: it is empty; the weights are looked for",
                    "save them",
                ),
            )
            for what, content, trail in [
                ("an art encoder's file of nothing", {}, ""),
                ("a wrapper around nothing", {"state_dict": {}}, "['state_dict']"),
            ]
        ),
        BadInput(
            "a device for the art encoder",
            lambda place: ["check", *place.config("efficientnet.checkpoint=/dev/urandom")],
            ("efficientnet.checkpoint = /dev/urandom: cannot be read (is a device, where a regular file belongs)",),
        ),
        BadInput(
            "a pipe for the art encoder",
            art("m.safetensors", os.mkfifo),
            ("efficientnet.checkpoint = {folder}/m.safetensors: cannot be read (is a pipe",),
        ),
        BadInput(
            "an art encoder that is empty",
            art("art.pth", b""),
            ("{folder}/art.pth: is not a readable PyTorch checkpoint", "fetch or write it again"),
        ),
        BadInput(
            "an art encoder that runs a program",
            art("art.pth", pickle.dumps(Evil(), protocol=2)),
            ("art.pth: may hold code (it needs posix.system); not read",),
        ),
        BadInput(
            "an art encoder that wraps itself",
            art("art.pth", lambda path: torch.save(_cycle(), path)),
            ("art.pth: wraps its state dict more than 8 times; save it bare",),
        ),
        BadInput(
            "an art encoder of 40 GB in 2 KB",
            art("art.pth", _art_of_shapes),
            ("conv_stem.weight says to have the shape (100000, 100000), of which the file holds but a part",),
        ),
        BadInput(
            "an art encoder of texts",
            art("art.pth", lambda path: torch.save({"conv_stem.weight": "text"}, path)),
            ("has other values under conv_stem.weight",),
        ),
        BadInput("an art encoder that is a pipe", art("art.pth", os.mkfifo), ("art.pth: cannot be read (is a pipe",)),
        BadInput(
            "an art encoder of another network",
            art("art.safetensors", lambda path: save_file({"conv_stem.weight": torch.zeros(3)}, path)),
            ("does not hold the weights of test_efficientnet", "missing: "),
        ),
        BadInput(
            "an art encoder of zeros",
            art("art.pth", bytes(9999)),
            (
                "{folder}/art.pth: is not a readable PyTorch checkpoint (it begins with zeros, as a disk",
                "fetch or write",
            ),
        ),
        BadInput(
            "an art encoder of a web page",
            art("art.pth", b"<html>not found</html>"),
            ("(it begins with b'<html>not found<', and no file of torch.save does); fetch",),
        ),
        BadInput(
            "an art encoder of which a block was lost",
            art("art.pth", _with_a_block_of_zeros),
            ("{folder}/art.pth: its part art/data/0 does not match its checksum: the file is damaged; fetch",),
        ),
        BadInput(
            "a LAVIS file of zeros",
            lambda place: [
                "check",
                *place.config(f"model.blip2={place.write('b.pth', bytes(999))}", f"model.opt={place.world / 'blip2'}"),
            ],
            ("{folder}/b.pth: is not a readable PyTorch checkpoint (it begins with zeros",),
        ),
    ],
)
