"""Places where nothing can be written, found before the work, and evaluations that cannot be read."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.cases import Area, BadInput, Make, Place


def export(output: str, format: str = "adapter", prepare: Callable[[Path], object] = lambda folder: None) -> Make:
    """`artkv export` of a whole run to a place."""

    def make(place: Place) -> list[str]:
        run = place.run()
        prepare(place.folder)
        return ["export", "--checkpoint", str(run), "--format", format, "--output", output]

    return make


def evaluate(prepare: Callable[[Path], object]) -> Make:
    """`artkv evaluate` of a run whose `eval` was changed."""

    def make(place: Place) -> list[str]:
        run = place.run()
        prepare(run)
        return ["evaluate", "--checkpoint", str(run), "--split", "val"]

    return make


def report(output: str | None = None, prepare: Callable[[Path], object] = lambda run: None) -> Make:
    """`artkv report` of an evaluated run."""

    def make(place: Place) -> list[str]:
        run = place.run()
        evaluated(run)
        prepare(run)
        return ["report", str(run), *([] if output is None else ["--output", output])]

    return make


def compare(prepare: Callable[[Path], object]) -> Make:
    """`artkv compare` of an evaluated run."""

    def make(place: Place) -> list[str]:
        run = place.run()
        evaluated(run)
        prepare(run)
        return ["compare", str(run)]

    return make


def cut(path: Path) -> None:
    """Leaves the header alone."""
    path.write_text(path.read_text().partition("\n")[0] + "\n")


ESTIMATE = {"value": 0.5, "low": 0.0, "high": 1.0}
GROUP = {"count": 1, "clusters": 1} | dict.fromkeys(("exact_match", "bleu", "bleu_artquest", "token_f1"), ESTIMATE)


def evaluated(run: Path) -> None:
    """One question, answered with the prefix on and off."""
    for name in ("on", "off"):
        folder = run / "eval" / f"val-{name}"
        folder.mkdir(parents=True)
        (folder / "predictions.csv").write_text(
            "question_id,image,question,answer,prediction,question_type\nq,p.png,What?,oil,oil,thing\n"
        )
        metrics = {"checkpoint": str(run / "checkpoints" / "step_00000009"), "overall": GROUP, "by_type": {}}
        (folder / "metrics.json").write_text(json.dumps(metrics))


def file_with(name: str, content: str) -> Callable[[Path], object]:
    """A file below the run's folder."""

    def write(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)

    return write


