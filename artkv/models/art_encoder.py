"""A frozen art encoder: a network of timm that turns a painting into one vector, or into tokens.

Whatever does not fit exactly is an error, because a half-loaded encoder gives features that look fine and mean nothing.

Letters in shapes are explained in `artkv.batch`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d
from typing_extensions import Self

from artkv.config import ArtEncoderConfig
from artkv.config.art_encoders import BLIND
from artkv.errors import UserError
from artkv.kv_modulation.sources import ArtSource
from artkv.models.files.efficientnet_files import (
    EfficientNetFile,
    read_efficientnet_file,
    setting_of,
    without_counters,
)
from artkv.models.timm_networks import (
    accepted_options,
    classifier_tensors,
    create_network,
    first_line,
    is_efficientnet,
    network_shapes,
    own_image_size,
    relatives,
    tensor_shapes,
)

# torchvision builds B0 to B4 with BatchNorm's default eps of 1e-5, as timm does, but B5 to B7 with 1e-3.
_TORCHVISION_EPS = {
    **{f"efficientnet_b{size}": 1e-5 for size in range(5)},
    **{f"efficientnet_b{size}": 1e-3 for size in range(5, 8)},
}
_TORCHVISION_ARCHITECTURES = tuple(_TORCHVISION_EPS)
_COMMON_ARCHITECTURES = (
    *_TORCHVISION_ARCHITECTURES,
    *(f"efficientnet_lite{size}" for size in range(5)),
    "efficientnet_es",
    "efficientnet_em",
    "efficientnet_el",
    "efficientnetv2_rw_t",
    "efficientnetv2_rw_s",
    "efficientnetv2_s",
    "efficientnetv2_m",
)


class ArtEncoder(nn.Module):
    """A frozen network of timm without its classifier: pictures in, features out.

    It is in eval mode for ever: `train()` leaves it there, and a forward pass puts back any part of it that was
    switched from outside, so that no BatchNorm statistic ever moves. No parameter requires a gradient and no graph
    is recorded. It computes in the dtype of its weights (`encoder.to(torch.bfloat16)`).

    read: pooled: what the network's classifier would read, (I, F). map: its last feature map, or a ViT's grid of
    patches, averaged into a grid of `size` x `size`, row after row, (I, size * size, F). tokens: a ViT's patch tokens
    in reading order, averaged into `size` runs of neighbours, (I, size, F). Class and register tokens are in neither.
    """

    def __init__(
        self, backbone: Any, read: Literal["pooled", "map", "tokens"] = "pooled", size: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.read, self.size = read, size
        self._parts = tuple(backbone.modules())  # a tuple is not registered a second time
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Does nothing but return itself: the encoder stays in eval mode."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which is the dtype of the features."""
        return next(self.backbone.parameters()).dtype

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features, in the encoder's dtype, of pixels (I, 3, E, E), float, normalised as in training."""
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must have the shape (I, 3, E, E), not {tuple(pixels.shape)}")
        if any(part.training for part in self._parts):
            self.train()
        return self.read_features(self.backbone.forward_features(pixels.to(self.dtype)))

    def read_features(self, features: Any) -> Tensor:
        """What is read of the network's last features."""
        if self.size is None:
            pooled: Tensor = self.backbone.forward_head(features, pre_logits=True)
            return pooled
        if self.read == "tokens":
            tokens_IMF = self.patch_tokens(features)
            return adaptive_avg_pool1d(tokens_IMF.transpose(1, 2), self.size).transpose(1, 2).contiguous()
        map_IFhw = adaptive_avg_pool2d(self.feature_map(features), self.size)
        return map_IFhw.flatten(2).transpose(1, 2).contiguous()

    def patch_tokens(self, features: Any) -> Tensor:
        """A ViT's tokens of patches, (I, M, F); `ValueError` of another network."""
        if not isinstance(features, Tensor) or features.dim() != 3:
            raise ValueError("gives a feature map and no tokens")
        return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]

    def feature_map(self, features: Any) -> Tensor:
        """The map, or the patches in their grid, channels first; `ValueError` where there is no grid."""
        if isinstance(features, Tensor) and features.dim() == 4:
            is_last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
            return features.permute(0, 3, 1, 2) if is_last else features
        tokens_IMF = self.patch_tokens(features)
        side = isqrt(tokens_IMF.shape[1])
        if side * side != tokens_IMF.shape[1]:
            raise ValueError(f"gives {tokens_IMF.shape[1]} tokens, which are no square grid")
        return tokens_IMF.transpose(1, 2).unflatten(2, (side, side))


