"""The frozen art encoder: a timm EfficientNet that turns a painting into pooled features.

Whatever does not fit exactly is an error, because a half-loaded encoder gives features that look fine and mean nothing.

Letters in shapes are explained in `artkv.batch`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from artkv.config import EfficientNetConfig
from artkv.errors import UserError
from artkv.models.files.efficientnet_files import EfficientNetFile, read_efficientnet_file, without_counters
from artkv.models.files.weight_files import tensor_digest
from artkv.models.timm_networks import classifier_tensors, create_network, is_efficientnet

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


class EfficientNetEncoder(nn.Module):
    """A frozen EfficientNet without its classifier: pictures in, pooled features out.

    It is in eval mode for ever: `train()` leaves it there, and a forward pass puts back any part of it that was
    switched from outside, so that no BatchNorm statistic ever moves. No parameter requires a gradient and no graph
    is recorded. It computes in the dtype of its weights (`encoder.to(torch.bfloat16)`).

    feature_dim: the width F of the features, 1536 for EfficientNet-B3.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        # where a layer stands between pooling and classifier, the features are that layer's
        self.feature_dim: int = backbone.head_hidden_size
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
        """Features (I, F), in the encoder's dtype, of pixels (I, 3, E, E), float, normalised as in training."""
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must have the shape (I, 3, E, E), not {tuple(pixels.shape)}")
        if any(part.training for part in self._parts):
            self.train()
        return self.backbone(pixels.to(self.dtype))


def load_efficientnet(config: EfficientNetConfig) -> EfficientNetEncoder:
    """The frozen encoder with the weights of `config.checkpoint`, in float32 on the CPU.

    Raises UserError where the architecture is none of timm's, or the checkpoint is missing, unreadable, or
    does not hold exactly the weights of that architecture.
    """
    if config.checkpoint is None:
        raise UserError(
            "efficientnet.checkpoint: null: it must name a checkpoint of the art encoder trained on WikiArt "
            "(.pth or .safetensors), made for instance by `artkv art-encoder`"
        )
    backbone = create_network(config.architecture, image_size=config.image_size)
    found = load_weights(backbone, config.checkpoint, config.architecture)
    recorded_size = found.recorded.get("image_size")
    if recorded_size is not None and recorded_size != str(config.image_size):
        raise UserError(
            f"{config.checkpoint} was trained at {recorded_size:.20} pixels, but efficientnet.image_size is "
            f"{config.image_size}; set efficientnet.image_size: {recorded_size:.20}"
        )
    for name, ours in (("mean", config.mean), ("std", config.std)):
        theirs = found.recorded.get(name)
        if theirs is not None and theirs != json.dumps(list(ours)):
            raise UserError(
                f"{config.checkpoint} was trained on pictures normalised with {name} {theirs:.80}, but efficientnet."
                f"{name} is {list(ours)}; set efficientnet.{name}: {theirs:.80}"
            )
    if found.layout == "torchvision":
        eps = _TORCHVISION_EPS[_without_tag(config.architecture)]
        for part in backbone.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = eps
    return EfficientNetEncoder(backbone)


def efficientnet_state_tensors(encoder: EfficientNetEncoder) -> dict[str, Tensor]:
    """The encoder's weights and BatchNorm statistics by timm's names: what its output depends on, to be hashed.

    `num_batches_tracked` is left out: it counts training steps, and not every checkpoint has it.
    """
    return without_counters(encoder.backbone.state_dict())


def efficientnet_digests(encoder: EfficientNetEncoder) -> dict[str, str]:
    """The digest of each of the encoder's tensors, under names with `efficientnet.` in front."""
    return {f"efficientnet.{name}": tensor_digest(t) for name, t in efficientnet_state_tensors(encoder).items()}


def create_efficientnet(
    architecture: str, num_classes: int = 0, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> Any:
    """A network of timm with fresh weights, for pictures of its own size; see `create_network`."""
    return create_network(architecture, num_classes, drop_rate, drop_path_rate)


def load_weights(model: nn.Module, path: Path, architecture: str) -> EfficientNetFile:
    """Puts a checkpoint's weights into `model`, all but the classifier, whatever its number of classes.

    Returns what was read. A classifier of `model` stays as it is. Raises UserError where the file cannot be read or
    any key is missing, unexpected or of another shape.
    """
    classifier = None if is_efficientnet(architecture) else classifier_tensors(architecture)
    found = read_efficientnet_file(path, classifier)
    recorded_architecture = found.recorded.get("architecture")
    if recorded_architecture is not None and _without_tag(recorded_architecture) != _without_tag(architecture):
        raise UserError(
            f"{path} was trained as {recorded_architecture}, but efficientnet.architecture is {architecture}; "
            f"set efficientnet.architecture: {recorded_architecture}"
        )
    weights = found.weights
    if found.layout == "torchvision" and _without_tag(architecture) not in _TORCHVISION_ARCHITECTURES:
        # tf_efficientnet_b3, say, has the same shapes but pads otherwise: it would load, and be wrong.
        raise UserError(
            f"{path} has torchvision's layout, whose networks are timm's efficientnet_b0 to efficientnet_b7, not "
            f"{architecture}; {_architecture_remedy(weights, _TORCHVISION_ARCHITECTURES)}"
        )
    expected = {
        name: tensor
        for name, tensor in without_counters(model.state_dict()).items()
        if (not name.startswith("classifier.") if classifier is None else name not in classifier)
    }
    problems = found.mismatches(expected)
    if problems:
        alike = sum(key in weights and weights[key].shape == tensor.shape for key, tensor in expected.items())
        if alike > 0.9 * max(len(expected), len(found.tensors)):  # B0 and B1 share 0.7 of their keys and shapes
            remedy = f"it seems to be {architecture}, incomplete or changed; write or fetch it again"
        else:
            candidates = _COMMON_ARCHITECTURES if found.layout == "timm" else _TORCHVISION_ARCHITECTURES
            remedy = _architecture_remedy(weights, candidates)
        raise UserError(
            f"{path} (in {found.layout}'s layout) does not hold the weights of {architecture}:\n  "
            + "\n  ".join(problems)
            + f"\n{remedy}"
        )
    found.check_finite()
    # not strict, because the classifier and the counters stay as they are; all else was compared above
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    return found


def _architecture_remedy(weights: Mapping[str, Tensor], candidates: Iterable[str]) -> str:
    """What to do about a checkpoint of another network: names the architecture whose shapes it has, if any has."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for architecture in candidates:
        with torch.device("meta"):
            state = create_efficientnet(architecture).state_dict()
        if shapes == {name: tensor.shape for name, tensor in without_counters(state).items()}:
            return f"it seems to be {architecture}: set efficientnet.architecture: {architecture}"
    return "it is none of the architectures that artkv knows by shape; use the checkpoint of another training"


def _without_tag(architecture: str) -> str:
    """timm's name without the tag of the pretrained weights: efficientnet_b3 for efficientnet_b3.ra2_in1k."""
    return architecture.split(".", maxsplit=1)[0]
