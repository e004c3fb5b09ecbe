"""Tiny models and data in the true formats, made once a session."""

from pathlib import Path

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from artkv.quickstart.tokenizer import train_tokenizer

torch.set_num_threads(1)

TINY_TEXTS = [
    "Question: Which style is this? Short answer: baroque\n",
    "Question: Who painted this picture? Short answer: Jan van Eyck\n",
    "Question: What is the technique? Short answer: oil on canvas\n",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TINY_TEXTS, vocab_size=320)


def tiny_blip2_config(vocab_size: int, num_qformer_layers: int = 4) -> Blip2Config:
    """A BLIP-2 of true structure and toy width: cross-attention in every second Q-Former layer."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
            initializer_range=0.02,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=48, intermediate_size=64, num_hidden_layers=num_qformer_layers, num_attention_heads=4,
            encoder_hidden_size=32,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=vocab_size, hidden_size=40, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=40, pad_token_id=1, bos_token_id=2, eos_token_id=2,
        ).to_dict(),
        num_query_tokens=6,
        image_token_index=4,
    )  # fmt: skip


def save_tiny_blip2(folder: Path, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype = torch.float32) -> None:
    """Writes a stock transformers BLIP-2 folder with random weights, tokenizer and image processor."""
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(tiny_blip2_config(len(tokenizer))).to(dtype)
    with torch.no_grad():  # random weights large enough that answers differ between pictures
        model.query_tokens.normal_(std=0.5)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_blip2_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("blip2")
    save_tiny_blip2(folder, tiny_tokenizer)
    return folder
