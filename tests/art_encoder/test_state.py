"""A training's state on disk and back: the moments lie in memory as the weights do."""

from pathlib import Path

import torch
from torch import nn

from artkv.art_encoder.state import Learnt, Standing, load_state, save_state

RUN = {"settings": {}, "data": "digest"}


def learnt() -> Learnt:
    """A network as it is on a GPU, channels last, with a step's moments."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    return Learnt(model, nn.Linear(1, 1), optimizer)


def test_moments_are_put_back_in_the_weights_own_memory_format(tmp_path: Path) -> None:
    before, after = learnt(), learnt()
    save_state(tmp_path / "state.safetensors", RUN, Standing(), before)
    load_state(tmp_path / "state.safetensors", RUN, after)
    pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
    for ours, theirs in pairs:
        for name in ("exp_avg", "exp_avg_sq"):
            saved, read = before.optimizer.state[ours][name], after.optimizer.state[theirs][name]
            assert torch.equal(read, saved)
            assert read.stride() == theirs.stride()
