"""Checkpoints and exported adapters that are damaged, another's or none."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artkv.run_folder.checkpoint import _description_sha256
from tests.bad_inputs.cases import Area, BadInput, Make, Place


def export(change: Callable[[Path], object]) -> Make:
    """`artkv export` of a checkpoint that was changed."""

    def make(place: Place) -> list[str]:
        folder = place.checkpoint()
        change(folder)
        return _export(str(folder))

    return make


def _export(checkpoint: str) -> list[str]:
    return ["export", "--checkpoint", checkpoint, "--format", "adapter", "--output", "out.safetensors"]


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Another `checkpoint.json`, with the checksum that belongs to it."""

    def write(folder: Path) -> None:
        tree = json.loads((folder / "checkpoint.json").read_text())
        tree["sha256"].pop("checkpoint.json")
        change(tree)
        if isinstance(tree.get("sha256"), dict):
            tree["sha256"]["checkpoint.json"] = _description_sha256(tree)
        (folder / "checkpoint.json").write_text(json.dumps(tree))

    return write


def adapter(change: Callable[[bytes, dict[str, Any]], bytes | dict[str, Any]]) -> Make:
    """`artkv export` of an exported adapter's file with other bytes, or another header."""

    def make(place: Place) -> list[str]:
        from artkv.run_folder.adapter_file import write_adapter
        from artkv.run_folder.checkpoint import open_checkpoint

        given = open_checkpoint(place.trained)
        path = place.folder / "adapter.safetensors"
        write_adapter(path, given.adapter(), given.config, given.frozen_hash, given.step)
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        new = change(content, json.loads(content[8 : 8 + size]))
        if isinstance(new, dict):
            text = json.dumps(new).encode()
            new = len(text).to_bytes(8, "little") + text + content[8 + size :]
        path.write_bytes(new)
        return _export(str(path))

    return make


def metadata(**changes: str | None) -> Callable[[bytes, dict[str, Any]], dict[str, Any]]:
    """Other values in the header's metadata; None takes one away."""

    def change(content: bytes, header: dict[str, Any]) -> dict[str, Any]:
        values = header["__metadata__"] | changes
        return header | {"__metadata__": {name: value for name, value in values.items() if value is not None}}

    return change


def flipped(name: str) -> Callable[[Path], object]:
    """One bit of a file is another."""

    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-7] ^= 4
        (folder / name).write_bytes(content)

    return flip


