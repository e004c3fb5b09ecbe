"""The peers as contestants: how others train the same parts of BLIP-2 on the same questions.

All of them get what favours them: pixel values ready in memory (no decoding), no prefix generator and no art encoder,
no dropout, no logging, saving or evaluation, frozen parts without gradients, rows grouped by length and padded to the
longest of a batch, weights of the trainables in the compute dtype (artkv keeps fp32 masters).
"""

import os
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from device_weights import has_no_weights, random_stock_blip2, run_device
from random_world import PROMPT, SIZES, read_questions
from step_counts import BACKWARD, FORWARD, OPTIMIZER, phase
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    BlipImageProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from turns import Stand

from artkv.datasets.pictures import View, open_picture
from artkv.datasets.tokenization import encode_for_training
from artkv.models.backbone.backends import resolve_dtype
from artkv.monitoring.memory import peak_host_bytes

_LEARNING_RATE = 1e-4
_WEIGHT_DECAY = 0.01
_MAX_PICTURES = 64


class Questions(torch.utils.data.Dataset):
    """Stock BLIP-2's inputs, one row a question: visual placeholders, then text, with labels on the answer.

    Pixel values of the first pictures stand in for all others': what they show costs nothing.
    """

    def __init__(self, world_folder: Path, size_name: str, text: str, dtype: torch.dtype) -> None:
        size = SIZES[size_name]
        self.rows = read_questions(world_folder / f"{text}.csv")
        self.tokenizer = AutoTokenizer.from_pretrained(world_folder / "blip2")
        image_id = 4
        self.examples = []
        for row in self.rows:
            ids, labels = encode_for_training(self.tokenizer, PROMPT, row["question"], row["answer"])
            placeholders = [image_id] * size.num_queries
            self.examples.append((placeholders + ids, [-100] * size.num_queries + labels))
        vit = BlipImageProcessor.from_pretrained(world_folder / "blip2")
        view = View(size.image_size, tuple(vit.image_mean), tuple(vit.image_std), is_whole=True)
        names = list(dict.fromkeys(row["image"] for row in self.rows))
        self._picture_of = {name: number % _MAX_PICTURES for number, name in enumerate(names)}
        pixels = [view.of(open_picture(world_folder / "images" / n)) for n in names[:_MAX_PICTURES]]
        self._pixels = torch.stack(pixels).to(dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids, labels = self.examples[index]
        picture = self._picture_of[self.rows[index]["image"]]
        return {"input_ids": ids, "labels": labels, "pixel_values": self._pixels[picture]}

    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids, _ in self.examples]


def padded_on_the_right(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch padded to its longest row, as `DataCollatorForSeq2Seq` and most others do."""
    length = max(len(example["input_ids"]) for example in examples)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (length - len(values))

    return {
        "input_ids": torch.tensor([pad(e["input_ids"], 1) for e in examples]),
        "attention_mask": torch.tensor([pad([1] * len(e["input_ids"]), 0) for e in examples]),
        "labels": torch.tensor([pad(e["labels"], -100) for e in examples]),
        "pixel_values": torch.stack([e["pixel_values"] for e in examples]),
    }


def padded_on_the_left(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All answers end in the last column, so that the language model can be told to make the last logits only.

    Nobody's published trainer does so; it is what an expert could get from stock classes with a collator.
    """
    turned = [{**e, "input_ids": e["input_ids"][::-1], "labels": e["labels"][::-1]} for e in examples]
    batch = padded_on_the_right(turned)
    for name in ("input_ids", "attention_mask", "labels"):
        batch[name] = batch[name].flip(1)
    kept = 1 + max(sum(label != -100 for label in e["labels"]) for e in examples)
    batch["labels"] = batch["labels"][:, -kept:].contiguous()
    batch["logits_to_keep"] = kept
    return batch


def opt_attention() -> str:
    """The faster of transformers' own two where OPT passes gradients on: what an expert would set."""
    return "sdpa" if torch.cuda.is_available() else "eager"


def stock_blip2(world_folder: Path, dtype: torch.dtype) -> Blip2ForConditionalGeneration:
    """transformers' BLIP-2 with all frozen but what artkv trains of it, the Q-Former's cross-attention."""
    model: Blip2ForConditionalGeneration
    if has_no_weights(world_folder / "blip2"):
        model = random_stock_blip2(world_folder / "blip2", dtype, run_device())
    else:
        model = Blip2ForConditionalGeneration.from_pretrained(
            world_folder / "blip2", dtype=dtype, attn_implementation="sdpa"
        )
    model.language_model.set_attn_implementation(opt_attention())
    model.requires_grad_(False)
    for layer in model.qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.requires_grad_(True)
    return model


class _StandingTrainer(Trainer):
    """transformers' Trainer, with a stand around its step."""

    stand: Stand

    def training_step(self, *inputs: Any, **options: Any) -> Tensor:
        with self.stand.step():
            return super().training_step(*inputs, **options)


class _Boundary(TrainerCallback):
    def __init__(self, stand: Stand, batch_size: int) -> None:
        self._stand, self._batch_size = stand, batch_size

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._stand.boundary(self._batch_size)


def run_trainer(
    stand: Stand, world_folder: Path, size_name: str, text: str, output_dir: Path, batch_size: int, dtype_name: str,
    left: bool,
) -> None:  # fmt: skip
    """transformers' `Trainer`."""
    dtype = resolve_dtype(dtype_name, run_device())
    data = Questions(world_folder, size_name, text, dtype)
    model = stock_blip2(world_folder, dtype)
    collate = padded_on_the_left if left else padded_on_the_right
    arguments = TrainingArguments(
        output_dir=str(output_dir), per_device_train_batch_size=batch_size, num_train_epochs=1000,
        learning_rate=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, lr_scheduler_type="constant", max_grad_norm=1.0,
        train_sampling_strategy="group_by_length", dataloader_drop_last=True, dataloader_num_workers=0,
        logging_strategy="no", save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, use_cpu=not torch.cuda.is_available(), logging_nan_inf_filter=False,
    )  # fmt: skip
    _StandingTrainer.stand = stand
    trainer = _StandingTrainer(
        model, arguments, data_collator=collate, train_dataset=data, callbacks=[_Boundary(stand, batch_size)]
    )
    stand.actions |= {
        "losses": lambda rows: stock_loss(model, collate([data[row] for row in rows])),
        "peak_bytes": peak_host_bytes,
    }
    trainer.train()


def run_plain(
    stand: Stand, world_folder: Path, size_name: str, text: str, output_dir: Path, batch_size: int, dtype_name: str,
    attention: str,
) -> None:  # fmt: skip
    """The Trainer's model step and nothing around it: forward, backward, clipping, its fused AdamW.

    attention: of all parts.
    """
    device = run_device()
    dtype = resolve_dtype(dtype_name, device)
    data = Questions(world_folder, size_name, text, dtype)
    model = stock_blip2(world_folder, dtype).to(device)
    model.set_attn_implementation(attention)
    model.language_model.set_attn_implementation(attention)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)

    def step(batch: dict[str, Any]) -> None:
        there = on_device(batch, device)
        with phase(FORWARD):
            loss = model(**there).loss
        with phase(BACKWARD):
            loss.backward()
        with phase(OPTIMIZER):
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    stand.actions["losses"] = lambda rows: stock_loss(model, padded_on_the_right([data[row] for row in rows]))
    _loop(stand, data, batch_size, padded_on_the_right, step)


