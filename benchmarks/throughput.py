"""Questions a second of artkv, of artkv with each saving switched off, and of its peers, in turns in one run.

    python benchmarks/throughput.py --json throughput.json
    python benchmarks/throughput.py --tiny            # a toy model: whether the script works
    python benchmarks/throughput.py --size true --rows-file rows.jsonl      # a card: BLIP2-OPT-2.7b itself

Nothing is downloaded: a random BLIP-2 with the true model's proportions is made once in --folder, with pictures and
ArtQuest-like questions. Each row is a process that runs its own training loop and stands still between two steps while
another has its turn; a figure is the median of --rounds turns. Before the first step the losses on the same questions
are compared. Beside each row: FLOPs a question, counted on a real step, and what share of the machine's rate in large
matrix products it reached. With `--size true` rows do not fit together: they run one after another (true_rows.py), with
weights that are made on the device, 48 and 192 questions a step. Figures are in docs/throughput.md.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flop_count import flops_per_question, ways
from random_world import (
    QUESTIONS_PER_PAINTING,
    SIZES,
    Lengths,
    add_options,
    lengths_of,
    open_world,
    open_world_without_weights,
    proportions,
    read_questions,
    run_settings,
    write_report,
)
from turns import Contestant

TRAINER = "transformers Trainer"
_LARGE_PRODUCTS = "large products"
_OWN_PRODUCTS = "products of OPT's shape"
# Relative, between rows on the same questions: 4e-7 seen at toy size, 8e-6 at mid size in fp32.
_LOSS_TOLERANCE = {"float32": 3e-5, "bfloat16": 1e-2}
# Turns before whose timed steps this many run untimed: what loaders fetched while others had their turn is used up.
_UNTIMED_STEPS = {"artkv": 4, "peer": 1, "products": 1}
_GOALS = {"times_trainer": 5.0, "of_allowed": 0.8, "of_matmul": 0.6}


@dataclass(frozen=True)
class Row:
    """A row of the table, and how its contestant is started.

    way: its row in `flop_count.ways`. text: which of the two sets of questions. reference: the row that it is compared
    with. kind: artkv, peer or products. target: `module:function`, so that a process imports what its own row needs.
    """

    name: str
    kind: str
    way: str
    text: str
    reference: str
    target: str
    arguments: tuple[Any, ...]
    has_loss: bool = True


@dataclass
class Result:
    """What was measured of a row; None is what was not.

    seconds, questions: of each timed turn. questions_per_second: their median rate. flops: of a question, counted.
    times_reference: rate over the reference's. allowed: the reference's FLOPs over its own. of_allowed:
    times_reference over allowed. of_matmul: share of the rate of large products. start_bytes: resident before the
    first step, libraries and weights included; peak_bytes: the most ever, before FLOPs are counted. loss_off, loss_on:
    mean loss a token of the first questions, prefix off and on.
    """

    name: str
    text: str
    questions_per_second: float | None = None
    slowest: float | None = None
    fastest: float | None = None
    rounds: int = 0
    step_questions: float | None = None
    flops: float | None = None
    formula_flops: float | None = None
    times_reference: float | None = None
    allowed: float | None = None
    of_allowed: float | None = None
    of_matmul: float | None = None
    start_bytes: int | None = None
    peak_bytes: int | None = None
    loss_off: float | None = None
    loss_on: float | None = None
    seconds: list[float] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    note: str = ""


@dataclass
class Report:
    """All that is printed and written."""

    date: str
    machine: str
    threads: int
    dtype: str
    batch_size: int
    model: dict[str, float]
    lengths: dict[str, Lengths]
    matmul_flops_per_second: float | None = None
    own_shape_flops_per_second: float | None = None
    losses_agree: bool | None = None
    worst_loss_difference: float | None = None
    rows: list[Result] = field(default_factory=list)
    true_size: dict[str, Any] = field(default_factory=dict)
    goals: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each row that count (default 7)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn, about (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each row (default: all cores)")
    parser.add_argument("--rows", nargs="*", help="only rows whose names hold one of these texts (and the Trainer's)")
    parser.add_argument(
        "--compile", action="store_true", help="artkv against artkv with parts of it under torch.compile, and no peers"
    )
    add_one_by_one_options(parser)
    options = parser.parse_args(arguments)
    if options.size is not None:
        one_by_one(options)
        return
    if options.tiny:
        options.rounds, options.seconds = min(options.rounds, 2), 0.1
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(temporary))


def add_one_by_one_options(parser: argparse.ArgumentParser) -> None:
    """Those of rows that have the card to themselves."""
    alone = parser.add_argument_group("rows one after another")
    alone.add_argument("--size", choices=("true", "tiny"), help="true: BLIP2-OPT-2.7b; tiny: whether this works")
    alone.add_argument("--batches", default="48,192", help="questions a step, of a row each (default 48,192)")
    alone.add_argument("--rows-file", type=Path, help="JSON lines: each row is appended at once")
    alone.add_argument("--limit-seconds", type=float, default=120.0, help="of a row, start included (default 120)")


def one_by_one(options: argparse.Namespace) -> None:
    """artkv's default config, its placements and its peers, a process each, and a table of them."""
    from rows import Session
    from true_rows import Bench, training_rows, training_table

    with tempfile.TemporaryDirectory() as temporary:
        # Few paintings, so that every row reaches an epoch's end.
        paintings = 320 if options.size == "true" else 60
        world = open_world_without_weights(options.folder or Path(temporary, "world"), options.size, paintings)
        seconds = options.seconds * (2.0 if options.size == "true" else 0.1)
        bench = Bench(world, options.size, Path(temporary, "runs"), options.dtype, seconds, options.limit_seconds)
        rows = training_rows(bench, [int(size) for size in options.batches.split(",")])
        if options.rows:
            rows = [row for row in rows if any(wanted in row.name for wanted in options.rows)]
        session = Session(options.rows_file)
        session.run_all(rows)
    print("\n".join(training_table(session.results)), flush=True)
    write_report_of_rows(session.results, options.json)


