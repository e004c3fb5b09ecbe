"""Data, networks, heads and output folders that the art encoder's training refuses before it writes anything."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bad_inputs.cases import Area, BadInput, Make, Place
from tests.bad_inputs.command_line_cases import art_encoder

Prepare = Callable[[Path], object]


def resumed(prepare: Prepare, *more: str) -> Make:
    """`artkv art-encoder --resume` into a folder that was prepared."""
    return into(prepare, "--resume", *more)


def into(prepare: Prepare, *more: str) -> Make:
    """`artkv art-encoder` into a folder that was prepared."""

    def make(place: Place) -> list[str]:
        (place.folder / "out").mkdir()
        prepare(place.folder / "out")
        return art_encoder("--image-size", "32", *more)(place)

    return make


def labelled(text: str | bytes, *more: str) -> Make:
    """`artkv art-encoder` of a CSV of four of the world's pictures."""

    def make(place: Place) -> list[str]:
        words = art_encoder("--image-size", "32", *more)(place)
        file = place.write("data/labels.csv", text)
        return [str(file) if word == str(place.folder / "data") else word for word in words]

    return make


def folder_at(name: str) -> Prepare:
    return lambda out: (out / name).mkdir()


def file_with(name: str, content: bytes) -> Prepare:
    return lambda out: (out / name).write_bytes(content)


def state(run: object, progress: object, **tensors: torch.Tensor) -> Prepare:
    """A state file in the right form, with these records."""
    metadata = {"run": json.dumps(run), "progress": json.dumps(progress)}
    return lambda out: save_file(tensors or {"x": torch.zeros(1)}, out / "state.safetensors", metadata)


ROWS = "A/0.png,a,x\nA/2.png,a,y\nB/1.png,b,x\nB/3.png,b,y\n"
HEADS = ("--heads", "style,genre")
NO_STATE = ("{folder}/out/state.safetensors: is not what artkv art-encoder keeps", "move it away, or give another")
DAMAGED = ("{folder}/out/state.safetensors is damaged", "delete it and start again")

