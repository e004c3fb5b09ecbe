"""The frozen art encoder: a timm EfficientNet that turns a painting into pooled features.

WikiArt checkpoints come in two layouts of the same network, timm's and torchvision's, and in many wrappings;
all of them are read here, and whatever does not fit exactly is an error, because a half-loaded encoder gives
features that look fine and mean nothing.

Letters in shapes: B pictures, E the side of a picture in pixels, D the width of the features.
"""

import argparse
import difflib
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import EfficientNet
from torch import Tensor, nn
from typing_extensions import Self

from artkv.config import EfficientNetConfig
from artkv.errors import UserError
from artkv.models.files.weight_files import tensor_digest

# Averaged weights first, as timm's own loader prefers them: they are what a training's scores were measured on.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
)
_PREFIXES = ("module.", "model.", "_orig_mod.")

# torchvision numbers what timm names. Blocks of stage 1 have no expansion, they start with conv_dw.
_TORCHVISION_ENDS = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.8.0": "conv_head",
    "features.8.1": "bn2",
}
_TORCHVISION_STAGE_1 = {
    "0.0": "conv_dw",
    "0.1": "bn1",
    "1.fc1": "se.conv_reduce",
    "1.fc2": "se.conv_expand",
    "2.0": "conv_pw",
    "2.1": "bn2",
}
_TORCHVISION_STAGES_2_TO_7 = {
    "0.0": "conv_pw",
    "0.1": "bn1",
    "1.0": "conv_dw",
    "1.1": "bn2",
    "2.fc1": "se.conv_reduce",
    "2.fc2": "se.conv_expand",
    "3.0": "conv_pwl",
    "3.1": "bn3",
}
_TORCHVISION_END = re.compile(r"(features\.[08]\.[01])\.(\w+)")
_TORCHVISION_BLOCK = re.compile(r"features\.([1-7])\.(\d+)\.block\.(\d\.\w+)\.(\w+)")

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

    feature_dim: the width D of the features, 1536 for EfficientNet-B3.
    """

    def __init__(self, backbone: EfficientNet) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim: int = backbone.num_features
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
        """Features (B, D), in the encoder's dtype, of pixels (B, 3, E, E), float, normalised as in training."""
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must have the shape (B, 3, E, E), not {tuple(pixels.shape)}")
        if any(part.training for part in self._parts):
            self.train()
        return self.backbone(pixels.to(self.dtype))


def load_efficientnet(config: EfficientNetConfig) -> EfficientNetEncoder:
    """The frozen encoder with the weights of `config.checkpoint`, in float32 on the CPU.

    Raises UserError where the architecture is no timm EfficientNet, or the checkpoint is missing, unreadable, or
    does not hold exactly the weights of that architecture.
    """
    if config.checkpoint is None:
        raise UserError(
            "efficientnet.checkpoint: null: it must name a checkpoint of the art encoder trained on WikiArt "
            "(.pth or .safetensors), made for instance by `artkv art-encoder`"
        )
    backbone = create_efficientnet(config.architecture)
    layout = load_backbone(backbone, config.checkpoint, config.architecture)
    recorded_size = _recorded(config.checkpoint).get("image_size")
    if recorded_size is not None and int(recorded_size) != config.image_size:
        raise UserError(
            f"{config.checkpoint} was trained at {recorded_size} pixels, but efficientnet.image_size is "
            f"{config.image_size}; set efficientnet.image_size: {recorded_size}"
        )
    if layout == "torchvision":
        eps = _TORCHVISION_EPS[_without_tag(config.architecture)]
        for part in backbone.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = eps
    return EfficientNetEncoder(backbone)


def efficientnet_state_tensors(encoder: EfficientNetEncoder) -> dict[str, Tensor]:
    """The encoder's weights and BatchNorm statistics by timm's names: what its output depends on, to be hashed.

    `num_batches_tracked` is left out: it counts training steps, and not every checkpoint has it.
    """
    return _without_counters(encoder.backbone.state_dict())


def efficientnet_digests(encoder: EfficientNetEncoder) -> dict[str, str]:
    """The digest of each of the encoder's tensors, under names with `efficientnet.` in front."""
    return {f"efficientnet.{name}": tensor_digest(t) for name, t in efficientnet_state_tensors(encoder).items()}


