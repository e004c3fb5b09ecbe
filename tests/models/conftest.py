"""A built tiny model and a batch for it."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from artkv.batch import Batch, PackedPrompts, PaintingViews
from artkv.config import Config
from artkv.datasets.tokenization import collate_questions, encode_for_training
from artkv.distributed import single_process
from artkv.models.assembly import BuiltModel, build_model
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2

QUESTIONS = [("What is it?", "oil"), ("Who painted this picture of a thing?", "Jan van Eyck"), ("Style?", "a b")]
PAINTING_OF_QUESTION = [0, 1, 0]
PROMPT = "Question: {question} Short answer:"


Build = Callable[..., BuiltModel]


def greedy_answers(
    model: KVModulatedBlip2, visual_IKD: Tensor, prompts: PackedPrompts, max_new_tokens: int
) -> list[str]:
    """Of one batch, all of them to their ends."""
    return model.answers_of(model.generate_tokens(visual_IKD, prompts, max_new_tokens).token_ids)


@pytest.fixture
def build_on(tiny_config: Config) -> Build:
    """Builds the tiny model with changed sections: `build_on("lavis", kv_modulation={"enabled": False})`."""

    def build_with(backend: str, checkpointing: bool = False, **sections: dict) -> BuiltModel:
        tree = tiny_config.model_dump()
        for section, values in {"model": {}, **sections}.items():
            tree[section] |= values
        tree["model"]["backend"] = backend
        tree["training"]["activation_checkpointing"] = checkpointing
        config = Config.model_validate(tree)
        return build_model(config, single_process(torch.device("cpu")))

    return build_with


@pytest.fixture(params=["transformers", "lavis"])
def build(request: pytest.FixtureRequest, build_on: Build) -> Build:
    """`build_on` one backend after the other: a test that uses it holds for both."""
    return partial(build_on, request.param)


def views() -> PaintingViews:
    generator = torch.Generator().manual_seed(4)
    return PaintingViews(
        torch.randn(2, 3, 28, 28, generator=generator), (torch.randn(2, 3, 32, 32, generator=generator),)
    )


def training_batch(tokenizer: object, weight: float = 1.0) -> Batch:
    """Two paintings, three questions of different lengths."""
    encoded = [encode_for_training(tokenizer, PROMPT, question, answer) for question, answer in QUESTIONS]
    questions = collate_questions(encoded, PAINTING_OF_QUESTION, weight, tokenizer.pad_token_id)
    return Batch(views(), questions, (0, 1, 2))
