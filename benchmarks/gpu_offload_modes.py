"""The ways to hold OPT's frozen blocks that `gpu_offload.py` compares: artkv's own, and those of other libraries.

All compute in bfloat16 from the same random weights. Token and position embeddings, the final LayerNorm and the
tied head are on the device in each of them, and shared; the modes differ in the blocks alone.

Letters in tensor names: Q questions, S positions, T text tokens, D OPT's width.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import OPTConfig, OPTForCausalLM

from artkv.distributed import process_group, single_process
from artkv.errors import UserError
from artkv.frozen.block_layout import TensorReader, block_layout
from artkv.frozen.host_blocks import HostBlocks
from artkv.frozen.quantised import Quantisation, quantise_linears
from artkv.frozen.recompute import ActivationBudget, recompute_blocks
from artkv.frozen.residency import device_bytes
from artkv.frozen.streaming import stream_blocks
from artkv.frozen.transport import CpuTransport, CudaTransport, Slot, Transport
from artkv.planning.memory import quantised_block_bytes

Storage = Literal["bf16", "int8"]

COMPUTE_DTYPE = torch.bfloat16
_WEIGHT_STD = 0.02  # OPT's own initialisation
# Each block reads its values at another place of one pool; a prime, so that rows of different blocks do not coincide.
_POOL_STEP = 4099
# About 6, 12 and 18 ms at the 1.7 GHz of common cards: longer than a copy, and than a block's computing.
_DELAY_CYCLES = 10_000_000
# transformers takes settings that its own signature does not name.
_OPT_CONFIG: Any = OPTConfig


def opt_2_7b() -> Any:
    """The transformers config of the OPT in Salesforce/blip2-opt-2.7b."""
    return _OPT_CONFIG(
        vocab_size=50304, hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=2048, word_embed_proj_dim=2560, attn_implementation="sdpa",
    )  # fmt: skip


def toy_opt() -> Any:
    """The same structure in a size that a CPU runs through in no time."""
    return _OPT_CONFIG(
        vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=6, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=32, attn_implementation="sdpa",
    )  # fmt: skip


@dataclass(frozen=True)
class MicroBatch:
    """Random inputs: visual tokens and text of each question, padded at the end of the last one.

    embeds_QSD: compute dtype. mask_QS, labels_QT: int64; padding has label -100.
    """

    embeds_QSD: Tensor
    mask_QS: Tensor
    labels_QT: Tensor

    @property
    def tokens(self) -> int:
        """Positions that OPT computes, padding included."""
        return self.mask_QS.numel()


class RandomOpt:
    """An OPT with random weights: what is outside the blocks on the device, the blocks' masters in host memory.

    num_visual: visual tokens of a question. num_text: its text tokens.
    outside_bytes: device memory of embeddings, final LayerNorm and buffers.
    """

    def __init__(self, config: Any, device: torch.device, num_visual: int, num_text: int) -> None:
        self.config = config
        self.device = device
        self.num_visual = num_visual
        self.num_text = num_text
        self._masters: dict[Storage, HostBlocks] = {}
        generator = torch.Generator(device).manual_seed(0)
        skeleton = self._skeleton()
        self._outside = {
            name: _random_tensor(name, tensor.shape, device, generator)
            for name, tensor in skeleton.state_dict().items()
            if ".layers." not in name and name != "lm_head.weight"
        }
        self.outside_bytes = sum(tensor.nbytes for tensor in self._outside.values())
        self.block_shapes = {name: tuple(p.shape) for name, p in skeleton.model.decoder.layers[0].named_parameters()}
        self.block_elements = sum(torch.Size(shape).numel() for shape in self.block_shapes.values())
        self.num_blocks: int = self.config.num_hidden_layers

    def masters(self, storage: Storage) -> HostBlocks:
        """The blocks in host memory, made at the first call; page-locked on CUDA by the first transport."""
        if storage not in self._masters:
            self._masters[storage] = HostBlocks.build(self._random_blocks(), storage, single_process(self.device))
        return self._masters[storage]

    def block_values(self, index: int) -> dict[str, Tensor]:
        """A block's tensors by name inside the block: views of its bf16 master."""
        host = self.masters("bf16")
        names = [place.name for place in host.layout.places]
        parameters = host.layout.slot_parameters(host.layout.as_slot(host.packed[index]))
        return {name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)}

    def model(self) -> Any:
        """A frozen OPT in eval mode whose blocks are on the meta device."""
        model = self._skeleton()
        model.load_state_dict(self._outside, strict=False, assign=True)
        model.tie_weights()
        return model.eval().requires_grad_(False)

    def micro_batch(self, questions: int) -> MicroBatch:
        """The same for the same number of questions."""
        generator = torch.Generator().manual_seed(questions)
        num_positions = self.num_visual + self.num_text
        shape_QSD = (questions, num_positions, self.config.hidden_size)
        mask_QS = torch.ones(questions, num_positions, dtype=torch.long)
        mask_QS[-1, -2:] = 0
        labels_QT = torch.randint(0, self.config.vocab_size, (questions, self.num_text), generator=generator)
        labels_QT.masked_fill_(mask_QS[:, self.num_visual :] == 0, -100)
        embeds_QSD = torch.randn(shape_QSD, generator=generator).to(self.device, COMPUTE_DTYPE)
        return MicroBatch(embeds_QSD, mask_QS.to(self.device), labels_QT.to(self.device))

    def loss(self, model: Any, embeds_QSD: Tensor, mask_QS: Tensor, labels_QT: Tensor) -> Tensor:
        """Summed cross-entropy of the text, from logits at every text token."""
        hidden_QSD = model.model.decoder(
            inputs_embeds=embeds_QSD, attention_mask=mask_QS, use_cache=False
        ).last_hidden_state
        logits_QTV = model.lm_head(hidden_QSD[:, self.num_visual - 1 : -1])
        return cross_entropy(
            logits_QTV.flatten(0, 1).float(), labels_QT.flatten(), ignore_index=-100, reduction="none"
        ).sum()

    def step(self, model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """A forward and a backward pass: the loss, and its gradient with respect to the embeddings."""
        embeds_QSD = batch.embeds_QSD.clone().requires_grad_()
        loss = self.loss(model, embeds_QSD, batch.mask_QS, batch.labels_QT)
        loss.backward()
        assert embeds_QSD.grad is not None
        return loss.detach(), embeds_QSD.grad

    def _skeleton(self) -> Any:
        with torch.device("meta"):
            model: Any = OPTForCausalLM(self.config)
        return model.to(COMPUTE_DTYPE)

    def _random_blocks(self) -> list[dict[str, TensorReader]]:
        """Readers of every block's values: windows of one pool, since 2.7e9 random numbers would take a minute."""
        generator = torch.Generator().manual_seed(1)
        pool = torch.empty(self.block_elements + _POOL_STEP * self.num_blocks)
        pool = pool.normal_(std=_WEIGHT_STD, generator=generator).to(COMPUTE_DTYPE)
        blocks = []
        for index in range(self.num_blocks):
            offset = index * _POOL_STEP
            readers: dict[str, TensorReader] = {}
            for name, shape in self.block_shapes.items():
                readers[name] = partial(_window, pool, offset, shape, 1.0 if _is_norm_weight(name) else 0.0)
                offset += torch.Size(shape).numel()
            blocks.append(readers)
        return blocks


@dataclass(frozen=True)
class Opened:
    """A mode that is ready to compute.

    transport: of streamed blocks; None where nothing is streamed by artkv.
    total_loads: how many blocks it has copied so far; None where that is not known.
    """

    step: Callable[[MicroBatch], tuple[Tensor, Tensor]]
    transport: Transport | None = None
    total_loads: Callable[[], int] | None = None


@dataclass(frozen=True)
class Mode:
    """One way to hold the blocks.

    open: sets it up; leaving the `with` gives its memory back.
    is_exact: computes with the very weights, so the gradient should be resident's bit for bit.
    recompute: backward computes each block's inside again.
    blocks_bytes: predicted device memory of the blocks; None where artkv's planner knows nothing of it.
    quantisation: by bitsandbytes.
    is_kept: too slow to set up to be opened again in each round.
    """

    name: str
    open: Callable[[], AbstractContextManager[Opened]]
    is_exact: bool = True
    recompute: bool = True
    blocks_bytes: int | None = None
    quantisation: Quantisation | None = None
    is_kept: bool = False


def all_modes(opt: RandomOpt) -> list[Mode]:
    """Every mode; resident comes first, since the others' gradients are compared with its."""
    layouts = {storage: block_layout(opt.block_shapes, storage) for storage in ("bf16", "int8")}
    slot_bytes = layouts["bf16"].slot_bytes(COMPUTE_DTYPE)

    def stack_bytes(storage: Storage, slots: int, resident: int = 0) -> int:
        is_staged = opt.device.type == "cuda"
        return device_bytes(layouts[storage], COMPUTE_DTYPE, opt.num_blocks, slots, resident, is_staged)

    def quantised_bytes(quantisation: Quantisation) -> int:
        return opt.num_blocks * quantised_block_bytes(opt.block_shapes, quantisation, COMPUTE_DTYPE)

    whole_bytes = opt.num_blocks * opt.block_elements * COMPUTE_DTYPE.itemsize
    half = opt.num_blocks // 2
    budget_bytes = (half + 2) * slot_bytes
    return [
        Mode("resident", partial(resident, opt, recompute=False), recompute=False, blocks_bytes=whole_bytes),
        Mode("resident, recomputed", partial(resident, opt, recompute=True), blocks_bytes=whole_bytes),
        Mode("stream, 1 slot", partial(streamed, opt, "bf16", 1), blocks_bytes=stack_bytes("bf16", 1)),
        Mode("stream, 2 slots", partial(streamed, opt, "bf16", 2), blocks_bytes=stack_bytes("bf16", 2)),
        Mode("stream, 3 slots", partial(streamed, opt, "bf16", 3), blocks_bytes=stack_bytes("bf16", 3)),
        Mode(
            "stream, 2 slots, all kept", partial(streamed, opt, "bf16", 2, kept_activation_bytes=None),
            recompute=False, blocks_bytes=stack_bytes("bf16", 2),
        ),
        Mode(
            "stream int8, 2 slots", partial(streamed, opt, "int8", 2), is_exact=False,
            blocks_bytes=stack_bytes("int8", 2),
        ),
        Mode(
            f"stream, auto in {budget_bytes / 1e9:.2f} GB", partial(streamed, opt, "bf16", 2, "auto", budget_bytes),
            blocks_bytes=stack_bytes("bf16", 2, half),
        ),
        Mode("accelerate cpu_offload", partial(accelerate_offload, opt)),
        Mode(
            "bitsandbytes int8", partial(quantised, opt, "int8"), is_exact=False, blocks_bytes=quantised_bytes("int8"),
            quantisation="int8",
        ),
        Mode(
            "bitsandbytes nf4", partial(quantised, opt, "nf4"), is_exact=False, blocks_bytes=quantised_bytes("nf4"),
            quantisation="nf4",
        ),
        # Last: its page-locked copy of the weights stays until the end.
        Mode("ZeRO-3 offload_param", partial(zero3_offload, opt), is_kept=True),
    ]  # fmt: skip


@contextmanager
def resident(opt: RandomOpt, recompute: bool) -> Iterator[Opened]:
    """All blocks on the device."""
    model = opt.model()
    for index, layer in enumerate(model.model.decoder.layers):
        values = {name: value.to(opt.device) for name, value in opt.block_values(index).items()}
        layer.load_state_dict(values, assign=True)
        layer.requires_grad_(False)
    if recompute:
        recompute_blocks(model.model.decoder.layers, ActivationBudget(0))
    yield Opened(partial(opt.step, model))


@contextmanager
def streamed(
    opt: RandomOpt,
    storage: Storage,
    slots: int,
    resident_blocks: int | Literal["auto"] = 0,
    memory_budget_bytes: int | None = None,
    kept_activation_bytes: int | None = 0,
) -> Iterator[Opened]:
    """artkv's streaming, through a transport that can be measured and disturbed; recomputed unless told to keep."""
    model = opt.model()
    host = opt.masters(storage)
    made: Transport
    if opt.device.type == "cuda":
        made = MeasuredTransport(host, opt.device, COMPUTE_DTYPE)
    else:
        made = CpuTransport(host, opt.device, COMPUTE_DTYPE, poison=True)
    layers = list(model.model.decoder.layers)
    stack = stream_blocks(layers, made, slots, resident_blocks, memory_budget_bytes, kept_activation_bytes)
    yield Opened(partial(opt.step, model), made, lambda: stack.total_loads)


class MeasuredTransport(CudaTransport):
    """artkv's CUDA transport, which on demand times its waits, delays its copies or skips its waits.

    waits: where set, an event before and one after each wait is added to it.
    is_delayed: each copy is preceded on its stream by a delay that differs between neighbouring blocks.
    skips_waits: computes without waiting for copies, to show that wrong order is noticed.
    """

    def __init__(self, host: HostBlocks, device: torch.device, compute_dtype: torch.dtype) -> None:
        super().__init__(host, device, compute_dtype)
        self.waits: list[tuple[Any, Any]] | None = None
        self.is_delayed = False
        self.skips_waits = False

    def submit(self, slot: Slot, block: int) -> None:
        if self.is_delayed:
            with torch.cuda.stream(self._stream):
                torch.cuda._sleep(_DELAY_CYCLES * (1 + block % 3))
        super().submit(slot, block)

    def wait(self, slot: Slot) -> None:
        if self.skips_waits:
            slot.in_use = True
            return
        if self.waits is None:
            super().wait(slot)
            return
        stream = torch.cuda.current_stream(self.device)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record(stream)
        super().wait(slot)
        after.record(stream)
        self.waits.append((before, after))


@contextmanager
def quantised(opt: RandomOpt, quantisation: Quantisation) -> Iterator[Opened]:
    """bitsandbytes' layers on the device, by way of artkv."""
    model = opt.model()
    for index, layer in enumerate(model.model.decoder.layers):
        values = opt.block_values(index)
        quantise_linears(layer, values.__getitem__, quantisation, COMPUTE_DTYPE, opt.device)
        rest = [name for name, parameter in layer.named_parameters() if parameter.is_meta]
        layer.load_state_dict({name: values[name].to(opt.device) for name in rest}, strict=False, assign=True)
        layer.requires_grad_(False)
    recompute_blocks(model.model.decoder.layers, ActivationBudget(0))
    yield Opened(partial(opt.step, model))


@contextmanager
def accelerate_offload(opt: RandomOpt) -> Iterator[Opened]:
    """`accelerate.cpu_offload` on each block, from artkv's page-locked masters, its best case.

    With recomputation: without it autograd keeps every weight that forward fetched until backward is through.
    """
    try:
        from accelerate import cpu_offload
    except ImportError:
        raise UserError("accelerate is not installed; pip install accelerate") from None
    if opt.device.type == "cuda":
        opt.masters("bf16").pin()
    model = opt.model()
    for index, layer in enumerate(model.model.decoder.layers):
        cpu_offload(layer, execution_device=opt.device, state_dict=opt.block_values(index))
    recompute_blocks(model.model.decoder.layers, ActivationBudget(0))
    yield Opened(partial(opt.step, model))


@contextmanager
def zero3_offload(opt: RandomOpt) -> Iterator[Opened]:
    """DeepSpeed's ZeRO-3 with `offload_param`, one rank, blocks recomputed, set for this size of block.

    DeepSpeed copies the weights into page-locked memory of its own.
    """
    if torch.cuda.is_available() != (opt.device.type == "cuda"):
        raise UserError("DeepSpeed would take this machine's CUDA device, and --device says cpu")
    # A page-locked tensor of each parameter, rounded up to a power of two: at most twice the weights.
    needed_bytes = 2 * opt.masters("bf16").num_bytes
    if (found_bytes := available_host_bytes()) < needed_bytes:
        raise UserError(
            f"needs {needed_bytes / 1e9:.1f} GB of free host memory for its own copy, has {found_bytes / 1e9:.1f}"
        )
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it even without a launcher
    with process_group(timeout_minutes=2):
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if opt.device.type == "cpu":  # would be compiled for 80 s
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        settings = _zero3_settings(opt)
        model = opt.model()
        for index, layer in enumerate(model.model.decoder.layers):
            layer.load_state_dict(opt.block_values(index), assign=True)
        recompute_blocks(model.model.decoder.layers, ActivationBudget(0))
        module = _ScaledOpt(opt, model)
        # Each parameter goes to the host at once; `initialize` alone would first put all of them on the device.
        with deepspeed.zero.Init(module=module, config_dict_or_path=settings):
            pass
        optimizer = torch.optim.SGD([module.scale], lr=0.0)
        engine, *_ = deepspeed.initialize(model=module, config=settings, optimizer=optimizer)
        engine.module.eval()

        def step(batch: MicroBatch) -> tuple[Tensor, Tensor]:
            embeds_QSD = batch.embeds_QSD.clone().requires_grad_()
            loss = engine(embeds_QSD, batch.mask_QS, batch.labels_QT)
            engine.backward(loss)
            engine.step()
            assert embeds_QSD.grad is not None
            return loss.detach(), embeds_QSD.grad

        try:
            yield Opened(step)
        finally:
            engine.destroy()


class _ScaledOpt(nn.Module):
    """OPT behind a trainable scale of its inputs, ones that never change: DeepSpeed wants something that trains.

    Registers the blocks and the scale alone, so that DeepSpeed leaves what is outside the blocks where it is.
    """

    def __init__(self, opt: RandomOpt, model: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(opt.config.hidden_size, dtype=COMPUTE_DTYPE))
        self.layers = model.model.decoder.layers
        self.layers.requires_grad_(False)
        self._loss = partial(opt.loss, model)

    def forward(self, embeds_QSD: Tensor, mask_QS: Tensor, labels_QT: Tensor) -> Tensor:
        return self._loss(embeds_QSD * self.scale, mask_QS, labels_QT)


def _zero3_settings(opt: RandomOpt) -> dict[str, Any]:
    matrices = [torch.Size(shape).numel() for shape in opt.block_shapes.values() if len(shape) > 1]
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": opt.device.type == "cuda"},
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": 5_000_000,
            # True, the default, replaces F.linear for the whole process and for good: every other mode would compute
            # with it in later rounds, and rounds in another way. What it saves, recomputation saves as well.
            "memory_efficient_linear": False,
            # Fetches a block ahead, keeps two beside the one in use, and the small tensors for good.
            "stage3_prefetch_bucket_size": opt.block_elements,
            "stage3_max_live_parameters": 3 * opt.block_elements,
            "stage3_max_reuse_distance": opt.block_elements,
            "stage3_param_persistence_threshold": min(matrices) - 1,
        },
    }


def available_host_bytes() -> int:
    """What the kernel says can be allocated without swapping; more than any machine has where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return 2**62
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 2**62)


def _random_tensor(name: str, shape: torch.Size, device: torch.device, generator: torch.Generator) -> Tensor:
    values = torch.empty(shape, dtype=COMPUTE_DTYPE, device=device).normal_(std=_WEIGHT_STD, generator=generator)
    return values + 1 if _is_norm_weight(name) else values


def _is_norm_weight(name: str) -> bool:
    return name.endswith("layer_norm.weight")


def _window(pool: Tensor, offset: int, shape: tuple[int, ...], added: float) -> Tensor:
    values = pool[offset : offset + torch.Size(shape).numel()].view(shape)
    return values + added if added else values
