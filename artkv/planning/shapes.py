"""The assembled model as shapes alone: built by the code that training runs, without a weight in memory.

Letters in tensor names are explained in `artkv.batch`.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

from artkv.config import Config, ModelConfig
from artkv.models.art_encoder import ArtEncoder, art_shapes, art_source
from artkv.models.assembly import assemble
from artkv.models.backbone.transformers_backend import TransformersBackbone
from artkv.models.files.blip2_files import (
    BLIP2_OPT_2_7B,
    Blip2Files,
    ImageSettings,
    read_folder_config,
    read_lavis_config,
    stock_blip2,
)
from artkv.models.files.foreign_files import expanded, is_folder
from artkv.models.files.hub import local_folder
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2

# The second one has its own input, a block's output, as all that follow.
RUN_VIT_BLOCKS = 2


@dataclass(frozen=True)
class ModelShapes:
    """The assembled model in fake tensors: shapes and dtypes that compute like the CPU's, without memory.

    model: as training builds it. stock: transformers' modules that it computes with. Of both, blocks that nothing runs
    are on the meta device: the ViT's but `RUN_VIT_BLOCKS`, OPT's but the last.
    art_encoders: on the meta device, shared with others; none where no prefix is made.
    blip2: the transformers config.
    dtype: compute dtype of all parts but the art encoders, which are fp32.
    fake: the mode to compute in.
    """

    model: KVModulatedBlip2
    stock: Any
    art_encoders: tuple[ArtEncoder, ...]
    blip2: Any
    dtype: torch.dtype
    fake: FakeTensorMode

    @contextlib.contextmanager
    def short_vit(self) -> Iterator[None]:
        """While it lasts the ViT has `RUN_VIT_BLOCKS` blocks, all of which take the same memory."""
        encoder, blocks = self.stock.vision_model.encoder, self.vit_blocks
        encoder.layers = blocks[:RUN_VIT_BLOCKS]
        try:
            yield
        finally:
            encoder.layers = blocks

    def fake_copy(self, encoder: ArtEncoder) -> ArtEncoder:
        """An art encoder in fake tensors."""
        copied = copy.deepcopy(encoder)
        _make_fake([copied], [], self.dtype, self.fake)
        return copied

    @property
    def opt_blocks(self) -> nn.ModuleList:
        """OPT's decoder blocks."""
        return self.model.backbone.language_model.model.decoder.layers

    @property
    def opt_block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of an OPT block's frozen tensors by name inside the block, without LoRA's `.base_layer`."""
        return _frozen_shapes(self.opt_blocks[0])

    @property
    def num_vit_blocks(self) -> int:
        """Blocks of the ViT."""
        return len(self.vit_blocks)

    @property
    def vit_blocks(self) -> nn.ModuleList:
        """The ViT's encoder blocks."""
        return self.stock.vision_model.encoder.layers

    @property
    def vit_block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a ViT block's tensors by name inside the block."""
        return _frozen_shapes(self.vit_blocks[0])

    def trainable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what trains, by name."""
        return {name: tuple(p.shape) for name, p in self.model.named_trainables().items()}


@dataclass(frozen=True)
class FrozenBytes:
    """Device memory of frozen weights and buffers by part; tied tensors count once, trainables not at all."""

    vit: int
    qformer: int
    opt_outside_blocks: int
    opt_blocks: int
    art_encoders: int


def frozen_bytes(shapes: ModelShapes) -> FrozenBytes:
    """Sums bytes of the frozen tensors of each part as it lies on the device when everything is resident.

    The Q-Former's part holds the query tokens and the projection into OPT. OPT outside its blocks is token and
    position embeddings and the final LayerNorm; the head is tied to the token embedding.
    """
    stock = shapes.stock
    language_model = stock.language_model
    block_ids = {id(tensor) for tensor in _tensors(language_model.model.decoder.layers)}
    outside = [tensor for tensor in _tensors(language_model) if id(tensor) not in block_ids]
    qformer = [*_tensors(stock.qformer), *_tensors(stock.language_projection), stock.query_tokens]
    return FrozenBytes(
        vit=_frozen_total(_tensors(stock.vision_model)),
        qformer=_frozen_total(qformer),
        opt_outside_blocks=_frozen_total(outside),
        opt_blocks=_frozen_total(_tensors(language_model.model.decoder.layers)),
        art_encoders=sum(_frozen_total(_tensors(encoder)) for encoder in shapes.art_encoders),
    )


def model_shapes(config: Config, dtype: torch.dtype, lora_targets: Iterable[str]) -> ModelShapes:
    """Assembles the model of `config` in shapes; no file is read but BLIP-2's config.json, or LAVIS's for theirs.

    lora_targets: in place of `trainable.lora.targets`.

    Raises:
        UserError: if BLIP-2's shapes cannot be had, or there is no such art encoder.
    """
    blip2 = read_blip2_config(config.model)
    lora = config.trainable.lora.model_copy(update={"targets": tuple(lora_targets)})
    sources = [art_source(encoder) for encoder in config.used_encoders]
    with torch.device("meta"):
        stock = stock_blip2(blip2, config.model.blip2)
        stock.to(dtype).eval().requires_grad_(False)
        stock.tie_weights()
        settings = ImageSettings(blip2.vision_config.image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        files = Blip2Files(blip2, None, settings, _OwnShapes(stock))
        backbone = TransformersBackbone(stock, files, dtype, torch.device("meta"), config.frozen)
        encoders = tuple(art_shapes(encoder) for encoder in config.used_encoders)
        trainable = config.trainable.model_copy(update={"lora": lora})
        model = assemble(backbone, encoders, sources, config.kv_modulation, trainable)
    fake = FakeTensorMode()
    idle = [*stock.vision_model.encoder.layers[RUN_VIT_BLOCKS:], *stock.language_model.model.decoder.layers[:-1]]
    _make_fake([stock, model.parts.injection, model], idle, dtype, fake)
    backbone.device = torch.device("cpu")
    return ModelShapes(model, stock, encoders, blip2, dtype, fake)


def read_blip2_config(model: ModelConfig) -> Any:
    """BLIP-2's config: of a folder, LAVIS's files or the hub, or the known one of `Salesforce/blip2-opt-2.7b`.

    Nothing is fetched for the known one.

    Raises:
        UserError: if it is none of these, or no BLIP-2 with OPT.
    """
    if model.is_lavis_file:
        return read_lavis_config(model)
    if model.blip2 != BLIP2_OPT_2_7B or is_folder(expanded(model.blip2, "model.blip2"), "model.blip2"):
        folder = local_folder(model.blip2, "model.blip2", model.revision, with_weights=False)
        return read_folder_config(folder, model.blip2)
    config = _blip2_opt_2_7b()
    config._attn_implementation = "sdpa"
    return config


def _blip2_opt_2_7b() -> Any:
    """The published config.json's shapes; ViT and Q-Former are transformers' defaults, written out all the same."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=1408, intermediate_size=6144, num_hidden_layers=39, num_attention_heads=16, image_size=224,
            patch_size=14,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            encoder_hidden_size=1408, cross_attention_frequency=2,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=50304, hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32,
            max_position_embeddings=2048, word_embed_proj_dim=2560,
        ).to_dict(),
        num_query_tokens=32,
    )  # fmt: skip


