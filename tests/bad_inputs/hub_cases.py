"""What cannot be shared on the hub, or is no id of it; nothing here asks the hub."""

from pathlib import Path

from tests.bad_inputs.cases import Area, BadInput, Make, Place

BASE = ("--base-model", "Salesforce/blip2-opt-2.7b")


def push(*options: str, name: str = "user/painter") -> Make:
    """`artkv push` of a finished run."""
    return lambda place: ["push", str(place.run()), name, *options]


def _damaged(place: Place) -> list[str]:
    (place.checkpoint() / "adapter.safetensors").write_bytes(b"damaged")
    return ["push", str(place.checkpoint()), "user/painter", *BASE, "--yes"]


def _made(folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    return []


def _ask(checkpoint: str) -> Make:
    return lambda place: ["ask", "--checkpoint", checkpoint, str(place.world / "images/val0.png"), "What?"]


def _both(place: Place) -> list[str]:
    place.write("user/painter/notes.txt", "no checkpoint")
    return _ask("user/painter")(place)


def _blip2(name: str) -> Make:
    return lambda place: ["check", *place.config(f"model.blip2={name}")]


NO_ID = "no checkpoint there, and no id of the hub"
FORM = "an id is USER/NAME or USER/NAME@REVISION, of letters, digits, '-', '_' and '.'; a path is such as outputs/"

HUB = Area(
    "Sharing on the hub",
    [
        BadInput("a name without its user", push(name="painter"), ("'painter': is no id of the hub; give USER/NAME",)),
        BadInput("a path for the name", push(name="/tmp/painter"), ("'/tmp/painter': is no id of the hub",)),
        BadInput("an address for the name", push(name="https://hf.co/a/b"), ("'https://hf.co/a/b': is no id",)),
        BadInput("escape codes in the name", push(name="user/\x1b[2J"), (r"is no id of the hub",)),
        BadInput("two dots in the name", push(name="user/.."), ("'user/..': is no id of the hub",)),
        BadInput("no name", push(name=""), ("is empty",), exit_code=2),
        BadInput(
            "a branch that is none",
            push("--revision", "a b"),
            ("--revision 'a b': is no name of a branch", "give letters"),
        ),
        BadInput("a branch with two dots", push("--revision", "a..b"), ("--revision 'a..b': is no name of a branch",)),
        BadInput(
            "a run that is not there",
            lambda place: ["push", "none", "user/painter", *BASE, "--yes"],
            ("none: no checkpoint there",),
        ),
        BadInput("a damaged checkpoint", _damaged, ("adapter.safetensors does not match its checksum",)),
        BadInput(
            "a base model that is a folder of this machine",
            push("--yes"),
            ("model.blip2 = '{world}/blip2': is a file or folder of this machine; add --base-model",),
        ),
        BadInput(
            "a base model that has the name of a folder",
            lambda place: [
                *push("--yes", "--base-model", "mine/blip2")(place),
                *_made(place.folder / "mine" / "blip2"),
            ],
            ("--base-model mine/blip2: is a folder of this machine; give --base-model the id of the same weights",),
        ),
        BadInput(
            "a base model that is no id",
            push("--yes", "--base-model", "../blip2"),
            ("--base-model ../blip2: is no id of the hub; give one such as Salesforce/blip2-opt-2.7b",),
        ),
        BadInput("nobody there to agree", push(*BASE), ("user/painter: nothing was uploaded; answer y, or add --yes",)),
        BadInput(
            "a folder that has the name of an id", _both, ("user/painter: no checkpoint there", "give a folder such as")
        ),
        BadInput("a run's folder, mistyped", _ask("outputs/dmeo"), ("outputs/dmeo: no checkpoint there",)),
        BadInput("an id with a path behind", _ask("user/painter/best"), ("user/painter/best: no checkpoint there",)),
        *(
            BadInput(what, _ask(given), (f"{shown}: {NO_ID}; {meant}{FORM}",))
            for what, given, shown, meant in [
                ("an id with a slash at its end", "user/painter/", "user/painter/", "did you mean 'user/painter'? "),
                (
                    "an address of the hub for a checkpoint",
                    "https://huggingface.co/user/painter/tree/main",
                    "https://huggingface.co/user/painter/tree/main",
                    "did you mean 'user/painter'? ",
                ),
                ("an id with an empty revision", "user/painter@", "user/painter@", "did you mean 'user/painter'? "),
                ("an id with two revisions", "user/painter@a@b", "user/painter@a@b", "did you mean 'user/painter'? "),
                ("an id of three parts", "user/a/b", "user/a/b", ""),
                ("an id with a blank in it", "us er/painter", "us er/painter", ""),
                ("an id with letters that none has", "us\u00e9r/p\u00e4inter", "us\u00e9r/p\u00e4inter", ""),
                ("an id with escape codes", "user/p\x1b[2J", r"user/p\x1b[2J", ""),
                ("an id with two dots", "user/pain..ter", "user/pain..ter", ""),
                ("an id with a hyphen before its name", "user/-painter", "user/-painter", ""),
            ]
        ),
        BadInput(
            "an address of the hub to push to",
            push(name="https://huggingface.co/user/painter"),
            ("is no id of the hub; did you mean 'user/painter'? give USER/NAME",),
        ),
        *(
            BadInput(
                what,
                _blip2(given),
                (f"model.blip2 = '{given}': no such folder, and no hub id; {meant}give an id such as",),
            )
            for what, given, meant in [
                ("an address of the hub for BLIP-2", "https://huggingface.co/a/b", "did you mean 'a/b'? "),
                ("an id of BLIP-2 with a slash at its end", "user/blip2/", "did you mean 'user/blip2'? "),
                ("an id of BLIP-2 with its revision", "user/blip2@main", "did you mean 'user/blip2'? "),
                ("an id of BLIP-2 with a hyphen at its end", "user/blip2-", ""),
                ("an id of BLIP-2 with a blank", "user/blip2 opt", ""),
            ]
        ),
    ],
)
