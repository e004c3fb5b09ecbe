"""What a training step asks of the host, counted: operations by phase, and bytes that a block keeps for backward.

No card is needed: the numbers are those of the code, whatever computes. Contestants here have the attention that they
have on a card, `scaled_dot_product_attention`, which is one operation; what artkv and its peers take on a CPU for
speed's sake is several.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from step_clock import write_figures
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from turns import Stand

import artkv.models.backbone.blip2_backbone as backbone_module
import artkv.models.kv_modulated_blip2 as model_module
from artkv.training.engine import TrainingEngine

FORWARD, BACKWARD, OPTIMIZER, BETWEEN = "forward", "backward", "optimizer", "between"
ON_A_CARD = "sdpa"
_current = [BETWEEN]


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What operations inside belong to; recomputation in backward belongs to backward."""
    _current.append(name)
    try:
        yield
    finally:
        _current.pop()


class StepOperations(TorchDispatchMode):
    """Counts ATen operations by phase, as the dispatcher hands them on; views apart, which launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._computing: Counter[str] = Counter()
        self._views: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        (self._views if is_view(func) else self._computing)[_current[-1]] += 1
        return func(*args, **(kwargs or {}))

    def result(self) -> dict[str, dict[str, int]]:
        """`computing` and `views`, each by phase."""
        return {"computing": dict(self._computing), "views": dict(self._views)}


def is_view(func: Any) -> bool:
    """Whether the operation returns its input's storage unchanged."""
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def run_artkv_as_on_a_card(stand: Stand, tree: dict[str, Any]) -> None:
    """artkv's run with phases marked."""
    from artkv_row import run_artkv

    attend_as_on_a_card()
    for method, name in (("forward", FORWARD), ("backward", BACKWARD), ("step", OPTIMIZER)):
        setattr(TrainingEngine, method, _in_phase(getattr(TrainingEngine, method), name))
    run_artkv(stand, tree)


def run_artkv_replayed(stand: Stand, tree: dict[str, Any]) -> None:
    """The same with what is replayed on a card counted as the launches of its graphs."""
    model_module.graphs_are_wanted = lambda device: True
    model_module.CudaRecorder = GraphsInTheirStead  # type: ignore[misc]
    run_artkv_as_on_a_card(stand, tree)


class GraphsInTheirStead:
    """Records nothing and computes again, uncounted but for one operation a replay."""

    def record(self, run: Any) -> tuple[Any, Any]:
        """As `artkv.models.cuda_recorder.CudaRecorder`."""
        results = run()

        def replay() -> None:
            torch.empty(1).fill_(0)
            with _disable_current_modes(), torch.enable_grad():
                for one, again in zip(_tensors(results), _tensors(run()), strict=True):
                    one.data.copy_(again.data)

        return replay, results

    def give_back(self) -> None:
        """There is no device."""

    def is_short(self) -> bool:
        """Never."""
        return False


def _tensors(results: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]


def attend_as_on_a_card() -> None:
    """Has artkv's OPT in this process take the attention that it takes on CUDA."""
    if not hasattr(backbone_module, "CPU_ATTENTION"):
        raise RuntimeError("artkv's backbone has no CPU_ATTENTION any more; see benchmarks/step_counts.py")
    backbone_module.CPU_ATTENTION = ON_A_CARD


def _in_phase(method: Any, name: str) -> Any:
    def marked(*inputs: Any, **options: Any) -> Any:
        with phase(name):
            return method(*inputs, **options)

    return marked


def kept_bytes(block: Any, hidden_RLD: Tensor, mask_R1LL: Tensor) -> int:
    """Bytes that a block's forward leaves for backward and for the block after it, each storage once.

    Its input and the mask, which all blocks share, and weights do not count; its output does.
    """
    known = {_storage(tensor) for tensor in (hidden_RLD, mask_R1LL, *block.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output_RLD = block(hidden_RLD, attention_mask=mask_R1LL)
        note(output_RLD)
    return sum(kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def run_kept_bytes(path: Path, tree: dict[str, Any], paintings: int, questions: int, text_tokens: int) -> None:
    """The process of a row: a block of OPT by itself, in bfloat16, as `kept_bytes` and as artkv's planner have it."""
    from artkv.config import Config
    from artkv.distributed import single_process
    from artkv.models.opt.packed_sequences import tree_attention_mask
    from artkv.planning.activations import block_activations
    from artkv.planning.batch_shape import BatchShape, sequences
    from artkv.planning.shapes import model_shapes
    from artkv.session import Session

    attend_as_on_a_card()
    config = Config.model_validate(tree)
    session = Session(config, single_process(torch.device("cpu"))).load()
    backbone = session.model.backbone
    rows = []
    for is_packed in (True, False):
        batch = BatchShape(paintings, questions, text_tokens, is_packed)
        read = sequences(batch, session.model.num_visual_tokens, backbone.language_model_width)
        shape = (read.rows, read.columns)
        hidden_RLD = torch.randn(*shape, backbone.language_model_width, dtype=torch.bfloat16, requires_grad=True)
        ends_RL = torch.arange(1, read.columns + 1).expand(shape)
        mask_R1LL = tree_attention_mask(ends_RL, torch.bfloat16)
        if not is_packed:
            mask_R1LL = mask_R1LL == 0
        block = backbone.language_model.model.decoder.layers[0]
        measured = kept_bytes(block, hidden_RLD, mask_R1LL)
        predicted = block_activations(model_shapes(config, torch.bfloat16, ()), batch).stored_bytes
        rows.append(
            {
                "is_packed": is_packed, "rows": read.rows, "columns": read.columns, "kept_bytes": measured,
                "planned_bytes": predicted, "bytes_per_token": measured / (read.rows * read.columns),
            }
        )  # fmt: skip
    write_figures(path, {"blocks": rows})
