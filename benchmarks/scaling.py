"""Weak scaling from one rank to two on this machine, and what it says of 8 to 1024 GPUs.

    python benchmarks/scaling.py --json scaling.json
    python benchmarks/scaling.py --tiny            # a toy model: whether the script works

Each rank is `artkv train` with one thread and the same questions a step, in turns with the others: one rank alone; two
ranks of one run; two runs of one rank at the same time, which do not communicate (what two ranks lose against those is
artkv's and DeepSpeed's, what those lose against one alone is the machine's); and two ranks that do nothing but the
counted collectives. The model of many GPUs adds up computing, waiting for the rank with the longest texts, and sending;
it is checked against the two ranks first.
"""

import argparse
import math
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from communication import sent_bytes, sent_bytes_an_element
from flop_count import flops_per_question, ways
from random_world import (
    SIZES,
    Size,
    add_options,
    lengths_of,
    open_world,
    read_questions,
    run_settings,
    write_report,
)
from turns import Contestant

_GOAL = 0.9
_RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
_GPUS_PER_NODE = 8
# What large collectives reach of a link's rate (NCCL's own tests show 0.8 to 0.9).
_LINK_SHARE = 0.8
# Between two GPUs of a node, and of two nodes: the start of a message, in seconds.
_LATENCY_INSIDE, _LATENCY_BETWEEN = 5e-6, 15e-6


@dataclass(frozen=True)
class Cluster:
    """A kind of cluster, with each number's source.

    flops_per_second: of a GPU in bf16, 40% of the data sheet's dense peak. inside, between: bytes a second that a GPU
    sends inside its node (one direction), and that it has of the node's network when all its GPUs send.
    """

    name: str
    flops_per_second: float
    inside: float
    between: float
    source: str


CLUSTERS = (
    Cluster("H100, NVLink 4, 400 Gb/s InfiniBand a GPU", 0.4 * 989e12, 450e9, 50e9,
            "NVIDIA H100 data sheet: 989 TFLOP/s bf16, NVLink 900 GB/s both directions; ConnectX-7 NDR 400 Gb/s"),
    Cluster("A100, NVLink 3, 200 Gb/s InfiniBand a GPU", 0.4 * 312e12, 300e9, 25e9,
            "NVIDIA A100 data sheet: 312 TFLOP/s bf16, NVLink 600 GB/s both directions; ConnectX-6 HDR 200 Gb/s"),
    Cluster("A100, NVLink 3, 25 GbE a node", 0.4 * 312e12, 300e9, 25e9 / 8 / _GPUS_PER_NODE,
            "the same, with one 25 Gb/s Ethernet port for the eight GPUs of a node"),
)  # fmt: skip


@dataclass
class Report:
    """All that is printed and written; seconds are medians of a step."""

    machine: str
    dtype: str
    batch_size: int
    trainable_bytes: int = 0
    one: float = 0.0
    two: float = 0.0
    two_apart: float = 0.0
    collectives_alone: float = 0.0
    rounds: int = 0
    weak_scaling: float = 0.0
    against_two_apart: float = 0.0
    collectives: dict[str, tuple[int, int]] = field(default_factory=dict)
    sent_bytes: float = 0.0
    sent_bytes_an_element: float = 0.0
    predicted_two: float = 0.0
    token_deviation: float = 0.0
    true_trainable_elements: int = 0
    model: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each that count (default 7)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn, about (default 5)")
    parser.add_argument("--gpu-batch", type=int, default=96, help="questions a step and GPU in the model (default 96)")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.rounds, options.seconds = min(options.rounds, 2), 0.1
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(temporary))