def pipe(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()
    os.mkfifo(folder / "checkpoint.json")


def asked(place: Place) -> list[str]:
    """`artkv ask` of a checkpoint whose weights are a pipe."""
    folder = place.checkpoint()
    (folder / "adapter.safetensors").unlink()
    os.mkfifo(folder / "adapter.safetensors")
    return ["ask", "--checkpoint", str(folder), str(place.world / "images" / "val0.png"), "What?"]


def emptied(place: Place) -> list[str]:
    run = place.run()
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    return _export(str(run))


def away(place: Place) -> list[str]:
    run = place.run()
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to("/mnt/away")
    return _export(str(run))


def _renamed(make: Callable[[Path], object]) -> Make:
    """`artkv export` of something that is called a.bin."""

    def given(place: Place) -> list[str]:
        make(place.folder / "a.bin")
        return _export("a.bin")

    return given


def _named_folder(place: Place) -> list[str]:
    (place.folder / "a.safetensors").mkdir()
    return _export("a.safetensors")


def tokenized(change: Callable[[dict[str, Any]], object]) -> Make:
    """`artkv ask` beside a tokenizer with the vocabulary of training, which makes other tokens of texts."""

    def make(place: Place) -> list[str]:
        blip2 = place.copy("blip2")
        tree = json.loads((blip2 / "tokenizer.json").read_text())
        change(tree)
        (blip2 / "tokenizer.json").write_text(json.dumps(tree))
        picture = str(place.world / "images" / "val0.png")
        return ["ask", "--checkpoint", str(place.run()), "--set", f"model.blip2={blip2}", picture, "What?"]

    return make


_TOKENIZER = "was trained with another tokenizer, which makes other tokens of the same texts (hash "
_DAMAGED = "the checkpoint is damaged; give another one, such as an earlier step of the run"
_EXPORT = "the file is damaged, export it again"

CHECKPOINTS = Area(
    "Checkpoints and exported adapters",
    [
        BadInput(what, export(change), ("checkpoints/step_00000009", *says))
        for what, change, says in [
            (
                "checkpoint.json is half of itself",
                lambda folder: _cut(folder / "checkpoint.json"),
                ("is not valid", _DAMAGED),
            ),
            (
                "checkpoint.json is a list",
                lambda folder: (folder / "checkpoint.json").write_text("[]"),
                ("is not valid",),
            ),
            (
                "checkpoint.json was edited",
                lambda folder: _edit(folder / "checkpoint.json"),
                ("does not match its checksum",),
            ),
            ("checkpoint.json is a pipe", pipe, ("no checkpoint there (checkpoint.json is a pipe, where", "; give ")),
            (
                "checkpoint.json is a folder",
                lambda folder: ((folder / "checkpoint.json").unlink(), (folder / "checkpoint.json").mkdir()),
                ("no checkpoint there (checkpoint.json is a folder, where a regular file belongs); give ",),
            ),
            (
                "settings of a wrong kind",
                described(lambda tree: tree["config"]["training"].update(seed=-1)),
                ("this version's; use the artkv that wrote it, or train it again:", "training.seed = -1: ", "; give "),
            ),
            (
                "a checkpoint of a newer artkv",
                described(lambda tree: tree.update(format_version=2)),
                ("has checkpoint format 2, this artkv reads 1; use the version of artkv that wrote it",),
            ),
            (
                "progress that lacks a key",
                described(lambda tree: tree["progress"].pop("questions_seen")),
                ("checkpoint.json: lacks questions_seen", _DAMAGED),
            ),
            (
                "progress of a negative step",
                described(lambda tree: tree["progress"].update(step=-9)),
                ("step = -9", _DAMAGED),
            ),
            (
                "progress with a step in a text",
                described(lambda tree: tree["progress"].update(step="9")),
                ("step = '9'",),
            ),
            (
                "progress with true for a number",
                described(lambda tree: tree["progress"].update(epoch=True)),
                ("epoch = True",),
            ),
            (
                "progress with an unknown key",
                described(lambda tree: tree["progress"].update(mood=1)),
                ("'mood'", _DAMAGED),
            ),
            (
                "an identity without a hash",
                described(lambda tree: tree["identity"].pop("data_hash")),
                ("lacks data_hash",),
            ),
            (
                "an identity of no micro-batches",
                described(lambda tree: tree["identity"].update(micro_batches_per_step=0)),
                ("micro_batches_per_step = 0", _DAMAGED),
            ),
            ("no settings", described(lambda tree: tree.pop("config")), ("lacks config", _DAMAGED)),
            (
                "settings of another artkv",
                described(lambda tree: tree["config"].update(colours={})),
                ("its settings are not this version's", "use the artkv that wrote it"),
            ),
            (
                "checksums of other files",
                described(lambda tree: tree["sha256"].pop("optimizer.safetensors")),
                ("has the checksums of other files", _DAMAGED),
            ),
            (
                "weights that are gone",
                lambda folder: (folder / "adapter.safetensors").unlink(),
                ("is missing", _DAMAGED),
            ),
            ("weights with another bit", flipped("adapter.safetensors"), ("does not match its checksum", _DAMAGED)),
            ("weights cut off", lambda folder: _cut(folder / "adapter.safetensors"), ("does not match its checksum",)),
            (
                "weights that are a folder",
                lambda folder: ((folder / "adapter.safetensors").unlink(), (folder / "adapter.safetensors").mkdir()),
                ("adapter.safetensors is missing", _DAMAGED),
            ),
        ]
    ]
    + [
        BadInput(what, adapter(change), ("{folder}/adapter.safetensors", *says))
        for what, change, says in [
            ("an adapter that is cut off", lambda content, header: content[:-9], ("not a readable safetensors file",)),
            ("an adapter of ten bytes", lambda content, header: content[:10], ("not a readable safetensors file",)),
            (
                "an adapter with another bit",
                lambda content, header: content[:-9] + bytes([content[-9] ^ 8]) + content[-8:],
                ("its tensors do not match their checksum", _EXPORT),
            ),
            (
                "an adapter of a newer artkv",
                metadata(format_version="2"),
                ("has adapter format 2, this artkv reads 1",),
            ),
            ("an adapter whose step is no JSON", metadata(step="nine"), ("metadata's 'step' is not valid", _EXPORT)),
            ("an adapter whose step is a text", metadata(step='"9"'), ("step = '9'", _EXPORT)),
            ("an adapter that lacks its step", metadata(step=None), ("lacks step", _EXPORT)),
            ("an adapter whose model is a list", metadata(model="[]"), ("metadata", "model", _EXPORT)),
            ("an adapter of no base model", metadata(model='{"blip2": null}'), ("model.blip2 is no text", _EXPORT)),
            (
                "an adapter with NaN for a setting",
                metadata(training='{"seed": NaN}'),
                ("'training' is not valid", _EXPORT),
            ),
            (
                "an adapter with a seed below zero",
                metadata(training='{"seed": -1}'),
                ("this version's; use the artkv that wrote it, or export it again:", "training.seed = -1: ", "; give "),
            ),
            ("a file of another program", metadata(frozen_hash=None), ("is no adapter of artkv export",)),
        ]
    ]
    + [
        BadInput(what, tokenized(change), ("run/checkpoints/step_00000009", _TOKENIZER, "; give model.blip2"))
        for what, change in [
            ("a tokenizer without merges", lambda tree: tree["model"].update(merges=[])),
            ("a tokenizer without its last merge", lambda tree: tree["model"]["merges"].pop()),
            ("a tokenizer of small letters", lambda tree: tree.update(normalizer={"type": "Lowercase"})),
            ("a tokenizer that joins accents", lambda tree: tree.update(normalizer={"type": "NFC"})),
        ]
    ]
    + [
        BadInput("weights that are a pipe", asked, ("adapter.safetensors: cannot be read (is a pipe", _DAMAGED)),
        BadInput("a pipe for a checkpoint", _renamed(os.mkfifo), ("a.bin: no checkpoint there (is a pipe, where",)),
        BadInput(
            "an adapter of another ending",
            _renamed(lambda path: path.write_bytes(bytes(9))),
            ("a.bin: no checkpoint there (a file, and no adapter by its name: rename it to .safetensors if",),
        ),
        BadInput(
            "a link to a checkpoint that is gone",
            _renamed(lambda path: path.symlink_to("gone")),
            ("a.bin: no checkpoint there (is a link to gone, which is not there); give a folder such as",),
        ),
        BadInput("a folder named as an adapter is", _named_folder, ("a.safetensors: no checkpoint there (no ",)),
        BadInput(
            "a folder's name for an adapter to write",
            lambda place: [*_export(str(place.trained))[:-1], "out.safetensors/"],
            ("--output out.safetensors/: names a folder; give the name of a file",),
        ),
        BadInput(
            "an export that is a folder, to a file's name",
            lambda place: [
                "export",
                "--checkpoint",
                str(place.run()),
                "--format",
                "transformers",
                "--output",
                "out.safetensors",
            ],
            ("--output out.safetensors: names a file, and --format transformers writes a folder; give a folder's",),
        ),
        *(
            BadInput(
                f"an adapter that is to name {what} that is not there",
                lambda place, setting=setting: [*_export(str(place.run())), "--set", f"{setting}=gone"],
                (f"{setting}", "gone"),
            )
            for what, setting in [("a BLIP-2", "model.blip2"), ("an art encoder", "efficientnet.checkpoint")]
        ),
        BadInput(
            "an export into a checkpoint",
            lambda place: [*_export(run := str(place.run()))[:-1], f"{run}/checkpoints/adapter_of_mine.safetensors"],
            (
                "checkpoints/adapter_of_mine.safetensors: is inside ",
                "of which a training removes the older ones; give another",
            ),
        ),
        BadInput(
            "an evaluation that is to lie elsewhere",
            lambda place: ["evaluate", "--checkpoint", str(place.run()), "--set", "run.output_dir=elsewhere"],
            ("elsewhere: is where a run trains, and {folder}/run stays where it is; leave it out",),
        ),
        BadInput("a run without checkpoints", emptied, ("this run has no checkpoint yet",)),
        BadInput("a run whose checkpoints are away", away, ("checkpoints: is a link to /mnt/away, which cannot be",)),
        BadInput(
            "a user that nobody is",
            lambda place: _export("~nobody-at-all/run"),
            ("no home folder is known for '~nobody-at-all'",),
            exit_code=2,
        ),
        BadInput(
            "a name that no file can have", lambda place: _export("n" * 300), ("cannot be read (File name too long)",)
        ),
    ],
)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 9', '"step": 8'))
