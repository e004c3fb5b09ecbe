"""salesforce-lavis 1.0.2, not modified, beside current libraries: its EVA ViT and its Q-Former, and what they expect.

LAVIS was written for transformers 4.26 and timm 0.4, and its package's `__init__` imports spacy, decord and OpenCV.
Three things stand in the way of two modules that need none of that:

- `lavis/__init__.py` and `lavis/models/__init__.py`: empty packages stand in for them while the modules are imported.
- Functions that `transformers.modeling_utils` held: they are there while the modules are imported, and gone after.
- Methods that `PreTrainedModel` had: a subclass of LAVIS's Q-Former has them.

So after the import transformers is as it was, and `import lavis` elsewhere finds LAVIS and not the empty packages.
"""

import importlib
import importlib.util
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers.modeling_utils
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import pytorch_utils

from artkv.errors import UserError

REMEDY = "pip install --no-deps salesforce-lavis==1.0.2 (--no-deps: its pins fit no current environment)"

_EVA_VIT = "lavis.models.eva_vit"
_QFORMER = "lavis.models.blip2_models.Qformer"

# Where `transformers.modeling_utils` of 4.26 had them. Only the pruning of heads, which nothing calls here, used the
# second and third.
_MOVED = {
    "apply_chunking_to_forward": pytorch_utils.apply_chunking_to_forward,
    "prune_linear_layer": pytorch_utils.prune_linear_layer,
}
_GONE = "find_pruneable_heads_and_indices"

_lock = threading.Lock()


class LavisModules(NamedTuple):
    """LAVIS's modules as they are, and its Q-Former with the methods that it calls of older transformers.

    eva_vit: `lavis.models.eva_vit`. qformer: `lavis.models.blip2_models.Qformer`.
    QFormer: a subclass of LAVIS's `BertModel`.
    """

    eva_vit: Any
    qformer: Any
    QFormer: Any


@cache
def import_lavis() -> LavisModules:
    """Imports LAVIS's EVA ViT and Q-Former; the first call does, later ones return the same.

    Raises:
        UserError: if salesforce-lavis is not installed, or is a version that does not import.
    """
    spec = importlib.util.find_spec("lavis")  # imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model.backend = lavis: salesforce-lavis is not installed; {REMEDY}")
    package = Path(next(iter(spec.submodule_search_locations)))
    try:
        with _lock, _empty_packages(package), _older_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's, of the module names that LAVIS imports it by
            eva_vit = importlib.import_module(_EVA_VIT)
            qformer = importlib.import_module(_QFORMER)
    except ImportError as error:
        raise UserError(f"model.backend = lavis: {package} cannot be imported ({error}); {REMEDY}") from error
    return LavisModules(eva_vit, qformer, _qformer_class(qformer.BertModel))


@contextmanager
def _empty_packages(package: Path) -> Iterator[None]:
    """`lavis` and its subpackages as empty packages inside the `with`, then whatever was there before."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "lavis"}
    for name in before:
        del sys.modules[name]
    for name in ("lavis", "lavis.models"):
        stand_in = types.ModuleType(name)
        stand_in.__path__ = [str(package.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "lavis"]:
            del sys.modules[name]
        sys.modules.update(before)


@contextmanager
def _older_transformers() -> Iterator[None]:
    """What LAVIS imports from `transformers.modeling_utils` and is not there, inside the `with` only."""
    module: Any = transformers.modeling_utils
    supplied = {name: value for name, value in {**_MOVED, _GONE: _not_called}.items() if not hasattr(module, name)}
    for name, value in supplied.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name in supplied:
            delattr(module, name)


def _not_called(*_: Any) -> Any:
    raise NotImplementedError("pruning of attention heads")


def _qformer_class(base: Any) -> Any:
    class QFormer(base):
        """LAVIS's `BertModel` with `PreTrainedModel`'s methods of transformers 4.26."""

        def init_weights(self) -> None:
            """Does nothing: it is called in the constructor, and each weight gets its value from a file."""

        def get_head_mask(self, head_mask: None, num_layers: int) -> list[None]:
            """No head is masked in any layer."""
            assert head_mask is None
            return [None] * num_layers

        def invert_attention_mask(self, mask_BN: Tensor) -> Tensor:
            """The mask as what is added to attention scores, (B, 1, 1, N)."""
            dtype: torch.dtype = self.dtype
            return (1.0 - mask_BN[:, None, None, :].to(dtype)) * torch.finfo(dtype).min

    return QFormer


class _NumbersOnCpu(TorchFunctionMode):
    """`torch.linspace` stays off the meta device: LAVIS's ViT reads its drop rates from it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """LAVIS's modules that are built inside the `with` are on the meta device: no time and no memory for weights."""
    with torch.device("meta"), _NumbersOnCpu():
        yield
