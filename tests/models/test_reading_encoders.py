"""Art encoders of several families against timm's own models called by hand, pooled by NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from artkv.config import ArtEncoderConfig
from artkv.errors import UserError
from artkv.models.art_encoder import art_source, load_art_encoder, named_digests
from artkv.models.timm_networks import accepted_options

# Pooled, a map and tokens; NCHW, NHWC and tokens with a class token, with registers, with none.
FAMILIES = {
    "test_efficientnet": 64,
    "test_convnext": 96,
    "resnet10t": 64,
    "mobilenetv3_small_050": 64,  # a layer stands between its pooling and its classifier
    "swin_tiny_patch4_window7_224": 128,
    "test_vit": 64,
    "vit_tiny_patch16_224": 64,
    "vit_small_patch14_reg4_dinov2": 56,
    "vit_base_patch32_clip_224": 96,
    "eva02_tiny_patch14_224": 56,
}
NUM_PREFIX = {"test_vit": 1, "vit_tiny_patch16_224": 1, "vit_small_patch14_reg4_dinov2": 5,
              "vit_base_patch32_clip_224": 1, "eva02_tiny_patch14_224": 1}  # fmt: skip


def network(architecture: str, size: int, num_classes: int = 3) -> Any:
    torch.manual_seed(0)
    sized = {"img_size": size} if "img_size" in accepted_options(architecture) else {}
    return timm.create_model(architecture, num_classes=num_classes, **sized).eval()


def saved(model: Any, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def averaged(grid: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """(I, F, h, w) as (I, k * k, F): each cell the mean of the places from floor to ceiling of its part."""
    side = grid.shape[2]
    edges = [(number * side // k, -(-(number + 1) * side // k)) for number in range(k)]
    cells = [
        grid[:, :, top:bottom, left:right].astype(np.float64).mean((2, 3))
        for top, bottom in edges
        for left, right in edges
    ]
    return np.stack(cells, axis=1)


@pytest.mark.parametrize("architecture", FAMILIES)
@torch.no_grad()
def test_what_is_read_is_what_timms_network_gives(architecture: str, tmp_path: Path) -> None:
    size = FAMILIES[architecture]
    model = network(architecture, size)
    path = saved(model, tmp_path / "network.safetensors")
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))

    def read(**how: Any) -> torch.Tensor:
        config = ArtEncoderConfig(architecture=architecture, checkpoint=path, image_size=size, **how)
        features: torch.Tensor = load_art_encoder(config)(pixels)
        source = art_source(config)
        num_tokens = None if features.dim() == 2 else features.shape[1]
        assert (source.feature_dim, source.num_tokens) == (features.shape[-1], num_tokens)
        return features

    whole = model.forward_features(pixels)
    bare = network(architecture, size, num_classes=0)
    bare.load_state_dict({n: t for n, t in model.state_dict().items() if n in bare.state_dict()})
    assert torch.equal(read(), bare(pixels))
    if architecture in NUM_PREFIX:
        patches = whole[:, NUM_PREFIX[architecture] :]
        side = round(patches.shape[1] ** 0.5)
        grid = patches.numpy().transpose(0, 2, 1).reshape(2, -1, side, side)
        count = 3
        num = patches.shape[1]
        runs = [patches[:, n * num // count : -(-(n + 1) * num // count)].double().mean(1) for n in range(count)]
        # fp32 means of some values: the worst seen is 2e-7.
        torch.testing.assert_close(read(read="tokens", size=count).double(), torch.stack(runs, 1), rtol=0, atol=1e-5)
    else:
        grid = (whole.permute(0, 3, 1, 2) if architecture.startswith("swin") else whole).numpy()
        with pytest.raises(UserError, match=r"read = tokens: .* gives a feature map and no tokens; give map"):
            read(read="tokens", size=1)
    for k in sorted({1, grid.shape[2] - 1, grid.shape[2]} - {0}):
        expected = torch.from_numpy(averaged(grid, k))
        torch.testing.assert_close(read(read="map", size=k).double(), expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=rf"size = {grid.shape[2] + 1}: .* has {grid.shape[2]} places a side"):
        read(read="map", size=grid.shape[2] + 1)


@pytest.mark.parametrize("architecture", ["test_vit", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_a_checkpoint_of_the_networks_own_size_is_brought_to_another(architecture: str, tmp_path: Path) -> None:
    own = timm.create_model(architecture, num_classes=5).eval()
    path = saved(own, tmp_path / "own.safetensors")
    size = 128
    own.set_input_size(img_size=size)
    pixels = torch.randn(1, 3, size, size)
    config = ArtEncoderConfig(architecture=architecture, checkpoint=path, image_size=size)
    expected = own.forward_head(own.forward_features(pixels), pre_logits=True)
    assert torch.equal(load_art_encoder(config)(pixels), expected)


def test_networks_with_the_same_tensors_have_hashes_of_their_own() -> None:
    weights = {"a": "digest"}
    hashes = [
        named_digests(ArtEncoderConfig(architecture=architecture, name="one", **how), True, weights)
        for architecture, how in (
            ("test_efficientnet", {}),
            ("vit_base_patch32_clip_224", {}),
            ("vit_base_patch32_clip_quickgelu_224", {}),
            ("test_efficientnet", {"read": "map", "size": 2}),
            ("test_efficientnet", {"read": "map", "size": 3}),
        )
    ]
    assert hashes[0] == {"efficientnet.a": "digest"}  # as before there was a list
    assert len({tuple(sorted(one.items())) for one in hashes}) == 5


def test_a_checkpoint_of_a_relative_is_recognised(tmp_path: Path) -> None:
    path = saved(network("vit_tiny_patch16_224", 64), tmp_path / "tiny.safetensors")
    config = ArtEncoderConfig(architecture="vit_small_patch16_224", checkpoint=path, image_size=224)
    with pytest.raises(UserError, match="does not hold the weights of vit_small_patch16_224"):
        load_art_encoder(config)
    path = saved(network("vit_tiny_patch16_224", 224), tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match=r"it seems to be vit_tiny_patch16_224: set x.architecture: vit_tiny_patch16_"):
        load_art_encoder(config.placed("x"))
