"""The frozen encoders by themselves, loaded when first used: what makes a feature cache, and what identifies one."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from artkv.batch import EncoderIdentity, PaintingFeatures, PaintingViews
from artkv.config import Config, EfficientNetConfig, FrozenConfig
from artkv.datasets.pictures import PaintingTransform
from artkv.distributed import World
from artkv.models.backbone.backends import open_backbone, resolve_dtype
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.efficientnet import (
    EfficientNetEncoder,
    create_efficientnet,
    efficientnet_state_tensors,
    load_efficientnet,
)
from artkv.models.files.blip2_files import ImageSettings
from artkv.models.files.weight_files import combined_digest, digests

# Beside the weights: torchvision's larger networks have another one than timm's.
_EPS = "settings.batchnorm_eps"


class LoadedOnDemand:
    """An EfficientNet whose weights are read at the first call."""

    def __init__(self, config: EfficientNetConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._encoder: EfficientNetEncoder | None = None

    @property
    def feature_dim(self) -> int:
        """Width of the features; made of the architecture alone."""
        with torch.device("meta"):
            return create_efficientnet(self._config.architecture).num_features

    def __call__(self, pixels_I3EE: Tensor) -> Tensor:
        if self._encoder is None:
            self._encoder = load_efficientnet(self._config).to(self._device)
        return self._encoder(pixels_I3EE)


def remembered_efficientnet_digests(config: EfficientNetConfig) -> dict[str, str]:
    """`efficientnet_digests` of what the config loads, remembered, so that it need not be loaded again.

    Raises `UserError` as `load_efficientnet` does.
    """
    identity = _efficientnet_identity(config).items()
    return {f"efficientnet.{name}": digest for name, digest in identity if name != _EPS}


class FrozenEncoders:
    """ViT and EfficientNet without Q-Former and OPT; neither is in memory before it is used.

    transform: makes the views that they want of a picture. identity: see `EncoderIdentity`.
    """

    def __init__(
        self,
        backbone: Blip2Backbone,
        efficientnet: Callable[[Tensor], Tensor] | None,
        transform: PaintingTransform,
        identity: EncoderIdentity,
    ) -> None:
        self._backbone = backbone
        self._efficientnet = efficientnet
        self.transform = transform
        self.identity = identity
        self.device = backbone.device

    def load(self, world: World) -> None:
        """Loads the ViT; all ranks call it alike, and those of a host share one copy of what streams."""
        self._backbone.load_vit(world)

    @torch.no_grad()
    def encode(self, views: PaintingViews) -> PaintingFeatures:
        """The features of paintings whose views are on the encoders' device."""
        art_features_IF = None if self._efficientnet is None else self._efficientnet(views.efficientnet_pixels)
        return PaintingFeatures(self._backbone.encode_images(views.vit_pixels), art_features_IF)


def open_frozen_encoders(config: Config, has_art_encoder: bool, world: World) -> FrozenEncoders:
    """Checks both encoders' files and tells what identifies them; weights are read when they are used.

    The ViT computes with its weights in the compute dtype, however `frozen` holds those of a step: the features are
    for all runs that `identity` fits.

    Raises `UserError` for whatever is wrong with the files.
    """
    efficientnet = config.efficientnet
    exact = _exact(config.frozen, resolve_dtype(config.model.dtype, world.device))
    backbone = open_backbone(config.model, exact, world)
    image = backbone.image_settings
    vit_digests = {
        name: digest for name, digest in backbone.weight_digests().items() if name.startswith("vision_model.")
    }
    identity = EncoderIdentity(
        dtype=str(backbone.dtype).removeprefix("torch."),
        vit_weights=combined_digest(vit_digests),
        vit_settings=_json(backbone.vit_settings()),
        vit_view=_json([image.size, image.mean, image.std]),
    )
    encoder = None
    if has_art_encoder:
        encoder = LoadedOnDemand(efficientnet, world.device)
        identity = replace(
            identity,
            art_weights=combined_digest(_efficientnet_identity(efficientnet)),
            art_view=_json([efficientnet.image_size, efficientnet.mean, efficientnet.std]),
        )
    return FrozenEncoders(backbone, encoder, painting_transform(image, config), identity)


def painting_transform(vit: ImageSettings, config: Config) -> PaintingTransform:
    """The views that the two encoders want of a picture."""
    art, most = config.efficientnet, config.dataset.max_pixels
    return PaintingTransform(vit.size, vit.mean, vit.std, art.image_size, art.mean, art.std, most)


def _exact(frozen: FrozenConfig, dtype: torch.dtype) -> FrozenConfig:
    """`frozen` without the rounding of int8 masters, nor that of bfloat16 masters below a wider compute dtype."""
    vit = frozen.vit if dtype == torch.bfloat16 else "resident"
    return frozen.model_copy(update={"vit": vit, "storage": "bf16"})


def _efficientnet_identity(config: EfficientNetConfig) -> dict[str, str]:
    """Digests of weights and of the BatchNorms' eps."""
    if config.checkpoint is None or not config.checkpoint.is_file():
        load_efficientnet(config)  # raises, and says what is wrong

    def read() -> Any:
        encoder = load_efficientnet(config)
        yield from efficientnet_state_tensors(encoder).items()
        eps = {part.eps for part in encoder.modules() if isinstance(part, torch.nn.BatchNorm2d)}
        yield _EPS, torch.tensor(sorted(eps))

    assert config.checkpoint is not None
    reading = _json([config.architecture, config.image_size])
    return digests(read(), [config.checkpoint], reading)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
