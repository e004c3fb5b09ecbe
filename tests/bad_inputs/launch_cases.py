"""Launch files that cannot be written, and trackers that are none."""

import os

from tests.bad_inputs.cases import Area, BadInput, Make, Place
from tests.bad_inputs.command_line_cases import below_a_file, typed, usage


def onto(name: str, kind: str = "slurm") -> Make:
    """`artkv launch` onto a file that is there."""

    def make(place: Place) -> list[str]:
        return ["launch", kind, "--output", str(place.write(name, "mine"))]

    return make


def onto_a_folder(place: Place) -> list[str]:
    (place.folder / "jobs").mkdir()
    return ["launch", "local", "--output", str(place.folder / "jobs")]


def onto_a_pipe(place: Place) -> list[str]:
    os.mkfifo(place.folder / "pipe")
    return ["launch", "local", "--output", str(place.folder / "pipe")]


def onto_a_link(place: Place) -> list[str]:
    (place.folder / "link").symlink_to(place.folder / "nowhere")
    return ["launch", "local", "--output", str(place.folder / "link")]


def trackers(value: str) -> Make:
    """`artkv check` with run.trackers set to this."""
    return lambda place: ["check", *place.config(f"run.trackers={value}")]


def of_a_file(text: str) -> Make:
    return lambda place: ["check", "--config", str(place.write("my.yaml", f"run: {{trackers: {text}}}"))]


LAUNCH = Area(
    "Launch files, and trackers",
    [
        usage("a launch of nothing", "launch", says=("KIND",)),
        usage("a launch by a batch system that is not known", "launch", "pbs", says=("KIND", "'pbs'", "slurm")),
        usage("a kind that controls a terminal", "launch", "\x1b[2J", says=("KIND", "invalid choice")),
        usage("a launch file without a name", "launch", "slurm", "--output", "", says=("--output", "is empty")),
        BadInput(
            "a launch file that is there already",
            onto("train.sbatch"),
            ("{folder}/train.sbatch: is there already; give another --output, or move it away",),
        ),
        BadInput("a launch file that is a folder", onto_a_folder, ("--output {folder}/jobs", "is a folder")),
        BadInput("a launch file that is a pipe", onto_a_pipe, ("--output {folder}/pipe", "is no regular file")),
        BadInput("a launch file that is a link to nothing", onto_a_link, ("--output {folder}/link", "regular file")),
        BadInput(
            "a launch file below a file",
            below_a_file("launch", "kubernetes", "--output", "{folder}/file/x.yaml"),
            ("--output {folder}/file/x.yaml: {folder}/file is not a folder", "give another place"),
        ),
        BadInput(
            "a launch file whose name ends a line",
            typed("launch", "local", "--output", "{folder}/a\nrm x"),
            ("--output", "a\\nrm x", "has characters that no line of a script can hold; give another name"),
        ),
        BadInput(
            "a launch file whose name controls a terminal",
            typed("launch", "skypilot", "--output", "{folder}/\x1b[2J"),
            ("has characters that no line of a script can hold",),
        ),
        BadInput(
            "a launch file of too long a name",
            typed("launch", "local", "--output", "{folder}/" + 300 * "x"),
            ("--output", "File name too long", "give another place"),
        ),
        BadInput("a tracker that is none", trackers("[mlflow]"), ("run.trackers = 'mlflow'", "tensorboard")),
        BadInput("a tracker in the wrong case", trackers("[WandB]"), ("run.trackers = 'WandB'", "wandb")),
        BadInput("a tracker that is no list", of_a_file("wandb"), ("run.trackers = 'wandb'", "a list of tensorboard")),
        BadInput("trackers that are a switch", of_a_file("true"), ("run.trackers = True", "a list of tensorboard")),
        BadInput("trackers that are a mapping", of_a_file("{wandb: true}"), ("run.trackers", "a list of tensorboard")),
        BadInput("a tracker that is nothing", of_a_file("[null]"), ("run.trackers = None", "tensorboard")),
        BadInput("a tracker given twice", of_a_file("[wandb, wandb]"), ("run.trackers", "names one of them twice")),
    ],
)
