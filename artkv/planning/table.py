"""`artkv plan` as text."""

import argparse
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch

from artkv.config import Config
from artkv.config.editing import write_settings, yaml_scalar
from artkv.config.sizes import parse_size
from artkv.errors import UserError
from artkv.planning.device import Device, ask_device
from artkv.planning.gpus import GPUS, MATMUL_EFFICIENCY, PCIE_EFFICIENCY
from artkv.planning.modes import FEATURES
from artkv.planning.placement import MARGIN_FRACTION
from artkv.planning.plan import Plan, plan
from artkv.planning.prediction import CUDA_OVERHEAD_BYTES, QUANTISED_SLOWDOWN, Prediction
from artkv.planning.transfer import hidden_from_tokens

_GIB = 2**30
_PART_NAMES = {
    "vit_bytes": "ViT",
    "art_encoders_bytes": "art encoders (fp32)",
    "qformer_bytes": "Q-Former, frozen part",
    "opt_outside_blocks_bytes": "OPT embeddings, norm",
    "opt_blocks_bytes": "OPT blocks or slots",
    "trainables_bytes": "trainables, optimizer",
    "activations_bytes": "activations, logits",
    "overhead_bytes": "CUDA (assumed)",
}


def run(config: Config, options: argparse.Namespace) -> None:
    """Prints the plan of `config` with the options of `artkv plan`, and writes its choice down where that is wanted."""
    path = None if options.write is None else options.write or options.config
    memory_bytes = None if options.gpu_memory is None else _gpu_memory_bytes(options.gpu_memory)
    gpu = _own_gpu() if options.gpu is None and memory_bytes is None else options.gpu
    found = plan(config, memory_bytes, gpu, options.world_size, options.text_tokens, options.paintings)
    print(format_plan(found))
    if path is None:
        return
    if found.recommendation is None or found.recommendation.choice.shortfall_bytes:
        raise UserError(f"--write {path}: there is no choice to write; give --gpu-memory, or more of it")
    kept = write_settings(Path(path), found.recommendation.settings)
    print(f"\nwritten into {path}{'' if kept else '; its comments are lost'}")


def _own_gpu() -> Device | None:
    """This machine's GPU, if it has one."""
    return ask_device(torch.device("cuda", 0)) if torch.cuda.is_available() else None


def _gpu_memory_bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UserError(f"--gpu-memory = {error}") from None


def format_plan(plan: Plan) -> str:
    """The whole plan as text of at most 120 columns."""
    sections = [_recommendation(plan), _heading(plan), _parts(plan), _modes(plan), _gpus(plan), _assumptions()]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _heading(plan: Plan) -> list[str]:
    batch = plan.batch
    ranks = "1 rank" if plan.world_size == 1 else f"{plan.world_size} ranks"
    guess = "nearest by memory" if plan.device else "none named; --gpu"
    rates = plan.gpu.name if plan.gpu_is_named else f"{plan.gpu.name} ({guess})"
    lines = [
        f"Micro-batch: {batch.questions} questions on {batch.paintings} paintings, {plan.num_visual_tokens} visual and "
        f"{batch.text_tokens} text tokens each, {'packed' if batch.is_packed else 'not packed'}: "
        f"{plan.sequences.rows} x {plan.sequences.columns} = {plan.micro_batch_tokens} tokens.",
        f"{plan.accumulation} micro-batches a step, {ranks}, {str(plan.dtype).removeprefix('torch.')}. Rates: {rates}.",
    ]
    if plan.device is not None:
        unlisted = "" if plan.gpu_is_named else ", not in the list below"
        lines.append(f"GPU: {plan.device.name}, {_gib(plan.device.memory_bytes)} GiB{unlisted}.")
    if not plan.gpu.has_bf16:
        name = plan.gpu.name if plan.device is None else plan.device.name
        lines.append(f"{name} has no bfloat16: the rate is float32's.")
    elif plan.dtype == torch.float32:
        lines.append("The rate is of 16-bit products; float32's is far lower.")
    return lines


