"""Builds the assembled model from settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from artkv.config import Config, KVModulationConfig, TrainableConfig
from artkv.distributed import World
from artkv.frozen.recompute import ActivationBudget, recompute_blocks
from artkv.kv_modulation import INJECTIONS, ArtSource, ModelSizes, make_injection
from artkv.models.art_encoder import art_source, load_art_encoder, named_digests, state_tensors
from artkv.models.backbone.backends import load_backbone
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.files.weight_files import frozen_hash, tensor_digest
from artkv.models.frozen_encoders import LoadedOnDemand, art_encoder_digests
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2, ModelParts
from artkv.models.lora import add_lora


@dataclass(frozen=True)
class BuiltModel:
    """The model, and what a run needs to know of its weights.

    model: trainables in the compute dtype.
    initial_values: the trainables' values in fp32 on the CPU, by backend-neutral name; the masters start
        from these.
    frozen_hash: SHA-256 over all frozen tensors as bfloat16 under backend-neutral names, and that of what the tokenizer
        does; see `weight_files.frozen_hash`.
    """

    model: KVModulatedBlip2
    initial_values: dict[str, Tensor]
    frozen_hash: str


def build_model(config: Config, world: World) -> BuiltModel:
    """Loads the frozen parts, adds what trains, and assembles them on the device of `world`; all ranks call it alike.

    With `frozen.feature_cache` ViT and art encoders stay on disk until a picture has to be encoded.
    What is new (generator, gate, LoRA) is drawn from `training.seed` alone, so all ranks and all starts agree.
    The ranks of a host share one copy of what streams.
    """
    kept_activation_bytes = config.training.kept_activation_bytes
    backbone = load_backbone(config.model, config.frozen, world, kept_activation_bytes)
    digests = backbone.weight_digests()
    with torch.random.fork_rng(devices=[]):
        # Before the seed: making an encoder draws random numbers, reading its features from a cache none.
        encoders, art_digests = _art_encoders(config, world.device)
        sources = [art_source(encoder) for encoder in config.used_encoders]
        torch.manual_seed(config.training.seed)
        model = assemble(backbone, encoders, sources, config.kv_modulation, config.trainable)
    digests |= art_digests

    if "opt" not in backbone.streamed:
        recompute_blocks(backbone.language_model.model.decoder.layers, ActivationBudget(kept_activation_bytes))
    trainables = model.named_trainables()
    initial_values = {name: parameter.detach().cpu().clone() for name, parameter in trainables.items()}
    for parameter in trainables.values():
        parameter.data = parameter.data.to(backbone.dtype)
    frozen_digests = {name: digest for name, digest in digests.items() if name not in trainables}
    return BuiltModel(model, initial_values, frozen_hash(frozen_digests))


def assemble(
    backbone: Blip2Backbone,
    encoders: Sequence[Callable[[Tensor], Tensor]],
    sources: Sequence[ArtSource],
    kv_modulation: KVModulationConfig,
    trainable: TrainableConfig,
) -> KVModulatedBlip2:
    """The model with what trains in fp32, on the backbone's device, which may be meta.

    Draws random numbers in a fixed order: LoRA, then the injection. encoders: none for no injection. sources: what
    each of them gives.
    """
    # peft switches all other gradients off, so it comes before what trains in full.
    trainables = add_lora(backbone, trainable.lora, trainable.qformer_cross_attention)
    if trainable.qformer_cross_attention:
        trainables |= backbone.train_cross_attention()
    injection = None
    if encoders:
        sizes = ModelSizes(
            width=backbone.qformer_width,
            heads=backbone.num_qformer_heads,
            layers=backbone.num_cross_attention_layers,
            language_width=backbone.language_model_width,
        )
        injection = make_injection(kv_modulation, sources, sizes).to(backbone.device)
        trainables |= dict(injection.named_parameters())
    return KVModulatedBlip2(ModelParts(backbone, tuple(encoders), injection), trainables)


def num_visual_tokens(config: Config, num_query_tokens: int) -> int:
    """What OPT reads of a painting by `config`: its query tokens, and what the injection adds to them."""
    kv = config.kv_modulation
    token_counts = [art_source(encoder).num_tokens for encoder in config.used_encoders]
    if not token_counts:
        return num_query_tokens
    return num_query_tokens + INJECTIONS[kv.injection].extra_visual_tokens(kv, token_counts)


def too_many_prefix_tokens(config: Config, added: int, room: int) -> str:
    """What is told where the visual tokens that the injection adds are more than the language model has room for."""
    kv = config.kv_modulation
    return (
        f"kv_modulation.num_prefix_tokens = {kv.num_prefix_tokens:,}: with injection {kv.injection} adds {added:,} "
        f"tokens to the picture's, and the language model has positions for {max(0, room):,} of them; lower it"
    )


def _art_encoders(config: Config, device: torch.device) -> tuple[list[Callable[[Tensor], Tensor]], dict[str, str]]:
    """The encoders that a prefix is made from, and the digest of each of their tensors."""
    used = config.used_encoders
    if config.frozen.feature_cache is not None:
        return [LoadedOnDemand(one, device) for one in used], art_encoder_digests(config)
    encoders: list[Callable[[Tensor], Tensor]] = []
    found: dict[str, str] = {}
    for one in used:
        encoder = load_art_encoder(one).to(device)
        encoders.append(encoder)
        weights = {name: tensor_digest(tensor) for name, tensor in state_tensors(encoder).items()}
        found |= named_digests(one, len(used) == 1, weights)
    return encoders, found
