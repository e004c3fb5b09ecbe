"""The pictures' view, the mixed targets and the weights that a training starts from."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from artkv.art_encoder.timm_parts import create_classifier, evaluation_transform, target_mixer
from artkv.datasets.pictures import View

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_view_validated_on_is_the_view_served() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (57, 91, 3), dtype=np.uint8))
    served = View(32, *IMAGENET, is_whole=False).of(picture)
    # both resize 8-bit pixels; what follows is one subtraction and one division in float32
    torch.testing.assert_close(evaluation_transform("efficientnet_b3", 32)(picture), served, atol=1e-6, rtol=0)


def test_targets_are_smoothed_and_mixed() -> None:
    pixels, styles = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 4).clone(), torch.tensor([0, 2])
    same, smooth = target_mixer(4, 0.2, 0, 0, 1.0)(pixels, styles)
    assert torch.equal(same, pixels)
    torch.testing.assert_close(smooth, torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]]))
    np.random.seed(0)
    mixed, targets = target_mixer(4, 0.0, 1.0, 0, 1.0)(pixels.clone(), styles)
    share = mixed[0, 0, 0, 0].item()  # of picture 1 in picture 0
    assert 0 < share < 1
    torch.testing.assert_close(targets, torch.tensor([[1 - share, 0, share, 0], [share, 0, 1 - share, 0]]))


def test_initial_weights_keep_the_backbone_and_replace_the_classifier(tmp_path: Path) -> None:
    donor = create_classifier("efficientnet_lite0", 1000, 0.0, 0.0)
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "imagenet.pth")
    model = create_classifier("efficientnet_lite0", 3, 0.0, 0.0, None, tmp_path / "imagenet.pth")
    assert torch.equal(model.conv_stem.weight, donor.conv_stem.weight)
    assert model.classifier.weight.shape == (3, 1280)
