"""Reads and converts LAVIS's files of BLIP2-OPT-2.7b at their true size, with random weights; prints time and memory.

    python benchmarks/lavis_conversion.py --folder /big/disk/scratch

Writes `blip2_pretrained_opt2.7b.pth`, `eva_vit_g.pth` and a folder of OPT with the names, shapes and dtypes of the
published ones (8 GB) into a new folder below `--folder`, and removes it at the end; 20 GB must be free there. Each
stage runs in a process of its own:

    open       names and shapes compared, and every tensor hashed
    folder     converted into a transformers folder
    pth        converted into a LAVIS .pth that holds everything
    resident   loaded into transformers' modules in bfloat16, which is one copy of the weights

Memory is the process's own (anonymous pages, sampled), and all that it had mapped at once, which counts pages of the
files that the system may take back.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import OPTConfig

from artkv.config import ModelConfig
from artkv.distributed import single_process
from artkv.models.backbone.transformers_backend import open_transformers_backbone
from artkv.models.files.blip2_files import BLIP2_OPT_2_7B, open_blip2, stock_blip2
from artkv.models.files.blip2_writing import MergedSource, write_lavis_file, write_transformers_folder
from artkv.models.files.lavis_names import to_lavis
from artkv.planning.shapes import read_blip2_config
from artkv.quickstart.tokenizer import train_tokenizer

STAGES = ("open", "folder", "pth", "resident")

# LAVIS's OPT has its own vocabulary, not the padded one of transformers' copy.
_VOCABULARY = 50272
_TEXT = "Question: In which style is this painting of a harbour at dusk? Short answer: impressionism\n"


def main() -> None:
    """Writes the files, runs each stage, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder with 20 GB free, for temporary files")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which (default all)")
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)  # a stage's own process
    options = parser.parse_args()
    if options.files is not None:
        print(json.dumps(run_stage(options.stages[0], options.files)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the files go then too
    with tempfile.TemporaryDirectory(prefix="lavis_conversion.", dir=options.folder) as temporary:
        files = Path(temporary)
        began = time.perf_counter()
        write_random_lavis_files(files)
        total = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
        print(f"wrote {total / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s", flush=True)
        for stage in options.stages:
            command = [sys.executable, __file__, "--folder", str(options.folder), "--files", temporary]
            done = subprocess.run([*command, "--stages", stage], stdout=subprocess.PIPE, text=True, check=True)
            print(f"{stage}: {done.stdout.strip().splitlines()[-1]}", flush=True)


def run_stage(stage: str, files: Path) -> dict[str, object]:
    """Does one stage and returns its figures."""
    model = ModelConfig(
        blip2=str(files / "blip2_pretrained_opt2.7b.pth"), vit=files / "eva_vit_g.pth", opt=str(files / "opt-2.7b")
    )
    written: Path | None = None
    with OwnMemory() as memory:
        before = memory.now()
        began = time.perf_counter()
        opened = open_blip2(model)
        opening = time.perf_counter() - began
        merged = MergedSource(opened, {}, 1.0)
        if stage == "open":
            opened.weight_digests()
        elif stage == "folder":
            (files / "converted").mkdir()
            write_transformers_folder(opened, merged, files / "converted")
            written = files / "converted" / "model.safetensors"
        elif stage == "pth":
            written = files / "converted.pth"
            write_lavis_file(opened, merged, written)
        else:
            device = torch.device("cpu")
            open_transformers_backbone(opened, torch.bfloat16, device).load(single_process(device))
        seconds = time.perf_counter() - began
        memory.sample()
    if written is not None:
        written.unlink()
    return {
        "seconds": round(seconds, 1),
        "opening_seconds": round(opening, 1),
        "own_memory_before_gb": round(before / 1e9, 2),
        "own_memory_peak_gb": round(memory.peak / 1e9, 2),
        "mapped_peak_gb": round(_status("VmHWM") / 1e9, 2),
    }


class OwnMemory:
    """Samples this process's anonymous memory in a thread; `peak` in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "OwnMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> int:
        """Bytes at this moment."""
        return _status("RssAnon")

    def sample(self) -> None:
        """Takes one sample."""
        self.peak = max(self.peak, self.now())

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.sample()


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def write_random_lavis_files(folder: Path) -> None:
    """The three of them; tensors lie in scratch files until they are saved, so that they take no memory."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        make = RandomTensors(Path(scratch))
        shapes = dict(_lavis_shapes())
        vit_names = {name for name in shapes if name.startswith("visual_encoder.")}
        vit = {name.removeprefix("visual_encoder."): make(shapes[name], torch.float16) for name in vit_names}
        # The published file has the block, the norm and the head that LAVIS leaves out.
        for name in [name for name in vit if name.startswith("blocks.38.")]:
            vit[name.replace("blocks.38.", "blocks.39.")] = make(tuple(vit[name].shape), torch.float16)
        vit |= {f"norm.{kind}": make((1408,), torch.float16) for kind in ("weight", "bias")}
        vit |= {"head.weight": make((1024, 1408), torch.float16), "head.bias": make((1024,), torch.float16)}
        torch.save(vit, folder / "eva_vit_g.pth")

        opt_names = {name for name in shapes if name.startswith("opt_model.model.")}
        # Without the `model.` of the whole model, as facebook/opt-2.7b was saved.
        opt = {name.removeprefix("opt_model.model."): make(shapes[name], torch.float16) for name in opt_names}
        (folder / "opt-2.7b").mkdir()
        torch.save(opt, folder / "opt-2.7b" / "pytorch_model.bin")
        _opt_config().save_pretrained(folder / "opt-2.7b")
        train_tokenizer([_TEXT]).save_pretrained(folder / "opt-2.7b")

        trained_names = shapes.keys() - vit_names - opt_names - {"opt_model.lm_head.weight"}
        trained = {name: make(shapes[name], torch.float32) for name in trained_names}
        trained["opt_model.lm_head.weight"] = opt["decoder.embed_tokens.weight"]
        trained["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
        torch.save({"model": trained}, folder / "blip2_pretrained_opt2.7b.pth")


class RandomTensors:
    """Makes tensors of normal values, std 0.02, each in a file of its own."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._number = 0
        self._values = torch.empty(2**24).normal_(std=0.02, generator=torch.Generator().manual_seed(0))

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape."""
        self._number += 1
        size = torch.Size(shape).numel()
        path = str(self._scratch / str(self._number))
        flat = torch.from_file(path, shared=True, size=size, dtype=dtype)
        for part in flat.split(len(self._values)):
            start = int(torch.randint(len(self._values) - len(part) + 1, ()))
            part.copy_(self._values[start : start + len(part)])
        return flat.view(shape)


def _opt_config() -> OPTConfig:
    published = read_blip2_config(ModelConfig(blip2=BLIP2_OPT_2_7B)).text_config.to_dict()
    return OPTConfig(**published | {"vocab_size": _VOCABULARY})


def _lavis_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of LAVIS's whole `Blip2OPT`."""
    config = read_blip2_config(ModelConfig(blip2=BLIP2_OPT_2_7B))
    config.text_config.vocab_size = _VOCABULARY
    for name, tensor in stock_blip2(config).state_dict().items():
        lavis = to_lavis(name)
        for part in lavis:
            yield part, (tensor.shape[0] // 3,) if len(lavis) == 2 else tuple(tensor.shape)


if __name__ == "__main__":
    main()
