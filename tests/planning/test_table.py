import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from artkv.cli import main
from artkv.config import Config, load_config, override_config, recipe_path
from artkv.planning.device import Device
from artkv.planning.gpus import GIB
from artkv.planning.plan import plan
from artkv.planning.table import format_plan

# The verb, in a process of its own; at its end the peak of its resident memory in bytes and its CPU seconds.
_PROGRAM = """
import sys
import time
from artkv.cli import main
from artkv.monitoring.memory import peak_host_bytes
main(["plan", *sys.argv[1:]])
print("peak", peak_host_bytes(), time.process_time())
"""


@pytest.mark.system
def test_the_recipe_is_planned_quickly_and_in_little_memory() -> None:
    arguments = ["--config", str(recipe_path("artquest.yaml")), "--gpu-memory", "8GiB"]
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *text, peak = done.stdout.splitlines()
    assert max(map(len, text)) <= 120
    assert text[0].startswith("Chosen by frozen.opt: auto for 8.00 GiB")
    peak_bytes, cpu_seconds = peak.split()[1:]
    assert int(peak_bytes) < 2e9
    assert float(cpu_seconds) < 20  # 8 s; the clock on the wall would measure what else the machine does
    first = next(number for number, line in enumerate(text) if line.startswith("The same as settings")) + 1
    settings = yaml.safe_load("\n".join(text[first : text.index("", first)]))
    assert settings["frozen"]["opt"] in ("stream", "resident")  # 8 GiB are enough without quantising
    assert any(line.split()[:3] == ["OPT", "blocks,", "32"] and line.endswith("5,035.3") for line in text)
    assert any("0.73 MB of disk a distinct picture" in line for line in text)  # 257 x 1408 x 2 + 1536 x 4 bytes


def test_text_names_what_fits_and_what_is_missing(tiny_config: Config) -> None:
    fitting = format_plan(
        plan(override_config(tiny_config, ["frozen={opt: auto, vit: auto, feature_cache: auto}"]), 2**30)
    )
    assert fitting.startswith("Chosen by frozen.opt: auto for 1.00 GiB, of which 0.90 may be used:\nOPT resident, all ")
    assert "training.batch_size 4: up to about " in fitting
    small = format_plan(
        plan(override_config(tiny_config, ["frozen={opt: auto, vit: auto, feature_cache: auto}"]), 2**29)
    )
    assert small.startswith("Nothing exact fits 0.50 GiB")
    assert "Lower training.batch_size" in small
    assert format_plan(plan(tiny_config)).startswith("No recommendation: this machine has no GPU; give --gpu-memory")
    assert "T4 has no bfloat16: the rate is float32's." in format_plan(plan(tiny_config, gpu="T4"))
    in_full = format_plan(plan(override_config(tiny_config, ["model.dtype=float32"]), gpu="A10"))
    assert "The rate is of 16-bit products; float32's is far lower." in in_full


def test_the_choice_is_written_into_a_file(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "model: {blip2: blip2}   # small\nfrozen:\n  # Where weights lie.\n  opt: stream   # for now\n"
    path = tmp_path / "my.yaml"
    path.write_text(text.replace("blip2}", f"{tiny_world / 'blip2'}}}"))
    given = ["plan", "--config", str(path), "--set", "frozen.opt=auto", "--gpu-memory", "1GiB"]
    assert main([*given, "--write"]) == 0
    assert f"written into {path}\n" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert lines[1:4] == ["frozen:", "  # Where weights lie.", "  opt: resident   # for now"]
    assert load_config(path).training.activation_checkpointing is False
    assert main(["plan", "--set", f"model.blip2={tiny_world / 'blip2'}", "--gpu-memory", "1GiB", "--write"]) == 1
    assert "--write: names no file, and --config is not given" in capsys.readouterr().err
    assert main([*given, "--gpu-memory", "1MB", "--write"]) == 1
    assert "there is no choice to write" in capsys.readouterr().err


@pytest.fixture
def own_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device], None]:
    """Gives this machine a GPU."""

    def give(device: Device) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("artkv.planning.table.ask_device", lambda _: device)

    return give