def write_report_of_rows(results: Sequence[dict[str, Any]], path: Path | None) -> None:
    """All rows as JSON, if it was asked for."""
    if path is not None:
        path.write_text(json.dumps(list(results), indent=2), encoding="utf-8")


def run(options: argparse.Namespace, temporary: Path) -> None:
    """One run, with a folder that does not outlast it."""
    began = time.monotonic()
    folder, size_name = open_world(options, temporary)
    report = new_report(options, folder, size_name)
    rows = chosen_rows(all_rows(options, folder, size_name, temporary), options.rows)
    report.rows = [Result(row.name, row.text) for row in rows if row.kind != "products"]
    environment = {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    contestants: dict[str, Contestant] = {}
    try:
        for number, row in enumerate(rows):
            tell(f"starting {row.name} ({row.text})")
            log = temporary / f"{number}.log"
            contestants[row.name] = Contestant(row.name, row.target, row.arguments, log, environment)
            contestants[row.name].wait_until_ready()  # alone: a feature cache is made by the first that wants it
        compare_losses(rows, contestants, report)
        take_turns(rows, contestants, report, options.rounds, options.seconds)
        for row in rows:
            if row.kind != "products":
                result = result_of(report, row.name)
                result.peak_bytes = contestants[row.name].ask("peak_bytes")
                result.start_bytes = contestants[row.name].start_bytes
                flops, questions = contestants[row.name].count()
                result.flops = flops / questions
    finally:
        for contestant in contestants.values():
            contestant.close()
    compare(rows, report, SIZES[size_name])
    report.seconds = round(time.monotonic() - began, 1)
    print("\n".join(table(report)), flush=True)
    write_report(report, options.json)


def all_rows(options: argparse.Namespace, folder: Path, size_name: str, temporary: Path) -> list[Row]:
    """In the order of their turns: the machine's rate stands between artkv and its peers."""
    size = SIZES[size_name]

    def artkv(name: str, text: str = "alike", **off: bool) -> Row:
        switches = {"cache": True, "packing": True, "answer_logits": True, **off}
        tree = run_settings(folder, size_name, text, temporary / f"run {name}", options.batch, options.dtype, switches)
        way = name.split(";")[0]
        reference = TRAINER if text == "alike" else f"{TRAINER}; questions unlike"
        return Row(name, "artkv", way, text, reference, "artkv_row:run_artkv", (tree, switches["answer_logits"]))

    def peer(name: str, target: str, *more: Any, text: str = "alike", **options_of_row: Any) -> Row:
        arguments = (folder, size_name, text, temporary / f"run {name}", options.batch, options.dtype, *more)
        reference = TRAINER if text == "alike" else f"{TRAINER}; questions unlike"
        way = "stock BLIP-2, last logits only" if "last logits" in name else "stock BLIP-2"
        return Row(name, "peer", way, text, reference, target, arguments, **options_of_row)

    def products(name: str, *shape: int) -> Row:
        return Row(
            name,
            "products",
            "",
            "",
            "",
            "machine_rate:run_products",
            (*shape[:3], options.dtype, shape[3]),
            has_loss=False,
        )

    def compiled(*parts: str) -> Row:
        row = artkv(f"artkv, compiled: {' and '.join(parts)}")
        return replace(row, way="artkv", reference="artkv", arguments=(row.arguments[0], True, parts))

    large = 64 if options.tiny else 2048
    packed_tokens = options.batch * (size.num_queries // QUESTIONS_PER_PAINTING + 18)
    rates = [
        products(_LARGE_PRODUCTS, large, large, large, 4),
        products(_OWN_PRODUCTS, packed_tokens, size.opt_width, 4 * size.opt_width, 2 * size.opt_layers),
    ]
    if options.compile:
        plain = replace(artkv("artkv"), reference="artkv")
        return [plain, compiled("opt"), compiled("trainable"), compiled("opt", "trainable"), *rates]
    return [
        artkv("artkv"),
        artkv("artkv, cache off", cache=False),
        artkv("artkv, packing off", packing=False),
        artkv("artkv, answer-only logits off", answer_logits=False),
        artkv("artkv, all three off", cache=False, packing=False, answer_logits=False),
        *rates,
        peer(TRAINER, "peer_rows:run_trainer", False),
        peer(f"{TRAINER}, last logits only", "peer_rows:run_trainer", True),
        peer("DeepSpeed ZeRO-2, LLaVA style", "peer_rows:run_deepspeed"),
        peer("LAVIS Blip2OPT, plain loop", "peer_rows:run_lavis", has_loss=False),
        artkv("artkv; questions unlike", text="distinct"),
        peer(f"{TRAINER}; questions unlike", "peer_rows:run_trainer", False, text="distinct"),
    ]


def chosen_rows(rows: Sequence[Row], wanted: Sequence[str] | None) -> list[Row]:
    """Those asked for, and what they are compared with."""
    if not wanted:
        return list(rows)
    names = {row.name for row in rows if any(text in row.name for text in wanted)}
    needed = names | {row.reference for row in rows if row.name in names}
    return [row for row in rows if row.name in needed or row.kind == "products"]


def compare_losses(rows: Sequence[Row], contestants: dict[str, Contestant], report: Report) -> None:
    """Raises `SystemExit` where rows that should have the same loss have not; nothing is measured then."""
    rows_of_text: dict[str, list[int]] = {}
    for row in rows:
        if row.kind == "artkv":
            found = contestants[row.name].ask("losses")
            result = result_of(report, row.name)
            result.loss_off, result.loss_on = found["off"], found["on"]
            expected = rows_of_text.setdefault(row.text, found["rows"])
            if sorted(found["rows"]) != sorted(expected):
                raise SystemExit(f"{row.name} begins with other questions than the other rows: {found['rows']}")
    for row in rows:
        if row.kind == "peer":
            first = rows_of_text.get(row.text, list(range(report.batch_size)))
            result_of(report, row.name).loss_off = contestants[row.name].ask("losses", first)
    worst = 0.0
    for text in rows_of_text:
        for name in ("loss_off", "loss_on"):
            losses = [getattr(result_of(report, row.name), name) for row in rows if row.text == text and row.has_loss]
            losses = [loss for loss in losses if loss is not None]
            worst = max(worst, (max(losses) - min(losses)) / min(losses))
    for row in rows:
        if row.kind == "peer" and not row.has_loss:
            result_of(report, row.name).note = "other weights, and a loss on the question too: not compared"
    report.worst_loss_difference = worst
    report.losses_agree = worst <= _LOSS_TOLERANCE[report.dtype]
    tell(f"losses differ by {worst:.1e} at most, {_LOSS_TOLERANCE[report.dtype]:.0e} allowed")
    if not report.losses_agree:
        raise SystemExit("\n".join(["losses differ:", *(f"{r.name}: {r.loss_off} {r.loss_on}" for r in report.rows)]))


def take_turns(
    rows: Sequence[Row], contestants: dict[str, Contestant], report: Report, rounds: int, seconds: float
) -> None:
    """A round to find how many steps a turn has, then `rounds` that count."""
    steps: dict[str, int] = {}
    rates: dict[str, list[float]] = {row.name: [] for row in rows}
    for row in rows:
        contestants[row.name].run(_UNTIMED_STEPS[row.kind], 1)
        took, _ = contestants[row.name].run(1, 2)
        steps[row.name] = max(2, round(2 * seconds / took))
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for row in rows:
            took, questions = contestants[row.name].run(_UNTIMED_STEPS[row.kind], steps[row.name])
            if row.kind == "products":
                rates[row.name].append(steps[row.name] / took)
                continue
            result = result_of(report, row.name)
            result.seconds.append(took)
            result.questions.append(questions)
            result.step_questions = sum(result.questions) / (steps[row.name] * len(result.questions))
            rates[row.name].append(questions / took)
    for row in rows:
        median = statistics.median(rates[row.name])
        if row.kind == "products":
            flops, _ = contestants[row.name].count()
            if row.name == _LARGE_PRODUCTS:
                report.matmul_flops_per_second = median * flops
            else:
                report.own_shape_flops_per_second = median * flops
            continue
        result = result_of(report, row.name)
        result.questions_per_second, result.rounds = median, len(rates[row.name])
        result.slowest, result.fastest = min(rates[row.name]), max(rates[row.name])


def compare(rows: Sequence[Row], report: Report, size: Any) -> None:
    """Ratios, formulas and goals."""
    for row in rows:
        if row.kind == "products":
            continue
        result, reference = result_of(report, row.name), result_of(report, row.reference)
        lengths = report.lengths[row.text]
        result.formula_flops = sum(flops_per_question(size, ways(lengths, size)[row.way]).values())
        result.times_reference = result.questions_per_second / reference.questions_per_second
        result.allowed = reference.flops / result.flops
        result.of_allowed = result.times_reference / result.allowed
        result.of_matmul = result.questions_per_second * result.flops / report.matmul_flops_per_second
    report.true_size = at_true_size(report.lengths)
    best = next((result for result in report.rows if result.name == "artkv"), None)
    if best is not None and any(result.name == TRAINER for result in report.rows):
        found = {"times_trainer": best.times_reference, "of_allowed": best.of_allowed, "of_matmul": best.of_matmul}
        report.goals = {
            name: {"found": value, "goal": _GOALS[name], "reached": value >= _GOALS[name]}
            for name, value in found.items()
        }


def at_true_size(lengths: dict[str, Lengths]) -> dict[str, Any]:
    """FLOPs a question at BLIP2-OPT-2.7b's size by formula: of each row, and of artkv's parts."""
    size = SIZES["true"]
    texts = {
        **lengths,
        **{f"{n} tokens, none shared": Lengths(n, n, n - 1, min(6, n / 2)) for n in (10, 20, 25)},
    }
    tables = {}
    for text, of_text in texts.items():
        rows = {name: flops_per_question(size, work) for name, work in ways(of_text, size).items()}
        stock = sum(rows["stock BLIP-2"].values())
        encoding = rows["artkv, cache off"]
        tables[text] = {
            "flops": {name: sum(parts.values()) for name, parts in rows.items()},
            "times_stock": {name: stock / sum(parts.values()) for name, parts in rows.items()},
            "artkv_parts": rows["artkv"],
            "cache_once_a_picture": (encoding["vit"] + encoding["efficientnet"]) * QUESTIONS_PER_PAINTING,
        }
    return tables


def new_report(options: argparse.Namespace, folder: Path, size_name: str) -> Report:
    """A report on this machine with nothing measured yet."""
    import torch
    from transformers import AutoTokenizer

    from artkv.models.backbone.backends import resolve_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder / "blip2")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    return Report(
        date=time.strftime("%Y-%m-%d"),
        machine=f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}",
        threads=options.threads,
        dtype=str(resolve_dtype(options.dtype, device)).removeprefix("torch."),
        batch_size=options.batch,
        model=proportions(SIZES[size_name]),
        lengths={
            text: lengths_of(read_questions(folder / f"{text}.csv"), tokenizer, options.batch)
            for text in ("alike", "distinct")
        },
    )


