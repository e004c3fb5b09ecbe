"""LoRA adapters on the Q-Former and on OPT, through peft."""

import math

import torch
from torch import Tensor, nn

from artkv.config import LoraConfig
from artkv.models.backbone.blip2_backbone import Blip2Backbone

# As in the LoRA paper (Hu et al. 2021, section 4.2): queries and values.
_OPT_TARGETS = r".*\.self_attn\.(q_proj|v_proj)"
_SELF_ATTENTION_TARGETS = r"encoder\.layer\.\d+\.attention\.(attention|self)\.(query|value)"
_CROSS_ATTENTION_TARGETS = r"encoder\.layer\.\d+\.(cross)?attention\.(attention|self)\.(query|value)"


def add_lora(backbone: Blip2Backbone, config: LoraConfig, cross_attention_trains: bool) -> dict[str, nn.Parameter]:
    """Wraps the targets' query and value projections and returns the adapters' fp32 parameters by name.

    Where the cross-attention trains in full, its projections get no adapter beside.
    The names are the wrapped layer's with `.lora_A.weight` and `.lora_B.weight`.
    """
    if not config.targets:
        return {}
    # Here, so that what has no LoRA need not wait for it: 1.5 of the 6.7 seconds that all imports take.
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    qformer_targets = _SELF_ATTENTION_TARGETS if cross_attention_trains else _CROSS_ATTENTION_TARGETS
    parts: dict[str, tuple[nn.Module, str]] = {
        "qformer": (backbone.qformer, qformer_targets),
        "opt": (backbone.language_model, _OPT_TARGETS),
    }
    # OPT is transformers' in every backend.
    neutral_name = {"qformer": backbone.qformer_parameter_name, "opt": "language_model.{}".format}
    adapters: dict[str, nn.Parameter] = {}
    for target in config.targets:
        module, pattern = parts[target]
        peft_config = PeftLoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides by it
            lora_dropout=0.0,
            target_modules=pattern,
        )
        inject_adapter_in_model(peft_config, module)
        module.eval()  # injected layers come in training mode
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear) and ".lora_" in name:
                layer.weight = _drawn(layer.weight, backbone.device, is_a=".lora_A." in name)
                wrapped, side = name.removesuffix(".default").rsplit(".", 1)
                wrapped_name = neutral_name[target](f"{wrapped}.weight")
                adapters[f"{wrapped_name.removesuffix('weight')}{side}.weight"] = layer.weight
    return adapters


def _drawn(placeholder: Tensor, device: torch.device, is_a: bool) -> nn.Parameter:
    """fp32 values on the device, drawn as peft draws them.

    peft's own have the dtype and the device of the layer they wrap, and a streamed one is on meta.
    """
    parameter = nn.Parameter(torch.zeros(placeholder.shape, dtype=torch.float32))
    if is_a:
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
    parameter.data = parameter.data.to(device)
    return parameter
