"""What is asked about the paintings, and how the language model is taught to answer it."""

import numpy as np
import torch
from torch import Tensor
from transformers import OPTForCausalLM

from artkv.quickstart.encoder_world.pictures import HARMONIES, SCHOOLS, school_of
from artkv.quickstart.language import NUM_QUERY_TOKENS, Conversation, Lesson, Phrasebook
from artkv.quickstart.paintings import STYLES
from artkv.quickstart.questions import ANSWERS, PHRASINGS, VISIBLE_TYPES, Wording

LEFT, RIGHT, SCHOOL, HARMONY = "left", "right", "school", "harmony"
# A school is a table of 18 entries, and takes longest: it is asked three times as often.
_ASKED_MORE = (SCHOOL, SCHOOL)
_HALF = NUM_QUERY_TOKENS // 2

ENCODER_WORDING = Wording(
    answers={
        LEFT: STYLES,
        RIGHT: STYLES,
        SCHOOL: SCHOOLS,
        **{kind: ANSWERS[kind] for kind in VISIBLE_TYPES},
        HARMONY: HARMONIES,
    },
    phrasings={
        LEFT: ("In which style is the left half?",),
        RIGHT: ("In which style is the right half?",),
        SCHOOL: ("Which school is this?",),
        HARMONY: ("Which harmony is this?",),
        **{kind: PHRASINGS[kind] for kind in VISIBLE_TYPES},
    },
)


def captioned_batch(
    model: OPTForCausalLM, phrasebook: Phrasebook, size: int, noise: float, rng: np.random.Generator
) -> tuple[Tensor, Conversation]:
    """Embeddings of `size` random captions, with relative `noise`, and one question about each.

    The word of the left half is among the first half of the positions, that of the right among the others: so a query
    of the Q-Former need only look at the half that it stands for. A school is never said: it follows from the left
    half's style and the harmony.
    """
    embed = model.get_input_embeddings()
    kinds = [*ENCODER_WORDING.phrasings, *_ASKED_MORE]
    captions, asked = [], []
    for _ in range(size):
        kind = kinds[rng.integers(len(kinds))]
        said = {
            name: answers[rng.integers(len(answers))]
            for name, answers in ENCODER_WORDING.answers.items()
            if name != SCHOOL
        }
        if kind == SCHOOL:
            said[RIGHT] = said[LEFT]
        captions.append(_caption(phrasebook, said, rng))
        asked.append((kind, school_of(said[LEFT], said[HARMONY]) if kind == SCHOOL else said[kind]))
    visual = embed(torch.tensor(captions))
    visual = visual + noise * visual.detach().std() * torch.randn_like(visual)
    return visual, phrasebook.converse(asked, rng)


def _caption(phrasebook: Phrasebook, said: dict[str, str], rng: np.random.Generator) -> list[int]:
    """`NUM_QUERY_TOKENS` tokens: the words of each half in any order among filler, the rest in either half."""
    words = {kind: [*phrasebook.answers[answer][:-1]] for kind, answer in said.items()}
    halves = [[words.pop(LEFT)], [words.pop(RIGHT)]]
    room = [_HALF - len(half[0]) for half in halves]
    for word in words.values():
        chosen = int(rng.integers(2))
        chosen = chosen if len(word) <= room[chosen] else 1 - chosen
        halves[chosen].append(word)
        room[chosen] -= len(word)
    tokens: list[int] = []
    for half, spare in zip(halves, room, strict=True):
        half += [[int(token)] for token in rng.choice(phrasebook.fillers, spare)]
        tokens += [token for place in rng.permutation(len(half)) for token in half[place]]
    return tokens


# At a rate of 2e-3 some kinds of question were still not learnt after 1500 steps; which ones depended on the seed and
# on the number of threads.
LESSON = Lesson(ENCODER_WORDING, captioned_batch, steps=1000, learning_rate=1e-3)