def test_a_gpu_that_is_there_is_planned_for(
    tiny_world: Path, own_gpu: Callable[[Device], None], capsys: pytest.CaptureFixture[str]
) -> None:
    own_gpu(Device("NVIDIA L40S", 2 * GIB, GIB))
    assert main(["plan", "--config", str(tiny_world / "config.yaml")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Chosen by frozen.opt: auto for 1.00 GiB")
    assert "Rates: L40S.\nGPU: NVIDIA L40S, 2.00 GiB.\n" in printed


# Names and sizes as CUDA gives them; whatever is free of them is planned for, with or without an entry of their own.
@pytest.mark.parametrize(
    ("name", "gib", "dtype"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "bfloat16"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.6, "bfloat16"),
        ("NVIDIA GeForce RTX 3080", 9.6, "bfloat16"),
        ("NVIDIA GeForce RTX 4080", 15.6, "bfloat16"),
        ("NVIDIA GeForce RTX 5070 Ti", 15.5, "bfloat16"),
        ("NVIDIA RTX A1000", 7.6, "bfloat16"),
        ("NVIDIA RTX A4000", 15.7, "bfloat16"),
        ("NVIDIA L40", 44.4, "bfloat16"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 94.9, "bfloat16"),
        ("NVIDIA H100 NVL", 93.1, "bfloat16"),
        ("NVIDIA B300 SXM6 AC", 267.6, "bfloat16"),
        ("NVIDIA GeForce RTX 2080 Ti", 10.7, "float32"),
        ("NVIDIA TITAN RTX", 23.6, "float32"),
        ("Tesla V100-SXM2-32GB", 31.7, "float32"),
    ],
)
def test_any_gpu_is_planned_for_with_its_own_memory_and_dtype(
    tiny_world: Path, own_gpu: Callable[[Device], None], capsys: pytest.CaptureFixture[str], name: str, gib: float,
    dtype: str,
) -> None:  # fmt: skip
    free_bytes = round((gib - 0.5) * GIB)
    own_gpu(Device(name, round(gib * GIB), free_bytes, dtype == "bfloat16"))
    assert main(["plan", "--config", str(tiny_world / "config.yaml"), "--set", "model.dtype=auto"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Chosen by frozen.opt: auto for {free_bytes / GIB:.2f} GiB")
    assert f"1 rank, {dtype}. Rates: " in printed
    assert f"GPU: {name}, {gib:.2f} GiB" in printed
    assert (f"{name} has no bfloat16" in printed) == (dtype == "float32")


def test_a_gpu_without_an_entry_is_told_whose_rates_it_gets(
    tiny_world: Path, own_gpu: Callable[[Device], None], capsys: pytest.CaptureFixture[str]
) -> None:
    own_gpu(Device("NVIDIA RTX A1000", 8 * GIB, 7 * GIB))
    assert main(["plan", "--config", str(tiny_world / "config.yaml")]) == 0
    assert (
        "Rates: RTX 4060 8GB (nearest by memory).\nGPU: NVIDIA RTX A1000, 8.00 GiB, not in the list below.\n"
    ) in capsys.readouterr().out


def test_options_reach_the_plan(tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--config", str(tiny_world / "config.yaml"), "--set", "training.batch_size=6", "--gpu", "L4"]
    assert main([*given, "--paintings", "2", "--text-tokens", "10", "--world-size", "4"]) == 0
    printed = capsys.readouterr().out
    assert "6 questions on 2 paintings, 6 visual and 10 text tokens each, packed: 2 x 31 = 62 tokens" in printed
    assert "4 ranks" in printed
    assert "Rates: L4." in printed
    assert main([*given, "--gpu-memory", "big"]) == 1
    assert "--gpu-memory = 'big'" in capsys.readouterr().err
