"""Trains BLIP2-OPT-2.7b at its true size, with random weights, on whatever machine this is.

    python benchmarks/full_size.py --folder /big/disk/blip2_random
    torchrun --nproc_per_node 2 benchmarks/full_size.py --folder /big/disk/blip2_random

The first run writes 7.5 GB of random bfloat16 weights in transformers' format into the folder; later runs
load them. Then a few optimizer steps run with OPT's blocks streamed (bfloat16 masters in host memory, shared
by all ranks, decoded into slots of the compute dtype), through the same loader, engine and step as
`artkv train`. Printed for each step: seconds, loss, blocks loaded; at the end memory, a rank.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessor

from artkv.batch import Batch, PaintingViews
from artkv.config import (
    Config,
    EfficientNetConfig,
    FrozenConfig,
    ModelConfig,
    TrainingConfig,
)
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.datasets.tokenization import collate_questions, encode_for_training
from artkv.distributed import World, process_group
from artkv.models.assembly import BuiltModel, build_model
from artkv.models.timm_networks import create_network
from artkv.monitoring.memory import peak_device_bytes, peak_host_bytes
from artkv.quickstart.tokenizer import train_tokenizer
from artkv.run_folder.state import TrainableState
from artkv.training.engine import TrainingEngine
from artkv.training.step import answer_token_count, train_step

_TEXT = "Question: In which style is this painting of a harbour at dusk? Short answer: impressionism\n"
_SHARD_BYTES = 2 * 10**9


def main() -> None:
    """Makes the weights if they are missing, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the random weights are, or are to be made")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps (default 4)")
    parser.add_argument("--questions", type=int, default=2, help="questions a step and rank, about one painting")
    parser.add_argument("--slots", type=int, default=2, help="device slots (default 2)")
    parser.add_argument("--storage", choices=("bf16", "int8"), default="bf16", help="of the masters (default bf16)")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="to compute in")
    parser.add_argument("--opt", choices=("stream", "resident"), default="stream", help="where OPT's blocks are")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with process_group(timeout_minutes=30) as world:
        if world.is_main and not options.folder.is_dir():
            write_random_blip2(options.folder)
        world.barrier()
        figures = train(options, world)
        everywhere = world.gather(figures)
    if world.is_main:
        print(json.dumps(everywhere, indent=2))
        if options.json is not None:
            options.json.write_text(json.dumps(everywhere, indent=2))


def write_random_blip2(folder: Path) -> None:
    """A folder in transformers' format with random weights, written shard by shard and renamed when whole."""
    config = Blip2Config(
        text_config={
            "model_type": "opt", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
            "ffn_dim": 10240, "word_embed_proj_dim": 2560, "vocab_size": 50304, "max_position_embeddings": 2048,
            "do_layer_norm_before": True, "activation_function": "relu",
        },
        image_token_index=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if "lm_head" not in name}
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def write_shard() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, temporary / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in shapes.items():
        is_norm = "norm" in name.lower() and name.endswith("weight")
        values = torch.ones(shape) if is_norm else torch.empty(shape).normal_(std=0.02, generator=generator)
        shard[name] = values.bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) > _SHARD_BYTES:
            write_shard()
    write_shard()
    index = {"metadata": {}, "weight_map": weight_map}
    (temporary / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(temporary)
    train_tokenizer([_TEXT]).save_pretrained(temporary)
    BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(temporary)
    encoder = create_network("efficientnet_b3", num_classes=27)
    save_file(encoder.state_dict(), temporary / "efficientnet_b3.safetensors")
    temporary.rename(folder)


def train(options: argparse.Namespace, world: World) -> dict[str, object]:
    """The figures of this rank."""
    began = time.perf_counter()
    frozen = FrozenConfig(opt=options.opt, vit="resident", feature_cache=None)
    if options.opt == "stream":
        frozen = frozen.model_copy(update={"slots": options.slots, "storage": options.storage})
    training = TrainingConfig(batch_size=options.questions, activation_checkpointing=options.opt == "stream", seed=0)
    config = Config(
        model=ModelConfig(blip2=str(options.folder), dtype=options.dtype),
        efficientnet=EfficientNetConfig(checkpoint=options.folder / "efficientnet_b3.safetensors"),
        frozen=frozen,
        training=training,
    )
    built = build_model(config, world)
    loading_seconds = time.perf_counter() - began
    model = built.model
    deepspeed_config = fill_deepspeed_config(
        load_deepspeed_config("zero2_bf16.json"), training, 1, world.size,
        model.backbone.dtype == torch.bfloat16, sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    engine = TrainingEngine(
        model, deepspeed_config, training.weight_decay, TrainableState(built.initial_values, {}, {}, 0)
    )
    batch = one_painting(built, options.questions, world.rank)
    seconds, losses, loads = [], [], []
    opt = model.backbone.streamed.get("opt")
    for _ in range(options.steps):
        loads_before = opt.total_loads if opt else 0
        began = time.perf_counter()
        on_device = [batch.to(world.device)]
        answer_tokens = world.all_reduce_sum(answer_token_count(on_device))
        loss_sum = train_step(engine, on_device, 1e-4, answer_tokens, world.size)
        losses.append(float(loss_sum))  # waits for the device
        seconds.append(time.perf_counter() - began)
        loads.append(opt.total_loads - loads_before if opt else 0)
        if world.is_main:
            print(
                f"step {len(seconds)}: {seconds[-1]:.1f} s, loss {losses[-1]:.3f}, {loads[-1]} blocks loaded",
                flush=True,
            )
    engine.close()
    tokens = int(batch.questions.attention_mask.sum()) + len(batch.questions) * model.num_visual_tokens
    return {
        "rank": world.rank,
        "device": str(world.device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.backbone.dtype),
        "frozen": frozen.model_dump(include={"opt", "slots", "storage"}),
        "tokens_per_step": tokens,
        "loading_seconds": round(loading_seconds, 1),
        "step_seconds": [round(value, 2) for value in seconds],
        "median_step_seconds": round(statistics.median(seconds[1:] or seconds), 2),
        "loads_per_step": loads,
        "losses": losses,
        "peak_host_bytes": peak_host_bytes(),
        "proportional_host_bytes": proportional_bytes(),
        "frozen_blocks_proportional_bytes": proportional_bytes("artkv-frozen-blocks"),
        "peak_device_bytes": peak_device_bytes(),
        "streaming": opt.summary() if opt else None,
    }


def one_painting(built: BuiltModel, questions: int, seed: int) -> Batch:
    """A random painting and some questions about it."""
    tokenizer = built.model.backbone.tokenizer
    generator = torch.Generator().manual_seed(seed)
    encoded = [
        encode_for_training(
            tokenizer, "Question: {question} Short answer:", f"In which style is part {n}?", "impressionism"
        )
        for n in range(questions)
    ]
    views = PaintingViews(
        torch.randn(1, 3, 224, 224, generator=generator), torch.randn(1, 3, 300, 300, generator=generator)
    )
    return Batch(
        views, collate_questions(encoded, [0] * questions, 1.0, tokenizer.pad_token_id), tuple(range(questions))
    )


def proportional_bytes(mapping: str | None = None) -> int:
    """This process's memory with shared pages divided by their users (PSS), of all mappings or of one."""
    total_kib, counts = 0, mapping is None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:  # the head of a mapping: an address range, and a name at its end
            counts = mapping is None or mapping in line
        elif counts and line.startswith("Pss:"):
            total_kib += int(line.split()[1])
    return total_kib * 1024


if __name__ == "__main__":
    main()
