"""The frozen encoders by themselves, loaded when first used: what makes a feature cache, and what identifies one."""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from artkv.batch import EncoderIdentity
from artkv.config import ArtEncoderConfig, Config, FrozenConfig
from artkv.datasets.pictures import PaintingTransform, View
from artkv.distributed import World
from artkv.models.art_encoder import ArtEncoder, art_source, load_art_encoder, named_digests, state_tensors
from artkv.models.backbone.backends import open_backbone, resolve_dtype
from artkv.models.files.blip2_files import ImageSettings
from artkv.models.files.weight_files import combined_digest, digests

# Beside the weights: torchvision's larger networks have another one than timm's.
_EPS = "settings.batchnorm_eps"


class LoadedOnDemand:
    """An art encoder whose weights are read at the first call."""

    def __init__(self, config: ArtEncoderConfig, device: torch.device) -> None:
        self.config = config
        self._device = device
        self._encoder: ArtEncoder | None = None

    def __call__(self, pixels_I3EE: Tensor) -> Tensor:
        if self._encoder is None:
            self._encoder = load_art_encoder(self.config).to(self._device)
        features: Tensor = self._encoder(pixels_I3EE)
        return features


def art_encoder_digests(config: Config) -> dict[str, str]:
    """The digest of each tensor of the art encoders in use, remembered, so that none need be loaded.

    Raises `UserError` as `load_art_encoder` does.
    """
    found: dict[str, str] = {}
    for encoder in config.used_encoders:
        weights = {name: digest for name, digest in _weight_digests(encoder).items() if name != _EPS}
        found |= named_digests(encoder, len(config.used_encoders) == 1, weights)
    return found


class FrozenEncoder:
    """The ViT or an art encoder, without Q-Former and OPT; it is not in memory before it is used.

    identity: see `EncoderIdentity`. view: what it sees of a picture. device: where it computes.
    """

    def __init__(
        self,
        identity: EncoderIdentity,
        view: View,
        device: torch.device,
        load: Callable[[World], object],
        encode: Callable[[Tensor], Tensor],
    ) -> None:
        self.identity = identity
        self.view = view
        self.device = device
        self._load = load
        self._encode = encode

    def load(self, world: World) -> None:
        """Loads what is loaded before the first use; all ranks call it alike: those of a host share what streams."""
        self._load(world)

    @torch.no_grad()
    def encode(self, pixels_I3EE: Tensor) -> Tensor:
        """The features of paintings whose views are on the encoder's device."""
        return self._encode(pixels_I3EE)


def open_frozen_encoders(config: Config, world: World) -> tuple[FrozenEncoder, ...]:
    """The ViT, and the art encoders in use, their files checked; weights are read when they are used.

    The ViT computes with its weights in the compute dtype, however `frozen` holds those of a step: the features are
    for all runs that its identity fits.

    Raises `UserError` for whatever is wrong with the files.
    """
    exact = _exact(config.frozen, resolve_dtype(config.model.dtype, world.device))
    backbone = open_backbone(config.model, exact, world)
    view = vit_view(backbone.image_settings)
    vit_digests = {
        name: digest for name, digest in backbone.weight_digests().items() if name.startswith("vision_model.")
    }
    identity = EncoderIdentity(
        encoder="vit",
        dtype=str(backbone.dtype).removeprefix("torch."),
        weights=combined_digest(vit_digests),
        settings=_json(backbone.vit_settings()),
        view=_view_json(view),
    )
    vit = FrozenEncoder(identity, view, backbone.device, backbone.load_vit, backbone.encode_images)
    return vit, *(_open_art_encoder(encoder, world.device) for encoder in config.used_encoders)


def _open_art_encoder(config: ArtEncoderConfig, device: torch.device) -> FrozenEncoder:
    view = art_view(config)
    architecture = config.architecture.split(".", maxsplit=1)[0]
    identity = EncoderIdentity(
        encoder=architecture,
        dtype="float32",
        weights=combined_digest(_weight_digests(config)),
        settings=_json([architecture, config.read, config.size]),
        view=_view_json(view),
    )
    return FrozenEncoder(identity, view, device, lambda world: None, LoadedOnDemand(config, device))


def painting_transform(vit: ImageSettings, config: Config) -> PaintingTransform:
    """The views that the encoders want of a picture."""
    return PaintingTransform(vit_view(vit), [art_view(one) for one in config.used_encoders], config.dataset.max_pixels)


def vit_view(settings: ImageSettings) -> View:
    """What the ViT sees of a picture."""
    return View(settings.size, tuple(settings.mean), tuple(settings.std), is_whole=True)


def art_view(config: ArtEncoderConfig) -> View:
    """What an art encoder sees of a picture."""
    return View(config.image_size, config.mean, config.std, is_whole=config.view == "whole")


def _exact(frozen: FrozenConfig, dtype: torch.dtype) -> FrozenConfig:
    """`frozen` without the rounding of int8 masters, nor that of bfloat16 masters below a wider compute dtype."""
    vit = frozen.vit if dtype == torch.bfloat16 else "resident"
    return frozen.model_copy(update={"vit": vit, "storage": "bf16"})


def _weight_digests(config: ArtEncoderConfig) -> dict[str, str]:
    """Digests of an art encoder's weights by timm's names, and of the BatchNorms' eps."""
    art_source(config)  # raises where it cannot be read so, which the file does not tell
    if config.checkpoint is None or not config.checkpoint.is_file():
        load_art_encoder(config)  # raises, and says what is wrong

    def read() -> Any:
        encoder = load_art_encoder(config)
        yield from state_tensors(encoder).items()
        eps = {part.eps for part in encoder.modules() if isinstance(part, torch.nn.BatchNorm2d)}
        yield _EPS, torch.tensor(sorted(eps))

    assert config.checkpoint is not None
    return digests(read(), [config.checkpoint], _json([config.architecture, config.image_size]))


def _view_json(view: View) -> str:
    return _json([view.size, view.mean, view.std, view.is_whole])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
