"""The six combinations, and the files in which the world's folder keeps them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from artkv.config import dump_config, load_config, recipe_path
from artkv.config.art_encoders import BLIND
from artkv.config.overrides import text_override
from artkv.errors import UserError
from artkv.files import check_folder_writable
from artkv.quickstart.encoder_world.pictures import ENCODERS
from artkv.quickstart.settings import PaintedWorld, check_no_others

# Each of its 4 x 4 places sees 33 of 128 pixels, 32 apart, and none other but through a mean over the picture.
ARCHITECTURE = "test_byobnet"
IMAGE_SIZE = 128
MAP_SIDE = 2
_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Combination:
    """A run of the sweep: which encoders, as (name, read), and how their features are injected."""

    name: str
    encoders: tuple[tuple[str, str], ...]
    injection: str = "concat"


COMBINATIONS = (
    Combination("style pooled", (("brushwork", "pooled"),)),
    Combination("style map", (("brushwork", "map"),)),
    Combination("harmony pooled", (("harmony", "pooled"),)),
    Combination("style map + harmony, concat", (("brushwork", "map"), ("harmony", "pooled"))),
    Combination("style map + harmony, decoupled", (("brushwork", "map"), ("harmony", "pooled")), "decoupled"),
    Combination("control", ()),
)


def check_given(ranks: int | None, overrides: Sequence[str]) -> None:
    """Raises `UserError` for options that this world has no use for."""
    for given, option in ((overrides, "--set"), (ranks, "--ranks")):
        if given:
            raise UserError(f"{option}: is not for --world encoders, whose runs its sweep.yaml settles; leave it out")


@dataclass(frozen=True)
class EncoderQuickstart:
    """A quickstart of this world in `output_dir`; seed: of the world and of the sweep's trainings."""

    output_dir: Path
    seed: int

    @property
    def world(self) -> PaintedWorld:
        """Its world, in a folder of its own."""
        return PaintedWorld(self.output_dir / "world")

    @property
    def config_path(self) -> Path:
        """What all runs have in common, with every encoder that any of them has."""
        return self.output_dir / "encoders.yaml"

    @property
    def sweep_path(self) -> Path:
        """The sweep of the six combinations."""
        return self.output_dir / "sweep.yaml"

    def check(self) -> None:
        """Raises `UserError` for a folder that cannot be written, somebody else's, or of another seed's sweep."""
        check_folder_writable(self.output_dir, f"--output-dir {self.output_dir}")
        check_no_others(self.output_dir, self.world)
        if self.sweep_path.is_file() and self.sweep_path.read_text(encoding="utf-8") != self._sweep():
            raise UserError(
                f"{self.sweep_path}: is of another seed or version, or was changed; run it with artkv sweep, or name "
                "another folder with --output-dir"
            )

    def write_files(self) -> None:
        """Writes the config and the sweep."""
        every = sorted({encoder for one in COMBINATIONS for encoder in one.encoders})
        world = self.world
        paths = {
            "model.blip2": world.blip2.absolute(),
            "dataset.train": world.train_csv.absolute(),
            "dataset.val": world.val_csv.absolute(),
            "dataset.test": world.test_csv.absolute(),
            "dataset.image_root": world.image_root.absolute(),
            "run.output_dir": (self.output_dir / "run").absolute(),
            "frozen.feature_cache": (self.output_dir / "features").absolute(),
        }
        config = load_config(
            recipe_path("encoders.yaml"),
            [
                *(text_override(key, str(path)) for key, path in paths.items()),
                f"training.seed={self.seed}",
                f"art_encoders={json.dumps([self._encoder(name, read) for name, read in every])}",
            ],
        )
        self.config_path.write_text(dump_config(config), encoding="utf-8")
        self.sweep_path.write_text(self._sweep(), encoding="utf-8")

    def _sweep(self) -> str:
        tree = {
            "config": self.config_path.name,
            "output_dir": str((self.output_dir / "sweep").absolute()),
            "split": "test",
            "grid": {"training.seed": [self.seed]},
            "runs": [self._settings(one) for one in COMBINATIONS],
        }
        return yaml.safe_dump(tree, sort_keys=False)

    def _settings(self, combination: Combination) -> dict[str, Any]:
        if not combination.encoders:
            return {"kv_modulation.enabled": False}
        return {
            "kv_modulation.injection": combination.injection,
            "art_encoders": [self._encoder(name, read) for name, read in combination.encoders],
        }

    def _encoder(self, name: str, read: str) -> dict[str, Any]:
        checkpoint = self.output_dir / "art_encoders" / name / f"{ARCHITECTURE}.safetensors"
        settings = {
            "name": f"{name}_{read}",
            "architecture": ARCHITECTURE,
            "checkpoint": str(checkpoint.absolute()),
            "image_size": IMAGE_SIZE,
            "std": [_DEVIATION[channel] if channel in ENCODERS[name] else BLIND for channel in range(3)],
            "view": "whole",
            "read": read,
        }
        return settings | ({"size": MAP_SIDE} if read == "map" else {})
