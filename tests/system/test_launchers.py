"""Real launchers, two ranks, real kills: `deepspeed` and `torchrun` on a CPU with gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from artkv import __version__
from tests.system.misled_rank import misled
from tests.system.poisoned_rank import poisoned
from tests.system.ranks import free_port, run_to_end, started
from tests.system.run_files import final, final_bytes, logged_steps, progress, steps_logged

pytestmark = pytest.mark.system

SETTINGS = [
    "model.dtype=bfloat16", "training.num_epochs=4", "training.batch_size=2", "evaluation.each_epoch=false",
    "run.log_every=1", "run.checkpoint_every=5", "distributed.timeout_minutes=1", "training.warmup_steps=3",
]  # fmt: skip
FP32 = "model.dtype=float32"
SECONDS = 120


def train(world: Path, output: Path, settings: Sequence[str] = ()) -> list[str]:
    """The arguments of `artkv` for a training; of two equal settings the later one counts."""
    overrides = [*SETTINGS, *settings, f"run.output_dir={output}"]
    return ["train", "--config", str(world / "config.yaml"), *(word for one in overrides for word in ("--set", one))]


def command(launcher: str, arguments: Sequence[str]) -> list[str]:
    """What starts two ranks of artkv with these arguments."""
    if launcher == "torchrun":
        return torchrun("-m", "artkv", *arguments)
    runner = str(Path(sys.executable).with_name("deepspeed"))
    return [runner, "--num_accelerators", "2", "--master_port", free_port(), "--module", "artkv", *arguments]


def torchrun(*program: str) -> list[str]:
    """What starts a program as two ranks."""
    runner = str(Path(sys.executable).with_name("torchrun"))
    return [runner, "--nproc_per_node", "2", "--master_port", free_port(), *program]


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
    result = run(command("deepspeed", train(tiny_world, output)))
    assert result.returncode == 0, result.stderr
    # 30 questions in micro-batches of 2 at most make 16 or 17 of them, so 8 or 9 steps an epoch on two ranks.
    assert 32 <= steps_logged(output) <= 36
    assert f"done after {steps_logged(output)} steps" in result.stdout
    return output


@pytest.fixture(scope="module")
def in_two_parts(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks throughout, but in two starts, for two epochs and four: the schedule knows the number."""
    folder = tmp_path_factory.mktemp("in_two_parts")
    for epochs, resume in ((2, []), (4, ["--resume", "latest"])):
        run_to_end([*train(tiny_world, folder / "run", [FP32, f"training.num_epochs={epochs}"]), *resume], folder)
    return folder / "run"


def test_torchrun_gives_the_deepspeed_launchers_bytes(undisturbed: Path, tiny_world: Path, tmp_path: Path) -> None:
    result = run(command("torchrun", train(tiny_world, tmp_path / "run")))
    assert result.returncode == 0, result.stderr
    assert final_bytes(tmp_path / "run") == final_bytes(undisturbed)


def test_a_killed_run_ends_soon_and_resumes_to_the_same_bytes(
    undisturbed: Path, tiny_world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    # The second epoch is steps 10 to 18, with checkpoints after 10 and 15: six steps in which to be killed.
    assert kill_a_worker_after(command("deepspeed", train(tiny_world, output)), output, step=12) != 0
    steps = steps_logged(undisturbed)
    assert steps_logged(output) < steps
    killed_at = progress(output)
    assert killed_at["epoch"] == 1
    assert killed_at["groups_consumed"] > 0
    run_to_end([*train(tiny_world, output), "--resume", "latest"], tmp_path)
    assert final_bytes(output) == final_bytes(undisturbed)
    assert logged_steps(output) == list(range(1, steps + 1))


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_the_number_of_ranks_may_change(
    in_two_parts: Path, tiny_world: Path, tmp_path: Path, first: int, second: int
) -> None:
    """Two ranks' run goes on with one and twice the accumulation, and the other way round."""
    output = tmp_path / "run"
    settings = [FP32, f"training.gradient_accumulation_steps={2 if first == 1 else 1}"]
    run_to_end(train(tiny_world, output, [*settings, "training.num_epochs=2"]), tmp_path, first)
    told = run_to_end([*train(tiny_world, output, settings), "--resume", "latest"], tmp_path, second)
    assert "gradient accumulation is" in told
    one, other = (
        load_file(final(output) / "adapter.safetensors"),
        load_file(final(in_two_parts) / "adapter.safetensors"),
    )
    difference = max((one[name] - other[name]).abs().max().item() for name in one)
    # fp32. A step's two gradients add up alike either way; only the norm for clipping is summed in another
    # order. The worst seen is 0.
    assert difference < 1e-6
    assert progress(output)["questions_seen"] == 4 * 30
    one_run, other_run = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (output, in_two_parts)
    )
    for of_one, of_other in zip(one_run, other_run, strict=True):
        for name in [name for name in of_one if name.startswith(("grad_norm", "update_to_weight"))]:
            # fp32; each rank has its part of the gradients and masters.
            assert of_one[name] == pytest.approx(of_other[name], rel=1e-4), name


def test_a_loss_that_is_infinite_on_one_rank_alone_is_skipped_by_both(tiny_world: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = ["training.num_epochs=1", "training.gradient_accumulation_steps=2"]
    run_to_end(train(tiny_world, output, settings), tmp_path, main=poisoned)
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
    weights = [f"model.backend={backend}", f"model.blip2={bf16_folder}", "training.num_epochs=1"]
    for mode in ("resident", "stream"):
        settings = [*weights, f"frozen={{opt: {mode}, vit: {mode}}}"]
        run_to_end(train(tiny_world, tmp_path / mode, settings), tmp_path / "logs")
    assert final_bytes(tmp_path / "stream") == final_bytes(tmp_path / "resident")


def test_wrong_input_is_told_once_by_two_ranks(tiny_world: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("image,question,answer\ntrain0.png,What?,\n")
    with started(train(tiny_world, tmp_path / "run", [f"dataset.train={bad}"]), tmp_path) as ranks:
        assert ranks.exit_codes() == [1, 1]
        assert ranks.told().count("empty answer") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_missing_on_one_rank_alone_ends_both(tiny_world: Path, tmp_path: Path) -> None:
    # Streamed: the other rank would wait for this one to share host memory with it.
    arguments = train(tiny_world, tmp_path / "run", ["frozen.opt=stream"])
    with started(arguments, tmp_path, main=misled) as ranks:
        assert ranks.exit_codes() == [1, 1]
        assert ranks.told().count("[rank 1] model.blip2 = ") == 1
    # What the start leaves says why it failed, and the next one may use the folder.
    assert "model.blip2 = " in (tmp_path / "run" / "logs" / "rank_00001.log").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_console_script_is_artkv() -> None:
    result = run([str(Path(sys.executable).with_name("artkv")), "--version"])
    assert (result.returncode, result.stdout) == (0, f"artkv {__version__}\n")
