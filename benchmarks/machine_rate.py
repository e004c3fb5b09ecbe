"""The machine as a contestant: matrix products alone, on the same threads and in turn with the others."""

import torch
from torch.nn.functional import linear
from turns import Stand

from artkv.models.backbone.backends import resolve_dtype


def run_products(stand: Stand, rows: int, width: int, out_width: int, dtype_name: str, products: int) -> None:
    """A step is `products` products of (rows, width) with a linear layer's (out_width, width), for ever.

    As many weights as products, so that they come from where a model's weights come from.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(dtype_name, device)
    hidden = torch.randn(rows, width, device=device, dtype=dtype)
    weights = [torch.randn(out_width, width, device=device, dtype=dtype) for _ in range(products)]
    with torch.no_grad():
        while True:
            stand.boundary(0)
            with stand.step():
                for weight in weights:
                    linear(hidden, weight)
                if device.type == "cuda":
                    torch.cuda.synchronize()
