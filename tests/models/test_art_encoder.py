"""The frozen art encoder against torchvision's own network, and every form that its checkpoints come in."""

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from artkv.config import ArtEncoderConfig
from artkv.errors import UserError
from artkv.models.art_encoder import ArtEncoder, load_art_encoder, state_tensors


def torchvision_network(size: str = "b3", num_classes: int = 27) -> nn.Module:
    """torchvision's network with random weights and BatchNorm statistics that matter."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, f"efficientnet_{size}")(num_classes=num_classes)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.01, 2.0)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
    return network.eval()


@torch.no_grad()
def torchvision_features(network: nn.Module, pixels: Tensor) -> Tensor:
    return network.avgpool(network.features(pixels)).flatten(1)


def load(path: Path, architecture: str = "efficientnet_b0") -> ArtEncoder:
    return load_art_encoder(ArtEncoderConfig(architecture=architecture, checkpoint=path).placed("efficientnet"))


def state(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def b0() -> nn.Module:
    return torchvision_network("b0")


@pytest.fixture(scope="module")
def b0_features(b0: nn.Module, pixels: Tensor) -> Tensor:
    return torchvision_features(b0, pixels)


@pytest.fixture(scope="module")
def timm_b0(b0: nn.Module) -> dict[str, Tensor]:
    """The same weights in timm's layout, carried over by position, without the mapping under test."""
    names = timm.create_model("efficientnet_b0", num_classes=27).state_dict()
    return dict(zip(names, b0.state_dict().values(), strict=True))


@pytest.mark.parametrize("num_classes", [27, 28])
def test_b3_equals_torchvision(tmp_path: Path, num_classes: int) -> None:
    network = torchvision_network("b3", num_classes)
    torch.save(network.state_dict(), tmp_path / "wikiart.pth")
    encoder = load(tmp_path / "wikiart.pth", "efficientnet_b3")
    pixels = torch.randn(2, 3, 96, 96)
    features = encoder(pixels)
    assert features.shape == (2, 1536)
    assert features.std() > 0.1
    # Both call the same kernels in the same order: 0 was measured, at 300 pixels too; 1e-5 is for other machines.
    torch.testing.assert_close(features, torchvision_features(network, pixels), atol=1e-5, rtol=1e-5)


def test_b5_takes_over_torchvisions_batchnorm_eps(tmp_path: Path) -> None:
    network = torchvision_network("b5", 3)
    torch.save(network.state_dict(), tmp_path / "b5.pth")
    encoder = load(tmp_path / "b5.pth", "efficientnet_b5")
    pixels = torch.randn(1, 3, 64, 64)
    # with timm's eps of 1e-5 instead of 1e-3 the features differ by up to 0.8
    torch.testing.assert_close(encoder(pixels), torchvision_features(network, pixels), atol=1e-5, rtol=1e-5)


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {}}},
    "model": lambda s: {"model": s, "best_accuracy": np.float64(0.7)},
    "module": lambda s: {"module": s},
    "model_state": lambda s: {"model_state": s, "args": argparse.Namespace(lr=0.1)},
    "nested": lambda s: {"checkpoint": 1, "model": {"state_dict": s}},
    "module. before each key": lambda s: {"state_dict": {f"module.{name}": t for name, t in s.items()}},
    "model. before each key": lambda s: {f"model.{name}": t for name, t in s.items()},
    "_orig_mod. before each key": lambda s: {f"_orig_mod.{name}": t for name, t in s.items()},
    "two prefixes": lambda s: {"model": {f"module._orig_mod.{name}": t for name, t in s.items()}},
    "no counters": lambda s: {name: t for name, t in s.items() if "num_batches" not in name},
    "no classifier": lambda s: {name: t for name, t in s.items() if not name.startswith("classifier")},
    "deeper classifier": lambda s: s | {"classifier.3.weight": torch.zeros(5, 7)},
    "double precision": lambda s: {name: t.double() if t.is_floating_point() else t for name, t in s.items()},
    "averaged first": lambda s: {"state_dict": {n: t * 0 for n, t in s.items()}, "state_dict_ema": s},
}


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_checkpoints_give_the_same_features(
    wrapping: str,
    layout: str,
    b0: nn.Module,
    timm_b0: dict[str, Tensor],
    pixels: Tensor,
    b0_features: Tensor,
    tmp_path: Path,
) -> None:
    tensors = timm_b0 if layout == "timm" else state(b0)
    torch.save(WRAPPINGS[wrapping](tensors), tmp_path / "checkpoint.pth")
    encoder = load(tmp_path / "checkpoint.pth")
    torch.testing.assert_close(encoder(pixels), b0_features, atol=1e-5, rtol=1e-5)
    assert encoder.dtype == torch.float32


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_safetensors(
    layout: str, b0: nn.Module, timm_b0: dict[str, Tensor], pixels: Tensor, b0_features: Tensor, tmp_path: Path
) -> None:
    save_file(timm_b0 if layout == "timm" else state(b0), tmp_path / "checkpoint.safetensors")
    features = load(tmp_path / "checkpoint.safetensors")(pixels)
    torch.testing.assert_close(features, b0_features, atol=1e-5, rtol=1e-5)


