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
# Ids of letters in every byte-level vocabulary of `train_tokenizer`: five special tokens come first.
_LEFT_LETTER, _RIGHT_LETTER = 5 + ord("L") - ord("!"), 5 + ord("R") - ord("!")
# How strong a half's letter is beside the word. At 1 the halves were still confused after 900 steps, at 2 no longer
# after 300 to 600.
_MARK = 2.0
# A school is a table of 18 entries, and takes longest: it is asked three times as often.
_ASKED_MORE = (SCHOOL, SCHOOL)

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

    A word of the left half has `_MARK` times the embedding of the letter L added to it, one of the right half that of
    R. A school is never said: it follows from the left half's style and the harmony.
    """
    embed = model.get_input_embeddings()
    kinds = [*ENCODER_WORDING.phrasings, *_ASKED_MORE]
    captions, sides, asked = [], [], []
    for _ in range(size):
        kind = kinds[rng.integers(len(kinds))]
        said = {
            name: answers[rng.integers(len(answers))]
            for name, answers in ENCODER_WORDING.answers.items()
            if name != SCHOOL
        }
        if kind == SCHOOL:
            said[RIGHT] = said[LEFT]
        tokens, marks = _caption(phrasebook, said, rng)
        captions.append(tokens)
        sides.append(marks)
        asked.append((kind, school_of(said[LEFT], said[HARMONY]) if kind == SCHOOL else said[kind]))
    visual = embed(torch.tensor(captions))
    marked = torch.tensor(sides)
    both = _MARK * embed(torch.tensor([_LEFT_LETTER, _RIGHT_LETTER]))
    visual = visual + torch.nn.functional.one_hot(marked, 3)[..., 1:].to(visual.dtype) @ both
    visual = visual + noise * visual.detach().std() * torch.randn_like(visual)
    return visual, phrasebook.converse(asked, rng)


def _caption(phrasebook: Phrasebook, said: dict[str, str], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """`NUM_QUERY_TOKENS` tokens in any order, and for each 1 if it is of the left half, 2 of the right, else 0."""
    words = [([*phrasebook.answers[answer][:-1]], {LEFT: 1, RIGHT: 2}.get(kind, 0)) for kind, answer in said.items()]
    spare = NUM_QUERY_TOKENS - sum(len(tokens) for tokens, _ in words)
    words += [([phrasebook.fillers[rng.integers(len(phrasebook.fillers))]], 0) for _ in range(spare)]
    order = rng.permutation(len(words))
    tokens = [token for index in order for token in words[index][0]]
    return tokens, [words[index][1] for index in order for _ in words[index][0]]


# At a rate of 2e-3 some kinds of question were not learnt in 1500 steps, which ones depended on the seed and the number
# of threads; at 1e-3 all were, of two seeds, after 300 and 600.
LESSON = Lesson(ENCODER_WORDING, captioned_batch, steps=1000, learning_rate=1e-3)
