"""What a museum's data costs a start of training: a million questions about a hundred thousand paintings.

    python benchmarks/museum.py --folder /tmp/museum
    python benchmarks/museum.py --folder /tmp/small --questions 2000 --paintings 200 --batches 5    # whether it works

Makes the museum unless the folder has it: CSV files of all questions and of a hundredth of them, and one small JPEG
under as many names as there are paintings, as loose files, in tars of ten thousand, and in an Arrow dataset. For each
of these three forms two processes start one after the other, with a cache of their own that the first finds empty. Each
does what a training does until its first batch, without any model and without a feature cache: lists the pictures,
reads the table, checks all rows, decodes every picture, hashes the rows, makes token ids (by a tokenizer that it trains
on a few words), plans an epoch, and has the loader decode, view and pack a batch of up to 16 questions. It tells

- the seconds of these parts, imports left out, and of all until the first batch;
- how far its resident memory has grown since the imports by then, what of that is its own (the rest are pages of files,
  which processes share), and how far it had grown at its peak, each in bytes a question;
- questions a second of the batches that follow, in turns with those of the hundredth: their ratio says what size costs.

Pictures are of 32 x 24 pixels, so that the rates, and the time of the check, are those of all but decoding large ones.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

ROOTS = {"folder": "images", "tars": "shards", "arrow": "saved"}
_MEMBERS = 10_000
_SMALLER = 100
_BATCH_SIZE = 16
_WORKERS = 2
_TURNS = 5
_COLUMNS = (
    "from", "start", "table, s", "hash, s", "tokens, s", "plan, s", "first batch, s", "all, s", "resident, B/question",
    "own, B/question", "peak, B/question", "questions/s", "of a hundredth", "ratio",
)  # fmt: skip


def make(folder: Path, num_questions: int, num_paintings: int) -> None:
    """The CSV files, and the pictures in all forms."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (32, 24), (90, 60, 30)).save(content, "JPEG")
    picture = content.getvalue()
    for root in ROOTS.values():
        (folder / root).mkdir(parents=True)
    for start in range(0, num_paintings, _MEMBERS):
        names = [f"{number:07}.jpg" for number in range(start, min(start + _MEMBERS, num_paintings))]
        number = start // _MEMBERS
        (folder / f"images/{number:05}").mkdir()
        for name in names:
            (folder / f"images/{number:05}" / name).write_bytes(picture)
        with tarfile.open(folder / f"shards/{number:05}.tar", "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(picture)
                tar.addfile(member, io.BytesIO(picture))
        _write_arrow(folder / f"saved/data-{number:05}.arrow", names, picture)
    for name, questions in (("small.csv", num_questions // _SMALLER), ("train.csv", num_questions)):
        with (folder / name).open("w") as file:
            file.write("image,question,answer\n")
            for row in range(questions):
                painting = row * num_paintings // num_questions
                file.write(f"{painting:07}.jpg,Who painted picture {row} of the collection?,painter {painting % 997}\n")


def _write_arrow(path: Path, names: list[str], picture: bytes) -> None:
    """A file as `Dataset.save_to_disk` writes it, a thousand rows a batch."""
    import pyarrow

    rows = [{"bytes": picture, "path": name} for name in names]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"image": pyarrow.array(rows, kind)})
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


def _memory() -> dict[str, int]:
    """Bytes of this process: resident (VmRSS), of these its own (RssAnon), and the most there were (VmHWM)."""
    found = re.findall(r"^(VmRSS|RssAnon|VmHWM):\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return {name: 1024 * int(number) for name, number in found}


def begin(folder: Path, csv_name: str, root: str) -> tuple[list[float], Iterator[list[Any]]]:
    """When each part of a start began, and at last when the first batch was there; and the loader of those after it."""
    from artkv.datasets.batches import training_loader
    from artkv.datasets.checked_tables import read_checked_tables
    from artkv.datasets.data_hash import data_hash_of
    from artkv.datasets.kept_tokens import kept_tokens
    from artkv.datasets.order import plan_epoch
    from artkv.datasets.packing import PackingSettings
    from artkv.datasets.painting_source import DecodedPictures
    from artkv.datasets.pictures import PaintingTransform, View
    from artkv.datasets.question_set import QuestionSet
    from artkv.distributed import single_process
    from artkv.quickstart.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["Who painted picture 0 of the collection?", "painter 123456789"])
    world = single_process()
    at = [time.perf_counter()]
    (table,) = read_checked_tables([folder / csv_name], folder / root, world)
    at.append(time.perf_counter())
    data_hash_of(table, folder / root)
    at.append(time.perf_counter())
    tokenized, _ = kept_tokens(table, tokenizer, "Question: {question} Short answer:")
    at.append(time.perf_counter())
    plan = plan_epoch(table.painting_of_row, _BATCH_SIZE, 0, 0)
    at.append(time.perf_counter())
    paintings = DecodedPictures(table, PaintingTransform(View(224, (0.5,) * 3, (0.5,) * 3, True)))
    questions, packing = QuestionSet(table, tokenized, paintings), PackingSettings(32, 2560)
    batches = training_loader(questions, plan, 0, 1, world, _WORKERS, packing)
    next(batches)
    at.append(time.perf_counter())
    return at, batches


def start(folder: Path, form: str, num_batches: int) -> dict[str, float]:
    """One start, in this process; see the script's first lines."""
    import artkv.session  # noqa: F401  # all that a training imports, so that none of it counts

    before = _memory()
    at, batches = begin(folder, "train.csv", ROOTS[form])
    grown = {name: number - before[name] for name, number in _memory().items()}
    _, batches_of_few = begin(folder, "small.csv", ROOTS[form])
    seconds, questions = [0.0, 0.0], [0, 0]
    for _ in range(_TURNS):
        for place, loader in enumerate((batches, batches_of_few)):
            clock = time.perf_counter()
            questions[place] += sum(len(batch.rows) for (batch,) in islice(loader, num_batches // _TURNS))
            seconds[place] += time.perf_counter() - clock
    rate, rate_of_few = (number / taken for number, taken in zip(questions, seconds, strict=True))
    with (folder / "train.csv").open() as file:
        rows = sum(1 for _ in file) - 1
    parts = [round(later - earlier, 2) for earlier, later in pairwise(at)]
    memory = [round(grown[name] / rows) for name in ("VmRSS", "RssAnon", "VmHWM")]
    rates = (round(rate), round(rate_of_few), round(rate / rate_of_few, 2))
    return dict(zip(_COLUMNS[2:], (*parts, round(at[-1] - at[0], 2), *memory, *rates), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the museum if it is not there, starts from each form of it twice, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--paintings", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=500, help="whose rate is measured")
    parser.add_argument("--forms", nargs="+", choices=ROOTS, default=list(ROOTS))
    parser.add_argument("--start", choices=ROOTS, help="one start, in this process")
    args = parser.parse_args(arguments)
    if args.start:
        print(json.dumps(start(args.folder, args.start, args.batches)))
        return
    if not (args.folder / "train.csv").exists():
        make(args.folder, args.questions, args.paintings)
        time.sleep(2.5)  # what is younger is not remembered
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    for form in args.forms:
        cache = args.folder / f"cache-{form}-{os.getpid()}"
        for which in ("first", "second"):
            command = [sys.executable, __file__, "--folder", str(args.folder), "--batches", str(args.batches)]
            told = subprocess.run(
                [*command, "--start", form], env={**os.environ, "ARTKV_CACHE": str(cache)}, check=True,
                stdout=subprocess.PIPE, text=True,
            ).stdout  # fmt: skip
            values = [f"{value:,}" for value in json.loads(told).values()]
            print(f"| {form} | {which} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
