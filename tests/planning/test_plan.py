from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from artkv.config import Config, override_config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.table import read_table
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.feature_cache import prepare_features
from artkv.planning.modes import FEATURES, Mode
from artkv.planning.plan import MARGIN_FRACTION, Plan, plan
from artkv.planning.prediction import CUDA_OVERHEAD_BYTES
from artkv.session import Session

MIB = 2**20


def _usable(total_bytes: int) -> int:
    """The GPU memory of which `total_bytes` may be used."""
    return int(total_bytes / (1 - MARGIN_FRACTION)) + 1


@pytest.fixture
def tiny_plan(settings: Callable[..., Config]) -> Plan:
    return plan(settings(model={"dtype": "bfloat16"}))


def test_every_mode_is_there_with_each_source_of_features(tiny_plan: Plan) -> None:
    names = list(dict.fromkeys(prediction.mode.name for prediction in tiny_plan.predictions))
    assert names == [  # the tiny OPT has two blocks
        "resident", "resident, recomputed", "stream bf16, 1 slot", "stream bf16, 2 slots", "stream int8, 1 slot",
        "stream int8, 2 slots", "int8", "int8, recomputed", "nf4", "nf4, recomputed",
    ]  # fmt: skip
    assert len(tiny_plan.predictions) == len(names) * len(FEATURES) * 2
    assert tiny_plan.recommendation is None


def test_totals_are_the_sums_of_their_parts(tiny_plan: Plan) -> None:
    found = tiny_plan.prediction(Mode("resident", recompute=False), "computed", lora_on_opt=False)
    frozen = tiny_plan.frozen
    parts = [
        frozen.vit, frozen.qformer, frozen.opt_outside_blocks, frozen.opt_blocks, frozen.efficientnet,
        tiny_plan.trainables.device_bytes, found.device.activations_bytes, CUDA_OVERHEAD_BYTES,
    ]  # fmt: skip
    assert found.device.total_bytes == sum(parts)
    cached = tiny_plan.prediction(Mode("resident", recompute=False), "cached", lora_on_opt=False)
    assert (cached.device.vit_bytes, cached.device.efficientnet_bytes) == (0, 0)


@pytest.mark.parametrize("settings", [[], ["kv_modulation.enabled=false"], ["model.dtype=bfloat16"]])
def test_cached_bytes_are_those_of_a_record(tiny_config: Config, tmp_path: Path, settings: list[str]) -> None:
    config = override_config(tiny_config, [f"frozen.feature_cache={tmp_path / 'features'}", *settings])
    images = ImageIndex(tiny_config.dataset.image_root)  # type: ignore[arg-type]
    table = read_table(tiny_config.dataset.train, images)  # type: ignore[arg-type]
    settings = Session(config, single_process()).cache_settings
    shard = prepare_features(settings, [table], single_process()).store.shards[0]
    record_bytes = shard.image.record_bytes + (shard.art.record_bytes if shard.art else 0)
    assert plan(config).cached_bytes == record_bytes


def test_streaming_needs_slots_and_host_memory(tiny_plan: Plan) -> None:
    one = tiny_plan.prediction(Mode("stream", True, "bf16", 1), "computed", False)
    two = tiny_plan.prediction(Mode("stream", True, "bf16", 2), "computed", False)
    block_bytes = tiny_plan.opt_stack.block_bytes
    assert two.device.opt_blocks_bytes - one.device.opt_blocks_bytes == block_bytes
    assert one.device.opt_blocks_bytes == block_bytes  # bf16 masters, bf16 slots: nothing is staged
    assert one.pcie_bytes_per_step == 2 * (2 - 1) * block_bytes
    assert two.pcie_bytes_per_step == 0  # as many slots as blocks
    assert one.shared_host_bytes >= 2 * block_bytes
    assert one.shared_host_bytes % 4096 == 0
    staged = tiny_plan.prediction(Mode("stream", True, "int8", 1), "computed", False)
    assert staged.device.opt_blocks_bytes == block_bytes + tiny_plan.int8_stack.block_bytes
    resident = tiny_plan.prediction(Mode("resident", True), "computed", False)
    assert (resident.shared_host_bytes, resident.pcie_bytes_per_step, resident.hidden_from_tokens) == (0, 0, None)


