"""Reads EfficientNets as trainings leave them: in timm's or torchvision's layout, and in many wrappings."""

import argparse
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from artkv.errors import UserError
from artkv.models.files.foreign_files import check_regular
from artkv.models.files.pickled_files import check_sums, plain_tensors, read_pickle
from artkv.models.files.weight_files import SafetensorsSource, not_finite
from artkv.reading import printable

# Averaged weights first, as timm's own loader prefers them: they are what a training's scores were measured on.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model_state", "model", "module")
_MOST_WRAPPERS = 8
_PREFIXES = ("module.", "model.", "_orig_mod.")

# How tensors of other files than an art encoder's begin, with and without what DataParallel puts before them.
_OTHERS = {
    "an adapter of artkv": ("kv_prefix_generator.", "kv_modulation."),
    "a training of artkv art-encoder on its way": ("averaged.", "optimizer."),
    "BLIP-2's weights": (
        "Qformer.", "qformer.", "query_tokens", "language_model.", "language_projection.", "opt_model.", "opt_proj.",
        "t5_model.", "ln_vision.",
    ),
    "OPT's weights": ("decoder.embed_tokens.", "model.decoder.embed_tokens."),
}  # fmt: skip

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


@dataclass(frozen=True)
class EfficientNetFile:
    """The weights in a file, without a classifier and BatchNorm's counters.

    tensors: by the file's own names. recorded: what `artkv art-encoder` wrote beside them into its safetensors:
    architecture, image_size and more.
    """

    path: Path
    layout: Literal["timm", "torchvision"]
    tensors: dict[str, Tensor]
    recorded: dict[str, str]

    @cached_property
    def names(self) -> dict[str, str | None]:
        """timm's name of each tensor by its own; None where there is none."""
        return {name: name if self.layout == "timm" else timm_name(name) for name in self.tensors}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The tensors by timm's names."""
        return {key: self.tensors[name] for name, key in self.names.items() if key is not None}

    def mismatches(self, expected: Mapping[str, Tensor]) -> list[str]:
        """One line for each way in which the file differs from `expected`, tensors by timm's names."""
        problems = []
        missing = sorted(expected.keys() - self.weights.keys())
        unexpected = sorted(name for name, key in self.names.items() if key not in expected)
        if missing:
            suffix = " (timm's names)" if self.layout == "torchvision" else ""
            problems.append(f"missing{suffix}: {_some(missing)}")
        if unexpected:
            problems.append(f"unexpected: {_some(unexpected)}")
        pairs = [
            (name, self.tensors[name], expected[key])
            for name, key in self.names.items()
            if key is not None and key in expected
        ]
        shapes = [
            f"{name} is {tuple(tensor.shape)}, expected {tuple(wanted.shape)}"
            for name, tensor, wanted in pairs
            if tensor.shape != wanted.shape
        ]
        if shapes:
            problems.append(f"other shapes: {_some(shapes, '; ')}")
        integers = sorted(
            name for name, tensor, wanted in pairs if wanted.is_floating_point() and not tensor.is_floating_point()
        )
        if integers:
            problems.append(f"not floating-point numbers: {_some(integers)}")
        return problems

    def check_finite(self) -> None:
        """Raises UserError where a weight is infinite or no number, or makes all that comes after it such."""
        if bad := not_finite(self.tensors.items()):
            raise UserError(f"{printable(self.path)} holds {bad}; use another checkpoint")
        negative = [
            name for name, one in self.tensors.items() if name.endswith("running_var") and bool((one < 0).any())
        ]
        if negative:
            raise UserError(
                f"{printable(self.path)} holds negative variances: {_some(negative)}; use another checkpoint"
            )


def read_efficientnet_file(
    path: Path, classifier: Collection[str] | None = None, place: str = "efficientnet"
) -> EfficientNetFile:
    """Reads a checkpoint, whatever its number of classes.

    classifier: the names of the tensors that classify, of another network than an EfficientNet, which has timm's layout
    alone. place: of the settings, for errors, as `setting_of` takes it.

    Raises UserError where the file cannot be read, or holds an EfficientNet in neither layout.
    """
    whole = _read_checkpoint(path, place)
    named = f"{setting_of(place, 'checkpoint')} = {printable(path)}"
    _check_is_encoder(whole, named)
    found = without_counters(_strip_prefixes(whole))
    if classifier is not None:
        tensors = {name: tensor for name, tensor in found.items() if name not in classifier}
        return EfficientNetFile(path, "timm", tensors, recorded_settings(path))
    tensors = {name: tensor for name, tensor in found.items() if not name.startswith("classifier.")}
    return EfficientNetFile(path, _layout(tensors, named), tensors, recorded_settings(path))


