"""The embedded world on disk: pictures, questions, styles for the art encoder, and a small BLIP-2.

Each composition is painted once in each style, and all its paintings are in one split. So the styles are
exactly balanced, whatever else is known about a picture says nothing about its style, and who cannot see
the brushwork answers all six paintings of a composition alike and is right about one of them.
"""

import itertools
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import OPTForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from artkv.quickstart.alignment import align_blip2
from artkv.quickstart.claiming import claim
from artkv.quickstart.language import train_language_model, train_world_tokenizer
from artkv.quickstart.paintings import STYLES, paint
from artkv.quickstart.questions import ANSWERS, STYLE_WORDING, QuestionRow, Wording, ask_about, write_questions
from artkv.quickstart.settings import PaintedWorld
from artkv.quickstart.underpainting import COLOURS, SUBJECTS, TIMES, Composition
from artkv.quickstart.vision import image_processor

# How often each pair of colour and subject is composed; each composition is painted in six styles.
COMPOSITIONS_PER_PAIR = {"train": 3, "val": 1, "test": 1}
# Of the 36 pairs validation takes every second one: it runs each epoch and has to be quick.
PAIR_STEP = {"train": 1, "val": 2, "test": 1}
# Every third picture lies directly in the picture folder, the others in its sub-folders, as in ArtQuest.
_ROOMS = ("", "room_1", "room_2")


def make_world(folder: Path, seed: int) -> PaintedWorld:
    """Makes what is missing of the world of `seed` in `folder`.

    A stage's folder appears when the stage is complete, so an interrupted call can be repeated. With one
    torch version and one number of threads the world is a function of `seed`. Raises `UserError` for a
    folder that holds the world of another seed.
    """
    claim(folder, seed)
    make_paintings(folder, seed)
    return make_models(folder, seed)


def make_paintings(folder: Path, seed: int) -> PaintedWorld:
    """The pictures and questions of a claimed world; another process may make its models meanwhile."""
    world = PaintedWorld(folder)
    make_stage(folder / "data", lambda partial: make_data(partial, seed))
    make_stage(world.wikiart, lambda partial: sort_by_style(world, "train", partial))
    make_stage(world.wikiart_val, lambda partial: sort_by_style(world, "val", partial))
    return world


def make_models(folder: Path, seed: int) -> PaintedWorld:
    """The small OPT and BLIP-2 of a claimed world."""
    world = PaintedWorld(folder)
    disable_progress_bar()  # transformers' own, for the writing of a file of a few MB
    make_stage(world.language_model, lambda partial: make_language_model(partial, seed))
    make_stage(world.blip2, lambda partial: make_blip2(world, partial, seed))
    return world


def make_stage(output: Path, make: Callable[[Path], None]) -> None:
    """Lets `make` fill a temporary folder and renames it to `output`; does nothing if `output` is there."""
    if output.exists():
        return
    partial = output.with_name(output.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a call that was interrupted
    partial.mkdir(parents=True)
    try:
        make(partial)
    except OSError as error:
        if error.filename is None:  # as where a disk is full; else nobody is told which one
            error.filename = str(output)
        raise
    partial.rename(output)


def seed_for(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that a change to one stage leaves the others as they are."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


def compose(split: str, seed: int) -> list[Composition]:
    """The compositions of a split, balanced in colour and subject, with each time of day in turn."""
    rng = np.random.default_rng(seed_for(seed, split))
    pairs = list(itertools.product(range(len(COLOURS)), range(len(SUBJECTS))))
    chosen = [(colour, subject) for colour, subject in pairs if (colour + subject) % PAIR_STEP[split] == 0]
    return [
        Composition(
            colour=COLOURS[colour],
            subject=SUBJECTS[subject],
            time=TIMES[(colour + subject // 2 + turn) % len(TIMES)],
            seed=int(rng.integers(2**62)),
        )
        for turn in range(COMPOSITIONS_PER_PAIR[split])
        for colour, subject in chosen
    ]


def make_data(folder: Path, seed: int) -> None:
    """Paints the splits' pictures and writes their CSV files, and `styles.json` with each picture's style."""
    for room in _ROOMS:
        (folder / "images" / room).mkdir(parents=True, exist_ok=True)
    splits = {split: compose(split, seed) for split in COMPOSITIONS_PER_PAIR}
    number_of_paintings = sum(len(compositions) for compositions in splits.values()) * len(STYLES)
    progress = tqdm(total=number_of_paintings, desc="paintings", unit="picture", disable=None)
    number = 0
    styles: dict[str, dict[str, str]] = {}
    for split, compositions in splits.items():
        rng = np.random.default_rng(seed_for(seed, f"{split} questions"))
        works = [(composition, style) for composition in compositions for style in STYLES]
        rows: list[QuestionRow] = []
        styles[split] = {}
        for position in rng.permutation(len(works)):  # so that a picture's name does not tell its style
            composition, style = works[position]
            name = f"painting_{number:05d}.jpg"
            room = _ROOMS[number % len(_ROOMS)]
            paint(composition, style).save(folder / "images" / room / name, quality=92, subsampling=0)
            attributes = {
                "style": style,
                "colour": composition.colour,
                "subject": composition.subject,
                "time": composition.time,
            }
            rows.extend(ask_about(name, attributes, first_id=number * len(ANSWERS), rng=rng))
            styles[split][f"{room}/{name}" if room else name] = style
            number += 1
            progress.update()
        write_questions(folder / f"{split}.csv", rows)
    progress.close()
    (folder / "styles.json").write_text(json.dumps(styles, indent=1) + "\n", encoding="utf-8")


def sort_by_style(world: PaintedWorld, split: str, folder: Path) -> None:
    """Copies a split's pictures into WikiArt's layout: a folder for each style, named like `Stained_Glass`."""
    styles = json.loads((world.folder / "data" / "styles.json").read_text(encoding="utf-8"))
    for image, style in styles[split].items():
        source = world.image_root / image
        target = folder / style.title().replace(" ", "_")
        target.mkdir(exist_ok=True)
        shutil.copyfile(source, target / source.name)


def make_language_model(folder: Path, seed: int) -> None:
    """Trains the small OPT on the world's sentences, and saves it with its tokenizer."""
    tokenizer = train_world_tokenizer()
    train_language_model(tokenizer, seed_for(seed, "language model")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_blip2(world: PaintedWorld, folder: Path, seed: int, wording: Wording = STYLE_WORDING) -> None:
    """Aligns a vision encoder and a Q-Former with the language model, and saves a stock BLIP-2."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(world.language_model, trust_remote_code=False)
    language_model = OPTForCausalLM.from_pretrained(world.language_model, trust_remote_code=False)
    model = align_blip2(language_model, tokenizer, seed_for(seed, "alignment"), wording)
    # EVA's ViT, which LAVIS builds, has no bias on keys: what training made of it, softmax takes away.
    with torch.no_grad():
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.qkv.bias.chunk(3)[1].zero_()
    # As large models are kept: then streamed weights, which are bfloat16 in host memory, are the file's.
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
