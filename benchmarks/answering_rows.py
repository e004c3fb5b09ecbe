"""Answering: artkv's evaluation beside stock BLIP-2's `generate`, each with the card to itself.

Stock BLIP-2 is asked as its documentation does, one row a question, and gets what favours it: pixel values ready in
memory, questions of like length together, an end at the newline where artkv ends too, and as many rows as take no more
memory than artkv's evaluation took. Both answer greedily with as many new tokens at most.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from device_weights import make_weights_where_missing, run_device
from peer_rows import PROMPT, SIZES, Questions, on_device, stock_blip2
from step_clock import since_start, synchronize, taken_device_bytes, write_figures
from true_rows import ANSWER_TOKENS, text
from turns import EndOfTurns

from artkv.config import Config
from artkv.datasets.tokenization import encode_prompt, newline_token_id
from artkv.distributed import single_process
from artkv.evaluation.answering import answer_questions, answering_settings
from artkv.models.backbone.backends import resolve_dtype
from artkv.session import Session

_UNTIMED_BATCHES = 1
_USUAL_ROWS = 16


@dataclass
class AnswerFigures:
    """What was measured. is_whole: whether all questions were answered before the time was up.

    answers_per_second: over whole batches. rows: questions at once; None: as artkv has it. start_seconds: from the
    process's start to the first question. peak_bytes: PyTorch's most while answering; device_bytes: taken of the
    device in all. mean_characters: of an answer.
    """

    answers: int = 0
    seconds: float = 0.0
    answers_per_second: float | None = None
    is_whole: bool = False
    rows: int | None = None
    max_new_tokens: int = 0
    start_seconds: float | None = None
    peak_bytes: int | None = None
    device_bytes: int | None = None
    mean_characters: float | None = None


class AnswerClock:
    """Times answers, batch by batch, and ends by `EndOfTurns` when its time is up."""

    def __init__(self, path: Path, figures: AnswerFigures, seconds: float) -> None:
        self.figures = figures
        self._path, self._seconds = path, seconds
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        synchronize()
        self._began = time.perf_counter()

    def advance(self, answers: int) -> None:
        """So many more are there."""
        figures = self.figures
        synchronize()
        figures.answers += answers
        figures.seconds = time.perf_counter() - self._began
        figures.answers_per_second = figures.answers / figures.seconds
        if torch.cuda.is_available():
            figures.peak_bytes = torch.cuda.max_memory_allocated()
            figures.device_bytes = taken_device_bytes()
        if figures.seconds > self._seconds:
            write_figures(self._path, asdict(figures))
            raise EndOfTurns

    def end(self, answers: Sequence[str]) -> None:
        """All are there: the seconds count to here, where answers are in order and whole."""
        figures = self.figures
        synchronize()
        figures.seconds = time.perf_counter() - self._began
        figures.answers_per_second = len(answers) / figures.seconds
        figures.is_whole = True
        figures.mean_characters = sum(map(len, answers)) / len(answers)
        write_figures(self._path, asdict(figures))


def run_artkv_answers(path: Path, tree: dict[str, Any], seconds: float) -> None:
    """The process of a row: `artkv evaluate` of an untrained model on `dataset.test`, without its scores."""
    make_weights_where_missing(Path(tree["model"]["blip2"]))
    config = Config.model_validate(tree)
    world = single_process(None)
    session = Session(config, world, ["test"]).load()
    questions, settings = session.questions["test"], answering_settings(config)
    synchronize()
    figures = AnswerFigures(max_new_tokens=settings.max_new_tokens, start_seconds=since_start())

    def answer(advance: Callable[[int], None]) -> list[str]:
        return answer_questions(session.model, questions, settings, world, advance=advance)

    calls: list[int] = []

    def stop_early(answers: int) -> None:
        calls.append(answers)
        if len(calls) == _UNTIMED_BATCHES:
            raise EndOfTurns

    with suppress(EndOfTurns):
        answer(stop_early)
    figures.rows = max(calls)
    clock = AnswerClock(path, figures, seconds)
    with suppress(EndOfTurns):
        clock.end(answer(clock.advance))


def run_stock_answers(
    path: Path,
    world: str,
    size_name: str,
    dtype: str,
    seconds: float,
    streams: bool,
    max_new_tokens: int | None,
    memory_bytes: int | None,
) -> None:
    """The process of a row: transformers' `generate` on the same questions.

    streams: OPT's blocks by `accelerate.cpu_offload`, from page-locked memory. max_new_tokens, memory_bytes: artkv's,
    with its peak; None: not known, and the rows and tokens are artkv's usual ones.
    """
    max_new_tokens = max_new_tokens or ANSWER_TOKENS
    device = run_device()
    data = Questions(Path(world), size_name, "alike", resolve_dtype(dtype, device))
    model: Any = stock_blip2(Path(world), resolve_dtype(dtype, device))
    if streams:
        offload_blocks(model, device)
    else:
        model.to(device)
    prompts = [encode_prompt(data.tokenizer, PROMPT, row["question"]) for row in data.rows]
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    ends = [data.tokenizer.eos_token_id, newline_token_id(data.tokenizer)]
    num_visual = SIZES[size_name].num_queries
    synchronize()
    figures = AnswerFigures(max_new_tokens=max_new_tokens, start_seconds=since_start())

    @torch.no_grad()
    def answer(rows: Sequence[int]) -> list[str]:
        batch = padded_prompts([prompts[row] for row in rows], num_visual)
        batch["pixel_values"] = torch.stack([data[row]["pixel_values"] for row in rows])
        ids = model.generate(
            **on_device(batch, device), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends,
            pad_token_id=1,
        )  # fmt: skip
        new = ids[:, batch["input_ids"].shape[1] :] if ids.shape[1] > max_new_tokens + 1 else ids
        texts: list[str] = data.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.split("\n", 1)[0].strip() for text in texts]

    figures.rows = fitting_rows(lambda rows: answer(order[:rows]), len(order), memory_bytes)
    clock = AnswerClock(path, figures, seconds)
    with suppress(EndOfTurns):
        answers: list[str] = []
        for start in range(0, len(order), figures.rows):
            answers += answer(order[start : start + figures.rows])
            clock.advance(min(figures.rows, len(order) - start))
        clock.end(answers)


def fitting_rows(answer: Callable[[int], object], most: int, memory_bytes: int | None) -> int:
    """The most rows that take no more memory than `memory_bytes`; 16 where that is not known."""
    if memory_bytes is None or not torch.cuda.is_available():
        answer(min(_USUAL_ROWS, most))
        return min(_USUAL_ROWS, most)

    def peak(rows: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            answer(rows)
        except torch.OutOfMemoryError:
            return math.inf
        return torch.cuda.max_memory_allocated()

    return rows_by_peaks(peak, most, memory_bytes)


def rows_by_peaks(peak: Callable[[int], float], most: int, memory_bytes: int) -> int:
    """The most rows, nearly, by their peak of memory, which grows as a line does; the last one asked for is tried."""
    few, more = min(_USUAL_ROWS, most), min(4 * _USUAL_ROWS, most)
    of_few = peak(few)
    if of_few > memory_bytes:
        return 1
    of_more = peak(more) if more > few else of_few
    if of_more > memory_bytes or more in (few, most):
        return few if of_more > memory_bytes else more
    by_line = few + (memory_bytes - of_few) * (more - few) / max(1, of_more - of_few)
    rows = int(min(most, by_line))
    while rows > more and peak(rows) > memory_bytes:
        rows = rows * 19 // 20
    return max(rows, more)


def padded_prompts(prompts: Sequence[list[int]], num_visual: int) -> dict[str, Any]:
    """Placeholders of the visual tokens and prompts, padded on the left, as generation wants them."""
    length = max(map(len, prompts))
    image_id, pad_id = 4, 1
    ids = [[pad_id] * (length - len(p)) + [image_id] * num_visual + p for p in prompts]
    mask = [[0] * (length - len(p)) + [1] * (num_visual + len(p)) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def offload_blocks(model: Any, device: torch.device) -> None:
    """OPT's blocks into host memory, fetched one by one; all else on the device."""
    from accelerate import cpu_offload

    for block in model.language_model.model.decoder.layers:
        values = {name: value.detach().cpu() for name, value in block.named_parameters()}
        if device.type == "cuda":
            values = {name: value.pin_memory() for name, value in values.items()}
        cpu_offload(block, execution_device=device, state_dict=values)
    for tensors in _outside_blocks(model):
        tensors.data = tensors.data.to(device)


def _outside_blocks(model: Any) -> Iterator[Any]:
    blocks = {id(p) for p in model.language_model.model.decoder.layers.parameters()}
    return (p for p in [*model.parameters(), *model.buffers()] if id(p) not in blocks)


def answering_table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of answering as Markdown."""
    lines = [
        "| row | answers/s | rows at once | answers | start s | peak GB, PyTorch | GB of the device in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if "answers_per_second" not in result:
            if "answer" in result["row"]:
                lines.append(f"| {result['row']} | {result['status']} | | | | | |")
            continue
        cells = [
            result["row"] if result["status"] == "measured" else f"{result['row']} ({result['status']})",
            text(result["answers_per_second"], "{:.1f}"),
            str(result["rows"]),
            f"{result['answers']}{'' if result['is_whole'] else ', broken off'}",
            text(result["start_seconds"], "{:.1f}"),
            text(result["peak_bytes"], "{:.2f}", 1e-9),
            text(result["device_bytes"], "{:.2f}", 1e-9),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []
