from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from artkv.config import Config, load_config, override_config, recipe_path
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.table import read_table
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.feature_cache import prepare_features
from artkv.planning.device import Device
from artkv.planning.gpus import GIB
from artkv.planning.modes import FEATURES, Mode
from artkv.planning.placement import MARGIN_FRACTION
from artkv.planning.plan import Plan, plan
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
    found = tiny_plan.prediction(Mode("resident"), "computed", lora_on_opt=False)
    frozen = tiny_plan.frozen
    parts = [
        frozen.vit, frozen.qformer, frozen.opt_outside_blocks, frozen.opt_blocks, frozen.art_encoders,
        tiny_plan.trainables.device_bytes, found.device.activations_bytes, CUDA_OVERHEAD_BYTES,
    ]  # fmt: skip
    assert found.device.total_bytes == sum(parts)
    cached = tiny_plan.prediction(Mode("resident"), "cached", lora_on_opt=False)
    assert (cached.device.vit_bytes, cached.device.art_encoders_bytes) == (0, 0)


@pytest.mark.parametrize(
    "settings", [[], ["kv_modulation.enabled=false"], ["model.dtype=bfloat16"], ["kv_modulation.injection=prompt"]]
)
def test_cached_bytes_are_those_of_a_record(tiny_config: Config, tmp_path: Path, settings: list[str]) -> None:
    config = override_config(tiny_config, [f"frozen.feature_cache={tmp_path / 'features'}", *settings])
    images = ImageIndex(tiny_config.dataset.image_root)  # type: ignore[arg-type]
    table = read_table(tiny_config.dataset.train, images)  # type: ignore[arg-type]
    settings = Session(config, single_process()).cache_settings
    stores = prepare_features(settings, [table], single_process()).stores
    assert plan(config).cached_bytes == sum(store.shards[0].features.record_bytes for store in stores)


def test_streaming_needs_slots_and_host_memory(tiny_plan: Plan) -> None:
    one = tiny_plan.prediction(Mode("stream", 0, "bf16", 1), "computed", False)
    two = tiny_plan.prediction(Mode("stream", 0, "bf16", 2), "computed", False)
    block_bytes = tiny_plan.opt_stack.block_bytes
    assert two.device.opt_blocks_bytes - one.device.opt_blocks_bytes == block_bytes
    assert one.device.opt_blocks_bytes == block_bytes  # bf16 masters, bf16 slots: nothing is staged
    assert one.pcie_bytes_per_step == 2 * (2 - 1) * block_bytes
    assert two.pcie_bytes_per_step == 0  # as many slots as blocks
    assert one.shared_host_bytes >= 2 * block_bytes
    assert one.shared_host_bytes % 4096 == 0
    staged = tiny_plan.prediction(Mode("stream", 0, "int8", 1), "computed", False)
    assert staged.device.opt_blocks_bytes == block_bytes + tiny_plan.int8_stack.block_bytes
    resident = tiny_plan.prediction(Mode("resident", 0), "computed", False)
    assert (resident.shared_host_bytes, resident.pcie_bytes_per_step, resident.hidden_from_tokens) == (0, 0, None)


def test_streamed_vit_has_the_storage_of_the_other_blocks(tiny_plan: Plan) -> None:
    bf16, int8 = tiny_plan.vit_stack, tiny_plan.int8_vit_stack
    assert int8.block_bytes < 0.75 * bf16.block_bytes  # small matrices: scales and alignment take their part
    seconds = []
    for storage, vit in (("bf16", bf16), ("int8", int8)):
        mode = Mode("stream", 0, storage, 1)  # type: ignore[arg-type]
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
    mode = Mode("stream", 0, "bf16", 1)
    without, with_lora = (found.prediction(mode, "computed", lora).device for lora in (False, True))
    adapters = 2 * 2 * (4 * 40 + 40 * 4)  # q and v of two blocks, A and B
    per_element = 2 + 4 + 8 + 4 + 2 + 6  # weight, master, moments, gradient, bucket, its copies
    assert with_lora.trainables_bytes - without.trainables_bytes == adapters * per_element
    assert found.trainables.device_bytes == with_lora.trainables_bytes
    # A block is fetched once for all of a step's micro-batches.
    assert found.prediction(mode, "computed", True).pcie_bytes_per_step == 2 * found.opt_stack.block_bytes
    one_micro_step = settings(evaluation={"each_epoch": False}, model={"dtype": "bfloat16"})
    single = plan(one_micro_step)
    # All micro-batches' pictures are on the device from the step's start.
    resident = Mode("resident", 0)
    more = [p.prediction(resident, "computed", False).device.activations_bytes for p in (found, single)]
    assert more[0] - more[1] == 2 * found.activations.inputs_bytes
    # Streamed, what each of them leaves for backward is there at once.
    acts, block = single.activations, single.activations.block
    each = acts.inputs_bytes + acts.features_bytes + acts.qformer_bytes + acts.embeddings_bytes
    each += acts.last_mask_bytes
    each += 2 * block.recomputed_bytes
    grown = without.activations_bytes - single.prediction(mode, "computed", False).device.activations_bytes
    assert grown == 2 * each


