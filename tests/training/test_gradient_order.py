"""Ranks whose autograd makes gradients in different orders, under the real DeepSpeed."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from artkv.cli import main as artkv_main
from tests.system.ranks import run_to_end
from tests.system.replaying_rank import REPLAYED, replaying
from tests.system.run_files import final
from tests.system.test_launchers import FP32, train

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    "settings",
    [
        [FP32],
        [FP32, "training.gradient_accumulation_steps=2", "frozen.opt=stream"],
        [FP32, "training.deepspeed=small_buckets.json"],
        [FP32, "training.deepspeed=zero2_bf16_offload_optimizer.json"],
        ["training.gradient_accumulation_steps=2"],
    ],
)
def test_a_rank_that_replays_and_one_that_does_not_train_the_eager_weights(
    tiny_world: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else gradients of different tensors are added, and weights differ by half of their norm."""
    monkeypatch.chdir(tmp_path)
    Path("small_buckets.json").write_text(
        '{"zero_optimization": {"stage": 2, "reduce_bucket_size": 2000, "overlap_comm": true}}'
    )
    for name, main in (("replayed", replaying), ("eager", artkv_main)):
        run_to_end(train(tiny_world, tmp_path / name, settings), tmp_path / f"{name} logs", main=main)
    log = (tmp_path / "replayed logs" / "rank1.txt").read_text()
    (replays,) = [line.removeprefix(REPLAYED) for line in log.splitlines() if line.startswith(REPLAYED)]
    assert all(int(number) > 5 for number in replays.split())
    one, other = (load_file(final(tmp_path / name) / "adapter.safetensors") for name in ("replayed", "eager"))
    difference = max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)
    # The same bits were seen; where paintings are filled up for a graph, products of more of them may round otherwise.
    assert difference < 1e-5
