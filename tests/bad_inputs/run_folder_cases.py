"""A run's folder that holds something else, or not all that it held."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.cases import Area, BadInput, Make, Place

Change = Callable[[Path], object]


def status(change: Change) -> Make:
    """`artkv status` of a finished run that was changed."""

    def make(place: Place) -> list[str]:
        run = place.run()
        change(run)
        return ["status", str(run)]

    return make


def train(change: Change, *more: str, is_new: bool = False) -> Make:
    """`artkv train` into the folder of a finished run, or a new one, that was changed."""

    def make(place: Place) -> list[str]:
        run = place.folder / "run" if is_new else place.run()
        run.mkdir(exist_ok=True)
        change(run)
        return ["train", *place.config("training.num_epochs=1"), *more]

    return make


def replaced(name: str, content: str | bytes) -> Change:
    """The file with other content."""
    return lambda run: (run / name).write_bytes(content.encode() if isinstance(content, str) else content)


def changed(name: str, **values: Any) -> Change:
    """The JSON with other values; None as `...` takes a key away."""

    def change(run: Path) -> None:
        tree = json.loads((run / name).read_text()) if (run / name).exists() else dict(OTHERS[name])
        tree |= values
        (run / name).write_text(json.dumps({key: value for key, value in tree.items() if value is not ...}))

    return change


OTHERS: dict[str, dict[str, Any]] = {
    "run.lock": {
        "token": "t", "host": "n9", "machine": "n9", "pid": 5, "pid_start": 7, "job": None, "restart": 0, "beat": 1,
        "time": 1.0,
    },
    "preempted.json": {"step": 9, "reason": "SIGTERM", "time": 1.0, "job": None},
}  # fmt: skip


def folder_at(name: str) -> Change:
    """A folder in the place of a file."""

    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return change


def pipe_at(name: str) -> Change:
    """A pipe that nobody writes into, in the place of a file."""

    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return change


def link_at(name: str, target: str) -> Change:
    """A link in the place of a file or folder."""

    def change(run: Path) -> None:
        if (run / name).is_dir() and not (run / name).is_symlink():
            shutil.move(run / name, run / "moved")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)

    return change


def without_checkpoints(run: Path) -> None:
    """As an empty mount point in their place."""
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()


def file_at(name: str) -> Change:
    """A file in the place of a folder."""

    def change(run: Path) -> None:
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        (run / name).write_text("")

    return change


def hole_at(name: str, size: int) -> Change:
    """A file that is nothing but long."""

    def change(run: Path) -> None:
        with (run / name).open("wb") as file:
            file.truncate(size)

    return change


_RUN = "{folder}/run"
_OTHER = "which is not there; mount its disk"
_LOST = "and there is no checkpoint in {folder}/run/checkpoints; mount its disk, put the checkpoints back"

STATUS = Area(
    "The files of a run, as artkv status reads them",
    [
        BadInput(f"{name} {what}", status(change), (f"{_RUN}/{name}", *says))
        for name, what, change, says in [
            (
                "status.json",
                "is a list",
                replaced("status.json", "[]"),
                ("is not what artkv writes", "remove the file"),
            ),
            ("status.json", "is empty", replaced("status.json", ""), ("is not what artkv writes",)),
            ("status.json", "is no UTF-8", replaced("status.json", b"\xff\xfe\xfa"), ("is not what artkv writes",)),
            ("status.json", "is half of itself", replaced("status.json", '{"state": "run'), ("is not what",)),
            ("status.json", "holds NaN", replaced("status.json", '{"started": NaN}'), ("is not what artkv writes",)),
            ("status.json", "nests without an end", replaced("status.json", '{"a":' * 50_000), ("is not what",)),
            ("status.json", "lacks the state", changed("status.json", state=...), ("lacks state",)),
            (
                "status.json",
                "began before there were computers",
                changed("status.json", started=-1e300),
                ("started = ",),
            ),
            ("status.json", "has an unknown state", changed("status.json", state="asleep"), ("state = 'asleep'",)),
            ("status.json", "has steps in a text", changed("status.json", total_steps="9"), ("total_steps = '9'",)),
            ("status.json", "has fewer than no steps", changed("status.json", saved_step=-1), ("saved_step = -1",)),
            ("status.json", "has no ranks", changed("status.json", ranks=0), ("ranks = 0",)),
            ("status.json", "has one host for a list", changed("status.json", hosts="n1"), ("hosts = 'n1'",)),
            (
                "status.json",
                "has a key of a stranger",
                changed("status.json", colour=1),
                ("'colour', which is unknown",),
            ),
            (
                "status.json",
                "is of a newer artkv",
                changed("status.json", format_version=9),
                ("has format 9", "use the version of artkv that wrote it"),
            ),
            ("status.json", "has a text for a version", changed("status.json", format_version="1"), ("format '1'",)),
            ("status.json", "is a folder", folder_at("status.json"), ("is a folder, where a regular file belongs",)),
            ("status.json", "is a pipe", pipe_at("status.json"), ("is a pipe, where a regular file belongs",)),
            ("status.json", "is far too long", hole_at("status.json", 2**25), ("has 33,554,432 bytes, more than",)),
            ("run.lock", "is a list", replaced("run.lock", "[1]"), ("is no lock of this artkv; remove it",)),
            ("run.lock", "is empty", replaced("run.lock", ""), ("is no lock of this artkv; remove it",)),
            ("run.lock", "lacks its beat", changed("run.lock", beat=...), ("lacks beat; remove it",)),
            ("run.lock", "has a negative process", changed("run.lock", pid=-1), ("pid = -1", "remove it")),
            ("run.lock", "is of a newer artkv", changed("run.lock", format_version=9), ("has format 9",)),
            ("run.lock", "is a folder", folder_at("run.lock"), ("is a folder, where a regular file belongs; remove",)),
            ("run.lock", "is a pipe", pipe_at("run.lock"), ("is a pipe, where a regular file belongs; remove it",)),
            ("run.lock", "is far too long", hole_at("run.lock", 2**17), ("more than the 65,536 that belong there",)),
            ("preempted.json", "is a number", replaced("preempted.json", "3"), ("is not what artkv writes",)),
            ("preempted.json", "lacks the step", changed("preempted.json", step=...), ("lacks step",)),
            ("preempted.json", "has a number for a reason", changed("preempted.json", reason=15), ("reason = 15",)),
            ("preempted.json", "has a negative step", changed("preempted.json", step=-4), ("step = -4",)),
            ("preempted.json", "is of a newer artkv", changed("preempted.json", format_version=2), ("has format 2",)),
            ("metrics.jsonl", "is a folder", folder_at("metrics.jsonl"), ("is a folder, where a regular file",)),
            ("metrics.jsonl", "is a pipe", pipe_at("metrics.jsonl"), ("is a pipe, where a regular file belongs",)),
            (
                "checkpoints",
                "is a link to a disk that is away",
                link_at("checkpoints", "/mnt/away"),
                ("is a link to /mnt/away, which cannot be listed (No such file or directory); mount its disk",),
            ),
            ("checkpoints", "is a file", file_at("checkpoints"), ("cannot be listed (Not a directory)",)),
            ("checkpoints", "is a link to itself", link_at("checkpoints", "checkpoints"), ("cannot be listed",)),
        ]
    ]
    + [
        BadInput(
            "a file for a folder", lambda place: ["status", str(place.write("a.txt", "x"))], ("is no folder; give",)
        ),
        BadInput(
            "a name that no file can have", lambda place: ["status", "n" * 300], ("cannot be read (File name too",)
        ),
        BadInput(
            "a folder of pictures", lambda place: ["status", str(place.world / "images")], ("images: holds no run (no",)
        ),
    ],
)

OUTPUT = Area(
    "The folder that a run writes into",
    [
        BadInput(what, make, (f"run.output_dir = {_RUN}", *says))
        for what, make, says in [
            (
                "checkpoints that are away, and --resume auto",
                train(without_checkpoints, "--resume", "auto"),
                ("status.json says that step 9 was saved", _LOST, "remove status.json and metrics.jsonl"),
            ),
            (
                "checkpoints that are away, and --resume latest",
                train(without_checkpoints, "--resume", "latest"),
                ("status.json says that step 9 was saved", _LOST),
            ),
            ("checkpoints that are away, and a new start", train(without_checkpoints), (_LOST,)),
            (
                "checkpoints that are away, of an artkv that did not note what it saved",
                train(lambda run: (without_checkpoints(run), (run / "status.json").unlink()), "--resume", "auto"),
                ("metrics.jsonl goes on to step 9", _LOST),
            ),
            (
                "a link to checkpoints on a disk that is away",
                train(link_at("checkpoints", "/mnt/away"), "--resume", "auto"),
                ("is a link to /mnt/away", _OTHER),
            ),
            ("a run that is there already", train(lambda run: None), ("holds a run already; add --resume latest",)),
            (
                "a file where checkpoints go",
                train(file_at("checkpoints"), "--resume", "auto"),
                ("checkpoints is no folder",),
            ),
            (
                "a file where logs go",
                train(file_at("logs"), "--resume", "auto"),
                ("logs is no folder", "move it elsewhere"),
            ),
            (
                "a folder in the place of latest",
                train(folder_at("checkpoints/latest"), "--resume", "auto"),
                ("latest is a folder, where a run writes a file",),
            ),
            (
                "a folder in the place of metrics.jsonl",
                train(folder_at("metrics.jsonl"), "--resume", "auto"),
                ("metrics.jsonl is a folder",),
            ),
            (
                "a pipe in the place of metrics.jsonl",
                train(pipe_at("metrics.jsonl"), is_new=True),
                ("no regular file",),
            ),
            (
                "a link to a device in the place of metrics.jsonl",
                train(link_at("metrics.jsonl", "/dev/full"), is_new=True),
                ("metrics.jsonl is no regular file",),
            ),
            ("a folder in the place of status.json", train(folder_at("status.json"), is_new=True), ("is a folder",)),
            (
                "a link in the place of config.yaml",
                train(link_at("config.yaml", "../mine.yaml"), is_new=True),
                ("config.yaml is a link, where a run writes a file; move it",),
            ),
            (
                "a config.yaml of the user's own",
                train(replaced("config.yaml", "# mine\n"), is_new=True),
                ("holds config.yaml, which a run would overwrite, and no run; move it",),
            ),
            (
                "a file with the name of a checkpoint to come",
                train(lambda run: (run / "checkpoints" / "step_00000012").write_text("notes"), "--resume", "auto"),
                ("step_00000012 is no folder, and has the name of a checkpoint to come; move it",),
            ),
        ]
    ]
    + [
        BadInput(
            "a lock that nobody can read",
            train(replaced("run.lock", "{}"), "--resume", "auto"),
            ("{folder}/run/run.lock: is no lock of this artkv", "remove it, if no run uses the folder"),
        )
    ]
    + [
        BadInput(
            f"run.output_dir {what}",
            lambda place, folder=folder: ["train", *place.config(f"run.output_dir={_beside_others(place, folder)}")],
            says,
        )
        for what, folder, says in [
            ("is a file", "a.txt", ("a.txt", "is not a folder that can be written; give another")),
            ("is below a file", "a.txt/b/c", ("a.txt is not a folder that can be written; give another",)),
            (
                "is where nobody can write",
                "/proc/run",
                ("run.output_dir = /proc/run", "cannot be written", "give another"),
            ),
            ("is in a system's folder", "/sys/kernel/run", ("run.output_dir = /sys/kernel/run", "cannot be written")),
            ("has a name that is too long", "n" * 300, ("File name too long", "give another")),
            ("is the model's folder", "{world}/blip2", ("is model.blip2 = {world}/blip2, and the run's files would",)),
            ("is inside the model's folder", "{world}/blip2/run", ("is inside model.blip2", "a folder of its own")),
            ("is the pictures' folder", "{world}/images", ("is dataset.image_root = {world}/images",)),
            (
                "holds what it reads",
                "{world}",
                ("and no run, whose files", "give it a folder of its own"),
            ),
            ("holds a thesis", "{folder}/thesis", ("holds main.tex, and no run, whose files would be mixed with",)),
            ("holds folders of pictures", "{folder}/art", ("holds Baroque/, Pop/, and no run, whose files would be",)),
            ("holds a program", "{folder}/program", ("holds src/, and no run", "give it a folder of its own")),
        ]
    ],
)


def _beside_others(place: Place, folder: str) -> str:
    """The folder, in the case's own where it is no whole path; there are others' files in that."""
    place.write("a.txt", "x")
    for name in ("thesis/main.tex", "art/Pop/a.jpg", "art/Baroque/b.jpg", "program/src/a.py", "program/.git/HEAD"):
        place.write(name, "x")
    return str(place.folder / folder.replace("{folder}", str(place.folder)).replace("{world}", str(place.world)))