def test_dtype_is_trainings(settings: Callable[..., Config]) -> None:
    automatic = settings(model={"dtype": "auto"})
    assert plan(automatic, gpu="A10").dtype == torch.bfloat16
    assert plan(automatic, gpu="T4").dtype == torch.float32  # as `auto` resolves without bf16 units
    full = plan(settings(model={"dtype": "float32"}), gpu="A10")
    assert full.frozen.opt_blocks == 2 * plan(automatic, gpu="A10").frozen.opt_blocks
    # bf16 masters, fp32 slots: a packed block is staged.
    streamed = full.prediction(Mode("stream", 0, "bf16", 1), "computed", False)
    assert streamed.device.opt_blocks_bytes == 3 * full.opt_stack.block_bytes


@pytest.fixture
def long_config(settings: Callable[..., Config]) -> Config:
    """Batches whose activations are worth recomputing, no validation in the way."""
    return settings(training={"batch_size": 64}, evaluation={"each_epoch": False}, model={"dtype": "bfloat16"})


def test_the_recommendation_is_what_placing_chooses(long_config: Config) -> None:
    config = override_config(
        long_config, ["frozen={opt: auto, vit: auto, feature_cache: auto}", "training.activation_checkpointing=auto"]
    )
    everything = plan(config, gpu="RTX 3060", text_tokens=80)
    # Features from a cache: no ViT to hold or to run.
    all_kept = everything.prediction(Mode("resident"), "cached", False)
    fitting = plan(config, _usable(all_kept.device.total_bytes), "RTX 3060", text_tokens=80).recommendation
    assert fitting is not None
    assert (fitting.choice.prediction, fitting.choice.shortfall_bytes) == (all_kept, 0)
    assert fitting.settings == {"frozen.opt": "resident", "training.activation_checkpointing": False}
    # Two blocks in two slots: nothing is smaller for being streamed.
    smallest = everything.prediction(Mode("resident", 0), "cached", False)
    short = plan(config, _usable(smallest.device.total_bytes) - 1000, "RTX 3060", text_tokens=80)
    assert short.recommendation is not None
    assert short.recommendation.choice.prediction == smallest
    assert short.usable_bytes is not None
    assert short.recommendation.choice.shortfall_bytes == smallest.device.total_bytes - short.usable_bytes > 0


def test_a_device_without_bfloat16_is_planned_for_as_it_trains(long_config: Config) -> None:
    """What fits in bfloat16 does not fit in float32, whatever the listed GPUs of that size can do."""
    config = override_config(
        long_config, ["model.dtype=auto", "frozen.opt=auto", "training.activation_checkpointing=auto"]
    )
    in_bf16, in_fp32 = (
        plan(override_config(config, [f"model.dtype={dtype}"]), gpu="RTX 3060", text_tokens=80)
        .prediction(Mode("resident"), "computed", lora_on_opt=False)
        .device.total_bytes
        for dtype in ("bfloat16", "float32")
    )
    free_bytes = _usable((in_bf16 + in_fp32) // 2)
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        device = Device("NVIDIA GeForce RTX 2080 Ti", 11 * GIB, free_bytes, has_bf16)
        found = plan(config, gpu=device, text_tokens=80)
        assert (found.dtype, found.gpu.has_bf16, found.gpu_memory_bytes) == (dtype, has_bf16, free_bytes)
        assert found.recommendation is not None
        choice = found.recommendation.choice
        keeps_all = (choice.shortfall_bytes, choice.prediction.mode) == (0, Mode("resident"))
        assert keeps_all == has_bf16


def test_what_streams_is_recommended_where_the_host_has_memory_for_it() -> None:
    config = load_config(recipe_path("artquest.yaml"), ["training.batch_size=32"])
    opts = [
        found.settings["frozen.opt"]
        for host_gib in (6, 3)
        if (found := plan(config, gpu=Device("RTX 4060", 8 * GIB, 8 * GIB, True, host_gib * GIB)).recommendation)
    ]
    assert opts == ["stream", "resident"]


def test_quantised_weights_are_told_of_only_where_nothing_exact_fits(settings: Callable[..., Config]) -> None:
    config = settings(
        frozen={"opt": "auto"}, training={"activation_checkpointing": "auto"}, evaluation={"each_epoch": False}
    )  # float32: quantised is far smaller
    found = plan(config, gpu="RTX 3060")
    exact = min(
        (p for p in found.predictions if p.mode.is_exact and p.features == "computed" and not p.lora_on_opt),
        key=lambda p: p.device.total_bytes,
    )
    with_exact, without = (
        plan(config, _usable(num_bytes), "RTX 3060").recommendation
        for num_bytes in (exact.device.total_bytes + 10**6, exact.device.total_bytes - 1000)
    )
    assert with_exact is not None
    assert with_exact.quantised is None
    assert without is not None
    assert without.choice.shortfall_bytes > 0
    assert without.quantised is not None
    assert not without.quantised.mode.is_exact


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
