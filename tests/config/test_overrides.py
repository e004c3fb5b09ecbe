"""`--set`: what is taken as it stands, and what through YAML."""

from pathlib import Path

import pytest

from artkv.config import Config
from artkv.config.overrides import is_text, parse_overrides, text_override
from artkv.errors import UserError
from tests.config.test_loading import schema_keys


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.output_dir=outputs/run #2", "outputs/run #2"),
        ("run.output_dir=7", "7"),
        ("run.output_dir=2024-05-01", "2024-05-01"),
        ("run.output_dir=[a]", "[a]"),
        ("run.output_dir=a=b", "a=b"),
        ("run.output_dir='a #b'", "a #b"),
        ("run.output_dir='it''s'", "it's"),
        ('run.output_dir="a\\tb"', "a\tb"),
        ('run.output_dir="a" and "b"', '"a" and "b"'),
        ("run.output_dir='", "'"),
        ("run.output_dir=it's", "it's"),
        ("run.output_dir=true", "true"),
        ("run.output_dir = a b ", "a b"),
        ("dataset.prompt=Question: {question} Answer: ", "Question: {question} Answer: "),
        ("dataset.prompt=- {question} # no comment", "- {question} # no comment"),
        ("dataset.test=null", None),
        ("dataset.test=", None),
        ("dataset.test=~", None),
        ("dataset.test='null'", "null"),
        ("frozen.feature_cache=auto", "auto"),
        ("frozen.memory_budget=8GiB", "8GiB"),
        ("training.seed=3", 3),
        ("training.learning_rate=1e-4", 1e-4),
        ("training.activation_checkpointing=true", True),
        ("training.activation_checkpointing=2GiB", "2GiB"),
        ("frozen={opt: stream}", {"opt": "stream"}),
        ("trainable.lora.targets=[opt]", ["opt"]),
    ],
)
def test_texts_are_taken_as_they_stand_and_the_rest_is_yaml(override: str, value: object) -> None:
    section, _, key = override.partition("=")[0].strip().rpartition(".")
    tree = parse_overrides([override])
    for part in filter(None, section.split(".")):
        tree = tree[part]
    assert tree == {key: value}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.seed=3 # the third", "takes what follows the '#' for a comment"),
        ("frozen={opt: stream} # x", "takes what follows the '#' for a comment"),
        ("training.seed=[", "is not a YAML value"),
        ("training.seed=" + 5000 * "9", "is not a YAML value"),
        ("training.seed=" + 5000 * "[", "is not a YAML value"),
        ('run.output_dir="\\q"', "cannot read what is in the quotes"),
        ("run.output_dir=a\0b", "holds the control character"),
        ("run.output_dir=a\x1b[2J", "holds the control character"),
        ("run.output_dir=a\udcff", "no UTF-8"),
        (".".join(5000 * "a") + "=1", "expected section.key=value"),
        ("training.seed", "expected section.key=value"),
    ],
)
def test_a_wrong_one_is_told(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_overrides([override])
    assert len(str(caught.value)) < 700


def test_the_last_of_a_key_counts() -> None:
    assert parse_overrides(["run.output_dir=a", "run.output_dir=b"]) == {"run": {"output_dir": "b"}}


def test_every_path_and_text_is_known_as_one() -> None:
    assert {key for key in schema_keys(Config) if is_text(key)} == {
        "model.blip2", "model.revision", "model.opt", "model.vit",
        "efficientnet.architecture", "efficientnet.checkpoint",
        "dataset.train", "dataset.val", "dataset.test", "dataset.image_root", "dataset.prompt", "training.deepspeed",
        *(f"dataset.columns.{role}" for role in ("image", "question", "answer", "question_id", "question_type")),
        "frozen.memory_budget", "frozen.feature_cache", "run.output_dir",
    }  # fmt: skip
    assert not is_text("run")
    assert not is_text("run.nothing")
    assert not is_text("run.output_dir.more")
    assert not is_text(str(Path("x")))


@pytest.mark.parametrize(
    "value", ["a b #2", "null", "", " ", "'a'", '"', "'", "it's", "Gemälde/🎨", "~", "a\nb", "[x]", None]
)
def test_any_text_can_be_written_as_an_override(value: str | None) -> None:
    assert parse_overrides([text_override("dataset.prompt", value)]) == {"dataset": {"prompt": value}}
