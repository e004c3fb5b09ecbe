"""A random BLIP-2 in true proportions, and an ArtQuest-like set of questions, for the benchmarks.

`SIZES["mid"]` is BLIP2-OPT-2.7b with every width a quarter to a fifth and a sixth to a quarter of the layers, so that
parts keep their shares of the parameters; `true` is the model itself, for a card; `deep` has its depth and next to no
width, so that computing is nothing and what the host does is all; `wide` has its OPT's width and one block; `tiny`
tries the scripts. `proportions` tells what came out.
"""

import argparse
import csv
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
)

from artkv.datasets.tokenization import encode_for_training
from artkv.models.timm_networks import create_network
from artkv.quickstart.tokenizer import train_tokenizer

PROMPT = "Question: {question} Short answer:"
QUESTIONS_PER_PAINTING = 6
_PICTURE_SIZE = (320, 260)


@dataclass(frozen=True)
class Size:
    """Widths, depths and counts of a BLIP-2 with its art encoder.

    efficientnet_macs: multiply-adds of the art encoder on one picture, by timm's published figure scaled with the
    picture's area.
    """

    vit_width: int
    vit_mlp: int
    vit_layers: int
    vit_heads: int
    image_size: int
    qformer_width: int
    qformer_layers: int
    qformer_heads: int
    opt_width: int
    opt_layers: int
    opt_heads: int
    vocabulary: int
    num_queries: int
    efficientnet: str
    efficientnet_size: int
    efficientnet_macs: float
    feature_dim: int
    prefix_tokens: int = 8

    @property
    def image_tokens(self) -> int:
        """Tokens of the ViT: a patch of 14 x 14 pixels each, and the class token."""
        return (self.image_size // 14) ** 2 + 1


SIZES = {
    # Cross-attention in every second Q-Former layer, MLPs of four widths except in the ViT, as in the real model.
    "true": Size(
        1408, 6144, 39, 16, 224, 768, 12, 12, 2560, 32, 32, 50304, 32, "efficientnet_b3", 300, 1.87e9, 1536,
    ),
    # B0 at 48 pixels has the share of the ViT's work that B3 at 300 pixels has of the true ViT's, 0.7%.
    "mid": Size(
        352, 1536, 6, 4, 224, 192, 2, 3, 512, 8, 8, 2520, 32, "efficientnet_b0", 48, 0.39e9 * (48 / 224) ** 2, 1280,
    ),
    "deep": Size(
        32, 64, 39, 4, 56, 48, 12, 4, 40, 32, 4, 560, 32, "test_efficientnet", 32, 1e6, 256,
    ),
    "wide": Size(
        32, 64, 2, 4, 56, 48, 2, 4, 2560, 1, 32, 560, 32, "test_efficientnet", 32, 1e6, 256,
    ),
    "tiny": Size(
        32, 64, 2, 4, 56, 48, 2, 4, 40, 2, 4, 560, 6, "test_efficientnet", 32, 1e6, 256, prefix_tokens=2,
    ),
}  # fmt: skip

# ArtQuest's six types of question. Its texts are not to be had here: these are ours, in the manner of such
# template sets, several wordings a type, many of them with the same first words.
_ALIKE = {
    "artist": ("Who is the artist of this painting?", "Who painted this picture?", "Which artist created this work?"),
    "title": ("What is the title of this painting?", "What is the name of this work of art?"),
    "school": ("What is the school of this painting?", "Which school does this painting belong to?"),
    "timeframe": ("What is the timeframe of this painting?", "When was this painting created?"),
    "type": ("What is the type of this painting?", "What type of painting is this?"),
    "technique": ("What is the technique of this painting?", "Which technique was used for this painting?"),
}
# The worst case for shared beginnings: a painting's six questions differ from their first word on.
_DISTINCT = {
    "artist": ("Who painted this picture of the museum?", "Whose work is this painting here?"),
    "title": ("What is the title of this painting?",),
    "school": ("Which school does this painting belong to?", "From which school is this painting?"),
    "timeframe": ("When was this painting created?", "In which timeframe was this painted?"),
    "type": ("Name the type of this painting?", "Tell the genre of this picture?"),
    "technique": ("How was this painting made?", "By which technique was this made?"),
}
TEXTS = {"alike": _ALIKE, "distinct": _DISTINCT}
VARIED = "varied"
_MOST_QUESTIONS = 40
_MEAN_MORE_QUESTIONS = 6.0
_ANSWERS = {
    "artist": ("Vincent van Gogh", "Rembrandt van Rijn", "Jan van Eyck", "Peter Paul Rubens", "Fra Angelico", "Giotto"),
    "title": ("View of Delft", "Self-Portrait with a Cap", "The Adoration of the Magi", "Still Life with Flowers"),
    "school": ("Dutch", "Italian", "Flemish", "French", "German", "Spanish"),
    "timeframe": ("1601-1650", "1451-1500", "1851-1900", "1701-1750"),
    "type": ("landscape", "religious", "portrait", "still-life", "mythological"),
    "technique": ("Oil on canvas", "Oil on panel", "Tempera on wood", "Fresco", "Oil on canvas, 73 x 92 cm"),
}


@dataclass(frozen=True)
class Lengths:
    """Text tokens of a set's questions, BOS to newline; none of the visual ones.

    padded_tokens: mean where all rows of a batch, whole paintings in the order of the set, are as long as its longest.
    own_tokens: mean over questions of those left when a painting's questions share their beginnings, as in a tree of
    token prefixes, and the last newline is left out. answer_tokens: mean number of tokens with a loss.
    """

    mean_tokens: float
    padded_tokens: float
    own_tokens: float
    answer_tokens: float


def make_world(
    folder: Path,
    size_name: str,
    num_paintings: int,
    seed: int = 0,
    has_weights: bool = True,
    picture_size: tuple[int, int] = _PICTURE_SIZE,
) -> None:
    """Writes `blip2/`, `efficientnet.safetensors`, `images/` and a CSV file for each of `TEXTS`, or nothing.

    Beside them `varied.csv`, by `write_varied_questions`. has_weights: False leaves those of BLIP-2 to
    `device_weights`.
    """
    size = SIZES[size_name]
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for painting in range(num_paintings):
        _picture(rng, picture_size).save(temporary / "images" / f"{painting:05d}.jpg", quality=90)
    for name, wordings in TEXTS.items():
        _write_questions(temporary / f"{name}.csv", wordings, num_paintings, seed)
    write_varied_questions(temporary / f"{VARIED}.csv", num_paintings, seed)
    _write_models(temporary, size, seed, has_weights)
    (temporary / "world.json").write_text(json.dumps(_description(size_name, num_paintings, has_weights)))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def is_made(folder: Path, size_name: str, num_paintings: int, has_weights: bool = True) -> bool:
    """Whether the folder holds just that world."""
    path = folder / "world.json"
    return path.is_file() and json.loads(path.read_text()) == _description(size_name, num_paintings, has_weights)


def _description(size_name: str, num_paintings: int, has_weights: bool) -> dict[str, Any]:
    return {"size": asdict(SIZES[size_name]), "paintings": num_paintings, "has_weights": has_weights}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What all scripts that measure on this world are asked."""
    parser.add_argument("--folder", type=Path, help="where the random world is, or is to be made (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--batch", type=int, default=24, help="questions a step and rank (default 24)")
    parser.add_argument("--paintings", type=int, default=1000, help="of the set, six questions each (default 1000)")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of all models")
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try the script")


def open_world_without_weights(folder: Path, size_name: str, num_paintings: int) -> Path:
    """The world in `folder`, made if it is missing, of a BLIP-2 whose weights `device_weights` makes."""
    if not is_made(folder, size_name, num_paintings, has_weights=False):
        make_world(folder, size_name, num_paintings, has_weights=False)
    return folder


def open_world(options: argparse.Namespace, temporary: Path) -> tuple[Path, str]:
    """The world that `add_options` asked for, made if it is missing: its folder and the name of its size."""
    size_name = "mid"
    if options.tiny:
        size_name, options.paintings, options.batch = "tiny", 60, 12
    folder = options.folder or temporary / "world"
    if not is_made(folder, size_name, options.paintings):
        make_world(folder, size_name, options.paintings)
    return folder, size_name


def write_report(report: Any, path: Path | None) -> None:
    """A dataclass as JSON, if it was asked for."""
    if path is not None:
        path.write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")


def read_questions(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that `make_world` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lengths_of(rows: Sequence[dict[str, str]], tokenizer: object, batch_size: int) -> Lengths:
    """Counts tokens as training does; rows of a painting follow each other."""
    encoded = [encode_for_training(tokenizer, PROMPT, row["question"], row["answer"]) for row in rows]
    own = 0
    for first in range(0, len(rows), QUESTIONS_PER_PAINTING):
        # The newline that ends an answer predicts nothing, and a tree needs no node for it.
        sequences = [ids[:-1] for ids, _ in encoded[first : first + QUESTIONS_PER_PAINTING]]
        own += len({tuple(ids[: end + 1]) for ids in sequences for end in range(len(ids))})
    answers = sum(label != -100 for _, labels in encoded for label in labels)
    total = sum(len(ids) for ids, _ in encoded)
    longest = [
        max(len(ids) for ids, _ in encoded[first : first + batch_size]) for first in range(0, len(rows), batch_size)
    ]
    return Lengths(total / len(rows), sum(longest) / len(longest), own / len(rows), answers / len(rows))


def run_settings(
    world_folder: Path,
    size_name: str,
    text: str,
    output_dir: Path,
    batch_size: int,
    dtype: str,
    options: dict[str, bool],
) -> dict[str, Any]:
    """The YAML tree of a run; options: `cache`, `packing`, `answer_logits`, each on or off."""
    size = SIZES[size_name]
    tree: dict[str, Any] = {
        "model": {"blip2": str(world_folder / "blip2"), "dtype": dtype},
        "efficientnet": {
            "architecture": size.efficientnet,
            "checkpoint": world_folder / "efficientnet.safetensors",
            "image_size": size.efficientnet_size,
        },
        "kv_modulation": {"num_prefix_tokens": size.prefix_tokens},
        "dataset": {"train": world_folder / f"{text}.csv", "image_root": world_folder / "images", "prompt": PROMPT},
        "training": {
            "batch_size": batch_size, "num_epochs": 1000, "warmup_steps": 10, "pack_questions": options["packing"],
            "activation_checkpointing": False,
        },
        "evaluation": {"each_epoch": False},
        "frozen": {"opt": "resident", "vit": "resident", "feature_cache": None},
        "run": {"output_dir": output_dir, "checkpoint_every": 10**9},
    }  # fmt: skip
    if options["cache"]:
        tree["frozen"]["feature_cache"] = world_folder / f"features_{dtype}"
    return tree


def blip2_config(size: Size) -> Blip2Config:
    """Without dropout: artkv trains without, and a peer with it would have more to do and another loss."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=size.vit_width, intermediate_size=size.vit_mlp, num_hidden_layers=size.vit_layers,
            num_attention_heads=size.vit_heads, image_size=size.image_size, patch_size=14, initializer_range=0.02,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=size.qformer_width, intermediate_size=4 * size.qformer_width,
            num_hidden_layers=size.qformer_layers, num_attention_heads=size.qformer_heads,
            encoder_hidden_size=size.vit_width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=size.vocabulary, hidden_size=size.opt_width, ffn_dim=4 * size.opt_width,
            num_hidden_layers=size.opt_layers, num_attention_heads=size.opt_heads, max_position_embeddings=1024,
            word_embed_proj_dim=size.opt_width, pad_token_id=1, bos_token_id=2, eos_token_id=2, dropout=0.0,
            attention_dropout=0.0, activation_dropout=0.0,
        ).to_dict(),
        num_query_tokens=size.num_queries,
        image_token_index=4,
    )  # fmt: skip


