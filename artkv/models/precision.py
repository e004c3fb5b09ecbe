"""Which dtype a device computes in."""

import torch


def resolve_dtype(setting: str, device: torch.device) -> torch.dtype:
    """`model.dtype` as a torch dtype; `auto` is bfloat16 where the device is fast at it, else float32.

    A CPU without bf16 units multiplies bf16 matrices at about a tenth of its fp32 rate (8 against
    79 GFLOP/s on two cores), one with AVX512-BF16 at four times it (793 against 192).
    """
    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[setting]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