def setting_of(place: str, key: str) -> str:
    """What names a checkpoint or its architecture, for errors: a setting, or, where no place is named, an option."""
    return f"{place}.{key}" if place else {"checkpoint": "--initial-checkpoint"}.get(key, f"--{key}")


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


def without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without BatchNorm's `num_batches_tracked`, which counts training steps, and which not every checkpoint has."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def recorded_settings(path: Path) -> dict[str, str]:
    """What `artkv art-encoder` recorded in its file beside the weights: architecture, image_size and more.

    Nothing where it is no such file, which `read_efficientnet_file` tells.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _read_checkpoint(path: Path, place: str) -> dict[str, Tensor]:
    """The state dict inside a file."""
    shown, setting = printable(path), setting_of(place, "checkpoint")
    if not os.path.lexists(path) or path.is_dir():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{shown} {what}; {setting} must name a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        check_regular(path, f"{setting} = {shown}", "fetch it again")
        source = SafetensorsSource([path])
        return {name: source.tensor(name) for name in source.names()}
    check_regular(path, f"{setting} = {shown}", "give an existing one")
    tensors = _unwrap(read_pickle(path, setting, plain_values=_plain_values(), is_lavis=False), path)
    check_sums(path)
    return tensors


def _plain_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Harmless values that trainings leave beside the weights: command-line arguments and NumPy numbers."""
    scalar = numpy._core.multiarray.scalar  # type: ignore[attr-defined]
    dtypes = [type(numpy.dtype(kind)) for kind in (numpy.float64, numpy.float32, numpy.int64, numpy.bool_)]
    # files written with NumPy 1 call it by its old name
    return [argparse.Namespace, numpy.dtype, *dtypes, scalar, (scalar, "numpy.core.multiarray.scalar")]


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside the wrappers that trainings put around it, nested ones included."""
    trail = ""
    for depth in range(_MOST_WRAPPERS + 1):
        if not isinstance(loaded, Mapping):
            break
        if depth == _MOST_WRAPPERS:  # or without an end, where it holds itself
            raise UserError(f"{printable(path)}: wraps its state dict more than {_MOST_WRAPPERS} times; save it bare")
        inner = next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        trail += f"[{inner!r}]"
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping):
        raise UserError(f"{printable(path)}{trail} holds a {type(loaded).__name__}, not a state dict of named tensors")
    others = sorted(str(name) for name, value in loaded.items() if not isinstance(value, Tensor))
    if others or not loaded:
        what = f"it has other values under {_some(others)}" if others else "it is empty"
        raise UserError(
            f"{printable(path)}{trail} is not a state dict of named tensors: {what}; the weights are looked for at the "
            f"top or under {', '.join(_WRAPPERS)}: save them there, with torch.save(model.state_dict(), ...)"
        )
    return plain_tensors(loaded, path)


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what DataParallel, torch.compile and wrapping modules put before every name."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}  # of AveragedModel
    while tensors:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_is_encoder(tensors: Collection[str], place: str) -> None:
    """Raises UserError where a file holds nothing, or by its tensors' names another part of a model."""
    if not tensors:
        raise UserError(f"{place}: holds no tensors; give the art encoder's own checkpoint")
    for what, beginnings in _OTHERS.items():
        if any(name.startswith(beginnings) for name in tensors):
            raise UserError(f"{place}: holds {what}, and no art encoder; give the art encoder's own checkpoint")


def _layout(tensors: Mapping[str, Tensor], place: str) -> Literal["timm", "torchvision"]:
    if any(name.startswith(("conv_stem.", "blocks.")) for name in tensors):
        return "timm"
    if any(name.startswith("features.") for name in tensors):
        return "torchvision"
    keys = f"its keys are {_some(sorted(tensors))}" if tensors else "it has a classifier alone"
    raise UserError(
        f"{place}: holds no EfficientNet, in neither timm's layout (conv_stem.weight, blocks.0.0....) nor "
        f"torchvision's (features.0.0.weight, ...): {keys}; give the art encoder's checkpoint, which holds the state "
        "dict of the network itself"
    )


def _some(items: list[str], separator: str = ", ") -> str:
    """The first items, and how many more there are."""
    shown = separator.join(printable(item[:200]) for item in items[:6])
    return shown if len(items) <= 6 else f"{shown}{separator}and {len(items) - 6} more"