def proportions(size: Size) -> dict[str, float]:
    """Parameters of each part, counted on the meta device, and their shares of one another."""
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(blip2_config(size))
    vit = sum(p.numel() for p in model.vision_model.parameters())
    qformer = sum(p.numel() for p in model.qformer.parameters())
    blocks = sum(p.numel() for p in model.language_model.model.decoder.layers.parameters())
    vocabulary = model.language_model.get_input_embeddings().weight.numel()
    return {
        "vit": vit, "qformer": qformer, "opt_blocks": blocks, "vocabulary": vocabulary,
        "opt_to_vit": (blocks + vocabulary) / vit, "vocabulary_of_opt": vocabulary / (blocks + vocabulary),
        "qformer_of_opt": qformer / (blocks + vocabulary),
    }  # fmt: skip


def _picture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Coarse random colours, smoothed: what a JPEG decoder gets to do with a painting, and not with noise."""
    coarse = rng.integers(0, 256, (13, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _write_questions(path: Path, wordings: dict[str, tuple[str, ...]], num_paintings: int, seed: int) -> None:
    chooser = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer", "question_type"])
        for painting in range(num_paintings):
            for kind, texts in wordings.items():
                answer = chooser.choice(_ANSWERS[kind])
                writer.writerow([f"{painting:05d}.jpg", chooser.choice(texts), answer, kind])


def write_varied_questions(path: Path, num_paintings: int, seed: int) -> None:
    """ArtQuest-like in the way that counts for shapes: 1 to 40 questions a painting, texts of all lengths.

    Assumed, since ArtQuest itself is not to be had here: questions a painting are 1 + an exponential's whole part of
    mean 6, cut at 40; half of the questions are one of `TEXTS["alike"]`, half go on after it with 1 to 20 words of
    such questions; answers are 1 to 8 words of such answers. All from `seed`.
    """
    chooser = random.Random(seed)
    wordings = [text for texts in _ALIKE.values() for text in texts]
    words = sorted({word for text in wordings for word in text.rstrip("?").split()})
    answer_words = sorted({word for answers in _ANSWERS.values() for answer in answers for word in answer.split()})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer", "question_type"])
        for painting in range(num_paintings):
            for _ in range(min(_MOST_QUESTIONS, 1 + int(chooser.expovariate(1 / _MEAN_MORE_QUESTIONS)))):
                question = chooser.choice(wordings)
                if chooser.random() < 0.5:
                    more = chooser.choices(words, k=chooser.randint(1, 20))
                    question = f"{question.rstrip('?')} {' '.join(more)}?"
                answer = " ".join(chooser.choices(answer_words, k=chooser.randint(1, 8)))
                writer.writerow([f"{painting:05d}.jpg", question, answer, "varied"])


def _all_texts() -> Iterator[str]:
    for wordings in TEXTS.values():
        for kind, texts in wordings.items():
            for text in texts:
                for answer in _ANSWERS[kind]:
                    yield PROMPT.replace("{question}", text) + f" {answer}\n"


def _write_models(folder: Path, size: Size, seed: int, has_weights: bool) -> None:
    torch.manual_seed(seed)
    if has_weights:
        model = Blip2ForConditionalGeneration(blip2_config(size))
        with torch.no_grad():
            model.query_tokens.normal_(std=0.5)
        # Rounded once, so that fp32 and bf16 start from the same weights.
        model.to(torch.bfloat16).save_pretrained(folder / "blip2")
    else:
        blip2_config(size).save_pretrained(folder / "blip2")
    # Fewer merges than the texts have words: names come in pieces, as they do with OPT's vocabulary.
    train_tokenizer(_all_texts(), vocab_size=460).save_pretrained(folder / "blip2")
    side = {"height": size.image_size, "width": size.image_size}
    BlipImageProcessor(size=side).save_pretrained(folder / "blip2")
    encoder = create_network(size.efficientnet, num_classes=27)
    save_file(encoder.state_dict(), folder / "efficientnet.safetensors")
