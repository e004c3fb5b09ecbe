"""What the quickstart shows at its end, and takes for a surprise in its scores."""

import csv
import shlex
import sys
from pathlib import Path

import pytest

from artkv import shell
from artkv.errors import RunFailed
from artkv.evaluation.scores import Scores, format_table, score_predictions
from artkv.quickstart.paintings import STYLES
from artkv.quickstart.report import find_surprises, report_if_finished, write_scores
from artkv.quickstart.settings import QuickstartSettings

CHANCE = 1 / len(STYLES)
# Of each kind: a whole number of them is right by chance, and an interval around chance ends below twice chance.
QUESTIONS = 20 * len(STYLES)


def scores(style: float, colour: float = 1.0) -> Scores:
    """Scores of a test split in which these fractions of the styles and colours are right."""
    right = [place < round(fraction * QUESTIONS) for fraction in (style, colour) for place in range(QUESTIONS)]
    return score_predictions(
        predictions=["right" if is_right else "wrong" for is_right in right],
        answers=["right"] * len(right),
        question_types=["style"] * QUESTIONS + ["colour"] * QUESTIONS,
        bootstrap_samples=200,
        seed=0,
        cluster=[*range(QUESTIONS), *range(QUESTIONS)],  # a style and a colour to each painting
    )


def as_expected() -> dict[str, Scores]:
    chance = scores(CHANCE)
    return {
        "on": scores(0.95, 0.95),
        "off": chance,
        "shuffled": chance,
        "on-blank": scores(0.0, 0.0),
        "control": chance,
    }


def test_what_the_world_was_made_to_show_is_no_surprise() -> None:
    assert find_surprises(as_expected()) == []
    # 0.9 itself is enough, and colours without the prefix are only looked at in the control.
    at_the_bounds = {"on": scores(0.9, 0.9), "off": scores(CHANCE, 0.0), "control": scores(CHANCE, 0.9)}
    assert find_surprises(as_expected() | at_the_bounds) == []


@pytest.mark.parametrize(
    ("name", "style", "colour", "message"),
    [
        ("on", 0.85, 0.95, "style with on is 0.850 ["),
        ("on", 0.95, 0.85, "colour with on is 0.850 ["),
        ("control", CHANCE, 0.85, "colour with control is 0.850 ["),
        ("off", 2 * CHANCE, 1.0, f"style with off is {2 * CHANCE:.3f} ["),
        ("shuffled", 2 * CHANCE, 1.0, f"style with shuffled is {2 * CHANCE:.3f} ["),
        ("control", 2 * CHANCE, 1.0, f"style with control is {2 * CHANCE:.3f} ["),
        # Below chance is no chance either: the answers would be wrong on purpose.
        ("shuffled", 0.0, 1.0, "style with shuffled is 0.000 ["),
    ],
)
def test_each_score_that_is_off_is_named_with_what_was_expected(
    name: str, style: float, colour: float, message: str
) -> None:
    surprises = find_surprises(as_expected() | {name: scores(style, colour)})
    assert len(surprises) == 1, surprises
    assert surprises[0].startswith(message)
    expected = "at least 0.9" if "0.850" in message else f"chance, {CHANCE:.3f}"
    assert surprises[0].endswith(f"], expected {expected}")


def test_all_surprises_are_named_at_once() -> None:
    everything_right = dict.fromkeys(as_expected(), scores(1.0, 1.0))
    assert [surprise.split(" is ")[0] for surprise in find_surprises(everything_right)] == [
        "style with off",
        "style with shuffled",
        "style with control",
    ]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuickstartSettings:
    """A folder as a finished quickstart leaves it, of which reports read little."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARTKV_CALLER_FOLDER", raising=False)
    monkeypatch.setenv("ARTKV_CALLER_PATH", "/usr/bin")
    settings = QuickstartSettings(Path("quickstart"), seed=7, ranks=2)
    for is_modulated in (True, False):
        settings.write_config(is_modulated)
    (settings.output_dir / "checkpoints" / "step_00000004").mkdir(parents=True)
    (settings.output_dir / "best").symlink_to("checkpoints/step_00000004")
    predictions = settings.output_dir / "eval" / "test-off" / "predictions.csv"
    predictions.parent.mkdir(parents=True)
    (settings.world.image_root / "room_1").mkdir(parents=True)
    with predictions.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["question_id", "image", "question", "answer", "prediction", "question_type"])
        for name, question, answer, prediction, kind in [
            ("room_1/painting_00001.jpg", "Which style is this?", "impasto", "impasto", "style"),
            ("room_1/painting_00001.jpg", "Which colour is this?", "red", "blue", "colour"),
            ("room_1/painting_00002.jpg", "In which style is it?", "mosaic", "impasto", "style"),
        ]:
            picture = settings.world.image_root / name
            picture.touch()
            rows.writerow(["1", name, question, answer, prediction, kind])
    write_scores(settings, as_expected())
    return settings


def test_a_finished_quickstart_shows_its_table_again_and_commands_to_paste(
    finished: QuickstartSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report_if_finished(finished)
    printed = capsys.readouterr().out
    table = (finished.output_dir / "table.txt").read_text()
    assert table == f"{format_table(as_expected())}\n"
    assert table in printed
    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("  ") and " --" in line]
    programs = Path(sys.executable).parent
    picture = "quickstart/world/data/images/room_1/painting_00002.jpg"  # the one whose style needs the prefix
    ask = [f"{programs}/artkv", "ask", "--checkpoint", "quickstart/best", picture, "In which style is it?"]
    curves = [f"{programs}/tensorboard", "--logdir", "quickstart"]
    assert commands == [ask, [*ask, "--prefix", "off"], curves]
    assert "which is mosaic" in printed
    assert "browser" not in printed  # there is no report yet
    (finished.output_dir / "report.html").touch()
    assert report_if_finished(finished)
    assert capsys.readouterr().out.splitlines()[-1] == f"  {Path.cwd().as_uri()}/quickstart/report.html"
    monkeypatch.setenv("ARTKV_CALLER_PATH", shell.without_person()["ARTKV_CALLER_PATH"])
    assert report_if_finished(finished)
    assert "artkv ask" not in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["scores.json", "best", "control/quickstart.yaml", "eval/test-off/predictions.csv"])
def test_an_unfinished_quickstart_goes_on(finished: QuickstartSettings, missing: str) -> None:
    (finished.output_dir / missing).unlink()
    assert not report_if_finished(finished)


def test_a_finished_quickstart_fails_again_for_the_scores_it_failed_for(finished: QuickstartSettings) -> None:
    write_scores(finished, as_expected() | {"on": scores(0.5)})
    with pytest.raises(RunFailed, match="style with on is 0"):
        report_if_finished(finished)