def run(options: argparse.Namespace, temporary: Path) -> None:
    """One run, with a folder that does not outlast it."""
    began = time.monotonic()
    folder, size_name = open_world(options, temporary)
    report = Report("ranks of one thread each", options.dtype, options.batch)
    groups: dict[str, list[Contestant]] = {}

    def start(name: str, target: str, place: Sequence[tuple[int, int]], arguments_of: Any) -> None:
        """Starts a group; place: rank and world size of each process, world size 0 for no launcher."""
        tell(f"starting {name}")
        port = free_port()
        members = groups.setdefault(name, [])
        for number, (rank, size) in enumerate(place):
            environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            if size:
                environment |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                    "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                }  # fmt: skip
            label = f"{name} {number}"
            log = temporary / f"{label}.log"
            members.append(Contestant(label, target, arguments_of(number), log, environment))
        for member in members:
            member.wait_until_ready()

    def training(name: str) -> Any:
        switches = {"cache": True, "packing": True, "answer_logits": True}

        def arguments_of(number: int) -> tuple[Any, ...]:
            # Ranks of one run share its folder; runs apart have their own.
            output = temporary / (f"run {name} {number}" if name == "two apart" else f"run {name}")
            tree = run_settings(folder, size_name, "alike", output, options.batch, options.dtype, switches)
            return tree, True

        return arguments_of

    try:
        start("one", "artkv_row:run_artkv", [(0, 0)], training("one"))
        start("two", "artkv_row:run_artkv", [(0, 2), (1, 2)], training("two"))
        start("two apart", "artkv_row:run_artkv", [(0, 0), (0, 0)], training("two apart"))
        trainables = groups["two"][0].ask("trainables")
        report.trainable_bytes = sum(elements * size for elements, size in trainables)
        for member in groups["two"]:
            member.begin_count("communication:StepBytes")
        counted = [member.finish()[0] for member in groups["two"]]
        report.collectives = counted[0]
        report.sent_bytes = sent_bytes(report.collectives, 2)
        elements = sum(elements for elements, _ in trainables)
        report.sent_bytes_an_element = sent_bytes_an_element(report.collectives, elements, trainables[0][1])
        start("collectives", "communication:run_collectives", [(0, 2), (1, 2)], lambda _: (report.collectives,))
        medians = take_turns(groups, options.rounds, options.seconds)
    finally:
        for members in groups.values():
            for member in members:
                member.close()
    report.one, report.two, report.two_apart = medians["one"], medians["two"], medians["two apart"]
    report.collectives_alone, report.rounds = medians["collectives"], options.rounds
    report.weak_scaling = report.one / report.two
    report.against_two_apart = report.two_apart / report.two
    from transformers import AutoTokenizer

    rows = read_questions(folder / "alike.csv")
    tokenizer = AutoTokenizer.from_pretrained(folder / "blip2")
    report.token_deviation = deviation(rows, tokenizer, options.batch)
    report.predicted_two = (
        report.two_apart * (1 + expected_maximum(2) * report.token_deviation) + report.collectives_alone
    )
    lengths = lengths_of(rows, tokenizer, options.batch)
    report.true_trainable_elements = trainable_elements(SIZES["true"])
    flops = sum(flops_per_question(SIZES["true"], ways(lengths, SIZES["true"])["artkv"]).values())
    batch_deviation = report.token_deviation * math.sqrt(options.batch / options.gpu_batch)
    sent = report.sent_bytes_an_element * report.true_trainable_elements
    report.model = [
        row for cluster in CLUSTERS for row in many_gpus(cluster, flops * options.gpu_batch, sent, batch_deviation)
    ]
    report.seconds = round(time.monotonic() - began, 1)
    print("\n".join(table(report, options.gpu_batch, flops)), flush=True)
    write_report(report, options.json)


def take_turns(groups: dict[str, list[Contestant]], rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds of a step of each group, its slowest member's."""
    steps: dict[str, int] = {}
    found: dict[str, list[float]] = {name: [] for name in groups}
    for number in range(-1, rounds):
        tell(f"round {number + 1} of {rounds}" if number >= 0 else "finding how many steps a turn has")
        for name, members in groups.items():
            count = 3 if number < 0 else steps[name]
            for member in members:
                member.begin(4, count)
            took = max(member.finish()[0] for member in members) / count
            if number < 0:
                steps[name] = max(3, round(seconds / took))
            else:
                found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}


