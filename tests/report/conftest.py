"""Run folders with answers that nobody had to compute."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from artkv.config import Config, dump_config, override_config
from artkv.evaluation.scores import exact_match, score_predictions

TYPES = ("style", "subject", "time of day")
STYLES = ("cubism", "impasto", "mosaic", "engraving")
ABLATIONS = {"on": ("on", "on"), "off": ("off", "on"), "shuffled": ("shuffled", "on"), "on-blank": ("on", "blank")}

Question = tuple[str, str, str, str]  # picture, question, answer, type


def draw(path: Path, number: int) -> None:
    picture = Image.new("RGB", (480, 360), ((37 * number) % 256, (91 * number) % 256, (151 * number) % 256))
    ImageDraw.Draw(picture).ellipse((100, 60, 200 + number % 150, 300), fill=(255, 240, 200))
    picture.save(path)


def questions_about(paintings: int) -> list[Question]:
    """One of each type about every painting."""
    drawn = random.Random(3)
    return [
        (f"painting_{number:05d}.jpg", f"Which {kind} is this?", drawn.choice(STYLES), kind)
        for number in range(paintings)
        for kind in TYPES
    ]


def answer(question: Question, ablation: str) -> str:
    """Styles are told with the prefix alone, all else by whoever sees the picture."""
    drawn = random.Random(f"{question}{ablation}")
    knows = ablation == "on" or (question[3] != "style" and ablation != "on-blank")
    return question[2] if knows and drawn.random() < 0.95 else drawn.choice(STYLES)


def write_evaluation(run: Path, name: str, questions: Sequence[Question], answers: Sequence[str]) -> None:
    """As `artkv evaluate` writes it; see docs/evaluation.md."""
    folder = run / "eval" / f"test-{name}"
    folder.mkdir(parents=True)
    columns = ["question_id", "image", "question", "answer", "prediction", "question_type", "exact_match", "token_f1"]
    with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for number, (question, given) in enumerate(zip(questions, answers, strict=True)):
            image, asked, gold, kind = question
            rows.writerow([number, image, asked, gold, given, kind, int(exact_match(given, gold)), 0.5])
    paintings = {image: place for place, image in enumerate(dict.fromkeys(one[0] for one in questions))}
    scores = score_predictions(
        answers,
        [one[2] for one in questions],
        [one[3] for one in questions],
        100,
        1,
        [paintings[q[0]] for q in questions],
    )
    prefix, image = ABLATIONS.get(name, (name.rpartition("-")[2], "on"))
    conditions = {
        "checkpoint": "/elsewhere/checkpoints/step_00000300",
        "split": "test",
        "prefix": prefix,
        "image": image,
    }
    (folder / "metrics.json").write_text(json.dumps({**conditions, **scores.to_json()}), encoding="utf-8")


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes `tmp_path/NAME`, a finished run whose answers to `questions` are `answer`'s."""

    def make(
        name: str = "run", questions: Sequence[Question] = tuple(questions_about(12)), is_modulated: bool = True,
        ablations: Sequence[str] = tuple(ABLATIONS), with_pictures: bool = True, encoders: Sequence[str] = (),
    ) -> Path:  # fmt: skip
        run, images = tmp_path / name, tmp_path / "images"
        run.mkdir()
        images.mkdir(exist_ok=True)
        for number, image in enumerate(dict.fromkeys(one[0] for one in questions)):
            if with_pictures and not (images / image).exists():
                draw(images / image, number)
        overrides = [f"kv_modulation.enabled={json.dumps(is_modulated)}", f"dataset.image_root={images}"]
        if encoders:
            entries = ", ".join(f"{{name: {name}, checkpoint: /{name}.pth}}" for name in encoders)
            overrides += ["efficientnet=null", f"art_encoders=[{entries}]"]
        config = override_config(Config(), overrides)
        (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        status = {
            "state": "finished", "total_steps": 300, "ranks": 2, "hosts": ["a"], "job": None, "started": 0.0,
            "ended": 100.0, "error": None,
        }  # fmt: skip
        (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
        environment = {
            "python": "3.11.9", "packages": {"artkv": "0.1.0", "torch": "2.14.1"}, "platform": "Linux", "cpu": "a CPU",
            "cpu_cores_usable": 2, "gpus": [], "host_memory_bytes": 2**34, "variables": {}, "git": None,
        }  # fmt: skip
        (run / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
        records: list[dict[str, object]] = [
            {
                "step": step, "time": 1000.0 + step, "kind": "train", "loss": 5 / step, "learning_rate": 1e-4,
                "questions_seen": 32 * step, "questions_per_second": 64.0, "epoch": step / 100,
            }
            for step in range(10, 301, 10)
        ]  # fmt: skip
        records.append({"step": 0, "time": 999.0, "kind": "validation", "exact_match": 0.95})  # chooses nothing
        records.append({"step": 300, "time": 1301.0, "kind": "validation", "exact_match": 0.9})
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
        for ablation in ablations:
            answered_as = ablation if is_modulated or ablation == "on-blank" else "off"
            write_evaluation(run, ablation, questions, [answer(one, answered_as) for one in questions])
        return run

    return make