def load_art_encoder(config: ArtEncoderConfig) -> ArtEncoder:
    """The frozen encoder with the weights of `config.checkpoint`, in float32 on the CPU.

    Raises UserError where the architecture is none of timm's, cannot be read as the config says, or the checkpoint is
    missing, unreadable, or does not hold exactly the weights of that architecture.
    """
    art_source(config)
    if config.checkpoint is None:
        raise UserError(
            f"{config.place}.checkpoint: null: it must name a checkpoint of the art encoder trained on WikiArt "
            "(.pth or .safetensors), made for instance by `artkv art-encoder`"
        )
    backbone = create_art_network(config)
    found = read_weights(config.checkpoint, config.architecture, config.place)
    recorded_size = found.recorded.get("image_size")
    if recorded_size is not None and recorded_size != str(config.image_size):
        raise UserError(
            f"{config.checkpoint} was trained at {recorded_size:.20} pixels, but {config.place}.image_size is "
            f"{config.image_size}; set {config.place}.image_size: {recorded_size:.20}"
        )
    _check_normalisation(config, found)
    backbone = _of_its_own_size(config, backbone, found)
    put_weights(backbone, found, config.architecture, config.place)
    if _made_for(backbone) not in (None, config.image_size):
        backbone.set_input_size(img_size=config.image_size)
    if found.layout == "torchvision":
        eps = _TORCHVISION_EPS[_without_tag(config.architecture)]
        for part in backbone.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = eps
    return ArtEncoder(backbone, config.read, config.size)


def _check_normalisation(config: ArtEncoderConfig, found: EfficientNetFile) -> None:
    """Raises UserError where the file says that its pictures were normalised in another way than the config's.

    A channel that the config is blind to may be.
    """
    for name, ours in (("mean", config.mean), ("std", config.std)):
        theirs = found.recorded.get(name)
        if theirs is not None and theirs != json.dumps(list(ours)) and not _is_but_blind(theirs, ours):
            raise UserError(
                f"{config.checkpoint} was trained on pictures normalised with {name} {theirs:.80}, but {config.place}."
                f"{name} is {list(ours)}; set {config.place}.{name}: {theirs:.80}"
            )


def _is_but_blind(theirs: str, ours: Sequence[float]) -> bool:
    """Whether a recorded list is the config's but for channels of which the config sees nothing."""
    try:
        values = json.loads(theirs)
    except ValueError:
        return False
    if not isinstance(values, list) or len(values) != len(ours):
        return False
    return all(mine in (BLIND, value) for mine, value in zip(ours, values, strict=True))


def create_art_network(config: ArtEncoderConfig) -> Any:
    """The network with fresh weights, without a classifier.

    Raises UserError where timm has none of that name, or `efficientnet` names no EfficientNet.
    """
    backbone = create_network(config.architecture, image_size=config.image_size, place=config.place)
    _check_network(config, backbone)
    return backbone


def _check_network(config: ArtEncoderConfig, backbone: Any) -> None:
    place, architecture, side = config.place, config.architecture, config.image_size
    if place == "efficientnet" and not is_efficientnet(architecture):
        raise UserError(
            f"efficientnet.architecture: {architecture!r} is a {type(backbone).__name__}, not an EfficientNet; "
            "use for instance efficientnet_b3, or give art_encoders, which may be of any kind"
        )
    check_whole_patches(backbone, architecture, side, f"{place}.image_size = {side}")


