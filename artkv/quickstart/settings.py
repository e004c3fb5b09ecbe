"""What a quickstart is given, where its parts are, and the configs of its two trainings; quick to import."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artkv.config import Config, EfficientNetConfig, dump_config, load_config, override_config, recipe_path
from artkv.config.overrides import text_override
from artkv.errors import UserError
from artkv.files import check_folder_writable
from artkv.reading import printable
from artkv.run_folder.separation import BESIDE

QUESTIONS_A_STEP = 32


class PaintedWorld:
    """Where the parts of the embedded world are, below `folder`.

    train_csv: questions to train on, in ArtQuest's format; val_csv and test_csv are about other pictures. wikiart,
    wikiart_val: the training and validation pictures again, in a folder for each style. language_model: the OPT alone,
    and its tokenizer. blip2: the small BLIP-2 in the stock transformers format, with tokenizer and image processor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train_csv, self.val_csv, self.test_csv = (folder / "data" / f"{s}.csv" for s in ("train", "val", "test"))
        self.image_root = folder / "data" / "images"
        self.wikiart, self.wikiart_val = folder / "wikiart", folder / "wikiart_val"
        self.language_model, self.blip2 = folder / "language", folder / "blip2"


@dataclass(frozen=True)
class QuickstartSettings:
    """A quickstart in `output_dir`, which is its run's folder too; the control's is `output_dir/control`.

    ranks: processes that train. overrides: of the recipe, in the form `section.key=value`.
    """

    output_dir: Path
    seed: int
    ranks: int
    overrides: tuple[str, ...] = ()

    @property
    def world(self) -> PaintedWorld:
        return PaintedWorld(self.output_dir / "world")

    @property
    def art_encoder(self) -> Path:
        """The folder of the art encoder's training."""
        return self.output_dir / "art_encoder"

    @property
    def network(self) -> EfficientNetConfig:
        """The art encoder's architecture, and its picture's size."""
        encoder = load_config(recipe_path("quickstart.yaml"), list(self.overrides)).efficientnet
        if encoder is None:
            raise UserError("--set art_encoders: the quickstart teaches one EfficientNet; leave it out")
        return encoder

    def run_dir(self, is_modulated: bool) -> Path:
        """The folder of the run with the prefix, or of the control."""
        return self.output_dir if is_modulated else self.output_dir / "control"

    def config_path(self, is_modulated: bool) -> Path:
        """The run's config in a file of its own, so that any command can be tried on it."""
        return self.run_dir(is_modulated) / "quickstart.yaml"

    def config(self, is_modulated: bool) -> Config:
        """The recipe with the overrides, and this world's paths."""
        return load_config(
            recipe_path("quickstart.yaml"),
            [*self.overrides, f"training.seed={self.seed}", *_as_overrides(self._settled(is_modulated))],
        )

    def write_config(self, is_modulated: bool) -> Path:
        """Writes `config` to `config_path`."""
        path = self.config_path(is_modulated)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_config(self.config(is_modulated)), encoding="utf-8")
        return path

    def check(self) -> None:
        """Raises `UserError` for what would fail after minutes, and for a folder of another seed or other overrides.

        The folder's place may be another than when its quickstart began, and so may the number of ranks, as long as no
        training has begun.
        """
        if QUESTIONS_A_STEP % self.ranks:
            raise UserError(
                f"--ranks {self.ranks}: a step's {QUESTIONS_A_STEP} questions cannot be shared; give 1, 2 or 4"
            )
        check_folder_writable(self.output_dir, f"--output-dir {self.output_dir}")
        if not self.config_path(True).exists():
            check_no_others(self.output_dir, self.world)
        for is_modulated in (True, False):
            settled = self._settled(is_modulated)
            for override in self.overrides:
                if (key := override.partition("=")[0].strip()) in {*settled, "training.seed"}:
                    raise UserError(f"--set {override}: the quickstart gives {key} itself; leave it out")
            wanted, path = self.config(is_modulated), self.config_path(is_modulated)
            if path.is_file() and (found := override_config(load_config(path), _as_overrides(settled))) != wanted:
                raise UserError(
                    f"{self.output_dir}: holds a quickstart with {_first_difference(found, wanted)}; "
                    "delete the folder or name another one with --output-dir"
                )

    def _settled(self, is_modulated: bool) -> Mapping[str, Any]:
        """What the folder and the ranks settle."""
        return {
            "model.blip2": self.world.blip2.absolute(),
            "efficientnet.checkpoint": self.art_encoder / f"{self.network.architecture}.safetensors",
            "dataset.train": self.world.train_csv,
            "dataset.val": self.world.val_csv,
            "dataset.test": self.world.test_csv,
            "dataset.image_root": self.world.image_root,
            "kv_modulation.enabled": is_modulated,
            "run.output_dir": self.run_dir(is_modulated),
            "frozen.feature_cache": self.output_dir / "features",
            # The same 32 questions a step, however many share them.
            "training.batch_size": QUESTIONS_A_STEP // self.ranks,
        }


def check_no_others(output_dir: Path, world: PaintedWorld) -> None:
    """Raises `UserError` for a folder of somebody else's files, which has no world of a quickstart's.

    A job's output and notes may be there.
    """
    if not output_dir.is_dir() or world.folder.exists():
        return
    names = sorted(path.name for path in output_dir.iterdir())
    others = [name for name in names if not (name.startswith(".") or name.endswith(BESIDE))]
    if others:
        raise UserError(
            f"--output-dir {output_dir}: holds {', '.join(map(printable, others[:3]))}, and no quickstart, "
            "whose files would be mixed with those; give a new folder"
        )


def _as_overrides(settings: Mapping[str, Any]) -> list[str]:
    return [
        text_override(key, str(value)) if isinstance(value, Path) else f"{key}={json.dumps(value)}"
        for key, value in settings.items()
    ]


def _first_difference(found: Config, wanted: Config) -> str:
    """Such as `training.seed = 1337, wanted is 7`, of two configs that differ."""
    there, here = _flat(found.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
    key = next(key for key in [*here, *there] if there.get(key) != here.get(key))
    return f"{key} = {there.get(key)}, wanted is {here.get(key)}"


def _flat(tree: Mapping[str, Any], dotted: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{dotted}{key}.") if isinstance(value, dict) else {f"{dotted}{key}": value}
    return flat