def run_deepspeed(
    stand: Stand, world_folder: Path, size_name: str, text: str, output_dir: Path, batch_size: int, dtype_name: str
) -> None:
    """DeepSpeed ZeRO-2 around the whole stock model, frozen parameters inside, as LLaVA-style trainers have it.

    Their JSON (zero2.json: overlap_comm, contiguous_gradients, buckets of "auto") with torch's AdamW; no gradient
    checkpointing, which they switch on; a plain loop in the place of their Trainer.
    """
    import deepspeed

    from artkv.distributed import process_group

    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with process_group(timeout_minutes=10) as world:
        dtype = resolve_dtype(dtype_name, world.device)
        data = Questions(world_folder, size_name, text, dtype)
        model = stock_blip2(world_folder, dtype)
        bucket = SIZES[size_name].opt_width ** 2  # what transformers puts in the place of "auto"
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            config={
                "train_micro_batch_size_per_gpu": batch_size,
                "gradient_clipping": 1.0,
                "bf16": {"enabled": dtype == torch.bfloat16},
                "optimizer": {
                    "type": "AdamW",
                    "params": {"lr": _LEARNING_RATE, "weight_decay": _WEIGHT_DECAY, "torch_adam": True},
                },
                "zero_optimization": {
                    "stage": 2, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9,
                    "reduce_bucket_size": bucket,
                },
            },
            dist_init_required=False,
        )  # fmt: skip

        def step(batch: dict[str, Any]) -> None:
            engine.backward(engine(**on_device(batch, engine.device)).loss)
            engine.step()

        stand.actions["losses"] = lambda rows: stock_loss(engine.module, padded_on_the_right([data[r] for r in rows]))
        _loop(stand, data, batch_size, padded_on_the_right, step)


def run_lavis(
    stand: Stand, world_folder: Path, size_name: str, text: str, output_dir: Path, batch_size: int, dtype_name: str
) -> None:
    """LAVIS's own `Blip2OPT.forward` in a plain loop, tokenising as it does; it trains on question and answer alike."""
    from lavis_peer import lavis_blip2_opt

    device = run_device()
    dtype = resolve_dtype(dtype_name, device)
    data = Questions(world_folder, size_name, text, dtype)
    model = lavis_blip2_opt(SIZES[size_name], data.tokenizer, dtype).to(device)
    model.opt_model.set_attn_implementation(opt_attention())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "image": torch.stack([e["pixel_values"] for e in examples]).to(device, non_blocking=True),
            "text_input": [e["text"] for e in examples],
        }

    def with_text(index: int) -> dict[str, Any]:
        row = data.rows[index]
        return {**data[index], "text": PROMPT.replace("{question}", row["question"]) + " " + row["answer"]}

    def step(samples: dict[str, Any]) -> None:
        model(samples)["loss"].backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    stand.actions["losses"] = lambda rows: float(model(collate([with_text(row) for row in rows]))["loss"])
    view = types.SimpleNamespace(__len__=data.__len__, __getitem__=with_text, lengths=data.lengths)
    _loop(stand, view, batch_size, collate, step)


@torch.no_grad()
def stock_loss(model: nn.Module, batch: dict[str, Any]) -> float:
    """Mean loss of a stock model over the answer tokens of a batch."""
    return float(model(**on_device(batch, next(model.parameters()).device)).loss)


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch whose tensors are there; from pageable memory, as loaders without page-locking leave them."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _loop(
    stand: Stand, data: Any, batch_size: int, collate: Callable[..., dict[str, Any]], step: Callable[[Any], None]
) -> None:
    stand.actions["peak_bytes"] = peak_host_bytes
    for indices in _batches(data.lengths(), batch_size):
        batch = collate([data.__getitem__(index) for index in indices])
        stand.boundary(len(indices))
        with stand.step():
            step(batch)


def _batches(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Whole batches of rows of about the same length, for ever."""
    while True:
        order = list(LengthGroupedSampler(batch_size, lengths=lengths))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