def _parts(plan: Plan) -> list[str]:
    acts, trainables, frozen = plan.activations, plan.trainables, plan.frozen
    block = acts.block
    num_blocks = plan.opt_stack.num_blocks
    rows = [
        ("frozen weights", "ViT", frozen.vit),
        ("", "art encoders, fp32", frozen.art_encoders),
        ("", "Q-Former, queries, projection", frozen.qformer),
        ("", "OPT embeddings, final LayerNorm", frozen.opt_outside_blocks),
        ("", f"OPT blocks, {num_blocks} of {plan.opt_stack.block_bytes / 1e6:.2f} MB", frozen.opt_blocks),
        ("trainables", f"weights, {trainables.num_elements / 1e6:.2f}M elements", trainables.weights_bytes),
        ("", "masters, fp32", trainables.masters_bytes),
        ("", "Adam moments, fp32", trainables.moments_bytes),
        ("", "gradients, fp32", trainables.gradients_bytes),
        ("", "reduction buckets", trainables.buckets_bytes),
        ("activations", "pictures, a micro-batch", acts.inputs_bytes),
        ("", "encoders, no gradients, at most", acts.encoding_bytes),
        ("", "their features", acts.features_bytes),
        ("", "generator and Q-Former", acts.qformer_bytes),
        ("", f"OPT blocks stored, {num_blocks} of {block.stored_bytes / 1e6:.2f} MB", num_blocks * block.stored_bytes),
        ("", f"OPT blocks' inputs, {num_blocks} of {block.recomputed_bytes / 1e6:.2f} MB",
         num_blocks * block.recomputed_bytes),
        ("", "a block recomputed, with its backward", block.recomputed_backward_bytes),
        ("", "a chunk of logits, loss", acts.logits_bytes),
    ]  # fmt: skip
    if acts.evaluation is not None:
        rows.append(("validation", "encoders, at most", acts.evaluation.encoding_bytes))
        rows.append(("", "keys and values, a block", acts.evaluation.answering_bytes))
    lora = "with" if plan.lora_on_opt else "without"
    title = f"Parts, MB (10^6 bytes) a rank, {lora} LoRA on OPT"
    return [title, *(f"  {group:<15}{name:<42}{num_bytes / 1e6:>10,.1f}" for group, name, num_bytes in rows)]


def _modes(plan: Plan) -> list[str]:
    """One row a mode; totals by source of features, without and with LoRA on OPT."""
    names = {"computed": "computed", "ViT streamed": "ViT strm", "cached": "cached"}
    columns = "".join(f"{names[features]:>10}" for features in FEATURES)
    lines = [
        "Modes. Memory in GiB (2^30 bytes), PCIe in GB (10^9 bytes) a step, times for OPT, head and ViT",
        f"{'':25}{'':>8}{'device, LoRA not on OPT':>30}{'device, LoRA on OPT':>30}{'':>6}{'features computed':>20}",
        f"{'OPT':<25}{'weights':>8}{columns}{columns}{'host':>6}{'PCIe':>6}{'s/step':>7}{'hidden':>7}",
    ]
    modes = list(dict.fromkeys(prediction.mode for prediction in plan.predictions))
    for mode in modes:
        totals = [
            plan.prediction(mode, features, lora).device.total_bytes for lora in (False, True) for features in FEATURES
        ]
        shown = plan.prediction(mode, "computed", plan.lora_on_opt)
        lines.append(
            f"{mode.name:<25}{_gib(shown.device.opt_blocks_bytes):>8}"
            + "".join(f"{_gib(total) + _fit_mark(total, plan):>10}" for total in totals)
            + f"{_gib(shown.shared_host_bytes):>6}{shown.pcie_bytes_per_step / 1e9:>6.2f}{shown.step_seconds:>7.2f}"
            + f"{_tokens(shown):>7}"
        )
    lines.append(
        "Host: frozen masters, page-locked, once a node. Hidden: copies take no time of their own from so many"
    )
    lines.append("tokens on that go through a block at a time; never with 1 slot.")
    lines.append(
        f"Cached: features from frozen.feature_cache, {plan.cached_bytes / 1e6:.2f} MB of disk a distinct picture; no "
        "encoder on the device."
    )
    if plan.usable_bytes is not None:
        lines.append(f"! more than the {_gib(plan.usable_bytes)} GiB that may be used.")
    bf16_bytes, int8_bytes = (s.num_blocks * s.block_bytes for s in (plan.vit_stack, plan.int8_vit_stack))
    lines.append(
        f"A streamed ViT adds {bf16_bytes / 1e9:.2f} GB of PCIe a micro-step and {_gib(bf16_bytes)} GiB of host "
        f"memory, as int8 {int8_bytes / 1e9:.2f} and {_gib(int8_bytes)}."
    )
    if plan.trainables.host_bytes:
        lines.append(f"The offloaded optimizer adds {_gib(plan.trainables.host_bytes)} GiB of host memory a rank.")
    return lines


