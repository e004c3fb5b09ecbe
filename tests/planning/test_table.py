import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from artkv.cli import main
from artkv.config import Config, recipe_path
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
    peak_bytes, cpu_seconds = peak.split()[1:]
    assert int(peak_bytes) < 2e9
    assert float(cpu_seconds) < 20  # 8 s; the clock on the wall would measure what else the machine does
    settings = yaml.safe_load("\n".join(text[text.index("Settings:") + 1 :]))
    assert settings["frozen"]["opt"] in ("stream", "resident")  # 8 GiB are enough without quantising
    assert any(line.split()[:3] == ["OPT", "blocks,", "32"] and line.endswith("5,035.3") for line in text)
    assert any("0.73 MB of disk a distinct picture" in line for line in text)  # 257 x 1408 x 2 + 1536 x 4 bytes


def test_text_names_what_fits_and_what_is_missing(tiny_config: Config) -> None:
    fitting = format_plan(plan(tiny_config, 2**30))
    assert "Recommended for 1.00 GiB, of which 0.90 may be used:\nresident, features cached: 0." in fitting
    small = format_plan(plan(tiny_config, 2**29))
    assert "Nothing available fits 0.50 GiB" in small
    assert "Lower training.batch_size" in small
    assert "No recommendation: give --gpu-memory or --gpu." in format_plan(plan(tiny_config))
    assert "T4 has no bfloat16" in format_plan(plan(tiny_config, gpu="T4"))


def test_options_reach_the_plan(tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--config", str(tiny_world / "config.yaml"), "--set", "training.batch_size=6", "--gpu", "L4"]
    assert main([*given, "--paintings", "2", "--text-tokens", "10", "--world-size", "4"]) == 0
    printed = capsys.readouterr().out
    assert "6 questions on 2 paintings, 6 visual and 10 text tokens each, packed: 2 x 31 = 62 tokens" in printed
    assert "4 ranks" in printed
    assert "Rates: L4." in printed
    assert main([*given, "--gpu-memory", "big"]) == 1
    assert "--gpu-memory = 'big'" in capsys.readouterr().err
