"""How many questions are answered at once, where the config leaves it open.

The more of them, the less often OPT's weights are read for an answer, from host memory where its blocks stream.
"""

import numpy as np
import torch

from artkv.datasets.packing import MAX_COLUMNS
from artkv.datasets.question_set import QuestionSet
from artkv.distributed import World
from artkv.models.cuda_recorder import give_back_unused
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2

# On two cores of a CPU, where more is no faster; measured in docs/evaluation.md.
QUESTIONS_ON_A_CPU = 128
# On a GPU. A product with so many tokens takes longer than reading its weights from device memory; and up to five such
# batches lie in host memory, 1.7 MB a painting that is not cached.
MOST_QUESTIONS = 512
# Of the memory that is free; the rest is for the encoders, and for what is not in `question_bytes`.
_SHARE_OF_MEMORY = 0.7


def question_bytes(model: KVModulatedBlip2, prompt_tokens: int, max_new_tokens: int, painting_bytes: int) -> int:
    """Device memory of a question that shares nothing with another, and whose answer does not end.

    Keys and values, once more for the block that is being laid out anew; the first pass through a block, with its
    mask; logits; and what the encoders get of a painting.
    """
    backbone = model.backbone
    opt = backbone.language_model.config
    columns = model.num_visual_tokens + prompt_tokens
    new_columns = min(max_new_tokens, backbone.max_positions - columns)
    numbers = 2 * (opt.num_hidden_layers + 1) * opt.hidden_size * (columns + new_columns)
    numbers += columns * (8 * opt.hidden_size + 2 * opt.ffn_dim + MAX_COLUMNS)
    numbers += 2 * opt.vocab_size
    return numbers * backbone.dtype.itemsize + painting_bytes


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
        longest = int(questions.tokenized.prompt_lengths.max())
        blank = questions.paintings.load_blank(1, pin_memory=False)
        painting_bytes = blank.num_bytes
        size = question_bytes(model, longest, max_new_tokens, painting_bytes)
        number = questions_that_fit(free_device_bytes(world.device), size)
    most = max(1, min(world.gather(number)) // num_ablations)
    return even_batch_size(most, questions.table.painting_of_row, world.size)