ART_ENCODER = Area(
    "The art encoder's training",
    [
        BadInput(
            f"an art encoder {what}",
            art_encoder(*words),
            says,
        )
        for what, words, says in [
            (
                "that timm has not",
                ("--architecture", "resnett18"),
                ("--architecture: 'resnett18' is no model of timm; near it: resnet18",),
            ),
            (
                "of a tag that timm has not",
                ("--architecture", "resnet18.mine"),
                ("--architecture: 'resnet18.mine' cannot be made", "leave out what follows the dot"),
            ),
            (
                "whose name is a path",
                ("--architecture", "../resnet18"),
                ("--architecture ../resnet18: ", "is no name that timm gives"),
            ),
            (
                "from a hub",
                ("--architecture", "hf-hub:timm/resnet18"),
                ("--architecture hf-hub:timm/resnet18: ", "is no name that timm gives"),
            ),
            ("without a name", ("--architecture", ""), ("--architecture : ", "is no name that timm gives")),
            (
                "smaller than its windows",
                ("--architecture", "test_maxvit", "--image-size", "100"),
                ("--architecture test_maxvit: cannot take pictures of --image-size 100", "give another size"),
            ),
            (
                "whose patches leave some of the picture over",
                ("--architecture", "vit_tiny_patch16_224", "--image-size", "100"),
                (
                    "--image-size 100: vit_tiny_patch16_224 sees patches of 16 pixels",
                    "give a multiple of 16, such as 96",
                ),
            ),
            (
                "with a rate that it does not take",
                ("--architecture", "vgg11", "--drop-path-rate", "0.1"),
                ("--drop-path-rate 0.1: vgg11 has no such thing; leave it out",),
            ),
            (
                "with heads of folders",
                HEADS,
                ("--heads style, genre: {folder}/data is a folder, whose folders are styles alone; give a CSV",),
            ),
            (
                "with a head of no name",
                ("--heads", "style,"),
                ("--heads style,: ", "'' is no name of a column of labels"),
            ),
            (
                "with the pictures as a head",
                ("--heads", "image"),
                ("--heads image: ", "image is the column of the pictures; name columns of labels"),
            ),
            ("with a head twice", ("--heads", "style,Style"), ("--heads style,Style: ", "names a column twice")),
            ("with a head that is a path", ("--heads", "../x"), ("'../x' is no name of a column",)),
            ("with all heads and one", ("--heads", "auto,style"), ("--heads auto,style: ", "auto stands alone")),
            ("that waits for nothing", ("--timeout-minutes", "nan"), ("--timeout-minutes nan: ", "finite number")),
        ]
    ]
    + [
        BadInput(f"labels {what}", labelled(text, *words), says)
        for what, text, words, says in [
            (
                "of which a row has none",
                "image,style,genre\n" + ROWS + "A/1.png,,\n",
                HEADS,
                ("labels.csv:6: empty style and genre; fill one in or remove the row",),
            ),
            (
                "of a head that no column has",
                "image,style\nA/0.png,a\n",
                HEADS,
                ("labels.csv:1: missing column 'genre'; the header has 'image', 'style'",),
            ),
            (
                "of a head that no row has",
                "image,style,genre\nA/0.png,a,\nA/2.png,a,\nB/1.png,b,\nB/3.png,b,\n",
                HEADS,
                ("no row has a genre; leave genre out of --heads, or fill the column in",),
            ),
            (
                "of a head that is always the same",
                "image,style,genre\nA/0.png,a,x\nA/2.png,a,x\nB/1.png,b,x\nB/3.png,b,\n",
                HEADS,
                ("has only the genre 'x'; a classifier needs at least 2",),
            ),
            (
                "of none of the three columns",
                "image,school\nA/0.png,a\n",
                ("--heads", "auto"),
                ("labels.csv:1: none of the columns style, genre, artist; add one, or name --heads",),
            ),
            (
                "of which one is alone in its style",
                "image,style,genre\n" + ROWS + "A/1.png,c,x\n",
                HEADS,
                ("labels.csv:6: A/1.png is the only picture of the style 'c'",),
            ),
            (
                "that are validated on none",
                "image,style,genre\nA/0.png,a,x\nA/2.png,a,\nB/1.png,b,y\nB/3.png,b,\n",
                HEADS,
                ("no picture to validate on has a label in the column genre; label more",),
            ),
            ("in a spreadsheet's file", b"PK\x03\x04" + bytes(50), HEADS, ("labels.csv:1: the file is a zip archive",)),
        ]
    ]
    + [
        BadInput(f"an art encoder's folder {what}", make, says)
        for what, make, says in [
            (
                "whose metrics are a folder",
                into(folder_at("metrics.jsonl")),
                ("--output-dir {folder}/out: {folder}/out/metrics.jsonl is a folder; give",),
            ),
            (
                "that is its data's",
                lambda place: art_encoder("--output-dir", str(place.folder / "data"))(place),
                ("--output-dir {folder}/data: is --data {folder}/data, whose pictures", "give another"),
            ),
            (
                "inside its data's",
                lambda place: art_encoder("--output-dir", str(place.folder / "data" / "A" / "x"))(place),
                ("--output-dir {folder}/data/A/x: is inside --data {folder}/data, whose pictures", "give another"),
            ),
            (
                "whose metrics are another's",
                into(file_with("metrics.jsonl", b'{"kind": "train"}\n')),
                ("{folder}/out/metrics.jsonl:1: is no line of a training of the art encoder; move it",),
            ),
            (
                "whose metrics are no text",
                resumed(file_with("metrics.jsonl", b"\xff\x00\n")),
                ("{folder}/out/metrics.jsonl:1: is no line of a training",),
            ),
            (
                "whose memory is a folder",
                into(folder_at("checked_pictures")),
                ("checked_pictures is a folder; give a file in it",),
            ),
            (
                "whose scores are a folder",
                into(folder_at("per_style.csv")),
                ("per_style.csv is a folder; give a file in it",),
            ),
            (
                "with other weights under the name to come",
                into(file_with("test_efficientnet.safetensors", b"mine")),
                ("test_efficientnet.safetensors is there already, and no training's; move it elsewhere",),
            ),
            ("whose state is a folder", resumed(folder_at("state.safetensors")), ("state.safetensors is a folder",)),
            ("whose state is empty", resumed(file_with("state.safetensors", b"")), DAMAGED),
            ("whose state is zeros", resumed(file_with("state.safetensors", bytes(4096))), DAMAGED),
            (
                "whose state is of something else",
                resumed(lambda out: save_file({"x": torch.zeros(1)}, out / "state.safetensors")),
                NO_STATE,
            ),
            ("whose state's records are lists", resumed(state([], [])), DAMAGED),
            ("whose state lacks the settings", resumed(state({}, {})), DAMAGED),
            (
                "whose state is an adapter",
                resumed(lambda out: save_file({"kv.x": torch.zeros(1)}, out / "state.safetensors", {"format": "pt"})),
                NO_STATE,
            ),
            (
                "whose state is of other settings",
                resumed(state({"settings": {"epochs": 1}, "data": "x"}, {})),
                ("{folder}/out holds a training with other settings (", "epochs 1 -> 30", "resume with the same"),
            ),
            (
                "with a training that is not to go on",
                into(file_with("state.safetensors", b"x")),
                ("{folder}/out holds a training already; give --resume to go on",),
            ),
        ]
    ]
    + [
        BadInput(
            "a folder of pictures that is not there",
            labelled("image,style\n" + "".join(f"{n}.png,a\n" for n in range(9)), "--image-root", "nope"),
            ("--image-root nope: no such folder; give the folder that holds the pictures",),
        ),
        BadInput(
            "a file for the folder of pictures",
            lambda place: labelled("image,style\n0.png,a\n", "--image-root", str(place.write("x", "")))(place),
            ("--image-root {folder}/x: is no folder; give the folder that holds the pictures",),
        ),
    ],
)