def _fit_mark(total_bytes: int, plan: Plan) -> str:
    if plan.usable_bytes is None:
        return ""
    return "!" if total_bytes > plan.usable_bytes else " "


def _tokens(prediction: Prediction) -> str:
    if prediction.hidden_from_tokens is None:
        return "-"
    return "never" if prediction.mode.slots == 1 else str(prediction.hidden_from_tokens)


def _gpus(plan: Plan) -> list[str]:
    width = max(len(gpu.name) for gpu in GPUS)
    lines = [
        f"Copies hidden from so many tokens on (a micro-batch has {plan.micro_batch_tokens})",
        f"  {'':<{width}}{'GiB':>5}{'peak TFLOP/s':>14}{'PCIe':>9}{'GB/s':>7}{'bf16':>8}{'int8':>8}",
    ]
    for gpu in GPUS:
        note = "" if gpu.has_bf16 else "  float32's rate; no bf16"
        lines.append(
            f"  {gpu.name:<{width}}{gpu.memory_bytes / _GIB:>5.0f}{gpu.peak_flops / 1e12:>14.1f}"
            f"{f'{gpu.pcie_generation} x{gpu.pcie_lanes}':>9}{gpu.copy_bytes_per_second / 1e9:>7.1f}"
            f"{hidden_from_tokens(plan.opt_stack, gpu):>8}{hidden_from_tokens(plan.int8_stack, gpu):>8}{note}"
        )
    return lines


def _assumptions() -> list[str]:
    return [
        "Assumed, not measured (docs/planning.md): "
        f"{CUDA_OVERHEAD_BYTES / 2**20:.0f} MiB for CUDA, {MARGIN_FRACTION:.0%} of the memory left free,",
        f"{MATMUL_EFFICIENCY:.0%} of peak FLOP/s, {PCIE_EFFICIENCY:.0%} of the PCIe link, "
        f"int8 and nf4 products {QUANTISED_SLOWDOWN} times slower, model.backend: transformers.",
    ]


def _recommendation(plan: Plan) -> list[str]:
    found = plan.recommendation
    if found is None or plan.usable_bytes is None or plan.gpu_memory_bytes is None:
        return [
            "No recommendation: this machine has no GPU; give --gpu-memory or --gpu.",
            "What each way of placing the weights would take of one, to choose by hand:",
        ]
    best, shortfall = found.choice.prediction, found.choice.shortfall_bytes
    room = f"{_gib(plan.gpu_memory_bytes)} GiB, of which {_gib(plan.usable_bytes)} may be used"
    if shortfall:
        lines = [
            f"Nothing exact fits {room}: the smallest, {best.mode.name},",
            f"takes {_gib(best.device.total_bytes)}, {_gib(shortfall)} GiB too much.",
            "Lower training.batch_size and raise training.gradient_accumulation_steps, or give more memory.",
        ]
        if found.quantised is not None:
            lines.append(
                f"With quantised weights, not exact, {found.quantised.mode.name} fits: "
                f"{_gib(found.quantised.device.total_bytes)} GiB."
            )
        return [*lines, *_device_parts(best)]
    lines = [
        f"Chosen by frozen.opt: auto for {room}:",
        f"{found.words}, features {best.features}: {_gib(best.device.total_bytes)} GiB, "
        f"about {best.step_seconds:.2f} s a step",
    ]
    if found.hint:
        lines.append(f"{found.hint.removeprefix('; ')}.")
    lines += _device_parts(best)
    lines.append(f"  {'host, page-locked':<24}{_gib(best.shared_host_bytes + best.rank_host_bytes):>7} GiB")
    lines.append("The same as settings, which training needs not be told (--write puts them into the config):")
    for section in dict.fromkeys(key.split(".")[0] for key in found.settings):
        lines.append(f"  {section}:")
        for key, value in found.settings.items():
            if key.startswith(f"{section}."):
                lines.append(f"    {key.split('.')[1]}: {yaml_scalar(value)}")
    return lines


def _device_parts(prediction: Prediction) -> Iterator[str]:
    device = prediction.device
    for field in fields(device):
        yield f"  {_PART_NAMES[field.name]:<24}{_gib(getattr(device, field.name)):>7} GiB"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f}"
