"""What timm's networks take, and what of them classifies."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import nn

from artkv.errors import UserError
from artkv.models.timm_networks import (
    accepted_options,
    classifier_tensors,
    create_network,
    network_shapes,
    normalisation,
)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("efficientnet_b0", {"drop_rate", "drop_path_rate"}),
        ("test_vit", {"drop_rate", "drop_path_rate", "img_size"}),
        ("deit_tiny_distilled_patch16_224", {"drop_rate", "drop_path_rate", "img_size"}),
        ("vgg11", {"drop_rate"}),
    ],
)
def test_what_an_architecture_takes(architecture: str, options: set[str]) -> None:
    assert accepted_options(architecture) == options


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("test_efficientnet", {"classifier.weight", "classifier.bias"}),
        ("convnext_atto", {"head.fc.weight", "head.fc.bias"}),
        (
            "deit_tiny_distilled_patch16_224",
            {f"{part}.{leaf}" for part in ("head", "head_dist") for leaf in ("weight", "bias")},
        ),
    ],
)
def test_what_classifies_is_what_timm_leaves_out_without_classes(architecture: str, names: set[str]) -> None:
    assert classifier_tensors(architecture) == names


def test_a_classifier_with_a_norm_of_its_own() -> None:
    assert {"head.bn.weight", "head.linear.weight"} < classifier_tensors("levit_128s")


def test_a_network_is_the_one_that_timm_makes() -> None:
    torch.manual_seed(1)
    expected = create_network("test_vit", 3, image_size=64)
    classifier_tensors.cache_clear()
    torch.manual_seed(1)
    classifier_tensors("test_vit")  # leaves the random numbers alone
    for name, tensor in create_network("test_vit", 3, image_size=64).state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert isinstance(expected, nn.Module)
    assert expected(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert create_network("test_vit", image_size=64)(torch.zeros(1, 3, 64, 64)).shape == (1, expected.num_features)


def test_how_pictures_are_normalised() -> None:
    assert normalisation("tf_efficientnetv2_s") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_networks_that_timm_has_not() -> None:
    with pytest.raises(UserError, match=r"'vit_tinny_patch16_224' is no model of timm; near it: vit_tiny_patch16_224"):
        create_network("vit_tinny_patch16_224")
    with pytest.raises(UserError, match=r"'resnet18\.mine' cannot be made"):
        create_network("resnet18.mine")


@pytest.mark.parametrize(("architecture", "image_size"), [("test_efficientnet", 64), ("test_vit", 96)])
def test_shapes_are_the_networks_for_that_size_and_take_no_random_numbers(architecture: str, image_size: int) -> None:
    torch.manual_seed(1)
    shapes = network_shapes(architecture, image_size)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(1))
    real = create_network(architecture, image_size=image_size)
    assert all(tensor.is_meta for tensor in shapes.state_dict().values())
    assert {name: tensor.shape for name, tensor in shapes.state_dict().items()} == {
        name: tensor.shape for name, tensor in real.state_dict().items()
    }


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")
@pytest.mark.parametrize("module", ["artkv.models.timm_networks", "artkv.art_encoder.timm_parts"])
def test_timm_comes_without_wandb_which_can_be_imported_all_the_same(module: str) -> None:
    program = f"import sys, {module}; assert 'wandb' not in sys.modules; import wandb; wandb.init"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
