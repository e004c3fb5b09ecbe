"""Chooses where weights lie and what is recomputed: the fastest way that fits the device and computes exactly."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from artkv.config import Config
from artkv.config.editing import Scalar
from artkv.feature_cache.filling import RECORDS_A_BATCH
from artkv.frozen.residency import count_resident
from artkv.planning.device import Device
from artkv.planning.modes import Features, Mode
from artkv.planning.prediction import CUDA_OVERHEAD_BYTES, Prediction, Predictor

# An assumption: the allocator's gaps, kernels' workspaces, and what the driver keeps of the nominal size.
MARGIN_FRACTION = 0.1
# Rates are assumed, and streaming takes host memory: it is chosen before resident only for more than this.
STREAMING_MUST_GAIN = 1.1
_GIB, _MIB = 2**30, 2**20


@dataclass(frozen=True)
class Use:
    """What a model is loaded for.

    trains: False for answering alone. accumulation: micro-batches of a step; None: as the config has it. limit_bytes:
    the most that may be predicted, however much is free.
    """

    trains: bool = False
    accumulation: int | None = None
    limit_bytes: int | None = None


# To answer, by the config, with whatever is free.
ANSWERING = Use()


@dataclass(frozen=True)
class Choice:
    """The fastest prediction that fits, or the smallest one and what it lacks.

    shortfall_bytes: 0 where it fits.
    """

    prediction: Prediction
    shortfall_bytes: int


@dataclass(frozen=True)
class Placement:
    """Where weights lie and what is recomputed.

    config: the settings, `frozen` and `training.activation_checkpointing` with values in the place of auto.
    note: what was chosen and why; None where nothing was left to choose. choice: None where no device was asked.
    """

    config: Config
    note: str | None = None
    choice: Choice | None = None


def usable_bytes(free_bytes: int) -> int:
    """Free memory less the margin."""
    return int(free_bytes * (1 - MARGIN_FRACTION))


def is_settled(config: Config) -> bool:
    """Whether nothing about weights and activations is left to choose."""
    frozen = config.frozen
    return "auto" not in (frozen.opt, frozen.vit, config.training.activation_checkpointing)


def place(predictor: Predictor, device: Device, folder: Path | None, use: Use) -> Placement:
    """The placement for a device; `predictor` has the config. folder: of the feature cache, None for none."""
    usable = usable_bytes(device.free_bytes)
    limit = usable if use.limit_bytes is None else min(usable, use.limit_bytes)
    choice = choose(predictor, limit, folder is not None, device.host_bytes)
    vit: Literal["resident", "stream"] = "stream" if choice.prediction.features == "ViT streamed" else "resident"
    if folder is not None:
        vit = vit_for_filling(predictor, usable)
    return Placement(
        _resolved(predictor, choice.prediction.mode, vit, folder), _note(predictor, choice, device, limit), choice
    )


def place_unasked(config: Config, folder: Path | None, use: Use) -> Placement:
    """The placement on a CPU, or where nothing is left to choose: what is auto is resident, activations are kept."""
    frozen, training = config.frozen, config.training
    places = {"opt": frozen.opt, "vit": frozen.vit}
    placed = frozen.model_copy(
        update={name: "resident" if place == "auto" else place for name, place in places.items()}
        | {"feature_cache": folder}
    )
    recomputes = False if training.activation_checkpointing == "auto" else training.activation_checkpointing
    if frozen.opt != "auto":
        return Placement(_with(config, placed, recomputes))
    kept = ", all activations kept" if use.trains and recomputes is False else ""
    return Placement(_with(config, placed, recomputes), f"OPT resident on the CPU{kept}")


def choose(predictor: Predictor, limit_bytes: int, is_cached: bool, host_bytes: int | None = None) -> Choice:
    """The fastest way within the limit that the config leaves open, or the smallest where none is.

    host_bytes: what is free of the host's memory, in which streamed weights are; None: enough for anything.
    """
    candidates = [
        _keeping_most(predictor, mode, features, limit_bytes)
        for features in _features(predictor.config, is_cached)
        for mode in _modes(predictor)
    ]
    if host_bytes is not None:  # where no way is left the host's memory is told as it is taken
        candidates = [p for p in candidates if p.shared_host_bytes + p.rank_host_bytes <= host_bytes] or candidates
    fitting = [p for p in candidates if p.device.total_bytes <= limit_bytes]
    if not fitting:
        smallest = min(candidates, key=lambda p: p.device.total_bytes)
        return Choice(smallest, smallest.device.total_bytes - limit_bytes)
    best = min(fitting, key=_cost)
    unstreamed = min((p for p in fitting if p.mode.opt != "stream"), key=_cost, default=best)
    return Choice(unstreamed if unstreamed.step_seconds <= STREAMING_MUST_GAIN * best.step_seconds else best, 0)


def vit_for_filling(predictor: Predictor, limit_bytes: int) -> Literal["resident", "stream"]:
    """Where the ViT is while it fills a feature cache: nothing of OPT is on the device then."""
    if predictor.config.frozen.vit != "auto":
        return predictor.config.frozen.vit
    acts, frozen = predictor.activations, predictor.frozen
    working_bytes = (acts.inputs_bytes + acts.encoding_bytes) // predictor.batch.paintings * RECORDS_A_BATCH
    needed = frozen.vit + frozen.art_encoders + working_bytes + CUDA_OVERHEAD_BYTES
    return "resident" if needed <= limit_bytes else "stream"


def batch_size_that_keeps_all(predictor: Predictor, prediction: Prediction, limit_bytes: int) -> int:
    """About the most questions of a micro-batch of which the same way would keep all activations; 0 if not one's.

    Activations of training are taken to be in proportion to the questions.
    """
    mode = replace(prediction.mode, kept_blocks=None)
    acts = replace(predictor.activations, evaluation=None)
    batch_bytes = predictor.training_peak_bytes(mode, prediction.features != "cached", acts)
    fixed_bytes = prediction.device.total_bytes - prediction.device.activations_bytes
    questions = int(predictor.batch.questions * (limit_bytes - fixed_bytes) / batch_bytes)
    return max(0, questions - questions % 8 if questions > 8 else questions)


def chosen_settings(predictor: Predictor, choice: Choice) -> dict[str, Scalar]:
    """The settings, by dotted key, that choose it without asking a device."""
    mode, features = choice.prediction.mode, choice.prediction.features
    settings: dict[str, Scalar] = {"frozen.opt": mode.opt}
    if features != "cached":
        settings["frozen.vit"] = "stream" if features == "ViT streamed" else "resident"
        settings["frozen.feature_cache"] = None
    if mode.opt == "stream":
        settings |= {
            "frozen.storage": mode.storage, "frozen.slots": mode.slots, "frozen.resident_blocks": mode.resident_blocks,
        }  # fmt: skip
    return settings | {"training.activation_checkpointing": kept_setting(predictor, mode)}


def kept_setting(predictor: Predictor, mode: Mode) -> bool | str:
    """The value of `training.activation_checkpointing` by which as many blocks keep their activations as in `mode`."""
    if mode.kept_blocks is None:
        return False
    if mode.kept_blocks == 0:
        return True
    block_bytes = predictor.kept_bytes(mode, 1)
    # A quarter of a block more: kernels may pad what they keep.
    budget = mode.kept_blocks * block_bytes + block_bytes // 4
    rounded = -(-budget // _MIB) * _MIB
    return f"{rounded // _MIB}MiB" if rounded // block_bytes == mode.kept_blocks else f"{budget}B"


def _features(config: Config, is_cached: bool) -> tuple[Features, ...]:
    if is_cached:
        return ("cached",)
    if config.frozen.vit == "auto":
        return ("computed", "ViT streamed")
    return ("computed",) if config.frozen.vit == "resident" else ("ViT streamed",)


def _modes(predictor: Predictor) -> Iterator[Mode]:
    """The exact ways that `frozen.opt: auto` has, or the one that is set."""
    frozen, num_blocks = predictor.config.frozen, predictor.num_opt_blocks
    if frozen.opt == "auto":
        yield Mode("resident")
        slots = min(frozen.slots, num_blocks)
        yield from (Mode("stream", slots=slots, resident_blocks=count) for count in range(num_blocks - slots + 1))
    elif frozen.opt == "stream":
        resident = count_resident(
            frozen.resident_blocks, frozen.memory_budget_bytes, predictor.opt_layout(frozen.storage),
            predictor.shapes.dtype, num_blocks, frozen.slots,
        )  # fmt: skip
        yield Mode("stream", storage=frozen.storage, slots=frozen.slots, resident_blocks=resident)
    else:
        yield Mode(frozen.opt)


def _keeping_most(predictor: Predictor, mode: Mode, features: Features, limit_bytes: int) -> Prediction:
    """The mode with as many activations kept as are set, or else as fit; with none where it does not fit at all."""

    def keeping(count: int | None) -> Prediction:
        return predictor.predict(replace(mode, kept_blocks=count), features)

    training = predictor.config.training
    if not predictor.trains:
        return keeping(None)
    if training.activation_checkpointing != "auto":
        return keeping(predictor.kept_blocks(mode, training.kept_activation_bytes))
    best = keeping(None)
    if best.device.total_bytes <= limit_bytes:
        return best
    best, low, high = keeping(0), 1, predictor.num_opt_blocks - 1
    while low <= high:
        middle = (low + high) // 2
        found = keeping(middle)
        if found.device.total_bytes <= limit_bytes:
            best, low = found, middle + 1
        else:
            high = middle - 1
    return best


def _cost(prediction: Prediction) -> tuple[float, int, int]:
    """Times equal to two digits: the one that moves least, and of those the one that takes least memory."""
    return (float(f"{prediction.step_seconds:.2g}"), prediction.pcie_bytes_per_step, prediction.device.total_bytes)


def _resolved(predictor: Predictor, mode: Mode, vit: Literal["resident", "stream"], folder: Path | None) -> Config:
    config = predictor.config
    placed: dict[str, object] = {"opt": mode.opt, "vit": vit, "feature_cache": folder}
    if mode.opt == "stream":
        placed |= {"storage": mode.storage, "slots": mode.slots, "resident_blocks": mode.resident_blocks}
    recomputes = config.training.activation_checkpointing
    if recomputes == "auto":
        recomputes = kept_setting(predictor, mode)
    return _with(config, config.frozen.model_copy(update=placed), recomputes)


def _with(config: Config, frozen: object, recomputes: bool | str) -> Config:
    training = config.training.model_copy(update={"activation_checkpointing": recomputes})
    return config.model_copy(update={"frozen": frozen, "training": training})


def describe(predictor: Predictor, prediction: Prediction) -> str:
    """Where OPT is and what it keeps, in words."""
    mode, num_blocks = prediction.mode, predictor.num_opt_blocks
    words = "OPT " + {"stream": "streamed", "int8": "in int8", "nf4": "in nf4"}.get(mode.opt, mode.opt)
    if mode.opt == "stream":
        words += f" through {mode.slots} slot{'s' if mode.slots > 1 else ''}"
        if mode.resident_blocks:
            words += f" with {mode.resident_blocks} of {num_blocks} blocks resident"
    if prediction.features == "ViT streamed":
        words += ", ViT streamed"
    if not predictor.trains:
        return words
    kept = {None: "all activations kept", 0: f"all {num_blocks} blocks recomputed"}.get(
        mode.kept_blocks, f"activations of {mode.kept_blocks} of {num_blocks} blocks kept"
    )
    return f"{words}, {kept}"


def hint(predictor: Predictor, choice: Choice, limit_bytes: int) -> str:
    """What would fill the device or make it faster; begins with `; `, or is empty."""
    if choice.shortfall_bytes:
        return f"; {choice.shortfall_bytes / _GIB:.1f} GiB more than may be used: lower training.batch_size"
    if not predictor.trains:
        return ""
    mode, questions = choice.prediction.mode, predictor.batch.questions
    words = ""
    if mode.opt == "stream" and predictor.config.frozen.opt == "auto":
        resident = predictor.predict(Mode("resident", mode.kept_blocks), choice.prediction.features).device.total_bytes
        words = f"; OPT resident would take {resident / _GIB:.1f} GiB"
    most = batch_size_that_keeps_all(predictor, choice.prediction, limit_bytes)
    if mode.kept_blocks is None and most > questions:
        return f"{words}; training.batch_size {predictor.config.training.batch_size}: up to about {most} would fit"
    if mode.kept_blocks is not None and 0 < most < questions:
        return f"{words}; training.batch_size {most} would recompute nothing"
    return words


def _note(predictor: Predictor, choice: Choice, device: Device, limit_bytes: int) -> str:
    needed, free = choice.prediction.device.total_bytes / _GIB, device.free_bytes / _GIB
    words = f"{describe(predictor, choice.prediction)}: {needed:.1f} of {free:.1f} GiB free"
    # Of all modes the last one streams most.
    streamed = predictor.predict(list(_modes(predictor))[-1], choice.prediction.features).shared_host_bytes
    if device.host_bytes is not None and choice.prediction.shared_host_bytes <= device.host_bytes < streamed:
        host = device.host_bytes / _GIB
        words += f"; the host has {host:.1f} GiB free, and {streamed / _GIB:.1f} are needed to stream OPT"
    return f"{words}{hint(predictor, choice, limit_bytes)}"
