"""The settings of `artkv art-encoder`, and the command-line arguments that give them."""

import argparse
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from artkv.config.paths import expand_home
from artkv.errors import UserError

STYLE_ALONE = ("style",)
AUTO_HEADS = ("style", "genre", "artist")
_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_HEAD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class ArtEncoderSettings(BaseModel):
    """How to train the art encoder; the defaults are meant for WikiArt's 80,000 paintings on one GPU."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    data: Path = Field(
        description="WikiArt: a folder that holds one folder of pictures for each style (root/Baroque/*.jpg), "
        "or a CSV file with columns image, style, or those of --heads"
    )
    heads: str = Field(
        default="style",
        description="the CSV's columns to learn, each with a classifier of its own, such as style,genre,artist; auto: "
        "those three, as far as the CSV has them. A row may leave some of them empty, but not all",
    )
    image_root: Path | None = Field(
        default=None, description="folder to which a CSV's image column is relative; by default the CSV's own folder"
    )
    validation: Path | None = Field(
        default=None,
        description="pictures to validate on, as a folder or CSV like the data; by default a part of the data "
        "is split off, the same one for the same seed",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="part of each style that is split off where no validation set is given"
    )
    output_dir: Path = Field(
        default=Path("outputs/art_encoder"),
        description="where to write ARCHITECTURE.safetensors (what efficientnet.checkpoint, or checkpoint in "
        "art_encoders, names in `artkv train`'s config), metrics.jsonl, per_HEAD.csv and the state for --resume",
    )
    resume: bool = Field(
        default=False,
        description="go on from the state in the output folder (or start, if there is none); the result is the one "
        "that an uninterrupted run with as many ranks would have given",
    )
    architecture: str = Field(
        default="efficientnet_b3",
        description="a network of timm: efficientnet_b3, convnext_tiny, vit_small_patch16_224, ...",
    )
    image_size: int = Field(
        default=300,
        ge=32,
        le=4096,
        description="side of the square picture in pixels; give efficientnet.image_size the same in `artkv train`",
    )
    initial_checkpoint: Path | None = Field(
        default=None,
        description="weights to start from, in timm's or torchvision's layout (.pth, .safetensors), ImageNet's "
        "say; the classifier is replaced. Strongly advised on real paintings; by default random weights",
    )
    epochs: int = Field(
        default=30,
        gt=0,
        le=100_000,
        description="passes over as many pictures as the training set has; sets the schedule",
    )
    batch_size: int = Field(
        default=64,
        ge=2,
        le=65_536,
        description="pictures a step, of all ranks "
        "together, which share them evenly; halve it if the GPU's memory overflows",
    )
    learning_rate: float = Field(
        default=3e-4,
        gt=0,
        le=1,
        description="AdamW's highest rate, reached after the warm-up; scale it with the batch size",
    )
    minimum_learning_rate: float = Field(
        default=1e-6, ge=0, le=1, description="rate at which the cosine schedule ends after the last step"
    )
    warmup_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="part of all steps in which the rate rises from 0"
    )
    weight_decay: float = Field(default=0.05, ge=0, le=10, description="AdamW's, not applied to biases and BatchNorm")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e30, description="longer gradients are clipped to this norm")
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="part of the target spread over all styles: style labels are often debatable",
    )
    mixup: float = Field(
        default=0.2, ge=0, le=1000, description="alpha of mixup, which blends two pictures and their labels; 0: never"
    )
    cutmix: float = Field(
        default=0.2,
        ge=0,
        le=1000,
        description="alpha of cutmix, which pastes a part of one picture into another; 0: never",
    )
    mix_probability: float = Field(
        default=0.5, ge=0, le=1, description="part of the batches that mixup or cutmix is applied to"
    )
    drop_rate: float = Field(
        default=0.3, ge=0, lt=1, description="dropout before the classifier, where the architecture has any"
    )
    drop_path_rate: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="stochastic depth, where the architecture has any: the rate at which the deepest block is skipped",
    )
    smallest_crop: float = Field(
        default=0.35, gt=0, le=1, description="least part of a picture's area that a random training crop shows"
    )
    horizontal_flip: float = Field(default=0.5, ge=0, le=1, description="probability of mirroring a picture")
    color_jitter: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="random change of brightness, contrast and saturation; small, for the palette is part of a style",
    )
    class_balance: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="1: every style (class of the first head) is drawn equally often; 0: as often as it has pictures; "
        "0.5: in between, gentler on styles of few pictures, which 1 repeats many times an epoch",
    )
    ema_decay: float = Field(
        default=0.9998,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which is what is evaluated and saved; it warms "
        "up, so short trainings need no smaller value",
    )
    workers: int = Field(
        default=4, ge=0, le=1024, description="processes that decode pictures; the result does not depend on it"
    )
    seed: int = Field(default=1337, ge=0, lt=2**63, description="settles split, order, augmentation and first weights")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: the GPU if there is one. bfloat16 autocast on a GPU, float32 on a CPU"
    )
    timeout_minutes: float = Field(
        default=30.0,
        ge=0.001,
        le=1e6,
        description="minutes that the ranks of a launcher wait for each other before the run fails; rank 0 looks "
        "at all pictures first",
    )

    @field_validator("data", "image_root", "validation", "output_dir", "initial_checkpoint", mode="before")
    @classmethod
    def _is_a_path(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        if not given.strip() or "\0" in given:
            raise ValueError("is empty, or holds a NUL")
        try:
            return expand_home(given, "it")
        except UserError as error:
            raise ValueError(str(error)) from None

    @field_validator("architecture")
    @classmethod
    def _is_a_name(cls, given: str) -> str:
        if not _ARCHITECTURE.fullmatch(given):
            raise ValueError("is no name that timm gives to a network: letters, digits, _, - and . alone")
        return given

    @field_validator("heads")
    @classmethod
    def _names_columns(cls, given: str) -> str:
        names = given.split(",")
        if "image" in names:
            raise ValueError("image is the column of the pictures; name columns of labels")
        if wrong := [name for name in names if not _HEAD.fullmatch(name)]:
            raise ValueError(
                f"{wrong[0]!r:.80} is no name of a column of labels: a letter, then letters, digits, - or _, with "
                "commas and no spaces between the names"
            )
        if len({name.lower() for name in names}) < len(names):
            raise ValueError("names a column twice")
        if "auto" in names and len(names) > 1:
            raise ValueError("auto stands alone")
        return given

    @property
    def head_names(self) -> tuple[str, ...] | None:
        """The columns that `heads` names; None for auto."""
        return None if self.heads == "auto" else tuple(self.heads.split(","))

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate is {self.minimum_learning_rate:g}, above learning_rate, which is "
                f"{self.learning_rate:g} and falls to it; lower the first, or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _mixing_needs_pairs(self) -> Self:
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(
                f"batch_size is {self.batch_size}: it must be even with mixup or cutmix, which pair the pictures "
                "of a batch; add one, or set both to 0"
            )
        return self


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an argument for each setting; the field's description is its help."""
    for name, field in ArtEncoderSettings.model_fields.items():
        arguments: dict[str, Any] = {"dest": name, "help": (field.description or "").replace("%", "%%")}
        if field.is_required():
            parser.add_argument(f"--{name.replace('_', '-')}", required=True, metavar="PATH", **arguments)
        elif field.annotation is bool:
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", **arguments)
        else:
            if field.default is not None:
                arguments["help"] += f" (default: {field.default})"
            if get_origin(field.annotation) is Literal:
                arguments["choices"] = get_args(field.annotation)
            else:
                arguments["metavar"] = _metavar(field.annotation)
            # no default here: what was not given is left to the settings
            parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, **arguments)


def settings_from_arguments(arguments: argparse.Namespace) -> ArtEncoderSettings:
    """The settings that parsed arguments give; other attributes of the namespace are ignored.

    Raises UserError that names each argument that is wrong, its value and what is accepted.
    """
    given = {name: value for name, value in vars(arguments).items() if name in ArtEncoderSettings.model_fields}
    try:
        return ArtEncoderSettings(**given)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            what = problem["msg"].removeprefix("Value error, ")
            name = str(problem["loc"][0]) if problem["loc"] else ""
            if name:
                accepted = ArtEncoderSettings.model_fields[name].description
                flag = f"--{name.replace('_', '-')}"
                lines.append(f"{flag} {problem['input']!s:.200}: {what}; it is: {accepted}")
            else:
                lines.append(what)
        raise UserError("art-encoder: " + "\n".join(lines)) from None


def _metavar(annotation: Any) -> str:
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return {Path: "PATH", int: "N", float: "X"}.get(kinds[0], "NAME")
