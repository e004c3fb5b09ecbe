"""The world that tells encoders apart, on disk: pictures, questions, the encoders' lessons, and a small BLIP-2."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from artkv.quickstart.claiming import claim
from artkv.quickstart.encoder_world.pictures import ENCODERS, Work, only, paint_work, works_of
from artkv.quickstart.encoder_world.questions import ENCODER_WORDING, HARMONY, LEFT, LESSON, RIGHT, SCHOOL
from artkv.quickstart.language import train_language_model, train_world_tokenizer
from artkv.quickstart.questions import QuestionRow, write_questions
from artkv.quickstart.settings import PaintedWorld
from artkv.quickstart.world import compose, make_blip2, make_stage, seed_for

# Of each split the first so many compositions are painted: each is 15 paintings, and training has 2 of each pair.
NUM_COMPOSITIONS = {"train": 72, "val": 9, "test": 36}


class EncoderWorld(PaintedWorld):
    """Where the parts of this world are.

    Beside those of `PaintedWorld`, `lessons(encoder, split)` has pictures in a folder for each class, as that encoder
    sees them.
    """

    def lessons(self, encoder: str, split: str) -> Path:
        """Of one encoder, train or val."""
        return self.folder / "data" / "lessons" / encoder / split


def make_encoder_world(folder: Path, seed: int) -> EncoderWorld:
    """Makes what is missing of the world of `seed` in `folder`; raises `UserError` if it holds another one."""
    world = EncoderWorld(folder)
    disable_progress_bar()
    claim(folder, seed, "encoders")
    make_stage(folder / "data", lambda partial: make_data(partial, seed, NUM_COMPOSITIONS))
    make_stage(world.language_model, lambda partial: _make_language_model(partial, seed))
    make_stage(world.blip2, lambda partial: make_blip2(world, partial, seed, ENCODER_WORDING))
    return world


def make_data(folder: Path, seed: int, num_compositions: dict[str, int]) -> None:
    """Paints the splits' pictures, and writes their CSV files and the encoders' lessons."""
    world = EncoderWorld(folder.parent)
    lessons = folder / world.lessons("", "").relative_to(world.folder / "data")
    (folder / "images").mkdir()
    number = 0
    for split, count in num_compositions.items():
        rng = np.random.default_rng(seed_for(seed, f"{split} encoders"))
        works = list(works_of(compose(split, seed)[:count]))
        rows: list[QuestionRow] = []
        for position in tqdm(rng.permutation(len(works)), desc=f"{split} paintings", unit="picture", disable=None):
            work, name = works[position], f"painting_{number:05d}.png"  # JPEG would mix the channels
            picture = paint_work(work)
            picture.save(folder / "images" / name)
            rows.extend(_ask(work, name, len(rows), split, rng))
            if not work.is_diptych and split != "test":
                for encoder, channels in ENCODERS.items():
                    label = work.left if encoder == "brushwork" else work.harmony
                    target = lessons / encoder / split / label.title().replace(" ", "_")
                    target.mkdir(parents=True, exist_ok=True)
                    only(picture, channels).save(target / name)
            number += 1
        write_questions(folder / f"{split}.csv", rows)


def _ask(work: Work, name: str, first_id: int, split: str, rng: np.random.Generator) -> Iterator[QuestionRow]:
    """The halves of a diptych, or the school and harmony of another painting; its colour."""
    halves, whole = {LEFT: work.left, RIGHT: work.right}, {SCHOOL: work.school, HARMONY: work.harmony}
    answers = (halves if work.is_diptych else whole) | {"colour": work.composition.colour}
    for number, (kind, answer) in enumerate(answers.items()):
        phrasing = str(rng.choice(ENCODER_WORDING.phrasings[kind]))
        yield QuestionRow(name, phrasing, answer, f"{split}{first_id + number:06d}", kind)


def _make_language_model(folder: Path, seed: int) -> None:
    tokenizer: PreTrainedTokenizerFast = train_world_tokenizer(ENCODER_WORDING)
    train_language_model(tokenizer, seed_for(seed, "language model"), LESSON).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
