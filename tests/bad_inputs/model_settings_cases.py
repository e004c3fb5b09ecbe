"""Settings files of a model's folder that lack what a library would fill in, or tell by one word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.cases import Area, BadInput, Make
from tests.bad_inputs.model_folder_cases import folder, text, value


def without(name: str, *keys: str) -> Make:
    """With a JSON file that lacks a key, named by the keys on the way to it."""

    def change(tree: dict[str, Any]) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        del tree[keys[-1]]

    return folder(lambda blip2: _edit(blip2 / name, change))


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def vocabulary_alone(blip2: Path) -> None:
    """Of the two files that an older tokenizer has."""
    (blip2 / "tokenizer.json").unlink()
    (blip2 / "vocab.json").write_text('{"a": 0}')


TOKENIZER = "blip2/tokenizer.json: lacks "
REMEDY = "put OPT's tokenizer files there"

MODEL_SETTINGS = Area(
    "Settings files of a model that lack something",
    [
        BadInput(
            "an empty object for a tokenizer", text("tokenizer.json", "{}"), (f"{TOKENIZER}added_tokens and", REMEDY)
        ),
        BadInput(
            "a vocabulary for a tokenizer",
            text("tokenizer.json", '{"a": 0, "b": 1}'),
            (f"{TOKENIZER}added_tokens and model, which a tokenizer.json has", REMEDY),
        ),
        BadInput(
            "a tokenizer without vocabulary",
            without("tokenizer.json", "model", "vocab"),
            (f"{TOKENIZER}model.vocab, which", REMEDY),
        ),
        BadInput(
            "a vocabulary without the merges that belong to it",
            folder(vocabulary_alone),
            ("blip2: has vocab.json without merges.txt, which belongs to it", REMEDY),
        ),
        *(
            BadInput(
                f"a config.json without its {part}",
                without("config.json", part),
                (f"blip2/config.json: has no object for {part}", "put the model's own there"),
            )
            for part in ("vision_config", "qformer_config", "text_config")
        ),
        BadInput(
            "a preprocessor_config.json without a size",
            without("preprocessor_config.json", "size"),
            ("blip2/preprocessor_config.json: has no size of the ViT's pictures; put the model's own there",),
        ),
        *(
            BadInput(
                f"a preprocessor_config.json of pixels from 0 to 255, by its {name}",
                value("preprocessor_config.json", f"image_{name}", to=numbers),
                (f"its {name} is {tuple(numbers)}: of pixels from 0 to 1 it has numbers of 0 to 1", "divided by 255"),
            )
            for name, numbers in [("mean", [122.8, 116.7, 104.1]), ("std", [68.5, 66.6, 70.3])]
        ),
    ],
)
