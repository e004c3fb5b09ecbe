"""The settings of the art encoders, what the prefix is made from."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from artkv.config.section import Float, PositiveFloat, PositiveInt, Section

# Of pixels from 0 to 1. Those of pixels from 0 to 255 would make one colour of every picture.
_Mean = Annotated[Float, Field(ge=0, le=1)]
# What an encoder makes of a channel that it is to be blind to: the same number everywhere, nearly.
BLIND = 1000.0


def _is_deviation(value: float) -> float:
    if not 1e-6 <= value <= 1 and value != BLIND:
        raise ValueError("is no standard deviation of pixels from 0 to 1")
    return value


_Deviation = Annotated[PositiveFloat, AfterValidator(_is_deviation)]


class EfficientNetConfig(Section):
    """The frozen art encoder."""

    architecture: str = Field(default="efficientnet_b3", description="the name of a timm EfficientNet")
    checkpoint: Path | None = Field(
        default=None, description="a .pth or .safetensors in timm's or torchvision's layout, trained on WikiArt"
    )
    image_size: PositiveInt = Field(
        default=300, ge=16, le=4096, description="side of the square picture in pixels, of 16 to 4096"
    )
    mean: tuple[_Mean, _Mean, _Mean] = Field(
        default=(0.485, 0.456, 0.406),
        description="three numbers of 0 to 1, one a colour channel (ImageNet's by default); of pixels from 0 to 255 "
        "divide them by 255",
    )
    std: tuple[_Deviation, _Deviation, _Deviation] = Field(
        default=(0.229, 0.224, 0.225),
        description="three numbers of 0.000001 to 1 (ImageNet's by default), or 1000 of a channel that it is not to "
        "see; of pixels from 0 to 255 divide them by 255",
    )


class ArtEncoderConfig(EfficientNetConfig):
    """One of several frozen art encoders, of any family that timm has."""

    name: str | None = Field(
        default=None, description="small letters, digits and _, a letter first; null: the architecture without its tag"
    )
    architecture: str = Field(default="efficientnet_b3", description="the name of a timm network, convolutional or ViT")
    checkpoint: Path | None = Field(
        default=None, description="a .pth or .safetensors in timm's layout, or torchvision's of an EfficientNet"
    )
    view: Literal["centre", "whole"] = Field(
        default="centre",
        description="centre (shorter side to image_size, then the middle square) or whole (the whole picture squeezed "
        "to the square)",
    )
    read: Literal["pooled", "map", "tokens"] = Field(
        default="pooled",
        description="pooled (one vector), map (the feature map or patch grid, pooled to size x size tokens) or tokens "
        "(a ViT's patch tokens, pooled to size of them)",
    )
    size: PositiveInt | None = Field(
        default=None, le=4096, description="with read: map the tokens of a side, with read: tokens how many; else null"
    )

    # Where the settings are written: of no matter for what the encoder does.
    _place: str = PrivateAttr(default="art_encoders")

    @field_validator("name")
    @classmethod
    def _is_an_identifier(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError("is no plain name, and it becomes part of the parameters' names")
        return name

    @model_validator(mode="after")
    def _fits_what_is_read(self) -> "ArtEncoderConfig":
        if self.read == "pooled" and self.size is not None:
            raise ValueError(f"size = {self.size} is for read: map or tokens, and read is pooled; leave it out")
        if self.read != "pooled" and self.size is None:
            what = "tokens of a side" if self.read == "map" else "tokens"
            raise ValueError(f"read: {self.read} needs size, how many {what}, such as size: 4")
        if self.name is None and not _NAME.fullmatch(self.source_name):
            raise ValueError(
                f"architecture = {self.architecture!r:.200} makes no plain name; give name, of small letters, digits "
                "and _"
            )
        return self

    @property
    def source_name(self) -> str:
        """`name`, or the architecture without its tag."""
        return self.name or self.architecture.split(".", maxsplit=1)[0]

    @property
    def place(self) -> str:
        """The settings' place in the config, such as `efficientnet` or `art_encoders.0`, for what is said of them."""
        return self._place

    def placed(self, place: str) -> "ArtEncoderConfig":
        """The same, with its place in the config."""
        copy = self.model_copy()
        copy._place = place
        return copy


# It becomes part of parameters' names, in which "." and "/" have a meaning.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_art_encoders(encoders: tuple[ArtEncoderConfig, ...] | None, makes_prefix: bool) -> None:
    """Raises `ValueError` where names are not distinct, or there is none to make a prefix from."""
    if encoders is None:
        return
    if not encoders and makes_prefix:
        raise ValueError(
            "art_encoders = []: holds no encoder to make a prefix from; give one, or set kv_modulation.enabled: false"
        )
    names = [encoder.source_name for encoder in encoders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"art_encoders: several are named {twice[0]!r}; give each a name of its own, with name")


def with_checkpoints(
    encoders: tuple[ArtEncoderConfig, ...], paths: Sequence[Path | None]
) -> tuple[ArtEncoderConfig, ...]:
    """The encoders, each with another checkpoint."""
    pairs = zip(encoders, paths, strict=True)
    return tuple(one.model_copy(update={"checkpoint": path}) for one, path in pairs)


def either_form(tree: Any) -> Any:
    """A config's tree, in which `art_encoders` stands without the defaults of `efficientnet`.

    Raises `ValueError` where both say something.
    """
    if not isinstance(tree, dict) or tree.get("art_encoders") is None:
        return tree
    if tree.get("efficientnet"):
        raise ValueError(
            "efficientnet is the short form of art_encoders with one entry, and both are given; move it into the list, "
            "or leave it out (efficientnet: null)"
        )
    return tree | {"efficientnet": None}