def check_whole_patches(network: Any, architecture: str, side: int, given: str) -> None:
    """Raises `UserError` where a network of patches would not see all of a picture; given: the setting, for errors."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    patch = patch if isinstance(patch, int) else max(patch)
    if side % patch:
        nearest = max(1, round(side / patch)) * patch
        raise UserError(
            f"{given}: {architecture} sees patches of {patch} pixels, and would not see the "
            f"{side % patch} that are left over; give a multiple of {patch}, such as {nearest}"
        )


def art_source(config: ArtEncoderConfig) -> ArtSource:
    """What the encoder gives of a picture, of shapes alone: no file is read.

    Raises UserError where there is no such network, or it cannot be read as the config says.
    """
    _, (feature_dim, num_tokens) = _in_shapes(config)
    return ArtSource(config.source_name, feature_dim, num_tokens)


def art_shapes(config: ArtEncoderConfig) -> ArtEncoder:
    """The encoder on the meta device; the same for all who ask, not to be changed. Raises as `art_source` does."""
    return _in_shapes(config)[0]


def _in_shapes(config: ArtEncoderConfig) -> tuple[ArtEncoder, tuple[int, int | None]]:
    """The encoder on the meta device; F, and the number of tokens, None where they are pooled."""
    return _made_in_shapes(config.place, config.architecture, config.image_size, config.read, config.size)


@cache
def _made_in_shapes(
    place: str, architecture: str, image_size: int, read: Literal["pooled", "map", "tokens"], size: int | None
) -> tuple[ArtEncoder, tuple[int, int | None]]:
    fields: dict[str, Any] = {"architecture": architecture, "image_size": image_size, "read": read, "size": size}
    config = ArtEncoderConfig.model_construct(**fields).placed(place)
    backbone = network_shapes(architecture, image_size, place)
    _check_network(config, backbone)
    encoder = ArtEncoder(backbone, read, size)
    with torch.no_grad(), torch.device("meta"):
        try:
            features = backbone.forward_features(torch.empty(1, 3, image_size, image_size))
        except Exception as error:  # each family of timm says in its own way that a size does not fit
            raise UserError(
                f"{place}.image_size = {image_size}: {architecture} cannot see pictures of that size "
                f"({first_line(error)}); give {own_image_size(architecture)}, for which it is made"
            ) from None
        if size is not None:
            _check_size(encoder, features, place, architecture)
        shape = encoder.read_features(features).shape
    return encoder, (shape[-1], shape[1] if len(shape) == 3 else None)


def _check_size(encoder: ArtEncoder, features: Any, place: str, architecture: str) -> None:
    """Raises UserError where the network has not what is to be read, or less of it than is asked for."""
    assert encoder.size is not None
    try:
        if encoder.read == "tokens":
            most, what = encoder.patch_tokens(features).shape[1], "tokens"
        else:
            most, what = min(encoder.feature_map(features).shape[2:]), "places a side"
    except ValueError as error:
        other = "map" if encoder.read == "tokens" else "pooled"
        raise UserError(f"{place}.read = {encoder.read}: {architecture} {error}; give {other}") from None
    if encoder.size > most:
        raise UserError(
            f"{place}.size = {encoder.size}: {architecture} has {most} {what} at this image_size; give {most} or fewer"
        )


def state_tensors(encoder: ArtEncoder) -> dict[str, Tensor]:
    """The encoder's weights and BatchNorm statistics by timm's names: what its output depends on, to be hashed.

    `num_batches_tracked` is left out: it counts training steps, and not every checkpoint has it.
    """
    return without_counters(encoder.backbone.state_dict())


def named_digests(config: ArtEncoderConfig, is_alone: bool, weights: Mapping[str, str]) -> dict[str, str]:
    """The digests of an encoder's tensors, by timm's names, under names of all the frozen parts, with its settings'.

    An EfficientNet that is alone and pooled has the names that it had when there was no other, and none of settings.
    """
    prefix = "efficientnet." if is_alone else f"art_encoders.{config.source_name}."
    named = {f"{prefix}{name}": digest for name, digest in weights.items()}
    if config.read == "pooled" and is_efficientnet(config.architecture):
        return named
    # Networks with the same tensors may compute otherwise, as CLIP's ViTs with one GELU or the other.
    settings = json.dumps([_without_tag(config.architecture), config.read, config.size])
    return named | {f"{prefix}settings": hashlib.sha256(settings.encode()).hexdigest()}


def _made_for(backbone: Any) -> int | None:
    """The side of the pictures that a network with fixed positions is made for; None for others."""
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return None if size is None else size if isinstance(size, int) else int(size[0])


def _of_its_own_size(config: ArtEncoderConfig, backbone: Any, found: EfficientNetFile) -> Any:
    """`backbone`, or where the file is not of that size the network of its own size, if that is what the file has."""
    architecture = config.architecture
    if _made_for(backbone) is None or "img_size" not in accepted_options(architecture):
        return backbone
    if not hasattr(backbone, "set_input_size") or not found.mismatches(_expected(backbone, architecture)):
        return backbone
    own = create_network(architecture, image_size=own_image_size(architecture), place=config.place)
    return backbone if found.mismatches(_expected(own, architecture)) else own


def _expected(model: nn.Module, architecture: str) -> dict[str, Tensor]:
    """The tensors that a checkpoint must hold, by timm's names."""
    classifier = () if is_efficientnet(architecture) else classifier_tensors(architecture)
    return {
        name: tensor
        for name, tensor in without_counters(model.state_dict()).items()
        if name not in classifier and not (name.startswith("classifier.") and is_efficientnet(architecture))
    }