def create_efficientnet(
    architecture: str, num_classes: int = 0, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> EfficientNet:
    """A timm EfficientNet with fresh weights; 0 classes: without a classifier.

    Raises UserError where timm has no EfficientNet of that name.
    """
    if not timm.is_model(architecture):
        names = timm.list_models("*efficientnet*")
        near = difflib.get_close_matches(architecture, names, n=3) or ["efficientnet_b3"]
        raise UserError(f"efficientnet.architecture: {architecture!r} is no model of timm; near it: {', '.join(near)}")
    model = timm.create_model(
        architecture, pretrained=False, num_classes=num_classes, drop_rate=drop_rate, drop_path_rate=drop_path_rate
    )
    if not isinstance(model, EfficientNet):
        raise UserError(
            f"efficientnet.architecture: {architecture!r} is a {type(model).__name__}, not an EfficientNet; "
            "use for instance efficientnet_b3"
        )
    return model


def load_backbone(model: EfficientNet, path: Path, architecture: str) -> str:
    """Puts a checkpoint's weights into `model`, all but the classifier, whatever its number of classes.

    Returns the checkpoint's layout, "timm" or "torchvision". A classifier of `model` stays as it is. Raises
    UserError where the file cannot be read or any key is missing, unexpected or of another shape.
    """
    found = _read_checkpoint(path)
    recorded_architecture = _recorded(path).get("architecture")
    if recorded_architecture is not None and _without_tag(recorded_architecture) != _without_tag(architecture):
        raise UserError(
            f"{path} was trained as {recorded_architecture}, but efficientnet.architecture is {architecture}; "
            f"set efficientnet.architecture: {recorded_architecture}"
        )
    found = _without_counters(_strip_prefixes(found))
    found = {name: tensor for name, tensor in found.items() if not name.startswith("classifier.")}
    layout = _layout(found, path)
    names = {name: name for name in found} if layout == "timm" else {name: timm_name(name) for name in found}
    expected = {
        name: tensor
        for name, tensor in _without_counters(model.state_dict()).items()
        if not name.startswith("classifier.")
    }
    weights = {timm_key: found[name] for name, timm_key in names.items() if timm_key is not None}
    if layout == "torchvision" and _without_tag(architecture) not in _TORCHVISION_ARCHITECTURES:
        # tf_efficientnet_b3, say, has the same shapes but pads otherwise: it would load, and be wrong.
        raise UserError(
            f"{path} has torchvision's layout, whose networks are timm's efficientnet_b0 to efficientnet_b7, not "
            f"{architecture}; {_architecture_remedy(weights, _TORCHVISION_ARCHITECTURES)}"
        )
    problems = _mismatches(names, found, expected, layout)
    if problems:
        alike = sum(key in weights and weights[key].shape == tensor.shape for key, tensor in expected.items())
        if alike > 0.9 * max(len(expected), len(found)):  # B0 and B1 share 0.7 of their keys and shapes
            remedy = f"it seems to be {architecture}, incomplete or changed; write or fetch it again"
        else:
            candidates = _COMMON_ARCHITECTURES if layout == "timm" else _TORCHVISION_ARCHITECTURES
            remedy = _architecture_remedy(weights, candidates)
        raise UserError(
            f"{path} (in {layout}'s layout) does not hold the weights of {architecture}:\n  "
            + "\n  ".join(problems)
            + f"\n{remedy}"
        )
    bad = sorted(name for name, key in names.items() if key is not None and not torch.isfinite(found[name]).all())
    if bad:
        raise UserError(f"{path} holds weights that are not finite numbers: {_some(bad)}; use another checkpoint")
    # not strict, because the classifier and the counters stay as they are; all else was compared above
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    return layout


def timm_name(torchvision_name: str) -> str | None:
    """timm's name of one of torchvision's EfficientNet tensors, such as `blocks.1.0.conv_dw.weight`, or None."""
    end = _TORCHVISION_END.fullmatch(torchvision_name)
    if end:
        return f"{_TORCHVISION_ENDS[end[1]]}.{end[2]}"
    block = _TORCHVISION_BLOCK.fullmatch(torchvision_name)
    if not block:
        return None
    stage, index, part, leaf = block.groups()
    part_names = _TORCHVISION_STAGE_1 if stage == "1" else _TORCHVISION_STAGES_2_TO_7
    if part not in part_names:
        return None
    return f"blocks.{int(stage) - 1}.{index}.{part_names[part]}.{leaf}"


def _recorded(path: Path) -> dict[str, str]:
    """What `artkv art-encoder` recorded in its file beside the weights: architecture, image_size and more."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt", device="cpu") as file:
        return file.metadata() or {}


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict inside a file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; efficientnet.checkpoint must name a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a readable safetensors file ({error}); fetch or write it again") from error
    try:
        with torch.serialization.safe_globals(_plain_values()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        needs_code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needs_code:
            raise UserError(
                f"{path} cannot be read without running code from it (it needs {needs_code[1]}), which artkv "
                "never does; where you trust the file, load it once in a Python session of your own and save its "
                "tensors only: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        summary = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable PyTorch checkpoint ({summary}); fetch or write it again") from error
    return _unwrap(loaded, path)


def _plain_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Harmless values that trainings leave beside the weights: command-line arguments and NumPy numbers."""
    scalar = numpy._core.multiarray.scalar  # type: ignore[attr-defined]
    dtypes = [type(numpy.dtype(kind)) for kind in (numpy.float64, numpy.float32, numpy.int64, numpy.bool_)]
    # files written with NumPy 1 call it by its old name
    return [argparse.Namespace, numpy.dtype, *dtypes, scalar, (scalar, "numpy.core.multiarray.scalar")]


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside the wrappers that trainings put around it, nested ones included."""
    trail = ""
    while isinstance(loaded, Mapping):
        inner = next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        trail += f"[{inner!r}]"
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}{trail} holds a {type(loaded).__name__}, not a state dict of named tensors")
    others = sorted(str(name) for name, value in loaded.items() if not isinstance(value, Tensor))
    if others or not loaded:
        raise UserError(
            f"{path}{trail} is not a state dict of named tensors: it is empty or has other values under "
            f"{_some(others)}; the weights are looked for at the top or under {', '.join(_WRAPPERS)}"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what DataParallel, torch.compile and wrapping modules put before every name."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}  # of AveragedModel
    while tensors:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _layout(tensors: Mapping[str, Tensor], path: Path) -> str:
    if any(name.startswith(("conv_stem.", "blocks.")) for name in tensors):
        return "timm"
    if any(name.startswith("features.") for name in tensors):
        return "torchvision"
    raise UserError(
        f"{path} is an EfficientNet in neither timm's layout (conv_stem.weight, blocks.0.0....) nor torchvision's "
        f"(features.0.0.weight, ...): its keys are {_some(sorted(tensors))}; save the state dict of the "
        "network itself"
    )


def _mismatches(
    names: Mapping[str, str | None], found: Mapping[str, Tensor], expected: Mapping[str, Tensor], layout: str
) -> list[str]:
    """One line for each way in which the checkpoint differs; `names` leads from its keys to timm's."""
    problems = []
    pairs = [(name, found[name], expected[key]) for name, key in names.items() if key is not None and key in expected]
    present = set(names.values())
    missing = sorted(name for name in expected if name not in present)
    unexpected = sorted(name for name, key in names.items() if key not in expected)
    if missing:
        suffix = " (timm's names)" if layout == "torchvision" else ""
        problems.append(f"missing{suffix}: {_some(missing)}")
    if unexpected:
        problems.append(f"unexpected: {_some(unexpected)}")
    shapes = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(wanted.shape)}"
        for name, tensor, wanted in pairs
        if tensor.shape != wanted.shape
    ]
    if shapes:
        problems.append(f"other shapes: {_some(shapes, '; ')}")
    integers = sorted(name for name, tensor, _ in pairs if not tensor.is_floating_point())
    if integers:
        problems.append(f"not floating-point numbers: {_some(integers)}")
    return problems


def _architecture_remedy(weights: Mapping[str, Tensor], candidates: Iterable[str]) -> str:
    """What to do about a checkpoint of another network: names the architecture whose shapes it has, if any has."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for architecture in candidates:
        with torch.device("meta"):
            state = create_efficientnet(architecture).state_dict()
        if shapes == {name: tensor.shape for name, tensor in _without_counters(state).items()}:
            return f"it seems to be {architecture}: set efficientnet.architecture: {architecture}"
    return "it is none of the architectures that artkv knows by shape; use the checkpoint of another training"


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _without_tag(architecture: str) -> str:
    """timm's name without the tag of the pretrained weights: efficientnet_b3 for efficientnet_b3.ra2_in1k."""
    return architecture.split(".", maxsplit=1)[0]


def _some(items: list[str], separator: str = ", ") -> str:
    """The first items, and how many more there are."""
    shown = separator.join(items[:6])
    return shown if len(items) <= 6 else f"{shown}{separator}and {len(items) - 6} more"