class _OwnShapes:
    """Stands for the weight file: each tensor as the model has it."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = dict(model.named_parameters())
        self.files: list[Path] = []

    def names(self) -> list[str]:
        """All names."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, on the meta device."""
        return self._tensors[name].detach()


def _make_fake(
    modules: Iterable[nn.Module | None], idle: Iterable[nn.Module], dtype: torch.dtype, fake: FakeTensorMode
) -> None:
    """Puts a fake CPU tensor in the place of each meta one; what trains has `dtype` after it, as in training.

    Fake, because on the meta device itself attention would run in its unfused form, with other memory. idle: what does
    not run and so stays on the meta device, adapters in it as they were: making fake tensors takes longer than running
    a block.
    """
    left = {id(part) for module in idle for part in module.modules()}
    replaced: dict[nn.Parameter, nn.Parameter] = {}

    def replacement(old: nn.Parameter) -> nn.Parameter:
        if old not in replaced:
            new = torch.empty(old.shape, dtype=dtype if old.requires_grad else old.dtype)
            replaced[old] = nn.Parameter(new, requires_grad=old.requires_grad)
        return replaced[old]

    with fake:
        for part in (part for module in modules if module is not None for part in module.modules()):
            if id(part) in left:
                continue
            for name, old in part._parameters.items():
                if old is not None:
                    part._parameters[name] = replacement(old)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _frozen_shapes(block: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name.replace(".base_layer.", "."): tuple(parameter.shape)
        for name, parameter in block.named_parameters()
        if not parameter.requires_grad
    }


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _frozen_total(tensors: Iterable[Tensor]) -> int:
    distinct = {id(tensor): tensor for tensor in tensors if not tensor.requires_grad}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())
