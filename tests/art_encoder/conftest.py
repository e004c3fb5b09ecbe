"""Pictures of two styles, and settings with which a training takes seconds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FAST = {
    "architecture": "efficientnet_lite0",
    "image_size": 32,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
    "drop_rate": 0.1,
    "drop_path_rate": 0.1,
}


def write_picture(path: Path, style: str, number: int) -> None:
    """Horizontal stripes of random warm colours, or vertical ones of cold colours."""
    rng = np.random.default_rng([number, len(style)])
    pixels = np.repeat(rng.integers(0, 256, (10, 1, 3), dtype=np.uint8), 4, axis=0).repeat(40, axis=1)
    pixels[:, :, 2 if style == "rows" else 0] //= 3
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if style == "rows" else pixels.transpose(1, 0, 2)).save(path)


def write_styles(root: Path, count: int, styles: tuple[str, ...] = ("columns", "rows")) -> Path:
    for style in styles:
        for number in range(count):
            write_picture(root / style / f"{number}.png", style, number)
    return root


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_styles(tmp_path_factory.mktemp("styles"), 16)
