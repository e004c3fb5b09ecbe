"""Builds the assembled model from settings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from artkv.config import Config, EfficientNetConfig, KVModulationConfig, TrainableConfig
from artkv.distributed import World
from artkv.frozen.recompute import ActivationBudget, recompute_blocks
from artkv.kv_modulation import INJECTIONS, ArtSource, ModelSizes, make_injection
from artkv.models.backbone.backends import load_backbone
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.efficientnet import EfficientNetEncoder, efficientnet_digests, load_efficientnet
from artkv.models.files.weight_files import combined_digest
from artkv.models.frozen_encoders import LoadedOnDemand, remembered_efficientnet_digests
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2, ModelParts
from artkv.models.lora import add_lora


@dataclass(frozen=True)
class BuiltModel:
    """The model, and what a run needs to know of its weights.

    model: trainables in the compute dtype.
    initial_values: the trainables' values in fp32 on the CPU, by backend-neutral name; the masters start
        from these.
    frozen_hash: SHA-256 over all frozen tensors as bfloat16 under backend-neutral names.
    """

    model: KVModulatedBlip2
    initial_values: dict[str, Tensor]
    frozen_hash: str


def build_model(config: Config, world: World) -> BuiltModel:
    """Loads the frozen parts, adds what trains, and assembles them on the device of `world`; all ranks call it alike.

    With `frozen.feature_cache` ViT and EfficientNet stay on disk until a picture has to be encoded.
    What is new (generator, gate, LoRA) is drawn from `training.seed` alone, so all ranks and all starts agree.
    The ranks of a host share one copy of what streams.
    """
    kept_activation_bytes = config.training.kept_activation_bytes
    backbone = load_backbone(config.model, config.frozen, world, kept_activation_bytes)
    digests = backbone.weight_digests()
    encoder = None
    with torch.random.fork_rng(devices=[]):
        if config.kv_modulation.enabled:
            # Before the seed: making an EfficientNet draws random numbers, reading its features from a cache none.
            on_demand = config.frozen.feature_cache is not None
            encoder, art_digests = _art_encoder(config.efficientnet, world.device, on_demand)
            digests |= art_digests
        torch.manual_seed(config.training.seed)
        model = assemble(backbone, encoder, config.kv_modulation, config.trainable)

    if "opt" not in backbone.streamed:
        recompute_blocks(backbone.language_model.model.decoder.layers, ActivationBudget(kept_activation_bytes))
    trainables = model.named_trainables()
    initial_values = {name: parameter.detach().cpu().clone() for name, parameter in trainables.items()}
    for parameter in trainables.values():
        parameter.data = parameter.data.to(backbone.dtype)
    frozen_digests = {name: digest for name, digest in digests.items() if name not in trainables}
    return BuiltModel(model, initial_values, combined_digest(frozen_digests))


def assemble(
    backbone: Blip2Backbone,
    encoder: EfficientNetEncoder | LoadedOnDemand | None,
    kv_modulation: KVModulationConfig,
    trainable: TrainableConfig,
) -> KVModulatedBlip2:
    """The model with what trains in fp32, on the backbone's device, which may be meta.

    Draws random numbers in a fixed order: LoRA, then the injection. encoder: None for no injection.
    """
    # peft switches all other gradients off, so it comes before what trains in full.
    trainables = add_lora(backbone, trainable.lora, trainable.qformer_cross_attention)
    if trainable.qformer_cross_attention:
        trainables |= backbone.train_cross_attention()
    injection = None
    if encoder is not None:
        sizes = ModelSizes(
            width=backbone.qformer_width,
            heads=backbone.num_qformer_heads,
            layers=backbone.num_cross_attention_layers,
            language_width=backbone.language_model_width,
        )
        injection = make_injection(kv_modulation, art_sources(encoder.feature_dim), sizes).to(backbone.device)
        trainables |= dict(injection.named_parameters())
    return KVModulatedBlip2(ModelParts(backbone, encoder, injection), trainables)


def art_sources(feature_dim: int) -> list[ArtSource]:
    """What the art encoder gives."""
    return [ArtSource("efficientnet", feature_dim)]


def num_visual_tokens(config: Config, num_query_tokens: int) -> int:
    """What OPT reads of a painting by `config`: its query tokens, and what the injection adds to them."""
    kv = config.kv_modulation
    if not kv.enabled:
        return num_query_tokens
    pooled = None
    return num_query_tokens + INJECTIONS[kv.injection].extra_visual_tokens(kv, [pooled])


def _art_encoder(
    config: EfficientNetConfig, device: torch.device, on_demand: bool
) -> tuple[EfficientNetEncoder | LoadedOnDemand, dict[str, str]]:
    """The encoder and the digest of each of its tensors."""
    if on_demand:
        return LoadedOnDemand(config, device), remembered_efficientnet_digests(config)
    encoder = load_efficientnet(config).to(device)
    return encoder, efficientnet_digests(encoder)
