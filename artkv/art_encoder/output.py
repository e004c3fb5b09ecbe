"""The files of a training of the art encoder: what may be where they go, and what is written into them."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.data import StyleData
from artkv.art_encoder.scores import ArtEncoderScores
from artkv.datasets.decoding import PICTURE_SUFFIXES
from artkv.errors import UserError
from artkv.files import check_folder_writable, check_writable
from artkv.models.files.efficientnet_files import recorded_settings
from artkv.models.timm_networks import is_efficientnet, normalisation
from artkv.monitoring.tensorboard_log import TensorBoardLog
from artkv.reading import parse_json, printable, read_regular, remedy_for
from artkv.run_folder.separation import how_within

_STATE = "state.safetensors"
_METRICS = "metrics.jsonl"
_CHECKED = "checked_pictures"
_MOST_METRICS_BYTES = 2**30
_OTHER_PLACE = "move it elsewhere, or give another --output-dir"


class ArtEncoderFolder:
    """A training's output folder. checkpoint: the best epoch's weights. state: for a resume. checked: the memory of
    pictures that were looked at.
    """

    def __init__(self, settings: ArtEncoderSettings) -> None:
        self.path = settings.output_dir
        self.checkpoint = self.path / f"{settings.architecture}.safetensors"
        self.state = self.path / _STATE
        self.checked = self.path / _CHECKED
        self._metrics = self.path / _METRICS

    def check(self, settings: ArtEncoderSettings) -> bool:
        """Whether there is a training to resume; writes nothing.

        Raises UserError where there is one that is not to be resumed, where the folder's files could not be written, or
        would replace what no training has written.
        """
        place = f"--output-dir {self.path}"
        _check_is_apart(settings, place)
        check_folder_writable(self.path, place)
        for file in (self.state, self._metrics, self.checked, self.checkpoint):
            check_writable(file, place)
        if os.path.lexists(self.state):
            if not settings.resume:
                raise UserError(
                    f"{self.path} holds a training already; give --resume to go on, or another --output-dir"
                )
            self._lines()
            return True
        self._lines()
        # one of an epoch that was not finished may be replaced, for it will be written again
        if self.checkpoint.is_file() and "classes" not in recorded_settings(self.checkpoint):
            raise UserError(f"{place}: {self.checkpoint} is there already, and no training's; {_OTHER_PLACE}")
        first = settings.initial_checkpoint
        if first is not None and self.checkpoint.is_file() and first.exists() and self.checkpoint.samefile(first):
            raise UserError(
                f"--initial-checkpoint {first}: would be replaced by the training's own; give another --output-dir"
            )
        return False

    def check_scores(self, data: StyleData) -> None:
        """Raises UserError where a head's scores could not be written."""
        for head in data.heads:
            check_writable(self._scores(head.name), f"--output-dir {self.path}")

    def keep_metrics(self, epochs_done: int) -> None:
        """Drops the lines of epochs that will be done again, a half-written one included."""
        lines = self._lines()
        self._metrics.write_bytes(b"".join(lines[:epochs_done]))

    def add_metrics(self, record: Mapping[str, float]) -> None:
        """A line of an epoch."""
        with self._metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def write_scores(self, scores: ArtEncoderScores) -> None:
        """A CSV file of each head's classes."""
        for head in scores.heads:
            with self._scores(head.name).open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow([head.name, "n", "top1", "top5"])
                writer.writerows([one.label, one.count, one.top1, one.top5] for one in head.per_class)

    def _scores(self, head: str) -> Path:
        return self.path / f"per_{head}.csv"

    def _lines(self) -> list[bytes]:
        """Those of metrics.jsonl, whose last one may be half; UserError where it is another's file."""
        if not self._metrics.exists():
            return []
        try:
            lines = read_regular(self._metrics, _MOST_METRICS_BYTES).splitlines(keepends=True)
        except OSError as error:
            raise UserError(
                f"{self._metrics}: cannot be read ({error.strerror}); {remedy_for(error, _OTHER_PLACE)}"
            ) from None
        for number, line in enumerate(lines, start=1):
            try:
                tree = parse_json(line)
            except ValueError:
                if number == len(lines) and line.startswith(b'{"') and not line.endswith(b"\n"):
                    break
                tree = None
            if not isinstance(tree, dict) or not {"epoch", "top1"} <= tree.keys():
                raise UserError(
                    f"{self._metrics}:{number}: is no line of a training of the art encoder; {_OTHER_PLACE}"
                )
        return lines


def _check_is_apart(settings: ArtEncoderSettings, place: str) -> None:
    """Raises UserError where the files would be mixed with pictures, among whose folders styles may be looked for."""
    given = {"--data": settings.data, "--validation": settings.validation, "--image-root": settings.image_root}
    for option, folder in given.items():
        if folder is None or not folder.is_dir():
            continue
        if (how := how_within(settings.output_dir, folder)) is not None:
            raise UserError(f"{place}: {how} {option} {folder}, whose pictures it would be mixed with; give another")
    if settings.output_dir.is_dir():
        names = sorted(entry.name for entry in os.scandir(settings.output_dir))
        picture = next((name for name in names if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES), None)
        if picture is not None:
            raise UserError(f"{place}: holds pictures, {printable(picture)} the first; {_OTHER_PLACE}")


def checkpoint_metadata(
    settings: ArtEncoderSettings, data: StyleData, epoch: int, scores: ArtEncoderScores
) -> dict[str, str]:
    """What is recorded beside the weights: all that their use depends on, and what they can tell apart.

    An EfficientNet's mean and std are ImageNet's, and not recorded. heads: the classes of each, in the order of the
    classifier's rows, where there is more than style.
    """
    metadata = {
        "architecture": settings.architecture,
        "image_size": str(settings.image_size),
        "classes": json.dumps(list(data.classes), ensure_ascii=False),
        "epoch": str(epoch),
        "top1": repr(scores.top1),
    }
    if not is_efficientnet(settings.architecture):
        mean, std = normalisation(settings.architecture)
        metadata |= {"mean": json.dumps(list(mean)), "std": json.dumps(list(std))}
    if not data.is_of_styles_alone:
        metadata["heads"] = json.dumps({head.name: list(head.classes) for head in data.heads}, ensure_ascii=False)
    return metadata


def to_be_configured(settings: ArtEncoderSettings, checkpoint: Path) -> str:
    """What a config says to use the checkpoint, as YAML in a line."""
    entry = {
        "architecture": settings.architecture,
        "checkpoint": str(checkpoint),
        "image_size": settings.image_size,
    }
    key, value = "efficientnet", cast(Any, entry)
    if not is_efficientnet(settings.architecture):
        mean, std = normalisation(settings.architecture)
        key, value = "art_encoders", [entry | {"mean": list(mean), "std": list(std)}]
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return f"{key}: {text.strip()}"


def add_to_curves(curves: TensorBoardLog, metrics: dict[str, Any]) -> None:
    """An epoch's point of each curve in TensorBoard, where epochs take the place of steps."""
    trained = {"loss": metrics["train_loss"], "learning_rate": metrics["learning_rate"]}
    curves.scalars(metrics["epoch"], "train", trained | {"pictures_per_second": metrics["pictures_per_second"]})
    scored = {name: value for name, value in metrics.items() if name.endswith(("top1", "top5", "_loss"))}
    loss = scored.pop("validation_loss")
    del scored["train_loss"]
    curves.scalars(metrics["epoch"], "validation", scored | {"loss": loss})
    curves.flush()
