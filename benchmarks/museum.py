"""What a million questions about a hundred thousand paintings cost, from a folder and from tar shards.

    python benchmarks/museum.py --folder /tmp/museum

Pictures are the same few bytes under many names. Each start is a process of its own: it reads and checks the table,
decodes nothing that it need not, tokenises, and makes batches without a model. Decoding checks of the first start are
measured over all paintings. A line of JSON a start, `peak_rss` beside what the interpreter takes with all imports.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path

_SHARD = 10_000  # members
_BATCHES = 40
_QUESTIONS_A_BATCH = 16


def make(folder: Path, num_questions: int, num_paintings: int) -> None:
    """The CSV file, the folder of pictures and the shards."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (32, 24), (90, 60, 30)).save(content, "JPEG")
    picture = content.getvalue()
    for start in range(0, num_paintings, _SHARD):
        names = [f"{number:07}.jpg" for number in range(start, min(start + _SHARD, num_paintings))]
        sub = folder / "images" / f"{start // _SHARD:05}"
        sub.mkdir(parents=True)
        (folder / "shards").mkdir(exist_ok=True)
        with tarfile.open(folder / "shards" / f"{start // _SHARD:05}.tar", "w") as tar:
            for name in names:
                (sub / name).write_bytes(picture)
                info = tarfile.TarInfo(name)
                info.size = len(picture)
                tar.addfile(info, io.BytesIO(picture))
    with (folder / "train.csv").open("w") as file:
        file.write("image,question,answer\n")
        for row in range(num_questions):
            painting = row * num_paintings // num_questions
            file.write(f"{painting:07}.jpg,Who painted picture {row} of the collection?,painter {painting % 997}\n")


def _rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(folder: Path, root: str) -> dict[str, float]:
    """Seconds of each part of a start, bytes and questions a second, in this process."""
    import numpy as np

    from artkv.datasets.batches import BatchMaker
    from artkv.datasets.image_index import ImageIndex
    from artkv.datasets.kept_tokens import kept_tokens
    from artkv.datasets.order import MicroBatch
    from artkv.datasets.painting_source import DecodedPictures
    from artkv.datasets.pictures import PaintingTransform, View
    from artkv.datasets.question_set import QuestionSet
    from artkv.datasets.table import read_table
    from artkv.quickstart.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["Who painted picture 0 of the collection?", "painter 123456789"])
    before, clock = _rss(), time.perf_counter()
    images = ImageIndex(folder / root)
    index_seconds = time.perf_counter() - clock
    table = read_table(folder / "train.csv", images)
    table_seconds = time.perf_counter() - clock - index_seconds
    peak_of_table = _rss() - before
    tokenized, _ = kept_tokens(table, tokenizer, "Question: {question} Short answer:")
    all_seconds = time.perf_counter() - clock
    columns = (table.questions, table.answers, table.question_ids, table.question_types)
    table_bytes = sum(column.num_bytes for column in columns) + table.line_numbers.nbytes + table.painting_of_row.nbytes
    token_bytes = sum(part.nbytes for part in (tokenized.token_ids, tokenized.offsets, tokenized.answer_starts))
    view = View(224, (0.5,) * 3, (0.5,) * 3, True)
    maker = BatchMaker(QuestionSet(table, tokenized, DecodedPictures(table, PaintingTransform(view))))
    order = np.random.default_rng(0).permutation(len(table) // _QUESTIONS_A_BATCH)
    clock = time.perf_counter()
    for number in islice(order.tolist(), _BATCHES):
        rows = np.arange(number * _QUESTIONS_A_BATCH, (number + 1) * _QUESTIONS_A_BATCH)
        maker(MicroBatch(rows, False))
    batch_seconds = time.perf_counter() - clock
    return {
        "index_s": round(index_seconds, 2),
        "table_s": round(table_seconds, 2),
        "tokens_s": round(all_seconds - index_seconds - table_seconds, 2),
        "start_s": round(all_seconds, 2),
        "table_bytes_a_question": round(table_bytes / len(table), 1),
        "token_bytes_a_question": round(token_bytes / len(table), 1),
        "peak_rss_bytes_a_question": round(peak_of_table / len(table)),
        "questions_a_second": round(_BATCHES * _QUESTIONS_A_BATCH / batch_seconds),
    }


def main() -> None:
    """Makes the museum if it is not there, and starts from either form of it, twice each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--paintings", type=int, default=100_000)
    parser.add_argument("--root", choices=["images", "shards"], help="one start, in this process")
    args = parser.parse_args()
    if args.root:
        print(json.dumps(start(args.folder, args.root)))
        return
    if not (args.folder / "train.csv").exists():
        make(args.folder, args.questions, args.paintings)
        time.sleep(2.5)  # younger tars are not remembered
    for root in ("images", "shards"):
        environment = {**os.environ, "ARTKV_CACHE": str(args.folder / f"cache-{root}")}
        for which in ("first", "second"):
            command = [sys.executable, __file__, "--folder", str(args.folder), "--root", root]
            told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            print(json.dumps({"from": root, "start": which, **json.loads(told)}), flush=True)


if __name__ == "__main__":
    main()
