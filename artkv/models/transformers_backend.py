"""BLIP-2 from a transformers folder or hub id."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessor

from artkv.config import FrozenConfig
from artkv.datasets.tokenization import newline_token_id
from artkv.errors import UserError
from artkv.frozen.host_blocks import Gather, HostBlocks
from artkv.frozen.quantised import quantise_linears
from artkv.frozen.streaming import StreamedBlocks, stream_blocks
from artkv.kv_modulation import KVPrefix, install_prefixed_cross_attention
from artkv.models.backbone import ImageSettings
from artkv.models.weight_files import PickledSource, SafetensorsSource, TensorSource, digests, open_weights

# `World.together`.
Together = Callable[[Callable[[], Any]], Any]

# Everything on the device, for evaluation and wherever memory is no concern.
RESIDENT = FrozenConfig(opt="resident")

_VIT = "vision_model."
# Tied to the token embedding: a file may hold it or leave it out, and it is never read.
_TIED = "language_model.lm_head.weight"
_EMBEDDING = "language_model.model.decoder.embed_tokens.weight"


def _alone(value: Any) -> list[Any]:
    """`World.gather` of one process."""
    return [value]


class TransformersBackbone:
    """`Blip2Backbone` over transformers' own modules. See `load_transformers_backbone`."""

    def __init__(
        self,
        model: Blip2ForConditionalGeneration,
        tokenizer: Any,
        image_settings: ImageSettings,
        source: Any,
        frozen: FrozenConfig = RESIDENT,
    ) -> None:
        config: Any = model.config
        self.tokenizer = tokenizer
        self.image_settings = image_settings
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
        self._source = source
        self._frozen = frozen
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

    def place_frozen_blocks(self, names: Sequence[str], gather: Gather) -> None:
        """Gives the blocks of the stacks of these names, `opt` or `vit`, their weights as the settings say.

        Called once a stack. Before it the blocks' parameters are on the meta device. All ranks call it alike:
        those of a host share one copy of what streams.
        """
        frozen = self._frozen
        streamed = dict(self.streamed)
        for stack in _stacks(self._model, frozen):
            if stack.name not in names:
                continue
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

    def load_vit(self, gather: Gather) -> None:
        vit: Any = self._model.vision_model
        if not vit.post_layernorm.weight.is_meta:
            return
        left_out = _prefixes_placed_later(self._model, self._frozen)
        names = [n for n in self._source.names() if n.startswith(_VIT) and not n.startswith(left_out)]
        weights = {name.removeprefix(_VIT): self._source.tensor(name).to(self.device, self.dtype) for name in names}
        vit.load_state_dict(weights, strict=False, assign=True)  # the keys were compared when the folder was opened
        vit.requires_grad_(False)
        self.place_frozen_blocks(("vit",), gather)
        self._parameters |= vit.named_parameters(prefix=_VIT.removesuffix("."))

    def vit_settings(self) -> dict[str, Any]:
        vision: Any = self._model.config.vision_config
        return {
            "heads": vision.num_attention_heads,
            "activation": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
        }

    def encode_images(self, pixels_I3SS: Tensor) -> Tensor:
        if self._model.vision_model.post_layernorm.weight.is_meta:  # type: ignore[union-attr]
            self.load_vit(gather=_alone)
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
        def read() -> Iterator[tuple[str, Tensor]]:
            for name in self._source.names():
                if name != _TIED:
                    yield name, self._source.tensor(name)

        # What gives the weights their meaning and leaves no trace in their shapes belongs to them.
        config: Any = self._model.config
        meaning = {
            "tokenizer": sorted(self.tokenizer.get_vocab().items()),
            "images": [self.image_settings.size, *self.image_settings.mean, *self.image_settings.std],
            "heads": [
                part.num_attention_heads for part in (config.vision_config, config.qformer_config, config.text_config)
            ],
            "activations": [
                config.vision_config.hidden_act,
                config.qformer_config.hidden_act,
                config.text_config.activation_function,
            ],
        }
        return digests(read(), self._source.files) | {
            f"settings.{name}": hashlib.sha256(json.dumps(value).encode()).hexdigest()
            for name, value in meaning.items()
        }


def load_transformers_backbone(
    blip2: str,
    dtype: torch.dtype,
    device: torch.device,
    frozen: FrozenConfig = RESIDENT,
    gather: Gather = _alone,
    together: Together = lambda action: action(),
    only_vit: bool = False,
) -> TransformersBackbone:
    """Loads BLIP-2 from a folder of `save_pretrained`, or from the hub, with a whole check of its keys.

    Each tensor goes straight to `dtype` and `device`, or to where `frozen` wants it; on a CPU one that has
    the dtype already stays memory-mapped. Every module comes back in eval mode with gradients off.
    `gather` and `together` are those of `World`: whatever is wrong with the folder on one rank must be known to
    all before they share host memory, where they wait for each other.
    The ViT is left out, until `load_vit` or the first picture, where `frozen.feature_cache` gives its features.
    only_vit: leaves everything else out as well, for good.

    Raises:
        UserError: if there is no such folder, a key is missing or unexpected, or a shape does not fit.
    """
    model, tokenizer, image_settings, source = together(lambda: open_transformers_folder(blip2))
    left_out = _prefixes_placed_later(model, frozen)
    if only_vit:  # the query tokens stay: the backbone's device and dtype are theirs
        left_out += (_VIT, "qformer.", "language_projection.", "language_model.")
    elif frozen.feature_cache is not None:
        left_out += (_VIT,)
    _assign(model, source, dtype, device, left_out)
    model.eval().requires_grad_(False)
    backbone = TransformersBackbone(model, tokenizer, image_settings, source, frozen)
    if not only_vit:
        backbone.place_frozen_blocks(("opt",) if _VIT in left_out else ("opt", "vit"), gather)
    return backbone


