"""Weights and model folders that are damaged, planted, or another model's."""

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


def folder(damage: Callable[[Path], object], verb: str = "check") -> Make:
    """`artkv check` with a copy of the world's BLIP-2 that `damage` changes."""

    def make(place: Place) -> list[str]:
        blip2 = place.copy("blip2")
        damage(blip2)
        return [verb, *place.config(f"model.blip2={blip2}")]

    return make


def text(name: str, content: str) -> Make:
    """With this text in a file of the folder."""
    return folder(lambda blip2: (blip2 / name).write_text(content))


def value(name: str, *keys: str, to: Any) -> Make:
    """With one value of a JSON file changed."""

    def damage(blip2: Path) -> None:
        tree = json.loads((blip2 / name).read_text())
        inner = tree
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (blip2 / name).write_text(json.dumps(tree))

    return folder(damage)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    """With changed weights."""

    def damage(blip2: Path) -> None:
        state = load_file(blip2 / "model.safetensors")
        change(state)
        save_file(state, blip2 / "model.safetensors", {"format": "pt"})

    return folder(damage)


def index(tree: object) -> Make:
    """With an index beside the weights."""
    return text("model.safetensors.index.json", json.dumps(tree))


def cut(name: str, kept: int) -> Make:
    """With a file that ends after so many bytes."""
    return folder(lambda blip2: os.truncate(blip2 / name, kept))


def pipe(name: str) -> Make:
    """With a pipe in a file's place."""

    def damage(blip2: Path) -> None:
        (blip2 / name).unlink(missing_ok=True)
        os.mkfifo(blip2 / name)

    return folder(damage)


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


def changed_art(name: str, number: float) -> Make:
    """`artkv check` with an art encoder one of whose tensors has this number throughout."""

    def make(place: Place) -> list[str]:
        state = load_file(place.world / "efficientnet.safetensors")
        state[name].fill_(number)
        path = place.folder / "art.safetensors"
        save_file(state, path)
        return ["check", *place.config(f"efficientnet.checkpoint={path}")]

    return make


def blip2(setting: str, *more: str) -> Make:
    """`artkv check` with this setting of the model."""
    return lambda place: ["check", *place.config(setting, *more)]


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


_SIZE = ("text_config", "hidden_size")
_ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

