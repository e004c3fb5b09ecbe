"""Builds the assembled model from settings."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from artkv.config import EfficientNetConfig, FrozenConfig, KVModulationConfig, ModelConfig, TrainableConfig
from artkv.frozen.host_blocks import Gather
from artkv.frozen.recompute import recompute_blocks
from artkv.kv_modulation import KVPrefixGenerator
from artkv.models.backbone.backends import Together, load_backbone
from artkv.models.backbone.blip2_backbone import alone
from artkv.models.efficientnet import EfficientNetEncoder, efficientnet_digests, load_efficientnet
from artkv.models.files.weight_files import combined_digest
from artkv.models.frozen_encoders import LoadedOnDemand, remembered_efficientnet_digests
from artkv.models.kv_modulated_blip2 import FrozenParts, KVModulatedBlip2
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


def build_model(
    model: ModelConfig,
    efficientnet: EfficientNetConfig,
    kv_modulation: KVModulationConfig,
    trainable: TrainableConfig,
    frozen: FrozenConfig,
    seed: int,
    device: torch.device,
    activation_checkpointing: bool = False,
    gather: Gather = alone,
    together: Together = lambda action: action(),
) -> BuiltModel:
    """Loads the frozen parts, adds what trains, and assembles them on `device`.

    With `frozen.feature_cache` ViT and EfficientNet stay on disk until a picture has to be encoded.
    What is new (generator, gate, LoRA) is drawn from `seed` alone, so all ranks and all starts agree.
    `gather` and `together` are those of `World`; the ranks of a host share one copy of what streams.
    """
    backbone = load_backbone(model, device, frozen, gather, together)
    digests = backbone.weight_digests()

    trainables: dict[str, nn.Parameter] = {}
    encoder = generator = gate = None
    with torch.random.fork_rng(devices=[]):
        if kv_modulation.enabled:
            # Before the seed: making an EfficientNet draws random numbers, reading its features from a cache none.
            encoder, art_digests = _art_encoder(efficientnet, device, on_demand=frozen.feature_cache is not None)
            digests |= art_digests
        torch.manual_seed(seed)
        # peft switches all other gradients off, so it comes before what trains in full.
        trainables |= add_lora(backbone, trainable.lora, trainable.qformer_cross_attention)
        if trainable.qformer_cross_attention:
            trainables |= backbone.train_cross_attention()
        if encoder is not None:
            generator = KVPrefixGenerator(
                feature_dim=encoder.feature_dim,
                hidden_size=backbone.qformer_width,
                num_prefix_tokens=kv_modulation.num_prefix_tokens,
                num_heads=backbone.num_qformer_heads,
                num_layers=None if kv_modulation.shared_across_layers else backbone.num_cross_attention_layers,
            ).to(device)
            trainables |= dict(generator.named_parameters(prefix="kv_prefix_generator"))
            if kv_modulation.gate == "zero":
                # Shape (1,): DeepSpeed's broadcast fails on a parameter without dimensions.
                gate = nn.Parameter(torch.zeros(1, device=device))
                trainables["kv_prefix_gate"] = gate

    if activation_checkpointing and "opt" not in backbone.streamed:  # streamed blocks are recomputed anyway
        recompute_blocks(backbone.language_model.model.decoder.layers)
    initial_values = {name: parameter.detach().cpu().clone() for name, parameter in sorted(trainables.items())}
    for parameter in trainables.values():
        parameter.data = parameter.data.to(backbone.dtype)
    frozen_digests = {name: digest for name, digest in digests.items() if name not in trainables}
    assembled = KVModulatedBlip2(FrozenParts(backbone, encoder, generator, gate), trainables)
    return BuiltModel(assembled, initial_values, combined_digest(frozen_digests))


def _art_encoder(
    config: EfficientNetConfig, device: torch.device, on_demand: bool
) -> tuple[EfficientNetEncoder | LoadedOnDemand, dict[str, str]]:
    """The encoder and the digest of each of its tensors."""
    if on_demand:
        return LoadedOnDemand(config, device), remembered_efficientnet_digests(config)
    encoder = load_efficientnet(config).to(device)
    return encoder, efficientnet_digests(encoder)