def folder_at(name: str) -> Callable[[Path], object]:
    """A folder in the place of a file."""

    def make(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir(parents=True)

    return make


METRICS = "eval/val-on/metrics.json"
_AGAIN = "run artkv evaluate again"

PLACES = Area(
    "Where results go",
    [
        BadInput(f"export {what}", make, (f"--output {output}: ", *says))
        for what, output, make, says in [
            (
                "over a file",
                "a.safetensors",
                export("a.safetensors", prepare=file_with("a.safetensors", "mine")),
                ("is there already; remove it or give another name",),
            ),
            (
                "over a link to nowhere",
                "a.safetensors",
                export("a.safetensors", prepare=lambda folder: (folder / "a.safetensors").symlink_to("gone")),
                ("is there already",),
            ),
            (
                "below a file",
                "mine.txt/a.safetensors",
                export("mine.txt/a.safetensors", prepare=file_with("mine.txt", "x")),
                ("mine.txt is not a folder that can be written; give another place",),
            ),
            (
                "far below a file",
                "mine.txt/b/c/a.safetensors",
                export("mine.txt/b/c/a.safetensors", prepare=file_with("mine.txt", "x")),
                ("is not a folder",),
            ),
            ("to where nobody can write", "/proc/a.safetensors", export("/proc/a.safetensors"), ("cannot be written",)),
            ("to a system's folder", "/sys/a.safetensors", export("/sys/a.safetensors"), ("cannot be written",)),
            (
                "to a name that is too long",
                "n" * 250 + ".safetensors",
                export("n" * 250 + ".safetensors"),
                ("too long",),
            ),
            ("of another kind of file", "a.txt", export("a.txt"), ("is a .safetensors file with --format adapter",)),
            ("onto the root of all", "/", export("/", "transformers"), ("/ is there already",)),
            ("onto the folder one is in", ".", export(".", "transformers"), (". is there already",)),
            (
                "into a folder with something in it",
                "mine",
                export("mine", "transformers", file_with("mine/notes.txt", "x")),
                ("mine is there already; remove it or give another name",),
            ),
            (
                "into an empty folder",
                "mine",
                export("mine", "transformers", lambda folder: (folder / "mine").mkdir()),
                ("mine is there already",),
            ),
            (
                "of a folder below a file",
                "mine.txt/model",
                export("mine.txt/model", "transformers", file_with("mine.txt", "x")),
                ("is not a folder that can be",),
            ),
            (
                "of a .pth whose prefix is there already",
                "a.pth",
                export("a.pth", "lavis", file_with("a.kv_prefix.safetensors", "mine")),
                ("a.kv_prefix.safetensors is there",),
            ),
        ]
    ]
    + [
        BadInput("a report as PDF", report("report.pdf"), ("--output report.pdf: would hold HTML", "in .html")),
        BadInput(
            "a report onto the run's own metrics",
            report("run/metrics.jsonl"),
            ("--output run/metrics.jsonl: is there already, and no HTML",),
        ),
        BadInput(
            "attention drawn onto the picture that is asked about",
            lambda place: [
                "ask",
                "--checkpoint",
                str(place.run()),
                str(place.copy("images") / "train0.png"),
                "What?",
                "--attention",
                "images/train0.png",
            ],
            ("--attention images/train0.png: is there already, and no drawing of artkv ask",),
        ),
        BadInput(
            "a report on predictions of which the end is missing",
            report(prepare=lambda run: cut(run / "eval" / "val-on" / "predictions.csv")),
            ("val-on/predictions.csv: has ", "evaluate again"),
        ),
        *(
            BadInput(
                f"a report whose pictures are to be {what}",
                lambda place, root=root: [*report()(place), "--attention", "0", "--set", f"dataset.image_root={root}"],
                ("--set dataset.image_root: holds none of the pictures, of which the first is: picture ", says),
            )
            for what, root, says in [
                ("in a folder that is not there", "gone", "gone/p.png: no such file"),
                ("in a file", "/etc/hostname", "/etc/hostname/p.png: cannot be read"),
            ]
        ),
        BadInput("evaluate where eval is a file", evaluate(file_with("eval", "x")), ("run/eval is not a folder",)),
        BadInput(
            "evaluate where metrics.json is a folder",
            evaluate(folder_at("eval/val-on/metrics.json")),
            ("{folder}/run/eval/val-on/metrics.json is a folder; give a file in it, or another place",),
        ),
        BadInput(
            "evaluate where predictions.csv is a pipe",
            evaluate(
                lambda run: (
                    (run / "eval" / "val-on").mkdir(parents=True),
                    os.mkfifo(run / "eval" / "val-on" / "predictions.csv"),
                )
            ),
            ("predictions.csv is no regular file and would be replaced by one",),
        ),
        BadInput(
            "evaluate where nobody can write",
            evaluate(lambda run: (run / "eval").symlink_to("/proc")),
            ("run/eval/val-on: the evaluation's folder: ", "cannot be written"),
        ),
        *(
            BadInput(
                f"a report {what}",
                report(output, file_with(name, content)),
                (f"--output {shown}: is there already, and no report of artkv's; remove it, or give another name",),
            )
            for what, output, name, content, shown in [
                ("onto a text", "run/mine.html", "mine.html", "my thesis\n", "run/mine.html"),
                ("onto another page", "run/a.HTM", "a.HTM", "<title>artkv report</title>", "run/a.HTM"),
                ("onto an empty file", "run/empty.html", "empty.html", "", "run/empty.html"),
                ("where its own name is taken", None, "report.html", "<html>mine</html>", "{folder}/run/report.html"),
            ]
        ),
        BadInput(
            "a report of a CSV file that is not there",
            lambda place: [*report()(place), "--set", "dataset.val=none.csv"],
            ("none.csv: cannot be read (No such file", "; or give --attention 0, for a report without maps"),
        ),
        BadInput("a report to a folder", report("."), ("--output .: is a folder; give a file in it",)),
        BadInput(
            "a report to where nobody can write", report("/proc/r.html"), ("--output /proc/r.html: ", "cannot be")
        ),
        BadInput("a report to a device", report("/dev/null"), ("/dev/null is no regular file and would be replaced",)),
        BadInput(
            "a report below a file",
            report("run/config.yaml/r.html"),
            ("--output run/config.yaml/r.html: ", "is not a folder that can be written; give another place"),
        ),
        BadInput(
            "a comparison where nobody can write",
            compare(folder_at("eval/val-on/comparison.json")),
            ("comparison.json is a folder",),
        ),
    ]
    + [
        BadInput(
            f"an evaluation whose {what}", report(prepare=file_with(name, content)), (f"{{folder}}/run/{name}", *says)
        )
        for what, name, content, says in [
            ("scores are half a file", METRICS, "{", ("is not what artkv writes", _AGAIN)),
            ("scores are a list", METRICS, "[]", ("is not what artkv writes", _AGAIN)),
            ("scores lack the checkpoint", METRICS, "{}", ("lacks checkpoint", _AGAIN)),
            (
                "scores lack all else",
                METRICS,
                '{"checkpoint": "step_00000009"}',
                ("cannot be read (it lacks 'by_type')", _AGAIN),
            ),
            (
                "scores are a text",
                METRICS,
                json.dumps({"checkpoint": "c", "overall": GROUP | {"exact_match": "high"}, "by_type": {}}),
                ("cannot be read (exact_match = 'high', where an object belongs)", _AGAIN),
            ),
            (
                "scores are null",
                METRICS,
                json.dumps({"checkpoint": "c", "overall": None, "by_type": {}}),
                ("cannot be read (overall = None, where an object belongs)", _AGAIN),
            ),
            (
                "scores have other names",
                METRICS,
                json.dumps({"checkpoint": "c", "overall": GROUP | {"exact_match": {"mean": 1}}, "by_type": {}}),
                ("cannot be read (exact_match has mean, not value, low, high)", _AGAIN),
            ),
            (
                "scores are of another split",
                METRICS,
                json.dumps({"checkpoint": "c", "split": "test", "overall": GROUP, "by_type": {}}),
                ("split = 'test', and it lies in the folder val-on; put that split's own file there", _AGAIN),
            ),
            (
                "predictions have another score",
                "eval/val-on/predictions.csv",
                "question_id,image,question,answer,prediction,question_type,exact_match\nq,p.png,What?,oil,oil,thing,yes\n",
                ("row 1: exact_match = 'yes', and its prediction and answer make 1: the file was changed; evaluate",),
            ),
            ("checkpoint is a number", METRICS, '{"checkpoint": 9}', ("lacks checkpoint, a text", _AGAIN)),
            (
                "count is a text",
                METRICS,
                json.dumps({"checkpoint": "c", "overall": GROUP | {"count": "1"}, "by_type": {}}),
                ("overall.count = '1'", _AGAIN),
            ),
            (
                "mean is a list",
                METRICS,
                json.dumps({"checkpoint": "c", "overall": GROUP | {"bleu": ESTIMATE | {"value": [1]}}, "by_type": {}}),
                ("overall.bleu.value = [1]", _AGAIN),
            ),
            ("mean is not finite", METRICS, '{"checkpoint": "c", "overall": NaN}', ("is not what artkv writes",)),
            (
                "comparison is a list",
                "eval/val-on/comparison.json",
                "[]",
                ("is not what artkv writes; run artkv compare",),
            ),
            (
                "comparison lacks all",
                "eval/val-on/comparison.json",
                "{}",
                ("cannot be read", "run artkv compare again"),
            ),
            ("machine is a list", "environment.json", "[]", ("is not what artkv writes; delete it",)),
            ("machine has GPUs in a text", "environment.json", '{"gpus": "many"}', ("gpus = 'many'", "delete it")),
            (
                "machine has packages in a list",
                "environment.json",
                '{"packages": [1]}',
                ("packages = [1]", "delete it"),
            ),
        ]
    ],
)
