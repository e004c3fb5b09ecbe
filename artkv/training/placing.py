"""An engine that fits the device: the largest micro-batch is tried, and if memory runs out the next smaller way."""

import gc
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from artkv.batch import Batch, PackedQuestions
from artkv.datasets.batches import BatchMaker
from artkv.datasets.order import MicroBatch, plan_epoch
from artkv.datasets.packed_shapes import plan_shapes
from artkv.datasets.packing import PackingSettings
from artkv.errors import UserError
from artkv.models.cuda_recorder import is_out_of_memory
from artkv.planning.placement import Choice, Use
from artkv.planning.prediction import CUDA_OVERHEAD_BYTES
from artkv.session import Session
from artkv.training.engine import TrainingEngine

# The next way has to take so much less than the one that did not fit.
_LESS = 0.05
_GIB = 2**30


def packing_of(session: Session) -> PackingSettings | None:
    """How the training's questions are packed, with the shapes of its batches; None: one row a question."""
    training, backbone, questions = session.config.training, session.model.backbone, session.questions["train"]
    if not training.pack_questions:
        return None
    settings = PackingSettings(session.model.num_visual_tokens, backbone.language_model_width)
    # Of the first epoch, whatever epoch a run goes on from: all epochs have these shapes.
    plan = plan_epoch(questions.table.painting_of_row, training.batch_size, training.seed, epoch=0)
    return replace(settings, shapes=plan_shapes(questions, plan, settings))


def engine_that_fits(
    session: Session, use: Use, load: Callable[[Use], None], make_engine: Callable[[], TrainingEngine]
) -> TrainingEngine:
    """The engine of the loaded session, or of a smaller placement if a trial runs out of memory on any rank.

    Called on all ranks. Nothing is tried where the placement was not chosen for a device. load: loads the session for a
    use. Raises `UserError` where memory runs out in the smallest way.
    """
    engine = make_engine()
    while (choice := session.placement.choice) is not None and not _fits(session, use, choice):
        engine.close()
        del engine
        use = _smaller(session, use, choice)
        session.unload()
        gc.collect()  # streamed blocks and the engine's hooks are in reference cycles
        if session.world.device.type == "cuda":
            torch.cuda.empty_cache()
        load(use)
        engine = make_engine()
    return engine


def _smaller(session: Session, use: Use, choice: Choice) -> Use:
    total = choice.prediction.device.total_bytes
    smaller = replace(use, limit_bytes=int(total - _LESS * (total - CUDA_OVERHEAD_BYTES)))
    found = session.place(smaller).choice
    if choice.shortfall_bytes or found is None or found.shortfall_bytes:
        raise UserError(
            f"training.batch_size = {session.config.training.batch_size}: device memory runs out in the smallest way "
            "that the settings leave; lower it and raise training.gradient_accumulation_steps by the same factor",
            on_all_ranks=True,
        )
    _say(session, "device memory ran out in a trial step; going on in a smaller way")
    return smaller


def _fits(session: Session, use: Use, choice: Choice) -> bool:
    """Whether all ranks can do a step of the largest micro-batch; leaves no trace in gradients and random numbers.

    It leaves its CUDA graphs: the largest have to come first, so that others find memory enough in theirs.
    """
    device = session.world.device
    batch = _largest_micro_batch(session).to(device)
    at_once = use.accumulation if session.model.reads_opt_once and use.accumulation is not None else 1
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ran_out, peak = False, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            forward_backward(session, batch, at_once)
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
            if session.model.records_graphs:
                session.model.rescued(lambda: forward_backward(session, batch, at_once))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            ran_out = True
    results = session.world.gather((ran_out, peak))
    if any(has_run_out for has_run_out, _ in results):
        return False
    if peak := max(peak for _, peak in results):
        predicted = choice.prediction.device.total_bytes - CUDA_OVERHEAD_BYTES
        _say(session, f"the largest micro-batch takes {peak / _GIB:.2f} GiB, predicted {predicted / _GIB:.2f}")
    return True


def forward_backward(session: Session, batch: Batch, at_once: int) -> None:
    """Computes the gradients of so many equal micro-batches that are there at once, and drops them."""
    trainables = list(session.model.parameters())
    model = session.model
    if at_once == 1 or not isinstance(batch.questions, PackedQuestions):
        losses = [model(batch).loss_sum]
    else:
        visual = [model(batch, only_visual=True) for _ in range(at_once)]
        losses = [loss for loss, _ in model.answer_losses(visual, [batch.questions] * at_once)]
    torch.autograd.grad(torch.stack(losses).sum(), trainables, allow_unused=True)


def _largest_micro_batch(session: Session) -> Batch:
    """The one of the first epoch that has most tokens, visual ones included."""
    questions, training = session.questions["train"], session.config.training
    plan = plan_epoch(questions.table.painting_of_row, training.batch_size, training.seed, epoch=0)
    text_tokens = np.add.reduceat(questions.tokenized.lengths[plan.rows], plan.row_offsets[:-1])
    tokens = text_tokens + np.diff(plan.groups_before) * session.model.num_visual_tokens
    rows: MicroBatch = plan[int(np.argmax(tokens))]
    return BatchMaker(questions, packing=packing_of(session))(rows)


def _say(session: Session, text: str) -> None:
    if session.world.is_main:
        print(f"artkv: {text}", file=sys.stderr, flush=True)
