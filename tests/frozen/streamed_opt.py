"""A small OPT with its weights resident, and its twin with the decoder layers streamed."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from artkv.distributed import single_process
from artkv.frozen.block_layout import Storage, TensorReader
from artkv.frozen.host_blocks import HostBlocks
from artkv.frozen.streaming import StreamedBlocks, stream_blocks
from artkv.frozen.transport import CpuTransport, Transport, transport_for

NUM_BLOCKS = 5
VOCABULARY = 40
WIDTH = 16
CPU = torch.device("cpu")


def small_opt(dtype: torch.dtype = torch.float32, attention: str = "sdpa", device: torch.device = CPU) -> Any:
    """A frozen OPT in eval mode with weights that are exact in bf16, large enough to matter."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, ffn_dim=32, num_hidden_layers=NUM_BLOCKS, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=WIDTH, pad_token_id=1, bos_token_id=2, eos_token_id=3,
        attn_implementation=attention,
    )  # fmt: skip
    model: Any = OPTForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(torch.bfloat16).to(device, dtype).eval().requires_grad_(False)


def layers_of(model: Any) -> list[nn.Module]:
    return list(model.model.decoder.layers)


def readers_of(layers: list[nn.Module]) -> list[dict[str, TensorReader]]:
    """One reader a frozen parameter of each layer."""
    return [
        {name: partial(Tensor.detach, parameter) for name, parameter in layer.named_parameters()} for layer in layers
    ]


def on_meta(model: Any) -> Any:
    """A copy of the model whose decoder layers are on the meta device."""
    twin = copy.deepcopy(model)
    for layer in layers_of(twin):
        layer.to_empty(device="meta")
    return twin


def streamed_twin(
    model: Any,
    storage: Storage | None = None,
    poison: bool = True,
    transport: type[Transport] | None = None,
    **options: Any,
) -> tuple[Any, StreamedBlocks]:
    """The same model with its layers streamed; on the CPU a slot that is not waited for holds NaN."""
    twin = on_meta(model)
    storage = storage or ("bf16" if model.dtype == torch.bfloat16 else "fp32")
    masters = copy.deepcopy(model).cpu()  # where a file's tensors are
    host = HostBlocks.build(readers_of(layers_of(masters)), storage, single_process(CPU))
    arguments = (host, model.device, model.dtype)
    if transport is not None:
        made = transport(*arguments)
    else:
        made = CpuTransport(*arguments, poison=poison) if model.device == CPU else transport_for(*arguments)
    return twin, stream_blocks(layers_of(twin), made, **options)


def random_inputs(seed: int, length: int, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (2, length, WIDTH) with a gradient, mask with padding on the right, labels."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(2, length, WIDTH, generator=generator).to(model.device, model.dtype).requires_grad_(True)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -2:] = 0
    labels = torch.randint(0, VOCABULARY, (2, length), generator=generator).masked_fill(mask == 0, -100)
    return embeds, mask.to(model.device), labels.to(model.device)


def loss_of(model: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    embeds, mask, labels = inputs
    return model(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False).loss


def step(model: Any, seed: int, length: int = 7) -> tuple[Tensor, Tensor]:
    """Loss and input gradient of one forward and backward pass."""
    inputs = random_inputs(seed, length, model)
    loss = loss_of(model, inputs)
    loss.backward()
    assert inputs[0].grad is not None
    return loss.detach(), inputs[0].grad
