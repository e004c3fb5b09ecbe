"""Networks of timm, whatever their architecture: which options one takes, and which of its tensors classify.

Image encoders differ in what they are told when they are made (a ViT its image size) and in what they call their
classifier. Both are asked of timm itself, of a network without storage, so that nothing here lists architectures.
"""

import contextlib
import difflib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from typing import Any

import torch

from artkv.errors import UserError


@contextlib.contextmanager
def _without_wandb() -> Iterator[None]:
    """timm imports wandb if it is installed, for a log of its own training script: 0.7 s of each start."""
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["wandb"]


with _without_wandb():
    import timm
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import EfficientNet

# Each is made without storage, in half a second.
_RELATIVES = 8
_OPTIONS = ("drop_rate", "drop_path_rate", "img_size")


def create_network(
    architecture: str,
    num_classes: int = 0,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    image_size: int | None = None,
    place: str = "efficientnet",
) -> Any:
    """A network of timm with fresh weights; 0 classes: without a classifier, pictures in and pooled features out.

    image_size: of the square pictures, for the architectures that are made for one size; None: their own. A rate is
    left out where the architecture has no such thing: see `accepted_options`. place: of the settings, for errors.
    Raises UserError where timm has no network of that name, or none for that size.
    """
    wanted = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "img_size": image_size}
    accepted = accepted_options(architecture, place)
    options: dict[str, Any] = {n: value for n, value in wanted.items() if n in accepted and value is not None}
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        size = "" if image_size is None else f" for pictures of {image_size} pixels"
        raise UserError(
            f"{place}.architecture: {architecture!r} cannot be made{size} ({first_line(error)}); give it a size "
            "that it is made for, or another architecture"
        ) from None


def network_shapes(architecture: str, image_size: int, place: str = "efficientnet") -> Any:
    """`create_network` without a classifier on PyTorch's meta device; perhaps shared with others who ask for shapes.

    The random numbers of the process stay as they are.
    """
    if "img_size" not in accepted_options(architecture, place):
        return _without_storage(architecture, 0, place)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return create_network(architecture, image_size=image_size, place=place)


@cache
def accepted_options(architecture: str, place: str = "efficientnet") -> frozenset[str]:
    """Which of drop_rate, drop_path_rate and img_size the architecture takes."""
    taken: set[str] = set()
    for kind in type(_without_storage(architecture, 0, place)).__mro__:
        if kind.__module__.startswith("timm."):
            taken |= inspect.signature(kind).parameters.keys()
    return frozenset(taken.intersection(_OPTIONS))


@cache
def classifier_tensors(architecture: str) -> frozenset[str]:
    """The names of the tensors that an architecture has for classifying alone: features do not depend on them."""
    with_classes, without = (_without_storage(architecture, count) for count in (2, 0))
    named = with_classes.pretrained_cfg.get("classifier") or ()
    parts = tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
    names = set(with_classes.state_dict())
    return frozenset((names - set(without.state_dict())) | {name for name in names if name.startswith(parts)})


def is_efficientnet(architecture: str) -> bool:
    """Whether timm makes an EfficientNet of that name."""
    return isinstance(_without_storage(architecture, 0), EfficientNet)


def own_image_size(architecture: str) -> int:
    """The side of the pictures that timm makes the network for, in pixels."""
    return int(_without_storage(architecture, 0).pretrained_cfg["input_size"][-1])


def relatives(architecture: str) -> list[str]:
    """Names of timm's networks of an architecture's family: those that differ in one word, then those that are near."""
    name = architecture.split(".")[0]
    words = name.split("_")
    family = timm.list_models(f"{words[0]}*")
    alike = [other for other in family if sum(a != b for a, b in zip_longest(words, other.split("_"))) == 1]
    return list(dict.fromkeys([*alike, *difflib.get_close_matches(name, family, n=_RELATIVES, cutoff=0.5)]))


def tensor_shapes(architecture: str) -> dict[str, torch.Size]:
    """The shape of each of a network's tensors, the classifier's left out."""
    return {name: tensor.shape for name, tensor in _without_storage(architecture, 0).state_dict().items()}


def normalisation(architecture: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of the channels of an architecture's pictures, as timm has trained it.

    ImageNet's for all EfficientNets, whatever timm says.
    """
    if is_efficientnet(architecture):
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    settings = _without_storage(architecture, 0).pretrained_cfg
    return tuple(settings.get("mean", IMAGENET_DEFAULT_MEAN)), tuple(settings.get("std", IMAGENET_DEFAULT_STD))


def first_line(error: BaseException) -> str:
    """What a library says in its first line, or the kind of error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _without_storage(architecture: str, num_classes: int, place: str = "efficientnet") -> Any:
    """The network on PyTorch's meta device, made once; the random numbers of the process stay as they are."""
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3) or ["efficientnet_b3"]
        raise UserError(f"{place}.architecture: {architecture!r:.200} is no model of timm; near it: {', '.join(near)}")
    try:
        return _made_without_storage(architecture, num_classes)
    except RuntimeError as error:  # of a tag, after the dot, that timm does not know
        raise UserError(
            f"{place}.architecture: {architecture!r:.200} cannot be made ({first_line(error)}); leave out what "
            "follows the dot, or give another architecture"
        ) from None


@cache
def _made_without_storage(architecture: str, num_classes: int) -> Any:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(architecture, pretrained=False, num_classes=num_classes)