def cpu_name() -> str:
    """The processor's name, as Linux tells it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def table(report: Report) -> list[str]:
    """The report as lines of Markdown."""
    model = report.model
    lines = [
        f"{report.date}; {report.machine}; {report.threads} threads, {report.dtype}, "
        f"{report.batch_size} questions a step; {report.seconds:.0f} s",
        f"Model: ViT {model['vit'] / 1e6:.1f}M, OPT {model['opt_blocks'] / 1e6:.1f}M + "
        f"{model['vocabulary'] / 1e6:.1f}M vocabulary ({model['vocabulary_of_opt']:.1%} of OPT), Q-Former "
        f"{model['qformer'] / 1e6:.1f}M; OPT is {model['opt_to_vit']:.2f} x ViT",
        *(
            f"Questions {text}: {lengths.mean_tokens:.1f} text tokens, {lengths.own_tokens:.1f} left where a "
            f"painting's questions share their beginnings, {lengths.answer_tokens:.1f} with a loss"
            for text, lengths in report.lengths.items()
        ),
        f"Products: {rate_text(report.matmul_flops_per_second)} large, "
        f"{rate_text(report.own_shape_flops_per_second)} of OPT's shape",
        f"Losses on the same questions before the first step differ by {number(report.worst_loss_difference, '.1e')} "
        f"at most ({_LOSS_TOLERANCE[report.dtype]:.0e} allowed)",
        "",
        "| row | questions/s (slowest to fastest) | x reference | GFLOP/question (formula) | FLOPs allow | of that | "
        "of products' rate | MB at the start, peak | loss off / on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report.rows:
        cells = [
            r.name,
            f"{number(r.questions_per_second, '.2f')} ({number(r.slowest, '.2f')} to {number(r.fastest, '.2f')})",
            number(r.times_reference, ".2f"),
            f"{scaled(r.flops, 1e9, '.3f')} ({scaled(r.formula_flops, 1e9, '.3f')})",
            number(r.allowed, ".2f"),
            number(r.of_allowed, ".0%"),
            number(r.of_matmul, ".0%"),
            f"{scaled(r.start_bytes, 1e6, '.0f')}, {scaled(r.peak_bytes, 1e6, '.0f')}",
            r.note or f"{number(r.loss_off, '.5f')} / {number(r.loss_on, '.5f')}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, goal in report.goals.items():
        text = "reached" if goal["reached"] else "MISSED"
        lines.append(f"Goal {name}: {goal['found']:.2f}, wanted {goal['goal']:.2f}: {text}")
    return [*lines, "", *true_size_lines(report)]


def true_size_lines(report: Report) -> list[str]:
    """FLOPs at the true size, and what they are spent on."""
    names = list(next(iter(report.true_size.values()))["flops"])
    lines = [
        "At BLIP2-OPT-2.7b's size, by formula, GFLOP a question (x stock BLIP-2):",
        "",
        f"| questions | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for text, found in report.true_size.items():
        cells = [f"{found['flops'][name] / 1e9:.0f} ({found['times_stock'][name]:.2f}x)" for name in names]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    first = report.true_size["alike"]
    parts = first["artkv_parts"]
    total = sum(parts.values())
    spent = ", ".join(f"{name} {value / total:.1%}" for name, value in parts.items() if value)
    once = first["cache_once_a_picture"]
    lines += [
        "",
        f"What bounds artkv there: {spent}. OPT's weights meet each text token once forward and once backward.",
        f"The feature cache costs {once / 1e9:.0f} GFLOP a picture, once: over ten epochs of six questions "
        f"{once / (10 * QUESTIONS_PER_PAINTING) / total:.1%} of artkv's work; it is no part of the table.",
    ]
    return lines


def result_of(report: Report, name: str) -> Result:
    """The report's row of that name."""
    return next(result for result in report.rows if result.name == name)


def rate_text(rate: float | None) -> str:
    """FLOP/s, in G."""
    return f"{scaled(rate, 1e9, '.0f')} GFLOP/s"


def scaled(value: float | None, unit: float, form: str) -> str:
    """The value in that unit; `-` where it was not measured."""
    return "-" if value is None else format(value / unit, form)


def number(value: float | None, form: str) -> str:
    """`-` for None."""
    return "-" if value is None else format(value, form)


def tell(text: str) -> None:
    """Progress, on stderr: the table alone is on stdout."""
    print(f"throughput: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
