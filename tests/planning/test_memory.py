from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from artkv.config import Config
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.distributed import World
from artkv.planning.activations import AllocationCounter
from artkv.planning.memory import quantised_block_bytes, trainable_memory
from artkv.planning.shapes import model_shapes
from artkv.run_folder.state import TrainableState
from artkv.training.engine import TrainingEngine
from tests.planning.conftest import build


def _engine(config: Config, world: World, **zero: object) -> tuple[TrainingEngine, dict]:
    built = build(config)
    tree = load_deepspeed_config(config.training.deepspeed)
    tree["zero_optimization"] |= zero
    num_elements = sum(parameter.numel() for parameter in built.model.parameters())
    is_bf16 = config.model.dtype == "bfloat16"
    filled = fill_deepspeed_config(tree, config.training, 1, world.size, is_bf16, num_elements)
    state = TrainableState(built.initial_values, {}, {}, 0)
    return TrainingEngine(built.model, filled, 0.01, state), filled


def _bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("overlap", [False, True])
def test_what_deepspeed_really_keeps(
    settings: Callable[..., Config], one_process: World, dtype: str, overlap: bool
) -> None:
    config = settings(model={"dtype": dtype})
    engine, filled = _engine(config, one_process, overlap_comm=overlap)
    optimizer = engine._engine.optimizer
    torch_dtype = getattr(torch, dtype)
    shapes = model_shapes(config, torch_dtype, []).trainable_shapes()
    predicted = trainable_memory(shapes, torch_dtype, 1, filled)
    buffers: list[int] = []
    reduce_gradients = optimizer.reduce_ipg_grads

    def watched(*args: object, **kwargs: object) -> None:
        buffers.append(sum(_bytes_of(list(bucket.buffer)) for bucket in optimizer.ipg_buckets.values()))
        with AllocationCounter() as counter:
            reduce_gradients(*args, **kwargs)
        # Copies that the reduction makes on its way; the gradients that it leaves count by themselves.
        buffers[-1] += counter.peak_bytes - counter.live_bytes

    optimizer.reduce_ipg_grads = watched
    engine.backward(sum((parameter.float().sum() for parameter in engine.model.parameters()), torch.zeros(())))
    gradients = [tensor for group in optimizer.averaged_gradients.values() for tensor in group]
    # DeepSpeed pads each of two groups to its alignment: a few elements.
    near = partial(pytest.approx, abs=64)
    assert predicted.weights_bytes == near(_bytes_of(list(optimizer.bit16_groups_flat)))
    assert predicted.masters_bytes == near(_bytes_of(list(optimizer.single_partition_of_fp32_groups)))
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert predicted.moments_bytes == near(_bytes_of(moments))
    assert {tensor.dtype for tensor in gradients} == {torch.float32}
    assert predicted.gradients_bytes == near(_bytes_of(gradients))
    assert predicted.buckets_bytes == near(max(buffers))
    engine.close()


def test_ranks_share_the_optimizer_and_not_the_weights() -> None:
    shapes = {"a": (100, 40), "b": (40,)}
    deepspeed = {"zero_optimization": {"reduce_bucket_size": 4040}}
    alone, shared = (trainable_memory(shapes, torch.bfloat16, size, deepspeed) for size in (1, 4))
    assert asdict(alone) == {
        "num_elements": 4040, "weights_bytes": 8080, "masters_bytes": 16160, "moments_bytes": 32320,
        "gradients_bytes": 16160, "buckets_bytes": 8080, "host_bytes": 0,
    }  # fmt: skip
    assert shared.weights_bytes == alone.weights_bytes
    assert 4 * shared.masters_bytes == alone.masters_bytes
    assert 4 * shared.gradients_bytes == alone.gradients_bytes
    assert shared.buckets_bytes == alone.buckets_bytes
    wide = trainable_memory(shapes, torch.bfloat16, 1, deepspeed | {"communication_data_type": "fp32"})
    assert wide.buckets_bytes == 8080 + 16160 + 8080
    small = {"zero_optimization": {"reduce_bucket_size": 40}, "communication_data_type": "fp32"}
    assert (
        trainable_memory(shapes, torch.bfloat16, 1, small).buckets_bytes == 80 + 16000 + 8000
    )  # the matrix, by itself


def test_an_offloaded_optimizer_lies_on_the_host() -> None:
    zero = {"reduce_bucket_size": 10, "offload_optimizer": {"device": "cpu"}}
    found = trainable_memory({"a": (100, 40)}, torch.bfloat16, 1, {"zero_optimization": zero})
    assert found.device_bytes == 4000 * 2 + 4000 * 2 + 10 * 2  # weights, one parameter's gradient, bucket
    assert found.host_bytes == 4000 * (3 * 4 + 4 + 2)


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_what_bitsandbytes_really_keeps(quantisation: str) -> None:
    pytest.importorskip("bitsandbytes", reason="the optional package bitsandbytes is not installed")
    from artkv.frozen.quantised import quantise_linears

    values = {"0.weight": torch.randn(256, 128), "0.bias": torch.randn(256)}
    with torch.device("meta"):
        block = nn.Sequential(nn.Linear(128, 256))
    quantise_linears(block, values.__getitem__, quantisation, torch.bfloat16, torch.device("cpu"))  # type: ignore[arg-type]
    layer = block[0]
    parts = [layer.weight, layer.bias]
    if quantisation == "int8":
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        parts.append(scales)
    else:
        state = layer.weight.quant_state
        parts += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    predicted = quantised_block_bytes({"0.weight": (256, 128), "0.bias": (256,)}, quantisation, torch.bfloat16)  # type: ignore[arg-type]
    assert predicted == _bytes_of(parts)
