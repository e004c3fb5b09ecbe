"""What the quickstart takes for a surprise in its scores."""

import pytest

from artkv.evaluation.scores import Scores, score_predictions
from artkv.quickstart.paintings import STYLES
from artkv.quickstart.run import find_surprises

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
