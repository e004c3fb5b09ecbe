"""How fast a feature cache is read, and how long training waits for its data, with a cache and without.

    python benchmarks/feature_cache.py reading  --folder /some/disk/features
    python benchmarks/feature_cache.py training --folder /some/disk/midsize

`reading` writes random records of ViT-g's size (257 x 1408 bfloat16 and 1536 float32, 0.73 MB) and reads
batches of them in random order: by `CachedPaintings`, as training does; by copying out of a mapping, the
other way to read them once; from the page cache and, dropped from it, from the disk; and through the
loader. `training` makes a random model of BLIP-2's proportions (ViT 9.7M, OPT
25M), paintings of 1024 x 768 pixels and an untrained EfficientNet-B3, and trains on them through `artkv train`.
"""

import argparse
import csv
import gc
import json
import mmap
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessor

from artkv.config import load_config
from artkv.datasets.batches import training_loader
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.order import plan_epoch
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import read_table
from artkv.datasets.tokenized_table import tokenize_table
from artkv.distributed import process_group, single_process
from artkv.feature_cache.reading import CachedPaintings, Records
from artkv.feature_cache.shards import RECORDS_A_SHARD, Shard, read_header, write_shard
from artkv.models.timm_networks import create_network
from artkv.quickstart.tokenizer import train_tokenizer
from artkv.training.run import train

_TEXTS = [f"Question: Which thing is in painting {n}, in which style? Short answer: impressionism\n" for n in range(40)]
_QUESTIONS_A_PAINTING = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("reading", "training"))
    parser.add_argument("--folder", type=Path, required=True, help="made if it is missing; reused")
    parser.add_argument("--records", type=int, default=1024, help="records to read (default 1024, 0.75 GB)")
    parser.add_argument("--paintings", type=int, default=4, help="paintings a batch (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each way is measured, in turns (default 5)")
    parser.add_argument("--steps", type=int, default=60, help="training steps of each kind, about (default 60)")
    options = parser.parse_args()
    if options.what == "reading":
        measure_reading(options.folder, options.records, options.paintings, options.rounds)
    else:
        measure_training(options.folder, options.steps)


def measure_reading(folder: Path, num_records: int, per_batch: int, rounds: int) -> None:
    """Prints a table of rates, and what the process has grown by."""
    of_vit = _random_shards(folder / "vit", num_records, (257, 1408), torch.bfloat16)
    of_art = _random_shards(folder / "efficientnet", num_records, (1536,), torch.float32)
    places = np.array([(n, row) for n, shard in enumerate(of_vit) for row in range(len(shard.contents))])
    and_blank = np.vstack([places, places[:1]])
    source = CachedPaintings(Records(of_vit, and_blank), [Records(of_art, and_blank)])
    order = np.random.default_rng(0).permutation(num_records)
    batches = [order[start : start + per_batch] for start in range(0, num_records, per_batch)]
    table = _table(folder, num_records)
    tokenizer = train_tokenizer(_TEXTS, vocab_size=400)
    tokenized, _ = tokenize_table(table, tokenizer, "Question: {question} Short answer:")
    questions = QuestionSet(table, tokenized, source)
    plan = plan_epoch(table.painting_of_row, per_batch * _QUESTIONS_A_PAINTING, seed=0, epoch=0)

    def by_thread() -> None:
        for _ in training_loader(questions, plan, 0, 1, single_process(), workers=1):
            pass

    def by_reading() -> None:
        for numbers in batches:
            source.load(numbers, numbers, pin_memory=False)

    def by_mapping() -> list[torch.Tensor]:
        maps = [[_mapped(shard) for shard in shards] for shards in (of_vit, of_art)]
        for numbers in batches:
            for of_one in maps:
                torch.stack([of_one[places[n][0]][places[n][1]] for n in numbers])
        return [one for of_one in maps for one in of_one]  # alive until the process's size is taken

    def from_disk() -> None:
        for shard in [*of_vit, *of_art]:
            with shard.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        by_reading()

    ways: dict[str, Callable[[], object]] = {
        "preadv into the batch (artkv)": by_reading,
        "copy out of a mapping": by_mapping,
        "preadv, files dropped from the page cache": from_disk,
        "the loader, one worker, with texts (artkv)": by_thread,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    grown: dict[str, int] = {}
    for way in ways.values():
        way()  # warm
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            before, began = _resident_bytes(), time.perf_counter()
            kept = way()
            seconds[name].append(time.perf_counter() - began)
            grown[name] = _resident_bytes() - before
            del kept
    record_bytes = of_vit[0].features.record_bytes + of_art[0].features.record_bytes
    print(f"{num_records} records of {record_bytes / 1e6:.3f} MB, {per_batch} a batch, medians of {rounds} rounds")
    print(f"{'':44}{'GB/s':>7}{'records/s':>11}{'grown by MB':>13}")
    for name, times in seconds.items():
        median = statistics.median(times)
        rate = num_records / median
        print(f"{name:<44}{rate * record_bytes / 1e9:>7.2f}{rate:>11.0f}{grown[name] / 1e6:>13.1f}")


def measure_training(folder: Path, steps: int) -> None:
    """Prints what training waited for, for each way to feed it, from metrics.jsonl."""
    if not (folder / "config.yaml").is_file():
        _make_midsize(folder, num_paintings=max(16, steps * 2))
    print(f"{torch.get_num_threads()} threads; shares and seconds are medians over the logged steps but the first")
    print(f"{'':34}{'waits for data':>15}{'s/step':>9}{'questions/s':>13}{'first step s':>14}{'peak host GB':>14}")
    with process_group(timeout_minutes=30) as world:
        for name, settings in {
            "no cache, 1 worker": ["dataset.workers=1"],
            "no cache, 2 workers": ["dataset.workers=2"],
            "cache, first use": [f"frozen.feature_cache={folder / 'features'}"],
            "cache, complete": [f"frozen.feature_cache={folder / 'features'}"],
        }.items():
            run_dir = folder / "runs" / name.replace(" ", "_").replace(",", "")
            for old in (run_dir, folder / "features") if name == "cache, first use" else (run_dir,):
                shutil.rmtree(old, ignore_errors=True)
            train(load_config(folder / "config.yaml", [*settings, f"run.output_dir={run_dir}"]), None, world)
            records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
            first, *rest = [record for record in records if record["kind"] == "train"]
            share, seconds, rate = (
                statistics.median(record[key] for record in rest)
                for key in ("data_wait_share", "step_seconds", "questions_per_second")
            )
            print(
                f"{name:<34}{share:>15.1%}{seconds:>9.3f}{rate:>13.1f}{first['step_seconds_max']:>14.2f}"
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:>14.2f}",
                flush=True,
            )