def trainable_elements(size: Size) -> int:
    """Cross-attention with its output and LayerNorm in every second Q-Former layer, and the prefix generator."""
    width = size.qformer_width
    layers = -(-size.qformer_layers // 2)
    attention = 2 * (width**2 + width) + 2 * (size.vit_width * width + width) + 2 * width
    mlp = (size.feature_dim + 1) * width + (width + 1) * size.prefix_tokens * width
    return layers * attention + mlp + size.prefix_tokens * width + 2 * (width + 1) * width


def deviation(rows: Sequence[dict[str, str]], tokenizer: object, batch_size: int) -> float:
    """Standard deviation of OPT's tokens in a packed batch, over their mean."""
    totals = [
        lengths_of(rows[first : first + batch_size], tokenizer, batch_size).own_tokens
        for first in range(0, len(rows) - batch_size + 1, batch_size)
    ]
    return statistics.pstdev(totals) / statistics.mean(totals)


def expected_maximum(ranks: int) -> float:
    """Of `ranks` standard normal numbers, the mean of the largest (Blom's approximation)."""
    return statistics.NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def many_gpus(cluster: Cluster, step_flops: float, sent: float, token_deviation: float) -> list[dict[str, Any]]:
    """The model's rows for one kind of cluster: seconds of a step by what they go to, and the efficiency.

    sent: bytes that each of very many ranks sends in a step. Rings inside the nodes, each GPU carrying its eighth of
    them between nodes.
    """
    computing = step_flops / cluster.flops_per_second
    rows = []
    for ranks in _RANKS:
        nodes = max(1, ranks // _GPUS_PER_NODE)
        inside = sent * (_GPUS_PER_NODE - 1) / _GPUS_PER_NODE / (cluster.inside * _LINK_SHARE)
        between = sent / _GPUS_PER_NODE * (nodes - 1) / nodes / (cluster.between * _LINK_SHARE)
        latency = 2 * (3 * _LATENCY_INSIDE + math.ceil(math.log2(nodes)) * _LATENCY_BETWEEN)
        waiting = computing * token_deviation * expected_maximum(ranks)
        whole = computing + waiting + inside + between + latency
        rows.append(
            {
                "cluster": cluster.name, "gpus": ranks, "computing": computing, "waiting": waiting,
                "sending": inside + between + latency, "efficiency": computing / whole,
            }
        )  # fmt: skip
    return rows


def table(report: Report, gpu_batch: int, flops: float) -> list[str]:
    """The report as lines of Markdown."""
    reached = "reached" if report.weak_scaling >= _GOAL else "MISSED"
    wrong = report.predicted_two / report.two - 1
    lines = [
        f"{report.machine}, {report.dtype}, {report.batch_size} questions a step and rank, {report.rounds} rounds",
        "",
        "| what runs | ms a step | of one rank's rate |",
        "|---|---|---|",
        f"| one rank | {1e3 * report.one:.1f} | 100% |",
        f"| two ranks | {1e3 * report.two:.1f} | {report.weak_scaling:.0%} |",
        f"| two runs of one rank at once | {1e3 * report.two_apart:.1f} | {report.one / report.two_apart:.0%} |",
        f"| two ranks, collectives alone | {1e3 * report.collectives_alone:.2f} | |",
        "",
        f"Weak scaling {report.weak_scaling:.2f}, goal {_GOAL}: {reached}; {report.against_two_apart:.2f} of what this "
        "machine gives two runs that do not communicate",
        f"A rank sends {report.sent_bytes / 1e6:.2f} MB a step, {report.sent_bytes / report.trainable_bytes:.2f} x its "
        f"{report.trainable_bytes / 1e6:.2f} MB of trainables: "
        + ", ".join(f"{calls} {name} of {size / 1e6:.3f} MB" for name, (calls, size) in report.collectives.items()),
        f"Model for two ranks: {1e3 * report.predicted_two:.1f} ms, {wrong:+.1%} of what was measured (texts of a "
        f"batch deviate by {report.token_deviation:.1%})",
        "",
        f"BLIP2-OPT-2.7b, {report.true_trainable_elements / 1e6:.1f}M trainables, {gpu_batch} questions a step and GPU "
        f"of {flops / 1e9:.0f} GFLOP each; {report.sent_bytes_an_element:.0f} "
        f"bytes sent for each trainable element (as counted, weights in bf16), nothing overlapped:",
        "",
        f"| cluster | {' | '.join(f'{ranks} GPUs' for ranks in _RANKS)} |",
        f"|---|{'---|' * len(_RANKS)}",
    ]
    for cluster in CLUSTERS:
        rows = [row for row in report.model if row["cluster"] == cluster.name]
        cells = [
            f"{row['efficiency']:.0%} ({1e3 * row['computing']:.0f} + {1e3 * row['waiting']:.1f} + "
            f"{1e3 * row['sending']:.1f} ms)"
            for row in rows
        ]
        lines.append(f"| {cluster.name} | {' | '.join(cells)} |")
    lines += ["", "Milliseconds: computing, waiting for the longest texts, sending. Sources:"]
    return [*lines, *(f"- {cluster.name}: {cluster.source}" for cluster in CLUSTERS)]


def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def tell(text: str) -> None:
    """Progress, on stderr: the tables alone are on stdout."""
    print(f"scaling: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
