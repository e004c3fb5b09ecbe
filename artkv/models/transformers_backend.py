"""BLIP-2 on transformers' own modules."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration

from artkv.config import FrozenConfig
from artkv.frozen.host_blocks import Gather, HostBlocks
from artkv.frozen.quantised import quantise_linears
from artkv.frozen.streaming import StreamedBlocks, stream_blocks
from artkv.kv_modulation import KVPrefix, install_prefixed_cross_attention
from artkv.models.blip2_files import TIED, Blip2Files, stock_blip2
from artkv.models.weight_files import TensorSource

# Everything on the device, for evaluation and wherever memory is no concern.
RESIDENT = FrozenConfig(opt="resident")


class TransformersBackbone:
    """`Blip2Backbone` over transformers' own modules. See `load_transformers_backbone`."""

    def __init__(self, model: Blip2ForConditionalGeneration, files: Blip2Files) -> None:
        config: Any = model.config
        self.tokenizer = files.tokenizer
        self.image_settings = files.image_settings
        self.dtype = model.query_tokens.dtype
        self.device = model.query_tokens.device
        self.qformer_width = config.qformer_config.hidden_size
        self.num_qformer_heads = config.qformer_config.num_attention_heads
        self.num_query_tokens = config.num_query_tokens
        self.most_positions = config.text_config.max_position_embeddings
        self.language_model: Any = model.language_model
        self.qformer: nn.Module = model.qformer
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.streamed: Mapping[str, StreamedBlocks] = {}
        self._model = model
        self._files = files
        self._source = files.source
        self._blocks = {
            f"qformer.encoder.layer.{index}.crossattention": layer.crossattention
            for index, layer in enumerate(model.qformer.encoder.layer)
            if layer.has_cross_attention
        }
        frequency = config.qformer_config.cross_attention_frequency
        self.num_cross_attention_layers = -(-config.qformer_config.num_hidden_layers // frequency)
        # Before any LoRA adapter renames the layers it wraps.
        self._parameters = dict(model.named_parameters())
        install_prefixed_cross_attention(
            list(self._blocks.values()), "attention", self.num_qformer_heads, self.num_cross_attention_layers
        )

    def place_frozen_blocks(self, frozen: FrozenConfig, gather: Gather) -> None:
        """Gives OPT's and the ViT's blocks their weights, in the way that `frozen` says; called once, by the loader.

        Before it the blocks' parameters are on the meta device. All ranks call it alike: those of a host share
        one copy of what streams.
        """
        streamed: dict[str, StreamedBlocks] = {}
        for stack in _stacks(self._model, frozen):
            if stack.mode == "stream":
                host = HostBlocks.build(
                    [
                        {name: partial(self._source.tensor, f"{prefix}{name}") for name, _ in block.named_parameters()}
                        for prefix, block in stack.blocks()
                    ],
                    frozen.storage,
                    gather,
                )
                is_opt = stack.name == "opt"
                streamed[stack.name] = stream_blocks(
                    stack.layers,
                    host,
                    self.device,
                    self.dtype,
                    frozen.slots,
                    frozen.resident_blocks if is_opt else 0,
                    frozen.memory_budget_bytes if is_opt else None,
                )
            elif stack.mode in ("int8", "nf4"):
                for prefix, block in stack.blocks():
                    quantise_linears(
                        block, partial(_tensor_below, self._source, prefix), stack.mode, self.dtype, self.device
                    )
                    _fill_meta_parameters(block, prefix, self._source, self.dtype, self.device)
                # What peft looks for to wrap a quantised layer.
                setattr(self.language_model, "is_loaded_in_8bit" if stack.mode == "int8" else "is_loaded_in_4bit", True)
        self.streamed = streamed

    def encode_images(self, pixels_I3SS: Tensor) -> Tensor:
        return self._model.vision_model(pixels_I3SS.to(self.dtype)).last_hidden_state

    def query_images(self, image_features_INV: Tensor, prefix: KVPrefix | None) -> Tensor:
        # transformers hands unknown keyword arguments down to each attention.
        return self._model.qformer(
            query_embeds=self._model.query_tokens.expand(image_features_INV.shape[0], -1, -1),
            encoder_hidden_states=image_features_INV,
            kv_prefix=prefix,
        ).last_hidden_state

    def project_queries(self, query_output_IQW: Tensor) -> Tensor:
        return self._model.language_projection(query_output_IQW)

    def train_cross_attention(self) -> dict[str, nn.Parameter]:
        trained = {}
        for block_name, block in self._blocks.items():
            for name, parameter in block.named_parameters(prefix=block_name):
                parameter.data = self._source.tensor(name).to(self.device, torch.float32, copy=True)
                parameter.requires_grad_(True)
                trained[name] = parameter
        return trained

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def weight_digests(self) -> dict[str, str]:
        return self._files.weight_digests()


def load_transformers_backbone(
    files: Blip2Files,
    dtype: torch.dtype,
    device: torch.device,
    frozen: FrozenConfig = RESIDENT,
    gather: Gather = lambda value: [value],
) -> TransformersBackbone:
    """Loads BLIP-2 into transformers' modules.

    Each tensor goes straight to `dtype` and `device`, or to where `frozen` wants it; on a CPU one that has
    the dtype already stays memory-mapped. Every module comes back in eval mode with gradients off.
    `gather` is that of `World`; whatever is wrong with the files on one rank must be known to all before.
    """
    model = stock_blip2(files.config)
    model.vision_model.post_layernorm.eps = files.ln_vision_eps
    left_out = tuple(stack.prefix for stack in _stacks(model, frozen) if stack.mode != "resident")
    _assign(model, files.source, dtype, device, left_out)
    model.eval().requires_grad_(False)
    backbone = TransformersBackbone(model, files)
    backbone.place_frozen_blocks(frozen, gather)
    return backbone


def _assign(
    model: Blip2ForConditionalGeneration,
    source: TensorSource,
    dtype: torch.dtype,
    device: torch.device,
    left_out: tuple[str, ...],
) -> None:
    """Gives every parameter its value but those whose names begin with one of `left_out`."""
    names = [name for name in source.names() if name != TIED and not name.startswith(left_out)]
    state = {name: source.tensor(name).to(device, dtype) for name in names}
    model.load_state_dict(state, strict=False, assign=True)  # the keys were compared above
    model.tie_weights()
    state_after = model.state_dict().items()
    on_meta = [name for name, tensor in state_after if tensor.is_meta and not name.startswith(left_out)]
    on_meta += [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if on_meta:
        raise RuntimeError(f"tensors without a value after loading: {on_meta}")


class _Stack(NamedTuple):
    """A stack of frozen blocks and the mode that `frozen` gives it.

    prefix: of the stack's parameter names, up to the block's number.
    """

    name: str
    mode: Literal["resident", "stream", "int8", "nf4"]
    prefix: str
    layers: Sequence[nn.Module]

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Each block with the prefix of its parameters' names."""
        return ((f"{self.prefix}{index}.", block) for index, block in enumerate(self.layers))


def _stacks(model: Blip2ForConditionalGeneration, frozen: FrozenConfig) -> list[_Stack]:
    opt_layers: Any = model.language_model.model.decoder.layers
    return [
        _Stack("opt", frozen.opt, "language_model.model.decoder.layers.", opt_layers),
        _Stack("vit", frozen.vit, "vision_model.encoder.layers.", list(model.vision_model.encoder.layers)),
    ]


def _tensor_below(source: TensorSource, prefix: str, name: str) -> Tensor:
    return source.tensor(f"{prefix}{name}")


def _fill_meta_parameters(
    block: nn.Module, prefix: str, source: TensorSource, dtype: torch.dtype, device: torch.device
) -> None:
    names = [name for name, parameter in block.named_parameters() if parameter.is_meta]
    values = {name: source.tensor(f"{prefix}{name}").to(device, dtype) for name in names}
    block.load_state_dict(values, strict=False, assign=True)  # all that were on the meta device
    block.requires_grad_(False)
