"""The alignment stage of the small BLIP-2: a Q-Former learns to tell a frozen OPT what a frozen ViT sees.

As in the real thing this is done before artkv begins. The Q-Former and the projection learn to put before a
question what the language model needs to answer it. Colour, subject and time are asked for, never the style,
which the ViT cannot see.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionModel,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from artkv.errors import RunFailed
from artkv.quickstart.language import (
    NUM_QUERY_TOKENS,
    Conversation,
    Phrasebook,
    answer_loss,
    share_answered_right,
    token_id,
    warmup_then_cosine,
)
from artkv.quickstart.questions import STYLE_WORDING, VISIBLE_TYPES, Wording
from artkv.quickstart.vision import Sights, random_sights, train_vision_model

NUM_SIGHTS = 3000
NUM_HELD_OUT = 216
STEPS = 160
_PICTURES_PER_BATCH = 24
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 40
NEEDED_ACCURACY = 0.97


def align_blip2(
    language_model: OPTForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    wording: Wording = STYLE_WORDING,
) -> Blip2ForConditionalGeneration:
    """Trains a BLIP-2 around the frozen `language_model`; raises `RunFailed` if it does not see well."""
    phrasebook = Phrasebook(tokenizer, wording)
    rng = np.random.default_rng(seed)
    sights = random_sights(NUM_SIGHTS, rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision_model = train_vision_model(sights, rng)
        model = _assemble(vision_model, language_model, tokenizer)
        trainables = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainables, lr=_LEARNING_RATE, weight_decay=0.01)
        schedule = warmup_then_cosine(optimizer, _WARMUP_STEPS, STEPS)
        progress = tqdm(range(STEPS), desc="alignment", unit="step", disable=None)
        for step in progress:
            chosen = rng.integers(NUM_SIGHTS, size=_PICTURES_PER_BATCH)
            visual, conversation = _ask_visible(model, sights, chosen, phrasebook, rng)
            loss = answer_loss(model.language_model, visual, conversation)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainables, 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")
        model.requires_grad_(True).eval()
        held_out = random_sights(NUM_HELD_OUT, rng)
        with torch.no_grad():
            asked = _ask_visible(model, held_out, np.arange(NUM_HELD_OUT), phrasebook, rng)
            accuracy = share_answered_right(model.language_model, *asked)
    if accuracy < NEEDED_ACCURACY:
        raise RunFailed(
            f"the embedded world's BLIP-2 answers {accuracy:.1%} of questions about what can be seen, "
            f"{NEEDED_ACCURACY:.0%} are needed; run quickstart again with another --seed"
        )
    return model


def _assemble(
    vision_model: Blip2VisionModel, language_model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Blip2ForConditionalGeneration:
    """A BLIP-2 with a new Q-Former and projection between two models, which are frozen in it."""
    config = Blip2Config(
        vision_config=vision_model.config.to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            cross_attention_frequency=2,
            encoder_hidden_size=vision_model.config.hidden_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,
        ).to_dict(),
        text_config=language_model.config.to_dict(),
        num_query_tokens=NUM_QUERY_TOKENS,
        image_token_index=token_id(tokenizer, "<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    model.vision_model.load_state_dict(vision_model.state_dict())
    model.language_model.load_state_dict(language_model.state_dict())
    model.vision_model.requires_grad_(False)
    model.language_model.requires_grad_(False)
    with torch.no_grad():
        model.query_tokens.normal_(std=0.5)  # zeros, the stock start, would keep all queries equal
    return model.train()


def _ask_visible(
    model: Blip2ForConditionalGeneration,
    sights: Sights,
    chosen: NDArray[np.int64],
    phrasebook: Phrasebook,
    rng: np.random.Generator,
) -> tuple[Tensor, Conversation]:
    """Visual tokens and a question of each visible type for each of the chosen pictures."""
    visual = model.get_image_features(sights.pixels_I3EE[torch.from_numpy(chosen)]).pooler_output
    asked = [(kind, str(getattr(sights.compositions[index], kind))) for index in chosen for kind in VISIBLE_TYPES]
    return visual.repeat_interleave(len(VISIBLE_TYPES), dim=0), phrasebook.converse(asked, rng)
