"""What the backends share: how BLIP-2's modules get their weights, and what is told of these.

A backend's modules have parameter names of their own. It gives the two ways between these and the
backend-neutral ones, and everything here is written once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from artkv.config import FrozenConfig
from artkv.frozen.host_blocks import Gather, HostBlocks
from artkv.frozen.quantised import quantise_linears
from artkv.frozen.streaming import StreamedBlocks, stream_blocks
from artkv.kv_modulation import PrefixedCrossAttention, install_prefixed_cross_attention
from artkv.models.blip2_files import Blip2Files
from artkv.models.opt_answer_columns import read_answer_columns

# Everything on the device, for evaluation and wherever memory is no concern.
RESIDENT = FrozenConfig(opt="resident")


class BlockStack(NamedTuple):
    """A stack of frozen blocks that may stream.

    prefix: of its parameters' names in the backend's modules, up to the block's number.
    """

    name: Literal["opt", "vit"]
    prefix: str
    layers: Sequence[nn.Module]

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Each block with the prefix of its parameters' names."""
        return ((f"{self.prefix}{index}.", block) for index, block in enumerate(self.layers))

    def mode(self, frozen: FrozenConfig) -> str:
        """Where `frozen` wants it: resident, stream, int8 or nf4."""
        return str(getattr(frozen, self.name))


class Blip2Modules(NamedTuple):
    """A backend's modules, and the way from their names to the neutral ones and back.

    root: holds all of them; its parameters' names are meant by "own" below.
    cross_attention: the Q-Former's cross-attention blocks by own name, in the order of its layers.
    attention_attribute: where such a block keeps its stock attention.
    prefixed_attention: what takes its place.
    neutral_name: the backend-neutral name of an own one.
    """

    root: nn.Module
    language_model: Any
    qformer: nn.Module
    qformer_prefix: str
    stacks: Sequence[BlockStack]
    cross_attention: Mapping[str, nn.Module]
    attention_attribute: str
    prefixed_attention: type[PrefixedCrossAttention]
    neutral_name: Callable[[str], str]


class OwnNamed(Protocol):
    """The file's tensors by the backend's own names."""

    def tensor(self, name: str) -> Tensor:
        """The tensor, memory-mapped where the format allows it."""


class LoadedBlip2:
    """The part of `Blip2Backbone` that is the same for all backends.

    modules: as `assign_weights` leaves them.
    own: the weights of `files` by the modules' own names.
    """

    def __init__(
        self,
        modules: Blip2Modules,
        files: Blip2Files,
        own: OwnNamed,
    ) -> None:
        config = files.config
        self.tokenizer = files.tokenizer
        self.image_settings = files.image_settings
        query_tokens = modules.root.get_parameter("query_tokens")
        self.dtype = query_tokens.dtype
        self.device = query_tokens.device
        self.qformer_width: int = config.qformer_config.hidden_size
        self.num_qformer_heads: int = config.qformer_config.num_attention_heads
        self.num_query_tokens: int = config.num_query_tokens
        self.language_model_width: int = config.text_config.hidden_size
        self.most_positions: int = config.text_config.max_position_embeddings
        frequency = config.qformer_config.cross_attention_frequency
        self.num_cross_attention_layers = -(-config.qformer_config.num_hidden_layers // frequency)
        self.language_model = modules.language_model
        self.qformer = modules.qformer
        self.num_parameters = sum(parameter.numel() for parameter in modules.root.parameters())
        self.streamed: Mapping[str, StreamedBlocks] = {}
        self._modules = modules
        self._files = files
        self._own = own
        # Before any LoRA adapter renames the layers it wraps.
        self._parameters = {
            modules.neutral_name(name): parameter for name, parameter in modules.root.named_parameters()
        }
        install_prefixed_cross_attention(
            list(modules.cross_attention.values()),
            modules.attention_attribute,
            self.num_qformer_heads,
            self.num_cross_attention_layers,
            modules.prefixed_attention,
        )
        read_answer_columns(self.language_model.model.decoder.layers[-1])

    def place_frozen_blocks(self, frozen: FrozenConfig, gather: Gather) -> None:
        """Gives OPT's and the ViT's blocks their weights, in the way that `frozen` says; called once, by the loader.

        Before it the blocks' parameters are on the meta device. All ranks call it alike: those of a host share
        one copy of what streams.
        """
        streamed: dict[str, StreamedBlocks] = {}
        for stack in self._modules.stacks:
            mode = stack.mode(frozen)
            if mode == "stream":
                host = HostBlocks.build(
                    [
                        {name: partial(self._own.tensor, f"{prefix}{name}") for name, _ in block.named_parameters()}
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
            elif mode in ("int8", "nf4"):
                for prefix, block in stack.blocks():
                    read = partial(_tensor_below, self._own, prefix)
                    quantise_linears(block, read, mode, self.dtype, self.device)  # type: ignore[arg-type]
                    _fill_meta_parameters(block, prefix, self._own, self.dtype, self.device)
                # What peft looks for to wrap a quantised layer.
                setattr(self.language_model, "is_loaded_in_8bit" if mode == "int8" else "is_loaded_in_4bit", True)
        self.streamed = streamed

    def qformer_parameter_name(self, name: str) -> str:
        return self._modules.neutral_name(f"{self._modules.qformer_prefix}{name}")

    def train_cross_attention(self) -> dict[str, nn.Parameter]:
        trained = {}
        for block_name, block in self._modules.cross_attention.items():
            for name, parameter in block.named_parameters(prefix=block_name):
                parameter.data = self._own.tensor(name).to(self.device, torch.float32, copy=True)
                parameter.requires_grad_(True)
                trained[self._modules.neutral_name(name)] = parameter
        return trained

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def weight_digests(self) -> dict[str, str]:
        return self._files.weight_digests()


def assign_weights(
    modules: Blip2Modules, own: OwnNamed, dtype: torch.dtype, device: torch.device, frozen: FrozenConfig
) -> None:
    """Gives modules on the meta device their values, in eval mode and with gradients off.

    Each tensor goes straight to `dtype` and `device`; on a CPU one that has the dtype already stays memory-mapped.
    Stacks that `frozen` does not want resident are left to `LoadedBlip2.place_frozen_blocks`.
    """
    left_out = tuple(stack.prefix for stack in modules.stacks if stack.mode(frozen) != "resident")
    root = modules.root
    names = [name for name, _ in root.named_parameters() if not name.startswith(left_out)]  # tied ones once
    root.load_state_dict({name: own.tensor(name).to(device, dtype) for name in names}, strict=False, assign=True)
    modules.language_model.tie_weights()
    on_meta = [name for name, p in root.named_parameters() if p.is_meta and not name.startswith(left_out)]
    on_meta += [name for name, buffer in root.named_buffers() if buffer.is_meta]
    if on_meta:
        raise RuntimeError(f"tensors without a value after loading: {on_meta}")
    root.eval().requires_grad_(False)


def _tensor_below(source: OwnNamed, prefix: str, name: str) -> Tensor:
    return source.tensor(f"{prefix}{name}")


def _fill_meta_parameters(
    block: nn.Module, prefix: str, source: OwnNamed, dtype: torch.dtype, device: torch.device
) -> None:
    names = [name for name, parameter in block.named_parameters() if parameter.is_meta]
    values = {name: source.tensor(f"{prefix}{name}").to(device, dtype) for name in names}
    block.load_state_dict(values, strict=False, assign=True)  # all that were on the meta device
    block.requires_grad_(False)
