"""A step's gradient against plain autograd over all of its answer tokens."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from artkv.batch import Batch
from artkv.models.assembly import BuiltModel
from artkv.models.kv_modulated_blip2 import AnswerLoss, KVModulatedBlip2
from artkv.training.step import answer_token_count, seed_step, train_step
from tests.models.conftest import build as build  # a fixture
from tests.models.conftest import build_on as build_on
from tests.models.conftest import training_batch


class PlainEngine:
    """The engine's three calls without DeepSpeed: gradients add up on the parameters."""

    def __init__(self, model: KVModulatedBlip2) -> None:
        self.model = model
        self.learning_rates: list[float] = []

    def losses(self, batches: list[Batch]) -> Iterator[AnswerLoss]:
        return (self.model(batch) for batch in batches)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> None:
        self.learning_rates.append(learning_rate)


def pick(batch: Batch, rows: list[int], weight: float = 1.0) -> Batch:
    questions = batch.questions
    index = torch.tensor(rows)
    labels = questions.labels[index]
    part = type(questions)(
        questions.input_ids[index],
        questions.attention_mask[index],
        labels,
        (labels.flatten() != -100).nonzero().squeeze(1),
        questions.painting_index[index],
        torch.full((len(rows),), weight),
    )
    return Batch(batch.paintings, part, tuple(rows))


def test_micro_steps_and_fillers_reweight_nothing(build: Callable[..., BuiltModel]) -> None:
    """Questions have 2, 5 and 3 answer tokens: a mean of means would be far off."""
    gradients = []
    for micro_rows in ([[0, 1, 2]], [[0], [1, 2]], [[0, 2], [1]]):
        model = build().model
        batch = training_batch(model.backbone.tokenizer)
        parts = [pick(batch, rows) for rows in micro_rows] + [pick(batch, [1], weight=0.0)]
        engine = PlainEngine(model)
        answer_tokens = answer_token_count(parts)
        train_step(engine, parts, 0.1, answer_tokens, world_size=1)  # type: ignore[arg-type]
        assert engine.learning_rates == [0.1] * len(parts)
        gradients.append([p.grad for p in model.parameters()])
        tokens = int((batch.questions.labels != -100).sum())
        assert answer_tokens == tokens

    model = build().model
    (model(training_batch(model.backbone.tokenizer)).loss_sum / tokens).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    for one in gradients:
        # fp32, sums in another order; the worst seen is 3e-7 norm-wise.
        assert (torch.cat([g.flatten() for g in one]) - expected).norm() < 3e-6 * expected.norm()


def test_a_step_is_seeded_by_seed_step_and_rank_alone() -> None:
    draws = {}
    for place in [(1, 0, 0), (1, 1, 0), (1, 0, 1), (2, 0, 0), (1, 0, 0)]:
        torch.rand(3)
        seed_step(*place)
        value = tuple(torch.rand(4).tolist())
        assert draws.setdefault(place, value) == value
    assert len(set(draws.values())) == 4
