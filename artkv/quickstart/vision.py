"""The small vision encoder: a ViT that looks at 16 x 16 pixels, too coarse a look to see brushwork.

It learns colour, subject and time from compositions made for it; the style is no part of any of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Blip2VisionConfig, Blip2VisionModel, BlipImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from artkv.quickstart.language import warmup_then_cosine
from artkv.quickstart.paintings import COARSE_SIDE
from artkv.quickstart.questions import ANSWERS, VISIBLE_TYPES
from artkv.quickstart.underpainting import COLOURS, SUBJECTS, TIMES, Composition, underpainting

# The size at which paintings of one composition look alike, whatever their style.
VISION_SIDE = COARSE_SIDE

STEPS = 400
_BATCH = 64
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 40


def image_processor() -> BlipImageProcessor:
    """What the ViT wants to be given: bicubic, `VISION_SIDE` pixels square, CLIP's mean and deviation."""
    return BlipImageProcessor(
        size={"height": VISION_SIDE, "width": VISION_SIDE},
        image_mean=list(OPENAI_CLIP_MEAN),
        image_std=list(OPENAI_CLIP_STD),
    )


def coarse_look(picture: Image.Image) -> Tensor:
    """An RGB picture as the ViT gets it, (3, `VISION_SIDE`, `VISION_SIDE`)."""
    small = picture.resize((VISION_SIDE, VISION_SIDE), Image.Resampling.BICUBIC)
    values = (np.asarray(small, np.float32) / 255 - OPENAI_CLIP_MEAN) / OPENAI_CLIP_STD
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)


@dataclass(frozen=True)
class Sights:
    """Compositions (N) with the coarse look of each."""

    compositions: list[Composition]
    pixels_I3EE: Tensor


def random_sights(number: int, rng: np.random.Generator) -> Sights:
    """Compositions drawn at random; their underpaintings will do, as styles do not change the coarse look."""
    compositions = [
        Composition(
            colour=str(rng.choice(COLOURS)),
            subject=str(rng.choice(SUBJECTS)),
            time=str(rng.choice(TIMES)),
            seed=int(rng.integers(2**62)),
        )
        for _ in range(number)
    ]
    looks = [
        coarse_look(Image.fromarray(np.round(underpainting(composition) * 255).astype(np.uint8)))
        for composition in compositions
    ]
    return Sights(compositions, torch.stack(looks))


def train_vision_model(sights: Sights, rng: np.random.Generator) -> Blip2VisionModel:
    """Trains a ViT to tell the visible attributes from the mean of its output tokens.

    Random weights come from torch's global generator: seed it first.
    """
    config = Blip2VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=VISION_SIDE,
        patch_size=4,
        initializer_range=0.05,
    )
    model = Blip2VisionModel(config).train()
    sizes = [len(ANSWERS[kind]) for kind in VISIBLE_TYPES]
    heads = nn.Linear(config.hidden_size, sum(sizes))
    truth = torch.from_numpy(_truth(sights.compositions))
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=_LEARNING_RATE, weight_decay=0.05)
    schedule = warmup_then_cosine(optimizer, _WARMUP_STEPS, STEPS)
    for _ in tqdm(range(STEPS), desc="vision encoder", unit="step", disable=None):
        chosen = torch.from_numpy(rng.integers(len(sights.compositions), size=_BATCH))
        hidden_INV = model(sights.pixels_I3EE[chosen]).last_hidden_state
        scores = heads(hidden_INV.mean(dim=1)).split(sizes, dim=1)
        losses = [
            nn.functional.cross_entropy(score, truth[chosen, kind], label_smoothing=0.05)
            for kind, score in enumerate(scores)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _truth(compositions: list[Composition]) -> NDArray[np.int64]:
    """Each composition's attributes as numbers, (N, kinds)."""
    rows = [[ANSWERS[kind].index(getattr(one, kind)) for kind in VISIBLE_TYPES] for one in compositions]
    return np.asarray(rows, np.int64)