def load_weights(model: nn.Module, path: Path, architecture: str, place: str = "efficientnet") -> EfficientNetFile:
    """Puts a checkpoint's weights into `model`, all but the classifier, whatever its number of classes.

    Returns what was read. A classifier of `model` stays as it is. Raises UserError where the file cannot be read or
    any key is missing, unexpected or of another shape.
    """
    found = read_weights(path, architecture, place)
    put_weights(model, found, architecture, place)
    return found


def read_weights(path: Path, architecture: str, place: str) -> EfficientNetFile:
    """A checkpoint, known to be of the architecture as far as it says. Raises UserError where it is not."""
    classifier = None if is_efficientnet(architecture) else classifier_tensors(architecture)
    found = read_efficientnet_file(path, classifier, place)
    recorded_architecture = found.recorded.get("architecture")
    if recorded_architecture is not None and _without_tag(recorded_architecture) != _without_tag(architecture):
        setting = setting_of(place, "architecture")
        raise UserError(
            f"{path} was trained as {recorded_architecture}, but {setting} is {architecture}; "
            f"set {setting}: {recorded_architecture}"
        )
    if found.layout == "torchvision" and _without_tag(architecture) not in _TORCHVISION_ARCHITECTURES:
        # tf_efficientnet_b3, say, has the same shapes but pads otherwise: it would load, and be wrong.
        raise UserError(
            f"{path} has torchvision's layout, whose networks are timm's efficientnet_b0 to efficientnet_b7, not "
            f"{architecture}; {_architecture_remedy(found.weights, _TORCHVISION_ARCHITECTURES, place)}"
        )
    return found


def put_weights(model: nn.Module, found: EfficientNetFile, architecture: str, place: str) -> None:
    """Puts what was read into `model`; raises UserError where any key is missing, unexpected or of another shape."""
    path, weights = found.path, found.weights
    expected = _expected(model, architecture)
    problems = found.mismatches(expected)
    if problems:
        alike = sum(key in weights and weights[key].shape == tensor.shape for key, tensor in expected.items())
        if alike > 0.9 * max(len(expected), len(found.tensors)):  # B0 and B1 share 0.7 of their keys and shapes
            remedy = f"it seems to be {architecture}, incomplete or changed; write or fetch it again"
        elif found.layout == "torchvision":
            remedy = _architecture_remedy(weights, _TORCHVISION_ARCHITECTURES, place)
        elif is_efficientnet(architecture):
            remedy = _architecture_remedy(weights, _COMMON_ARCHITECTURES, place)
        else:
            remedy = _architecture_remedy(weights, [*relatives(architecture), *_COMMON_ARCHITECTURES], place)
        raise UserError(
            f"{path} (in {found.layout}'s layout) does not hold the weights of {architecture}:\n  "
            + "\n  ".join(problems)
            + f"\n{remedy}"
        )
    found.check_finite()
    # not strict, because the classifier and the counters stay as they are; all else was compared above
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)


def _architecture_remedy(weights: Mapping[str, Tensor], candidates: Iterable[str], place: str) -> str:
    """What to do about a checkpoint of another network: names the architecture whose shapes it has, if any has."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for architecture in candidates:
        if shapes == {n: shape for n, shape in tensor_shapes(architecture).items() if not n.endswith("_tracked")}:
            return f"it seems to be {architecture}: set {setting_of(place, 'architecture')}: {architecture}"
    return "it is none of the architectures that artkv knows by shape; use the checkpoint of another training"


def _without_tag(architecture: str) -> str:
    """timm's name without the tag of the pretrained weights: efficientnet_b3 for efficientnet_b3.ra2_in1k."""
    return architecture.split(".", maxsplit=1)[0]
