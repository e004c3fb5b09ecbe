"""BLIP-2's parts under one contract, whatever backend's modules they are.

A backend's modules have parameter names of their own. It gives the two ways between these and the
backend-neutral ones, and everything here is written once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from artkv.config import FrozenConfig
from artkv.distributed import World, single_process
from artkv.frozen.host_blocks import HostBlocks
from artkv.frozen.quantised import quantise_linears
from artkv.frozen.streaming import StreamedBlocks, stream_blocks
from artkv.frozen.transport import transport_for
from artkv.kv_modulation import Modulation, PrefixedCrossAttention, install_prefixed_cross_attention
from artkv.models.files.blip2_files import Blip2Files
from artkv.models.opt.answer_columns import read_answer_columns
from artkv.models.opt.cpu_attention import CPU_ATTENTION

# Everything on the device, for evaluation and wherever memory is no concern.
RESIDENT = FrozenConfig(opt="resident", vit="resident", feature_cache=None)


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
    vit_prefixes: of the own names of the ViT and the LayerNorm after it.
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
    vit_prefixes: tuple[str, ...]
    neutral_name: Callable[[str], str]


class OwnNamed(Protocol):
    """The file's tensors by the backend's own names."""

    def tensor(self, name: str) -> Tensor:
        """The tensor, memory-mapped where the format allows it."""


class Blip2Backbone(ABC):
    """BLIP-2 in parts, with prefixed cross-attention installed and every module in eval mode.

    Parameter names of all backends are transformers' (`Blip2ForConditionalGeneration`'s), so an adapter
    or a hash made with one fits the other.

    language_model: transformers' OPTForCausalLM; its last block after `read_answer_columns`.
    max_positions: visual and text tokens together that it takes.
    cross_attention: the Q-Former's cross-attention layers, in their order.
    streamed: `opt` and `vit`, where their blocks stream.

    modules: on the meta device; in eval mode with gradients off after this, and without values before `load`.
    own: the weights of `files` by the modules' own names.
    """

    def __init__(
        self,
        modules: Blip2Modules,
        files: Blip2Files,
        own: OwnNamed,
        dtype: torch.dtype,
        device: torch.device,
        frozen: FrozenConfig,
    ) -> None:
        config = files.config
        self.tokenizer = files.tokenizer
        self.image_settings = files.image_settings
        self.dtype = dtype
        self.device = device
        self.qformer_width: int = config.qformer_config.hidden_size
        self.num_qformer_heads: int = config.qformer_config.num_attention_heads
        self.num_query_tokens: int = config.num_query_tokens
        self.language_model_width: int = config.text_config.hidden_size
        self.max_positions: int = config.text_config.max_position_embeddings
        frequency = config.qformer_config.cross_attention_frequency
        self.num_cross_attention_layers = -(-config.qformer_config.num_hidden_layers // frequency)
        self.language_model = modules.language_model
        self.qformer = modules.qformer
        self.num_parameters = sum(parameter.numel() for parameter in modules.root.parameters())
        self.streamed: Mapping[str, StreamedBlocks] = {}
        self._modules = modules
        self._files = files
        self._own = own
        self._frozen = frozen
        # Before any LoRA adapter renames the layers it wraps.
        self._parameters = self._neutrally_named("")
        modules.root.eval().requires_grad_(False)
        if device.type == "cpu":
            self.language_model.set_attn_implementation(CPU_ATTENTION)
        elif device.type == "cuda":
            # Of torch's kernels cuDNN's alone makes a plan for each shape, on the host, and on Hopper it comes first.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.cross_attention = install_prefixed_cross_attention(
            list(modules.cross_attention.values()),
            modules.attention_attribute,
            self.num_qformer_heads,
            self.num_cross_attention_layers,
            modules.prefixed_attention,
        )
        read_answer_columns(self.language_model.model.decoder.layers[-1])

    def load(self, world: World, kept_activation_bytes: int | None = None) -> Self:
        """Gives everything its values, but the ViT where `frozen.feature_cache` gives its features.

        Each tensor goes straight to dtype and device, or to where `frozen` wants it; on a CPU one that has the
        dtype already stays memory-mapped. All ranks load alike, and those of a host share one copy of what streams.

        kept_activation_bytes: what OPT's blocks may keep for backward where they stream; see `stream_blocks`.
        """
        self._assign("", left_out=self._modules.vit_prefixes)
        self._modules.language_model.tie_weights()
        self._parameters = self._neutrally_named("")
        self._place_blocks("opt", world, kept_activation_bytes)
        if self._frozen.feature_cache is None:
            self.load_vit(world)
        return self

    def load_vit(self, world: World) -> None:
        """Gives a ViT that was left out its weights, if it has none yet; all ranks call it alike."""
        vit_prefixes = self._modules.vit_prefixes
        # Its class token is the first of its parameters, and in no block, so it never streams.
        if not next(p for name, p in self._modules.root.named_parameters() if name.startswith(vit_prefixes)).is_meta:
            return
        self._assign(vit_prefixes)
        self._parameters |= self._neutrally_named(vit_prefixes)
        self._place_blocks("vit", world)

    def _neutrally_named(self, prefixes: str | tuple[str, ...]) -> dict[str, nn.Parameter]:
        """The parameters whose own names begin so."""
        named = self._modules.root.named_parameters()
        return {self._modules.neutral_name(name): p for name, p in named if name.startswith(prefixes)}

    def _assign(self, prefixes: str | tuple[str, ...], left_out: tuple[str, ...] = ()) -> None:
        """Gives the parameters whose own names begin so their values, but those of stacks that are not resident."""
        root = self._modules.root
        left_out += tuple(stack.prefix for stack in self._modules.stacks if stack.mode(self._frozen) != "resident")
        names = [
            name  # tied ones once
            for name, _ in root.named_parameters()
            if name.startswith(prefixes) and not name.startswith(left_out)
        ]
        values = {name: self._own.tensor(name).to(self.device, self.dtype) for name in names}
        root.load_state_dict(values, strict=False, assign=True)
        for name in names:
            root.get_parameter(name).requires_grad_(False)
        on_meta = [name for name in names if root.get_parameter(name).is_meta]
        on_meta += [name for name, buffer in root.named_buffers() if buffer.is_meta]
        if on_meta:
            raise RuntimeError(f"tensors without a value after loading: {on_meta}")

    def vit_settings(self) -> dict[str, Any]:
        """What the ViT's output depends on beside its weights and pixels, under the same names in all backends."""
        vision = self._files.config.vision_config
        return {
            "heads": vision.num_attention_heads,
            "activation": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
            "post_layernorm_eps": self._files.ln_vision_eps,
        }

    def encode_images(self, pixels_I3EE: Tensor) -> Tensor:
        """The ViT's tokens after its last LayerNorm, (I, N, V); loads the ViT first where it was left out."""
        self.load_vit(single_process(self.device))
        return self._image_features(pixels_I3EE.to(self.dtype))

    @abstractmethod
    def _image_features(self, pixels_I3EE: Tensor) -> Tensor:
        """What `encode_images` gives, once the ViT is there."""

    @abstractmethod
    def query_images(self, image_features_INV: Tensor, modulation: Modulation | None) -> Tensor:
        """The Q-Former's output, (I, K, W)."""

    @abstractmethod
    def project_queries(self, query_output_IKW: Tensor) -> Tensor:
        """The visual tokens that the language model reads, (I, K, D)."""

    def _place_blocks(self, stack_name: str, world: World, kept_activation_bytes: int | None = None) -> None:
        """Gives a stack's blocks their weights as the settings say; before it they are on the meta device."""
        frozen = self._frozen
        streamed = dict(self.streamed)
        for stack in self._modules.stacks:
            if stack.name != stack_name:
                continue
            mode = stack.mode(frozen)
            if mode == "stream":
                host = HostBlocks.build(
                    [
                        {name: partial(self._own.tensor, f"{prefix}{name}") for name, _ in block.named_parameters()}
                        for prefix, block in stack.blocks()
                    ],
                    frozen.storage,
                    world,
                )
                is_opt = stack.name == "opt"
                streamed[stack.name] = stream_blocks(
                    stack.layers,
                    transport_for(host, self.device, self.dtype),
                    frozen.slots,
                    frozen.resident_blocks if is_opt else 0,
                    frozen.memory_budget_bytes if is_opt else None,
                    kept_activation_bytes,
                )
            elif mode in ("int8", "nf4"):
                for prefix, block in stack.blocks():
                    read = partial(_tensor_below, self._own, prefix)
                    quantise_linears(block, read, mode, self.dtype, self.device)  # type: ignore[arg-type]
                    _fill_meta_parameters(block, prefix, self._own, self.dtype, self.device)
                # What peft looks for to wrap a quantised layer.
                setattr(self.language_model, "is_loaded_in_8bit" if mode == "int8" else "is_loaded_in_4bit", True)
        self.streamed = streamed

    @property
    def opt_stays_in_place(self) -> bool:
        """Whether OPT's blocks compute with plain weights at addresses that stay: neither streamed nor quantised."""
        return self._frozen.opt == "resident"

    def qformer_parameter_name(self, name: str) -> str:
        """The backend-neutral name of the parameter that `qformer` calls `name`."""
        return self._modules.neutral_name(f"{self._modules.qformer_prefix}{name}")

    def train_cross_attention(self) -> dict[str, nn.Parameter]:
        """Query, key, value, output and LayerNorm of each cross-attention block, by name.

        They come back as fp32 parameters with gradients on, read anew from the file, so that a master
        copy starts from what the file holds and not from its rounding to bfloat16.
        """
        trained = {}
        for block_name, block in self._modules.cross_attention.items():
            for name, parameter in block.named_parameters(prefix=block_name):
                parameter.data = self._own.tensor(name).to(self.device, torch.float32, copy=True)
                parameter.requires_grad_(True)
                trained[self._modules.neutral_name(name)] = parameter
        return trained

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by its backend-neutral name; tied ones once.

        LAVIS keeps the query's and the value's part of a ViT block's `qkv.bias` apart: `q_bias` and `v_bias`.
        """
        return self._parameters

    def weight_digests(self) -> dict[str, str]:
        """Digest of each tensor as it was loaded, by backend-neutral name, and of the settings that give them meaning.

        Settings are tokenizer, image normalisation, heads and activations, under names with `settings.` in front.
        """
        return self._files.weight_digests()


def _tensor_below(source: OwnNamed, prefix: str, name: str) -> Tensor:
    return source.tensor(f"{prefix}{name}")


def _fill_meta_parameters(
    block: nn.Module, prefix: str, source: OwnNamed, dtype: torch.dtype, device: torch.device
) -> None:
    names = [name for name, parameter in block.named_parameters() if parameter.is_meta]
    values = {name: source.tensor(f"{prefix}{name}").to(device, dtype) for name in names}
    block.load_state_dict(values, strict=False, assign=True)  # all that were on the meta device
    block.requires_grad_(False)
