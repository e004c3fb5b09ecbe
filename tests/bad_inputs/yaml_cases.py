"""Configs that are no YAML, or not what a config holds."""

from tests.bad_inputs.cases import Area, BadInput, Make


def config(text: str) -> Make:
    """`artkv check` of a config with this text."""
    return lambda place: ["check", "--config", str(place.write("my.yaml", text))]


YAML = Area(
    "The config file",
    [
        BadInput(
            "a key that no section has",
            config("training: {epochs: 3}"),
            ("config {folder}/my.yaml:", "training.epochs = 3: unknown key; did you mean 'num_epochs'?"),
        ),
        BadInput(
            "a bracket that is never closed", config("training: [3"), ("config {folder}/my.yaml: not valid YAML",)
        ),
    ],
)
