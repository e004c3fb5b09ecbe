import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from artkv.cli import main
from artkv.config import Config, load_config, override_config, recipe_path
from artkv.planning.device import Device
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
    assert "T4 has no bfloat16" in format_plan(plan(tiny_config, gpu="T4"))


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


def test_a_gpu_that_is_there_is_planned_for(
    tiny_world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("artkv.planning.table.ask_device", lambda device: Device("NVIDIA L40S", 2 * 2**30, 2**30))
    assert main(["plan", "--config", str(tiny_world / "config.yaml")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Chosen by frozen.opt: auto for 1.00 GiB")
    assert "Rates: L40S." in printed


def test_options_reach_the_plan(tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--config", str(tiny_world / "config.yaml"), "--set", "training.batch_size=6", "--gpu", "L4"]
    assert main([*given, "--paintings", "2", "--text-tokens", "10", "--world-size", "4"]) == 0
    printed = capsys.readouterr().out
    assert "6 questions on 2 paintings, 6 visual and 10 text tokens each, packed: 2 x 31 = 62 tokens" in printed
    assert "4 ranks" in printed
    assert "Rates: L4." in printed
    assert main([*given, "--gpu-memory", "big"]) == 1
    assert "--gpu-memory = 'big'" in capsys.readouterr().err
