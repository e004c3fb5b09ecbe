"""Tiny models and data in the true formats, made once a session."""

import csv
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from artkv.config import Config, load_config
from artkv.distributed import World, process_group
from artkv.quickstart.tokenizer import train_tokenizer
from tests.browser import browser as browser  # a fixture
from tests.mounted import disk as disk  # another
from tests.training_runs import run_training as run_training  # and another

# Tiny shapes gain nothing from more, and processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing is compiled here. Else each rank that DeepSpeed trains on imports the compiler, for 1.1 s of CPU time.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
torch.set_num_threads(1)
# Of whoever started these tests through a script of launch/: what is printed to be pasted would be spelled for him.
for variable in ("ARTKV_CALLER_FOLDER", "ARTKV_CALLER_PATH"):
    os.environ.pop(variable, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--system",
        choices=["only", "none", "too"],
        default="too",
        help="whether to run the tests marked `system`, beside which no others may run; by pytest-xdist's workers in "
        "five lanes, of which two have a test cluster each",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--system")
    if wanted != "too":
        left_out = {item for item in items if (item.get_closest_marker("system") is not None) != (wanted == "only")}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Five lanes whose tests mostly wait: two with a test cluster each, the longest test, and all others by folder.

    Groups by `--dist loadgroup` would say the same, but pytest-xdist 3.8 writes them where pytest 9.2 does not look.
    """
    if config.getoption("--system") != "only":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/system/cluster/"):
                return "a cluster for pdsh" if "pdsh" in nodeid or "multinode" in nodeid else "a cluster"
            if nodeid.startswith("tests/system/test_supervisor.py"):
                return "the supervisor"
            return "launchers" if nodeid.startswith("tests/system/") else "beside their modules' other tests"

    return Lanes(config, log)


_FAULT_SECONDS: list[tuple[str, float]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _FAULT_SECONDS.extend(value for name, value in report.user_properties if name == "fault_seconds")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FAULT_SECONDS:
        terminalreporter.section("seconds from each fault to the job's end")
        for fault, seconds in _FAULT_SECONDS:
            terminalreporter.write_line(f"{seconds:6.1f}  {fault}")


TINY_TEXTS = [
    "Question: Which style is this? Short answer: baroque\n",
    "Question: Who painted this picture? Short answer: Jan van Eyck\n",
    "Question: What is the technique? Short answer: oil on canvas\n",
]


@pytest.fixture(autouse=True)
def features_root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `frozen.feature_cache: auto` keeps features: a folder of the test's, and not of whoever runs it."""
    root = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ARTKV_CACHE", str(root))
    return root / "features"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TINY_TEXTS, vocab_size=320)


def tiny_blip2_config(vocab_size: int, num_qformer_layers: int = 4) -> Blip2Config:
    """A BLIP-2 of true structure and toy width: cross-attention in every second Q-Former layer."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
            initializer_range=0.02,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=48, intermediate_size=64, num_hidden_layers=num_qformer_layers, num_attention_heads=4,
            encoder_hidden_size=32,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=vocab_size, hidden_size=40, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=40, pad_token_id=1, bos_token_id=2, eos_token_id=2,
        ).to_dict(),
        num_query_tokens=6,
        image_token_index=4,
    )  # fmt: skip


def save_tiny_blip2(folder: Path, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype = torch.float32) -> None:
    """Writes a stock transformers BLIP-2 folder with random weights, tokenizer and image processor."""
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(tiny_blip2_config(len(tokenizer))).to(dtype)
    with torch.no_grad():  # random weights large enough that answers differ between pictures
        model.query_tokens.normal_(std=0.5)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_blip2_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("blip2")
    save_tiny_blip2(folder, tiny_tokenizer)
    return folder


TINY_SETTINGS = """
model: {blip2: blip2, dtype: float32}
efficientnet: {architecture: test_efficientnet, checkpoint: efficientnet.safetensors, image_size: 32}
kv_modulation: {num_prefix_tokens: 2}
frozen: {opt: resident, vit: resident, feature_cache: null}
dataset: {train: train.csv, val: val.csv, image_root: images, workers: 1}
training: {batch_size: 4, num_epochs: 2, warmup_steps: 2, learning_rate: 1.0e-3, activation_checkpointing: false}
evaluation: {max_new_tokens: 5, bootstrap_samples: 50, batch_size: 4}
run: {checkpoint_every: 4, log_every: 2}
"""


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder made by `write_tiny_world`."""
    return write_tiny_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


def write_tiny_world(root: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Fills a folder with a tiny BLIP-2, EfficientNet, pictures, CSV files and `config.yaml`; returns it.

    Paintings have one to four questions; 30 in train, 11 in val.
    """
    save_tiny_blip2(root / "blip2", tokenizer)
    torch.manual_seed(0)
    encoder = timm.create_model("test_efficientnet", num_classes=3)
    save_file(encoder.state_dict(), root / "efficientnet.safetensors")
    rng = np.random.default_rng(0)
    for split, num_paintings in (("train", 12), ("val", 5)):
        rows = []
        for painting in range(num_paintings):
            folder = root / "images" / ("sub" if painting % 2 else "")
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{split}{painting}.png"
            # Squares of one colour: as noise, the samples in TensorBoard would take a third of a run to compress. The
            # files are not compressed, so that all are of one size.
            squares = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(squares).save(folder / name, compress_level=0)
            for number in range(1 + painting % 4):
                answer = ("oil", "canvas", "Jan van Eyck")[(painting + number) % 3]
                rows.append([name, f"What is thing {number}?", answer, f"{split}{painting}-{number}", "thing"])
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "question", "answer", "question_id", "question_type"])
            writer.writerows(rows)
    (root / "config.yaml").write_text(TINY_SETTINGS)
    return root


@pytest.fixture
def tiny_config(tiny_world: Path, tmp_path: Path) -> Config:
    """Settings of a run on `tiny_world` that writes into the test's own folder."""
    return load_config(tiny_world / "config.yaml", [f"run.output_dir={tmp_path / 'run'}"])


@pytest.fixture
def settings(tiny_config: Config) -> Callable[..., Config]:
    """The tiny config with changed sections: `settings(kv_modulation={"gate": "zero"})`."""

    def changed(**sections: dict) -> Config:
        tree = tiny_config.model_dump()
        for section, values in sections.items():
            tree[section] |= values
        return Config.model_validate(tree)

    return changed


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def one_process() -> Iterator[World]:
    """DeepSpeed keeps process groups in globals, so all runs of this process share one."""
    with process_group(timeout_minutes=1) as world:
        yield world


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, one_process: World) -> None:
    """Lets the verbs of the command line use that process group."""
    monkeypatch.setattr("artkv.distributed.process_group", lambda minutes: nullcontext(one_process))


@pytest.fixture(scope="session")
def bf16_folder(tiny_blip2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BLIP-2 saved in bfloat16: what streamed masters hold is then what the file holds."""
    folder = tmp_path_factory.mktemp("bf16") / "blip2"
    Blip2ForConditionalGeneration.from_pretrained(tiny_blip2_folder).to(torch.bfloat16).save_pretrained(folder)
    for path in tiny_blip2_folder.glob("*.json"):
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    return folder