def test_it_stays_frozen_whatever_is_called(b0: nn.Module, pixels: Tensor, tmp_path: Path) -> None:
    torch.save(b0.state_dict(), tmp_path / "b0.pth")
    encoder = load(tmp_path / "b0.pth")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    expected = encoder(pixels)

    parent = nn.Sequential(encoder)
    parent.train()
    assert not any(part.training for part in encoder.modules())
    assert torch.equal(parent(pixels), expected)
    for part in list(encoder.modules()):
        part.train()
    features = encoder(pixels)
    assert torch.equal(features, expected)
    assert not features.requires_grad
    copied = copy.deepcopy(encoder)
    copied.backbone.train()
    assert torch.equal(copied(pixels), expected)
    for module in (encoder, copied):
        assert not any(parameter.requires_grad for parameter in module.parameters())
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_bfloat16(b0: nn.Module, pixels: Tensor, b0_features: Tensor, tmp_path: Path) -> None:
    torch.save(b0.state_dict(), tmp_path / "b0.pth")
    features = load(tmp_path / "b0.pth").to(torch.bfloat16)(pixels)
    assert features.dtype == torch.bfloat16
    # bfloat16 has 8 bits: 0.0042 (B0), 0.0044 (B3), 0.0057 (B3 at 300 pixels) were measured on weights like these
    assert (features.float() - b0_features).norm() / b0_features.norm() < 0.02


def test_state_tensors_are_all_that_the_features_depend_on(timm_b0: Mapping[str, Tensor], tmp_path: Path) -> None:
    torch.save(timm_b0, tmp_path / "b0.pth")
    tensors = state_tensors(load(tmp_path / "b0.pth"))
    expected = {n: t for n, t in timm_b0.items() if "num_batches" not in n and not n.startswith("classifier")}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_pixels_of_another_shape_are_refused(timm_b0: Mapping[str, Tensor], tmp_path: Path) -> None:
    torch.save(timm_b0, tmp_path / "b0.pth")
    with pytest.raises(ValueError, match=r"\(I, 3, E, E\), not \(3, 64, 64\)"):
        load(tmp_path / "b0.pth")(torch.zeros(3, 64, 64))


def broken(tensors: Mapping[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """A copy with some tensors replaced, or removed where None; `__` stands for a dot."""
    changed = dict(tensors)
    for name, tensor in changes.items():
        if tensor is None:
            del changed[name.replace("__", ".")]
        else:
            changed[name.replace("__", ".")] = tensor
    return changed


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("timm", {"conv_head__weight": None}, r"missing: conv_head\.weight"),
        ("torchvision", {"features__8__0__weight": None}, r"missing \(timm's names\): conv_head\.weight"),
        ("timm", {"blocks__9__0__bn1__weight": torch.ones(3)}, r"unexpected: blocks\.9\.0\.bn1\.weight"),
        ("torchvision", {"features__9__0__weight": torch.ones(3)}, r"unexpected: features\.9\.0\.weight"),
        ("torchvision", {"extra": torch.ones(3)}, r"unexpected: extra"),
        (
            "torchvision",
            {"features__0__0__weight": torch.ones(40, 3, 3, 3)},
            r"features\.0\.0\.weight is \(40, 3, 3, 3\), expected \(32, 3, 3, 3\)",
        ),
        ("timm", {"bn1__bias": torch.ones(32, dtype=torch.int64)}, r"not floating-point numbers: bn1\.bias"),
        (
            "timm",
            {"bn1__bias": torch.full((32,), float("nan"))},
            r"not finite numbers .*: 32 in bn1\.bias",
        ),
    ],
)
def test_a_key_that_does_not_fit_is_named(
    layout: str,
    changes: dict[str, Tensor | None],
    message: str,
    b0: nn.Module,
    timm_b0: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    path = tmp_path / "wrong.pth"
    torch.save(broken(timm_b0 if layout == "timm" else state(b0), **changes), path)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_another_architecture_is_recognised(
    layout: str, b0: nn.Module, timm_b0: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(timm_b0 if layout == "timm" else state(b0), tmp_path / "b0.pth")
    with pytest.raises(UserError, match=r"set efficientnet\.architecture: efficientnet_b0"):
        load(tmp_path / "b0.pth", "efficientnet_b3")


def test_torchvision_weights_are_refused_by_a_network_that_pads_otherwise(b0: nn.Module, tmp_path: Path) -> None:
    torch.save(b0.state_dict(), tmp_path / "b0.pth")
    with pytest.raises(UserError, match=r"set efficientnet\.architecture: efficientnet_b0"):
        load(tmp_path / "b0.pth", "tf_efficientnet_b0")


def test_the_recorded_architecture_counts(timm_b0: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "recorded.safetensors"
    save_file(timm_b0, path, {"architecture": "tf_efficientnet_b0"})
    with pytest.raises(UserError, match=r"set efficientnet\.architecture: tf_efficientnet_b0"):
        load(path)


def test_settings_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"efficientnet\.checkpoint: null.*artkv art-encoder"):
        load_art_encoder(ArtEncoderConfig().placed("efficientnet"))
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match=r"'eficientnet_b3' is no model of timm; near it: efficientnet_b3"):
        load(tmp_path / "a.pth", "eficientnet_b3")
    with pytest.raises(UserError, match=r"'efficientnet_b3\.none' cannot be made .*; leave out what follows the dot"):
        load(tmp_path / "a.pth", "efficientnet_b3.none")