def test_streamed_vit_has_the_storage_of_the_other_blocks(tiny_plan: Plan) -> None:
    bf16, int8 = tiny_plan.vit_stack, tiny_plan.int8_vit_stack
    assert int8.block_bytes < 0.75 * bf16.block_bytes  # small matrices: scales and alignment take their part
    seconds = []
    for storage, vit in (("bf16", bf16), ("int8", int8)):
        mode = Mode("stream", True, storage, 1)  # type: ignore[arg-type]
        streamed, computed = (tiny_plan.prediction(mode, features, False) for features in ("ViT streamed", "computed"))  # type: ignore[arg-type]
        assert streamed.pcie_bytes_per_step - computed.pcie_bytes_per_step == vit.num_blocks * vit.block_bytes
        pages = -(-vit.block_bytes // 4096)
        assert streamed.shared_host_bytes - computed.shared_host_bytes == vit.num_blocks * pages * 4096
        staging_bytes = 0 if storage == "bf16" else int8.block_bytes
        resident_bytes = computed.device.vit_bytes - vit.num_blocks * 2 * vit.block_elements
        assert streamed.device.vit_bytes == resident_bytes + bf16.block_bytes + staging_bytes
        seconds.append(streamed.step_seconds - computed.step_seconds)
    assert seconds[1] < seconds[0]


def test_lora_and_accumulation_count(settings: Callable[..., Config]) -> None:
    config = settings(
        trainable={"lora": {"targets": ("opt",), "rank": 4}},
        training={"gradient_accumulation_steps": 3},
        evaluation={"each_epoch": False},
        model={"dtype": "bfloat16"},
    )
    found = plan(config)
    assert found.lora_on_opt
    mode = Mode("stream", True, "bf16", 1)
    without, with_lora = (found.prediction(mode, "computed", lora).device for lora in (False, True))
    adapters = 2 * 2 * (4 * 40 + 40 * 4)  # q and v of two blocks, A and B
    per_element = 2 + 4 + 8 + 4 + 2 + 6  # weight, master, moments, gradient, bucket, its copies
    assert with_lora.trainables_bytes - without.trainables_bytes == adapters * per_element
    assert found.trainables.device_bytes == with_lora.trainables_bytes
    assert found.prediction(mode, "computed", True).pcie_bytes_per_step == 3 * 2 * found.opt_stack.block_bytes
    # All micro-batches' pictures are on the device from the step's start.
    one_micro_step = settings(evaluation={"each_epoch": False}, model={"dtype": "bfloat16"})
    single = plan(one_micro_step).prediction(mode, "computed", False).device
    assert without.activations_bytes - single.activations_bytes == 2 * found.activations.inputs_bytes


def test_dtype_is_trainings(settings: Callable[..., Config]) -> None:
    automatic = settings(model={"dtype": "auto"})
    assert plan(automatic, gpu="A10").dtype == torch.bfloat16
    assert plan(automatic, gpu="T4").dtype == torch.float32  # as `auto` resolves without bf16 units
    full = plan(settings(model={"dtype": "float32"}), gpu="A10")
    assert full.frozen.opt_blocks == 2 * plan(automatic, gpu="A10").frozen.opt_blocks
    # bf16 masters, fp32 slots: a packed block is staged.
    streamed = full.prediction(Mode("stream", True, "bf16", 1), "computed", False)
    assert streamed.device.opt_blocks_bytes == 3 * full.opt_stack.block_bytes


@pytest.fixture
def long_config(settings: Callable[..., Config]) -> Config:
    """Batches whose activations are worth recomputing, no validation in the way."""
    return settings(training={"batch_size": 64}, evaluation={"each_epoch": False}, model={"dtype": "bfloat16"})


def test_recommendation_goes_from_fast_to_small(long_config: Config) -> None:
    everything = plan(long_config, gpu="RTX 3060", text_tokens=80)
    # Features from a cache: no ViT to hold or to run, so each mode is at its smallest and fastest.
    totals = {
        mode: everything.prediction(mode, "cached", False).device.total_bytes
        for mode in (Mode("resident", False), Mode("resident", True), Mode("stream", True, "bf16", 1))
    }
    assert list(totals.values()) == sorted(totals.values(), reverse=True)
    for mode, total in totals.items():
        fitting = plan(long_config, _usable(total), "RTX 3060", text_tokens=80).recommendation
        assert fitting is not None
        assert (fitting.prediction.mode, fitting.prediction.features, fitting.shortfall_bytes) == (mode, "cached", 0)
        assert "  feature_cache: FOLDER   # written by artkv cache" in fitting.prediction.settings
    smallest = min((p for p in everything.predictions if not p.lora_on_opt), key=lambda p: p.device.total_bytes)
    short = plan(long_config, _usable(smallest.device.total_bytes) - 1000, "RTX 3060", text_tokens=80)
    assert short.recommendation is not None
    assert short.recommendation.prediction == smallest
    assert short.usable_bytes is not None
    assert short.recommendation.shortfall_bytes == smallest.device.total_bytes - short.usable_bytes > 0


def test_quantised_weights_are_recommended_only_where_nothing_exact_fits(settings: Callable[..., Config]) -> None:
    config = settings(evaluation={"each_epoch": False})  # in float32: int8 masters are the smaller ones to stage
    found = plan(config, gpu="RTX 3060")
    exact = min(
        (p for p in found.predictions if p.mode.is_exact and not p.lora_on_opt), key=lambda p: p.device.total_bytes
    )
    usable_bytes = exact.device.total_bytes
    faster = [
        p for p in found.predictions
        if not p.mode.is_exact and p.device.total_bytes <= usable_bytes and p.step_seconds < exact.step_seconds
    ]  # fmt: skip
    assert faster  # and yet not recommended, as long as there is room
    with_exact, without = (
        plan(config, _usable(num_bytes), "RTX 3060").recommendation for num_bytes in (usable_bytes, usable_bytes - 1000)
    )
    assert with_exact is not None
    assert with_exact.prediction == exact
    assert without is not None
    assert (without.prediction.mode.is_exact, without.shortfall_bytes) == (False, 0)


def test_settings_are_the_recommended_ones(tiny_plan: Plan) -> None:
    prediction = tiny_plan.prediction(Mode("stream", True, "bf16", 1), "computed", False)
    streamed = replace(prediction, mode=replace(prediction.mode, resident_blocks=1))
    expected = ("frozen:", "  opt: stream", "  storage: bf16", "  slots: 1", "  resident_blocks: 1")
    assert streamed.settings == expected
    resident = tiny_plan.prediction(Mode("resident", True), "computed", False)
    expected = ("frozen:", "  opt: resident", "training:", "  activation_checkpointing: true")
    assert resident.settings == expected


def test_recommendable_settings_are_accepted(tiny_plan: Plan, settings: Callable[..., Config]) -> None:
    for prediction in tiny_plan.predictions:
        sections = yaml.safe_load("\n".join(prediction.settings))
        assert settings(**sections).frozen.opt == prediction.mode.opt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 0}, "--world-size 0"),
        ({"text_tokens": 0}, "--text-tokens 0"),
        ({"paintings": 5}, "--paintings 5: is more than training.batch_size = 4"),
        ({"gpu": "abacus"}, "--gpu 'abacus'"),
    ],
)
def test_wrong_numbers_are_the_users_error(tiny_config: Config, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(tiny_config, **options)