def _random_shards(folder: Path, num_records: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Shard]:
    """Shards of random records, their keys being numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    shards = []
    for start in range(0, num_records, RECORDS_A_SHARD):
        contents = [f"{n:064x}" for n in range(start, min(start + RECORDS_A_SHARD, num_records))]
        write_shard(folder, "", contents, torch.randn(len(contents), *shape, generator=generator).to(dtype))
        shards.append(read_header(max(folder.glob("features-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)))
    return shards


def _mapped(shard: Shard) -> torch.Tensor:
    with shard.path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    block = shard.features
    whole = torch.frombuffer(mapped, dtype=torch.uint8)[block.offset :][: len(shard.contents) * block.record_bytes]
    return whole.view(len(shard.contents), -1)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def _table(folder: Path, num_paintings: int):  # type: ignore[no-untyped-def]
    """A table whose pictures are there and empty: only their features are read."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in range(num_paintings):
        (images / f"{number}.png").touch()
    _write_csv(folder / "questions.csv", num_paintings, "png")
    return read_table(folder / "questions.csv", ImageIndex(images))


def _write_csv(path: Path, num_paintings: int, suffix: str) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        for number in range(num_paintings):
            for question in range(_QUESTIONS_A_PAINTING):
                writer.writerow(
                    [f"{number}.{suffix}", f"Which thing is in painting {question}, in which style?", "a thing"]
                )


def _make_midsize(folder: Path, num_paintings: int) -> None:
    """Random weights in BLIP-2's proportions, and noise that compresses as paintings do."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    tokenizer = train_tokenizer(_TEXTS, vocab_size=400)
    config = Blip2Config(
        vision_config={"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 8,
                       "num_attention_heads": 5, "image_size": 224, "patch_size": 14},
        qformer_config={"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6,
                        "num_attention_heads": 3, "encoder_hidden_size": 320, "vocab_size": 400},
        text_config={"model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 512, "ffn_dim": 2048,
                     "num_hidden_layers": 8, "num_attention_heads": 8, "max_position_embeddings": 256,
                     "word_embed_proj_dim": 512},
        num_query_tokens=32,
    )  # fmt: skip
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(config).save_pretrained(folder / "blip2")
    tokenizer.save_pretrained(folder / "blip2")
    BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder / "blip2")
    save_file(create_network("efficientnet_b3").state_dict(), folder / "efficientnet.safetensors")
    rng = np.random.default_rng(0)
    for number in range(num_paintings):
        coarse = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
        coarse.resize((1024, 768), Image.Resampling.BICUBIC).save(folder / "images" / f"{number}.jpg", quality=92)
    _write_csv(folder / "train.csv", num_paintings, "jpg")
    (folder / "config.yaml").write_text(
        "model: {blip2: blip2}\nefficientnet: {checkpoint: efficientnet.safetensors}\n"
        "frozen: {opt: resident, vit: resident, feature_cache: null}\ndataset: {train: train.csv, image_root: images}\n"
        "training: {batch_size: 12, num_epochs: 1, warmup_steps: 2, activation_checkpointing: false}\n"
        "evaluation: {each_epoch: false}\nrun: {log_every: 5}\n"
    )


if __name__ == "__main__":
    main()
