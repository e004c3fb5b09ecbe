"""The random numbers that a rank draws while it trains: seeded by (seed, epoch, rank), saved and put back.

Dropout and stochastic depth draw from PyTorch's generators, each rank for its own pictures; mixup and cutmix draw from
NumPy's, on all ranks alike, for they blend the batch of all ranks in one way.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from artkv.distributed import World


def seed_epoch(seed: int, epoch: int, world: World) -> None:
    """Seeds what draws in this process."""
    words = np.random.SeedSequence([seed, epoch, 2]).generate_state(3)
    own = words if world.is_main else np.random.SeedSequence([seed, epoch, 2, world.rank]).generate_state(1)
    torch.manual_seed(int(own[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Where the generators stand, as tensors of integers."""
    drawn: Any = np.random.get_state()
    _, keys, position, has_normal, normal = drawn
    version, words, _ = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position, has_normal], dtype=torch.int64),
        "numpy_normal": torch.tensor([normal], dtype=torch.float64),
        "python": torch.tensor([version, *words], dtype=torch.int64),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what `random_state` gave; a GPU's draws only where they were a GPU's."""
    torch.set_rng_state(state["torch"])
    *keys, position, has_normal = state["numpy"].tolist()
    np.random.set_state(
        ("MT19937", np.array(keys, dtype=np.uint32), position, has_normal, *state["numpy_normal"].tolist())
    )
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), None))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
