"""What is given in a config's place is told by its keys, and no config is taken for something else."""

import pytest

from artkv.config import Config
from artkv.config.loading import recipe_path
from artkv.config.other_files import other_kind
from artkv.config.yaml_text import load_yaml

SECTIONS = list(Config.model_fields)


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ({"config": "a.yaml", "output_dir": "b", "grid": {}}, "a sweep's file, by its key grid"),
        ({"zero_optimization": {"stage": 2}, "bf16": {}}, "DeepSpeed's config, by its key bf16"),
        ({"architectures": [], "hidden_size": 3}, "a model's config, by its key architectures"),
        ({"format_version": 1, "step": 3}, "a file that a run wrote, by its key format_version"),
    ],
)
def test_what_is_no_config(tree: dict[str, object], what: str) -> None:
    told = other_kind(tree, SECTIONS)
    assert told is not None
    assert told.startswith(f"is {what}; give ")


def test_what_may_be_a_config() -> None:
    recipe = load_yaml(recipe_path("artquest.yaml").read_text(encoding="utf-8"))
    assert other_kind(recipe, SECTIONS) is None
    assert other_kind({}, SECTIONS) is None
    assert other_kind({"modle": {}, "batch_size": 8}, SECTIONS) is None  # its keys are explained one by one
    assert other_kind({"run": {}, "grid": {}}, SECTIONS) is None