WEIGHTS = Area(
    "Weights and model folders",
    [
        BadInput(
            "no such folder",
            blip2("model.blip2=/nowhere"),
            ("model.blip2 = '/nowhere': no such folder; give a hub id",),
        ),
        BadInput(
            "a file for the folder",
            lambda place: ["check", *place.config(f"model.blip2={place.write('a', 'b')}")],
            ("model.blip2 = '{folder}/a': is a file, where a folder belongs",),
        ),
        BadInput(
            "a folder for the .pth",
            lambda place: ["check", *place.config(f"model.blip2={place.write('a.pth/b', '').parent}", "model.opt=x")],
            ("a.pth': cannot be read (is a folder",),
        ),
        BadInput(
            "a name of 5,000 characters",
            blip2(f"model.blip2=/{'x' * 5000}"),
            ("model.blip2 = '/xxx", "cannot be read (File name too long)"),
        ),
        BadInput(
            "a revision of a folder",
            blip2("model.revision=main"),
            ("model.revision = 'main': is for a hub id, and model.blip2 = ", "is a folder; leave it out"),
        ),
        BadInput(
            "a revision that leads elsewhere",
            blip2("model.revision=../../x"),
            ("model.revision = '../../x': is no name of a commit, tag or branch"),
        ),
        BadInput(
            "an empty folder",
            lambda place: ["check", *place.config(f"model.blip2={place.write('a/b', '').parent}")],
            ("{folder}/a has no config.json; give a folder of save_pretrained",),
        ),
        BadInput(
            "half a config.json",
            cut("config.json", 100),
            ("blip2/config.json: cannot be read (", "put the model's own there"),
        ),
        BadInput(
            "an empty config.json",
            text("config.json", ""),
            ("blip2/config.json: cannot be read (", "put the model's own there"),
        ),
        BadInput(
            "a config.json that is a list",
            text("config.json", "[1]"),
            ("config.json: holds a list, where a JSON object belongs",),
        ),
        BadInput(
            "a config.json that nests without an end",
            text("config.json", '{"a":' * 100_000),
            ("config.json: cannot be read (lists or objects nest too deeply)",),
        ),
        BadInput(
            "a config.json that is a pipe", pipe("config.json"), ("blip2/config.json: cannot be read (is a pipe",)
        ),
        BadInput(
            "another model's config.json",
            text("config.json", '{"model_type": "llama"}'),
            ("is 'llama', expected blip-2 with opt; give Salesforce/blip2-opt-2.7b",),
        ),
        BadInput(
            "a config.json that wants code",
            value("config.json", "auto_map", to={"AutoConfig": "evil.Config"}),
            ("config.json: auto_map wants code of its own to be run, which artkv never does",),
        ),
        BadInput(
            "a billion layers",
            value("config.json", "text_config", "num_hidden_layers", to=10**9),
            ("config.json: text_config.num_hidden_layers = 1000000000: must be a whole number from 1 to 1,000",),
        ),
        BadInput(
            "900 layers, which the weights lack",
            value("config.json", "vision_config", "num_hidden_layers", to=900),
            ("config.json: vision_config.num_hidden_layers = 900: the weights have ",),
        ),
        BadInput(
            "a vocabulary of 2^40",
            value("config.json", "text_config", "vocab_size", to=2**40),
            ("text_config.vocab_size = 1099511627776: must be a whole number from 1 to 100,000,000",),
        ),
        BadInput(
            "a width in words",
            value("config.json", *_SIZE, to="wide"),
            ("text_config.hidden_size = 'wide': must be a whole number",),
        ),
        BadInput(
            "a width of a list",
            value("config.json", *_SIZE, to=[40]),
            ("text_config.hidden_size = [40]: must be a whole number",),
        ),
        BadInput(
            "a negative width",
            value("config.json", *_SIZE, to=-40),
            ("text_config.hidden_size = -40: must be a whole number",),
        ),
        BadInput(
            "a width that the weights have not",
            value("config.json", *_SIZE, to=44),
            ("weights do not fit config.json: ", "has shape (", "save_pretrained wrote it"),
        ),
        BadInput(
            "heads that do not divide the width",
            value("config.json", "text_config", "num_attention_heads", to=7),
            ("the config of model.blip2", "cannot be read (", "put the config there"),
        ),
        BadInput(
            "an epsilon of 0",
            value("config.json", "vision_config", "layer_norm_eps", to=0),
            ("vision_config.layer_norm_eps = 0: must be a number between 0 and 1",),
        ),
        BadInput(
            "a dropout below 0",
            value("config.json", "text_config", "dropout", to=-1),
            ("config.json: text_config.dropout = -1: must be a number from 0 to 1; put the model's own there",),
        ),
        BadInput(
            "a dropout in words",
            value("config.json", "qformer_config", "hidden_dropout_prob", to="none"),
            ("qformer_config.hidden_dropout_prob = 'none': must be a number from 0 to 1",),
        ),
        BadInput(
            "a padding token beyond the vocabulary",
            value("config.json", "text_config", "pad_token_id", to=10**9),
            ("the config of model.blip2 = '{folder}/blip2': cannot be read (", "put the config there"),
        ),
        BadInput(
            "a head of its own, which the weights lack",
            value("config.json", "text_config", "tie_word_embeddings", to=False),
            (
                "language_model.lm_head.weight is missing, which config.json says is not tied",
                "save_pretrained wrote it",
            ),
        ),
        BadInput(
            "an activation that nobody knows",
            value("config.json", "text_config", "activation_function", to="evil"),
            ("cannot be read (", "put the config there that belongs to its weights"),
        ),
        BadInput(
            "text_config that is text",
            value("config.json", "text_config", to="opt"),
            ("config.json: cannot be read (", "put BLIP-2's there"),
        ),
        BadInput(
            "NaN in a config.json",
            text("config.json", '{"model_type": NaN}'),
            ("config.json: cannot be read (NaN is no number of JSON)",),
        ),
        BadInput(
            "no preprocessor_config.json",
            folder(lambda path: (path / "preprocessor_config.json").unlink()),
            ("blip2: no preprocessor_config.json of a BlipImageProcessor; put",),
        ),
        BadInput(
            "half a preprocessor_config.json",
            cut("preprocessor_config.json", 50),
            ("preprocessor_config.json: cannot be read (",),
        ),
        BadInput(
            "standard deviations of 0",
            value("preprocessor_config.json", "image_std", to=[0, 0, 0]),
            ("preprocessor_config.json: cannot be read (its std is (0, 0, 0), expected three numbers above 0",),
        ),
        BadInput(
            "means in words",
            value("preprocessor_config.json", "image_mean", to=["a", "b", "c"]),
            ("its mean is ('a', 'b', 'c'), expected three numbers",),
        ),
        BadInput(
            "two means",
            value("preprocessor_config.json", "image_mean", to=[0.5, 0.5]),
            ("its mean is (0.5, 0.5), expected three numbers",),
        ),
        BadInput(
            "pictures of another size",
            value("preprocessor_config.json", "size", to={"height": 32, "width": 32}),
            ("preprocessor_config.json has size 32x32, config.json a ViT of 28x28",),
        ),
        BadInput(
            "pictures without a size",
            value("preprocessor_config.json", "size", to={"longest_edge": 32}),
            ("preprocessor_config.json: cannot be read (its size has height None and width None",),
        ),
        BadInput(
            "pictures that are not normalised",
            value("preprocessor_config.json", "do_normalize", to=False),
            ("its do_normalize is false, and artkv does it",),
        ),
        BadInput(
            "half a tokenizer.json",
            cut("tokenizer.json", 500),
            ("blip2/tokenizer.json: cannot be read (", "put the model's own there"),
        ),
        BadInput(
            "a tokenizer.json of something else",
            text("tokenizer.json", '{"version": "1.0"}'),
            ("blip2: the tokenizer: cannot be read (", "put OPT's tokenizer files there"),
        ),
        BadInput(
            "a tokenizer_config.json that is a number",
            text("tokenizer_config.json", "7"),
            ("tokenizer_config.json: holds a int, where a JSON object belongs",),
        ),
        BadInput(
            "a tokenizer that wants code",
            value("tokenizer_config.json", "auto_map", to={"AutoTokenizer": ["evil.T", None]}),
            ("tokenizer_config.json: auto_map wants code of its own",),
        ),
        BadInput(
            "no tokenizer",
            folder(lambda path: (path / "tokenizer.json").unlink()),
            ("blip2: no tokenizer there (neither tokenizer.json nor vocab.json)",),
        ),
        BadInput(
            "a garbled generation_config.json",
            text("generation_config.json", "{"),
            ("generation_config.json: cannot be read (",),
        ),
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
            ("is not the file but Git LFS's pointer to it; fetch it with git lfs pull",),
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
            index({"weight_map": {"nothing": "model.safetensors"}}),
            ("says that nothing is in model.safetensors, which lacks it",),
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
            "an art encoder that is a folder",
            blip2("efficientnet.checkpoint=/tmp"),
            ("/tmp is a folder; efficientnet.checkpoint must name",),
        ),
        BadInput(
            "an art encoder with negative variances",
            changed_art("bn1.running_var", -1.0),
            ("art.safetensors holds negative variances: bn1.running_var; use another checkpoint",),
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
    ],
)
