"""Frozen linear layers held in 8 or 4 bits by bitsandbytes, an optional package."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from artkv.errors import UserError

Quantisation = Literal["int8", "nf4"]

# Of which inputs and outputs a layer of 4 bits must have a multiple for bitsandbytes (0.50) to pack it anew on a CPU.
_PACKED_IN, _PACKED_OUT = 64, 32


def quantise_linears(
    module: nn.Module,
    tensor_of: Callable[[str], Tensor],
    quantisation: Quantisation,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Replaces every `nn.Linear` inside `module`, whose parameters are on the meta device, by a quantised one.

    int8: LLM.int8() (Dettmers et al. 2022), outlier columns kept in 16 bits. nf4: QLoRA's 4-bit normal float with
    double quantisation (Dettmers et al. 2023), dequantised to `compute_dtype` in each product. Weights are read
    and quantised one at a time. Gradients flow through to the inputs; the weights themselves never train.

    Args:
        tensor_of: gives a parameter's value by its name inside `module`, in any float dtype.

    Raises:
        UserError: without bitsandbytes.
    """
    bnb = require_bitsandbytes(quantisation)
    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for name, linear in linears:
        has_bias = linear.bias is not None
        # bitsandbytes quantises to int8 on the way from the CPU to a GPU; what is there already in its first product.
        read_on = torch.device("cpu") if quantisation == "int8" else device
        weight = tensor_of(f"{name}.weight").to(device=read_on, dtype=compute_dtype)
        with torch.device("meta"):
            if quantisation == "int8":
                quantised = bnb.nn.Linear8bitLt(
                    linear.in_features, linear.out_features, has_bias, has_fp16_weights=False, threshold=6.0
                )
                # Copied: what is on the CPU already would be quantised in place, in the caller's file mapping.
                parameter = bnb.nn.Int8Params(weight.half().clone(), requires_grad=False, has_fp16_weights=False)
            else:
                quantised = bnb.nn.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    has_bias,
                    compute_dtype=compute_dtype,
                    quant_type="nf4",
                    compress_statistics=True,
                )
                if linear.in_features % _PACKED_IN or linear.out_features % _PACKED_OUT:
                    quantised.support_avx512bf16_for_cpu = False  # it would pack any width, and fails at this one
                parameter = bnb.nn.Params4bit(
                    weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
                )
        quantised.weight = parameter.to(device)
        if has_bias:
            bias = tensor_of(f"{name}.bias").to(device=device, dtype=compute_dtype)
            quantised.bias = nn.Parameter(bias, requires_grad=False)
        _replace(module, name, quantised.eval())


def _replace(module: nn.Module, dotted_name: str, new: nn.Module) -> None:
    parent_name, _, name = dotted_name.rpartition(".")
    setattr(module.get_submodule(parent_name), name, new)


def require_bitsandbytes(quantisation: Quantisation) -> Any:
    """The package; raises `UserError` without it."""
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            f"frozen.opt = {quantisation!r}: needs the package bitsandbytes; pip install 'artkv[quantised]', or set "
            "frozen.opt: stream"
        ) from None
    return bitsandbytes
