"""What a quickstart shows at its end, and again when a finished one is started: the table, and what to try."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from artkv import shell
from artkv.errors import RunFailed
from artkv.evaluation.scores import Estimate, Scores, format_table
from artkv.files import write_whole
from artkv.quickstart.paintings import STYLES
from artkv.quickstart.settings import QuickstartSettings
from artkv.run_folder.layout import REPORT

# What a run of the world shows when everything works.
_LEAST_EXACT_MATCH = 0.9
_CHANCE = 1 / len(STYLES)


def write_scores(settings: QuickstartSettings, scores: dict[str, Scores]) -> None:
    """Writes `table.txt`, and `scores.json`, with which a quickstart is finished."""
    (settings.output_dir / "table.txt").write_text(f"{format_table(scores)}\n", encoding="utf-8")
    text = json.dumps({name: result.to_json() for name, result in scores.items()}, indent=2)
    write_whole(settings.output_dir / "scores.json", lambda path: path.write_text(text, encoding="utf-8"))


def report_if_finished(settings: QuickstartSettings) -> bool:
    """Reports a quickstart that is finished, as it did when it ended; False for one that is not, or is incomplete."""
    scores = settings.output_dir / "scores.json"
    parts = [
        scores,
        _answers_without_prefix(settings),
        *(settings.config_path(is_modulated) for is_modulated in (True, False)),
    ]
    parts.append(_answers_without_prefix(settings))
    if not all(part.is_file() for part in parts) or not (settings.output_dir / "best").is_dir():
        return False
    print(f"{settings.output_dir}: is finished; another --seed needs another --output-dir")
    report(settings, {name: Scores.from_json(tree) for name, tree in json.loads(scores.read_text("utf-8")).items()})
    return True


def report(settings: QuickstartSettings, scores: dict[str, Scores]) -> None:
    """Prints the table and commands to paste; raises `RunFailed` if the scores are not what the world should show."""
    print(f"\nTest questions about paintings that no training saw, seed {settings.seed}; ", end="")
    print(f"chance at style is {_CHANCE:.3f}:\n\n{format_table(scores)}")
    if shell.has_person():
        picture, row = _example(settings)
        ask = ("artkv", "ask", "--checkpoint", settings.output_dir / "best", picture, row["question"])
        print(f"\nTo ask about a test painting, which is {row['answer']}, with the prefix and without:")
        print(f"  {shell.command(*ask)}\n  {shell.command(*ask, '--prefix', 'off')}")
        print(f"The curves:\n  {shell.command('tensorboard', '--logdir', settings.output_dir)}")
    page = settings.output_dir / REPORT
    if page.is_file():
        print("\nThe report has the verdict, the curves and every answer with its picture; open it in a browser:")
        print(f"  {page.resolve().as_uri()}")
    if surprises := find_surprises(scores):
        raise RunFailed("the scores are not what this world was made to show: " + "; ".join(surprises))


def _example(settings: QuickstartSettings) -> tuple[Path, Mapping[str, str]]:
    """A test painting, and the record of a question about its style that was answered wrongly without the prefix."""
    with _answers_without_prefix(settings).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["question_type"] == "style"]
    row = next((row for row in rows if row["prediction"] != row["answer"]), rows[0])
    return settings.world.image_root / row["image"], row


def _answers_without_prefix(settings: QuickstartSettings) -> Path:
    return settings.output_dir / "eval" / "test-off" / "predictions.csv"


def find_surprises(scores: dict[str, Scores]) -> list[str]:
    """What is not as it should be; empty if the prefix, and the prefix alone, tells the styles."""
    surprises = []
    for name in ("on", "control"):
        kinds = ("style", "colour") if name == "on" else ("colour",)
        for kind in kinds:
            estimate = scores[name].by_type[kind].exact_match
            if estimate.value < _LEAST_EXACT_MATCH:
                surprises.append(f"{kind} with {name} is {_show(estimate)}, expected at least {_LEAST_EXACT_MATCH}")
    for name in ("off", "shuffled", "control"):
        estimate = scores[name].by_type["style"].exact_match
        if not estimate.low <= _CHANCE <= estimate.high:
            surprises.append(f"style with {name} is {_show(estimate)}, expected chance, {_CHANCE:.3f}")
    return surprises


def _show(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
