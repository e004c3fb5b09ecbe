"""How many questions are answered at once, where the config leaves it open.

The more of them, the less often OPT's weights are read for an answer, from host memory where its blocks stream.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from artkv.datasets.packing import MAX_COLUMNS
from artkv.datasets.question_set import QuestionSet
from artkv.distributed import World
from artkv.models.cuda_recorder import give_back_unused
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2

# On two cores of a CPU, where more is no faster; measured in docs/evaluation.md.
QUESTIONS_ON_A_CPU = 128
# On a GPU. The host takes some 20 ms to launch a token's pass, and a pass reads all of OPT, from host memory where it
# streams: hundreds of questions do not yet take a card longer than that.
MOST_QUESTIONS = 2048
# Of a batch's pictures or features in host memory, where up to five batches lie.
_MOST_BATCH_BYTES = 2**29
# Of the memory that is free; the rest is for the encoders, and for what is not in `question_bytes`.
_SHARE_OF_MEMORY = 0.7
# Nearly all answers are shorter, and make room when they end; a batch whose answers are not goes on in parts.
_EXPECTED_NEW_TOKENS = 16


class MeanQuestion(NamedTuple):
    """Of a table's questions, each: tokens of its prompt, and paintings, where several questions share one."""

    prompt_tokens: float
    paintings: float


def question_bytes(model: KVModulatedBlip2, question: MeanQuestion, max_new_tokens: int, painting_bytes: int) -> int:
    """Device memory of a question among many, whose text shares nothing with another.

    Keys and values, once more for the block that is being laid out anew; the first pass through a block, with its
    mask; logits; and what the encoders get of its share of a painting.
    """
    backbone = model.backbone
    opt = backbone.language_model.config
    columns = model.num_visual_tokens * question.paintings + question.prompt_tokens
    new_columns = min(max_new_tokens, _EXPECTED_NEW_TOKENS)
    numbers = 2 * (opt.num_hidden_layers + 1) * opt.hidden_size * (columns + new_columns)
    numbers += columns * (8 * opt.hidden_size + 2 * opt.ffn_dim + MAX_COLUMNS)
    numbers += 2 * opt.vocab_size
    return math.ceil(numbers * backbone.dtype.itemsize + painting_bytes * question.paintings)


def questions_that_fit(free_bytes: int, bytes_a_question: int) -> int:
    """At least one, at most `MOST_QUESTIONS`."""
    return min(max(1, int(_SHARE_OF_MEMORY * free_bytes) // bytes_a_question), MOST_QUESTIONS)


def free_device_bytes(device: torch.device) -> int:
    """What the device has left once PyTorch has given back what it can.

    The memory of a training's CUDA graphs, which nothing else may have, is not among it; `memory_reserved` less
    `memory_allocated` would be.
    """
    give_back_unused()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes


def even_batch_size(most: int, painting_of_row: np.ndarray, num_ranks: int) -> int:
    """At most `most`, so that in the last round no rank is without a batch while another one has a full one.

    A batch may lack a few of its questions, since a painting's stay together; then there must still be no batch more.
    """
    rounds = -(-len(painting_of_row) // (most * num_ranks))
    most_of_a_painting = int(np.bincount(painting_of_row).max())
    return min(most, -(-len(painting_of_row) // (rounds * num_ranks)) + most_of_a_painting - 1)


def automatic_batch_size(
    model: KVModulatedBlip2, questions: QuestionSet, max_new_tokens: int, num_ablations: int, world: World
) -> int:
    """How many questions of the table are answered at once, under all ablations together.

    The same on all ranks, which share out batches: what fits on the fullest of their devices. All call it alike.
    """
    number = QUESTIONS_ON_A_CPU
    if world.device.type == "cuda":
        table = questions.table
        mean = MeanQuestion(float(questions.tokenized.prompt_lengths.mean()), table.num_paintings / len(table))
        painting_bytes = questions.paintings.load_blank(1, pin_memory=False).num_bytes
        size = question_bytes(model, mean, max_new_tokens, painting_bytes)
        # Ablations share a painting's pictures.
        most = num_ablations * int(_MOST_BATCH_BYTES / (painting_bytes * mean.paintings))
        number = min(questions_that_fit(free_device_bytes(world.device), size), max(1, most))
    most = max(1, min(world.gather(number)) // num_ablations)
    return even_batch_size(most, questions.table.painting_of_row, world.size)
