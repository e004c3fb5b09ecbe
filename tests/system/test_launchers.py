"""Real launchers, two ranks, real kills: `deepspeed` and `torchrun` on a CPU with gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.system.run_files import final, final_bytes, logged_steps, progress, steps_logged

pytestmark = pytest.mark.system

SETTINGS = [
    "model.dtype=bfloat16", "training.num_epochs=4", "training.batch_size=2", "evaluation.each_epoch=false",
    "run.log_every=1", "run.checkpoint_every=5", "distributed.timeout_minutes=1", "training.warmup_steps=3",
]  # fmt: skip
FP32 = ["--set", "model.dtype=float32"]
POISONED_RANK = Path(__file__).with_name("poisoned_rank.py")
MISLED_RANK = Path(__file__).with_name("misled_rank.py")
SECONDS = 120


def free_port() -> str:
    """A TCP port that nothing listens on; each launch takes one of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def command(launcher: str, world: Path, output: Path, extra: Sequence[str] = ()) -> list[str]:
    torchrun = ["torchrun", "--nproc_per_node", "2", "--master_port", free_port()]
    start = {
        "deepspeed": ["deepspeed", "--num_accelerators", "2", "--master_port", free_port(), "--module", "artkv"],
        "torchrun": [*torchrun, "-m", "artkv"],
        "poisoned": [*torchrun, str(POISONED_RANK)],
        "misled": [*torchrun, str(MISLED_RANK)],
        "alone": ["artkv"],
    }[launcher]
    start[0] = str(Path(sys.executable).with_name(start[0]))
    overrides = [word for setting in [*SETTINGS, f"run.output_dir={output}"] for word in ("--set", setting)]
    return [*start, "train", "--config", str(world / "config.yaml"), *overrides, *extra]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS, check=False)


