"""artkv as a contestant: the very run of `artkv train`, with a stand at the boundary between two steps."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from device_weights import make_weights_where_missing
from torch import Tensor
from torch.nn.functional import cross_entropy
from turns import Stand

import artkv.training.loop
from artkv.batch import Batch, PaintingViews
from artkv.config import Config
from artkv.distributed import process_group
from artkv.models.kv_modulated_blip2 import AnswerLoss, KVModulatedBlip2
from artkv.monitoring.memory import peak_host_bytes
from artkv.training.engine import TrainingEngine
from artkv.training.loop import StepReport, step_together
from artkv.training.run import train
from artkv.training.saving import Saver

CHECKPOINT = "checkpoint"


def run_artkv(stand: Stand, tree: dict[str, Any], has_answer_logits: bool = True, compiled: Sequence[str] = ()) -> None:
    """Trains until its stand ends it; compiled: parts for `torch.compile`, of those that `compile_part` knows.

    Weights that `model.blip2` has none of are random ones. Checkpoints are asides of the stand.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    make_weights_where_missing(Path(tree["model"]["blip2"]))
    if not has_answer_logits:
        KVModulatedBlip2.answer_loss = loss_of_all_logits  # type: ignore[method-assign]

    engines: list[TrainingEngine] = []

    def step_at_boundary(engine: TrainingEngine, batches: Sequence[Batch], *others: Any) -> StepReport:
        if not engines:
            engines.append(engine)
            for part in compiled:
                compile_part(engine.model, part)
        stand.actions["losses"] = lambda: losses(engine.model, batches)
        stand.actions["loads"] = lambda: sum(stack.total_loads for stack in engine.model.backbone.streamed.values())
        stand.actions["trainables"] = lambda: [(p.numel(), p.element_size()) for p in engine.model.parameters()]
        stand.boundary(sum(len(batch.rows) for batch in batches))
        with stand.step():
            return step_together(engine, batches, *others)

    save = Saver.save

    def save_aside(*inputs: Any, **options: Any) -> None:
        with stand.aside(CHECKPOINT):
            save(*inputs, **options)

    stand.actions["peak_bytes"] = peak_host_bytes
    Saver.save = save_aside  # type: ignore[method-assign]
    artkv.training.loop.step_together = step_at_boundary
    with process_group(timeout_minutes=10) as world:
        train(Config.model_validate(tree), None, world)


def compile_part(model: KVModulatedBlip2, part: str) -> None:
    """`torch.compile` on OPT's frozen blocks, each by itself (`opt`), or on Q-Former and generator (`trainable`).

    With dynamic shapes: no two batches are of one length.
    """
    modules: dict[str, list[Any]] = {
        "opt": list(model.backbone.language_model.model.decoder.layers),
        "trainable": [model.backbone.qformer, model.parts.injection],
    }
    for module in modules[part]:
        module.compile(dynamic=True)


@torch.no_grad()
def losses(model: KVModulatedBlip2, batches: Sequence[Batch]) -> dict[str, Any]:
    """The rows of the step to come, and their mean loss a token with the prefix off and on."""
    sums = {"off": 0.0, "on": 0.0}
    tokens = 0.0
    for batch in (batch.to(model.backbone.device) for batch in batches):
        paintings = batch.paintings
        features = model.encode(paintings) if isinstance(paintings, PaintingViews) else paintings
        for name in sums:
            visual_IKD = model.visual_tokens(features, use_prefix=name == "on")
            loss = model.answer_loss(visual_IKD, batch.questions)
            sums[name] += float(loss.loss_sum)
        tokens += float(loss.answer_tokens)
    rows = [row for batch in batches for row in batch.rows]
    return {"rows": rows, "off": sums["off"] / tokens, "on": sums["on"] / tokens}


def loss_of_all_logits(model: KVModulatedBlip2, visual_IKD: Tensor, questions: Any) -> AnswerLoss:
    """`KVModulatedBlip2.answer_loss` without answer-only logits: the last block and the logits everywhere."""
    language_model = model.backbone.language_model
    if hasattr(questions, "answer_columns"):
        from artkv.models.opt.packed_sequences import packed_embeddings, tree_attention_mask

        text_RLD = language_model.get_input_embeddings()(questions.token_ids)
        hidden = language_model.model.decoder(
            inputs_embeds=packed_embeddings(text_RLD, visual_IKD, questions),
            attention_mask=tree_attention_mask(questions.subtree_end, text_RLD.dtype),
            position_ids=questions.position_ids,
            use_cache=False,
        ).last_hidden_state
        rows = questions.answer_places // questions.answer_columns.shape[1]
        places = rows * hidden.shape[1] + questions.answer_columns.flatten()[questions.answer_places]
        ids, weight = questions.answer_ids, questions.answer_weight
    else:
        embeds_QSD, mask_QS = model._prompt_embeddings(visual_IKD, questions)
        hidden = language_model.model.decoder(
            inputs_embeds=embeds_QSD, attention_mask=mask_QS, use_cache=False
        ).last_hidden_state[:, visual_IKD.shape[1] - 1 : -1]
        places = (questions.labels.flatten() != -100).nonzero().flatten()
        ids = questions.labels.flatten()[places]
        weight = questions.weight[places // questions.labels.shape[1]]
    logits = language_model.lm_head(hidden).flatten(0, 1)
    token_losses = cross_entropy(logits.float().index_select(0, places), ids, reduction="none")
    return AnswerLoss((token_losses * weight).sum(), questions.answer_token_count())