def open_transformers_folder(
    blip2: str,
) -> tuple[Blip2ForConditionalGeneration, Any, ImageSettings, SafetensorsSource | PickledSource]:
    """Everything but the weights' values: the model on the meta device, tokenizer, image settings, weights.

    All that can be wrong with the folder is found here, in a second or two; see
    `load_transformers_backbone` for what it raises.
    """
    folder = _local_folder(blip2)
    config = _read_config(folder, blip2)
    source = open_weights(folder)
    with torch.device("meta"):  # shapes only: no time and no memory for random weights
        model = Blip2ForConditionalGeneration(config)
    _check_keys(model, source, folder)
    tokenizer = _load_tokenizer(folder, config)
    newline_token_id(tokenizer)
    return model, tokenizer, _image_settings(folder, config.vision_config.image_size), source


def _local_folder(blip2: str) -> Path:
    folder = Path(blip2).expanduser()
    if folder.is_dir():
        return folder
    looks_like_hub_id = blip2.count("/") <= 1 and not blip2.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise UserError(f"model.blip2 = {blip2!r}: no such folder; give a hub id or an existing folder")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(blip2, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"model.blip2 = {blip2!r}: neither a folder nor to be had from the hub "
            f"({type(error).__name__}: {error}); download it and give its folder"
        ) from None


def _read_config(folder: Path, blip2: str) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(f"model.blip2 = {blip2!r}: {folder} has no config.json; give a folder of save_pretrained")
    config: Any = Blip2Config.from_pretrained(folder)
    if config.model_type != "blip-2" or config.text_config.model_type != "opt":
        raise UserError(
            f"model.blip2 = {blip2!r}: is {config.model_type} with {config.text_config.model_type}, "
            "expected blip-2 with opt, such as Salesforce/blip2-opt-2.7b"
        )
    config._attn_implementation = "sdpa"
    return config


def _check_keys(model: nn.Module, source: TensorSource, folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != _TIED}
    found = set(source.names()) - {_TIED}
    problems = []
    if missing := sorted(expected.keys() - found):
        problems.append(f"{len(missing)} missing: {', '.join(missing[:5])}")
    if unexpected := sorted(found - expected.keys()):
        problems.append(f"{len(unexpected)} unexpected: {', '.join(unexpected[:5])}")
    for name in sorted(found & expected.keys()):
        shape = tuple(source.tensor(name).shape)
        if shape != expected[name]:
            problems.append(f"{name} has shape {shape}, config.json says {expected[name]}")
    if problems:
        raise UserError(
            f"{folder}: weights do not fit config.json: {'; '.join(problems[:8])}; "
            "give the folder of one BLIP-2 OPT model as save_pretrained wrote it"
        )
    if _TIED in source.names() and not torch.equal(source.tensor(_TIED), source.tensor(_EMBEDDING)):
        raise UserError(f"{folder}: {_TIED} differs from {_EMBEDDING}; artkv reads models with tied embeddings only")


def _assign(
    model: Blip2ForConditionalGeneration,
    source: TensorSource,
    dtype: torch.dtype,
    device: torch.device,
    left_out: tuple[str, ...],
) -> None:
    """Gives every parameter its value but those whose names begin with one of `left_out`."""
    names = [name for name in source.names() if name != _TIED and not name.startswith(left_out)]
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


def _prefixes_placed_later(model: Blip2ForConditionalGeneration, frozen: FrozenConfig) -> tuple[str, ...]:
    return tuple(stack.prefix for stack in _stacks(model, frozen) if stack.mode != "resident")


def _tensor_below(source: TensorSource, prefix: str, name: str) -> Tensor:
    return source.tensor(f"{prefix}{name}")


def _fill_meta_parameters(
    block: nn.Module, prefix: str, source: TensorSource, dtype: torch.dtype, device: torch.device
) -> None:
    names = [name for name, parameter in block.named_parameters() if parameter.is_meta]
    values = {name: source.tensor(f"{prefix}{name}").to(device, dtype) for name in names}
    block.load_state_dict(values, strict=False, assign=True)  # all that were on the meta device
    block.requires_grad_(False)


def _load_tokenizer(folder: Path, config: Any) -> Any:
    # Without these transformers makes an empty tokenizer, and says nothing.
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise UserError(f"{folder}: no tokenizer there (neither tokenizer.json nor vocab.json); put OPT's files there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise UserError(
            f"{folder}: no tokenizer can be loaded from it ({error}); put OPT's tokenizer files there"
        ) from None
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no padding token; OPT's is <pad>")
    if len(tokenizer) > config.text_config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, the model "
            f"{config.text_config.vocab_size}; they do not belong together"
        )
    return tokenizer


def _image_settings(folder: Path, vit_size: int) -> ImageSettings:
    try:
        processor = BlipImageProcessor.from_pretrained(folder)
    except Exception as error:
        raise UserError(
            f"{folder}: no preprocessor_config.json of a BlipImageProcessor ({error}); put the model's there"
        ) from None
    height, width = processor.size["height"], processor.size["width"]
    if (height, width) != (vit_size, vit_size):
        raise UserError(
            f"{folder}: preprocessor_config.json has size {height}x{width}, config.json a ViT of "
            f"{vit_size}x{vit_size}; put the model's own preprocessor_config.json there"
        )
    mean: Any = tuple(processor.image_mean)
    std: Any = tuple(processor.image_std)
    return ImageSettings(height, mean, std)