def kill_a_worker_after(arguments: list[str], output: Path, step: int) -> int:
    """Starts a run, kills rank 1 for good once `step` is logged, and returns the launcher's exit code."""
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as launcher:
        deadline = time.monotonic() + SECONDS

        def wait_for(step: int) -> None:
            while steps_logged(output) < step:
                assert launcher.poll() is None, "the run ended before it was to be killed"
                assert time.monotonic() < deadline
                time.sleep(0.005)

        wait_for(1)  # finding the victim takes some steps' time
        processes = psutil.Process(launcher.pid).children(recursive=True)
        victim = next(process for process in processes if process.environ().get("RANK") == "1")
        wait_for(step)
        victim.kill()
        try:
            return launcher.wait(timeout=60)
        finally:
            for process in processes:
                if process.is_running():
                    os.kill(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under the deepspeed launcher from start to end."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    result = run(command("deepspeed", tiny_world, output))
    assert result.returncode == 0, result.stderr
    # 30 questions in micro-batches of 2 at most make 16 or 17 of them, so 8 or 9 steps an epoch on two ranks.
    assert 32 <= steps_logged(output) <= 36
    assert f"done after {steps_logged(output)} steps" in result.stdout
    return output


@pytest.fixture(scope="module")
def in_two_parts(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks throughout, but in two starts, for two epochs and four: the schedule knows the number."""
    output = tmp_path_factory.mktemp("in_two_parts") / "run"
    for epochs, resume in ((2, []), (4, ["--resume", "latest"])):
        part = run(command("torchrun", tiny_world, output, [*resume, *FP32, "--set", f"training.num_epochs={epochs}"]))
        assert part.returncode == 0, part.stderr
    return output


def test_torchrun_gives_the_deepspeed_launchers_bytes(undisturbed: Path, tiny_world: Path, tmp_path: Path) -> None:
    result = run(command("torchrun", tiny_world, tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert final_bytes(tmp_path / "run") == final_bytes(undisturbed)


def test_a_killed_run_ends_soon_and_resumes_to_the_same_bytes(
    undisturbed: Path, tiny_world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    # The second epoch is steps 10 to 18, with checkpoints after 10 and 15: six steps in which to be killed.
    assert kill_a_worker_after(command("deepspeed", tiny_world, output), output, step=12) != 0
    steps = steps_logged(undisturbed)
    assert steps_logged(output) < steps
    killed_at = progress(output)
    assert killed_at["epoch"] == 1
    assert killed_at["groups_consumed"] > 0
    again = run(command("deepspeed", tiny_world, output, ["--resume", "latest"]))
    assert again.returncode == 0, again.stderr
    assert final_bytes(output) == final_bytes(undisturbed)
    assert logged_steps(output) == list(range(1, steps + 1))


@pytest.mark.parametrize(("first", "second"), [("torchrun", "alone"), ("alone", "torchrun")])
def test_the_number_of_ranks_may_change(
    in_two_parts: Path, tiny_world: Path, tmp_path: Path, first: str, second: str
) -> None:
    """Two ranks' run goes on with one and twice the accumulation, and the other way round."""
    output = tmp_path / "run"
    accumulation = [*FP32, "--set", f"training.gradient_accumulation_steps={2 if first == 'alone' else 1}"]
    half = run(command(first, tiny_world, output, [*accumulation, "--set", "training.num_epochs=2"]))
    assert half.returncode == 0, half.stderr
    again = run(command(second, tiny_world, output, ["--resume", "latest", *accumulation]))
    assert again.returncode == 0, again.stderr
    assert "gradient accumulation is" in again.stderr
    one, other = (
        load_file(final(output) / "adapter.safetensors"),
        load_file(final(in_two_parts) / "adapter.safetensors"),
    )
    difference = max((one[name] - other[name]).abs().max().item() for name in one)
    # fp32. A step's two gradients add up alike either way; only the norm for clipping is summed in another
    # order. The worst seen is 0.
    assert difference < 1e-6
    assert progress(output)["questions_seen"] == 4 * 30


def test_a_loss_that_is_infinite_on_one_rank_alone_is_skipped_by_both(tiny_world: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = ["--set", "training.num_epochs=1", "--set", "training.gradient_accumulation_steps=2"]
    result = run(command("poisoned", tiny_world, output, settings))
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    # 17 micro-batches in steps of four. Rank 1's loss is infinite in one micro-step of the third step.
    assert [record["loss"] is None for record in records] == [False, False, True, False, False]
    assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1, 1]
    assert progress(output)["skipped_steps"] == 1
    for file in ("adapter.safetensors", "optimizer.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(final(output) / file).values())


@pytest.mark.parametrize("backend", ["transformers", "lavis"])
def test_two_ranks_stream_one_copy_to_the_resident_bytes(
    tiny_world: Path, bf16_folder: Path, tmp_path: Path, backend: str
) -> None:
    weights = [
        "--set",
        f"model.backend={backend}",
        "--set",
        f"model.blip2={bf16_folder}",
        "--set",
        "training.num_epochs=1",
    ]
    for mode in ("resident", "stream"):
        frozen = f"frozen={{opt: {mode}, vit: {mode}}}"
        result = run(command("torchrun", tiny_world, tmp_path / mode, [*weights, "--set", frozen]))
        assert result.returncode == 0, result.stderr
    assert final_bytes(tmp_path / "stream") == final_bytes(tmp_path / "resident")


def test_wrong_input_is_told_once_by_two_ranks(tiny_world: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("image,question,answer\ntrain0.png,What?,\n")
    result = run(command("torchrun", tiny_world, tmp_path / "run", ["--set", f"dataset.train={bad}"]))
    assert result.returncode == 1
    assert result.stderr.count("empty answer") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_missing_on_one_rank_alone_ends_both(tiny_world: Path, tmp_path: Path) -> None:
    # Streamed: the other rank would wait for this one to share host memory with it.
    result = run(command("misled", tiny_world, tmp_path / "run", ["--set", "frozen.opt=stream"]))
    assert result.returncode == 1
    assert result.stderr.count("[rank 1] model.blip2 = ") == 1
    # What the start leaves says why it failed, and the next one may use the folder.
    assert "model.blip2 = " in (tmp_path / "run" / "logs" / "rank_00001.log").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()
