"""BatchNorm's statistics are of the same batches for any number of ranks, none larger than a rank has room for."""

from pathlib import Path

import torch

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.data import read_style_data
from artkv.art_encoder.parts import assemble
from artkv.distributed import World
from tests.art_encoder.conftest import FAST, write_styles


def test_statistics_are_of_small_batches_that_ranks_share(tmp_path: Path) -> None:
    root = write_styles(tmp_path, 80)
    settings = ArtEncoderSettings(
        **FAST | {"architecture": "test_efficientnet", "batch_size": 256}, data=root, output_dir=tmp_path / "out"
    )
    data = read_style_data(root, None, None, 0.1, settings.seed)

    def batches_of(rank: int, size: int) -> list[torch.Tensor]:
        world = World(rank, rank, size, torch.device("cpu"))
        return [pixels for pixels, _ in assemble(settings, data, world).statistics_loader]

    alone = batches_of(0, 1)
    assert [len(batch) for batch in alone] == [64, 64, 64]  # of 144 pictures, and no batch is left half full
    for number, batch in enumerate(alone):
        assert torch.equal(batch, batches_of(number % 2, 2)[number // 2])
