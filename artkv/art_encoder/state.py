"""Where a training of the art encoder stands, on disk: scores, weights, averages and moments, written whole.

A safetensors file: no pickled code. It is renamed into place after it is on the disk, so that a kill at any moment
leaves the state of the last whole epoch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from artkv.errors import UserError
from artkv.files import save_tensors, told, write_whole


@dataclass(frozen=True)
class StyleScore:
    """How often a style's `count` validation pictures are recognised, first or among the first five."""

    style: str
    count: int
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class ArtEncoderScores:
    """Validation scores; `mean_style_top1` weighs every style alike, `loss` is the cross-entropy in nats."""

    loss: float
    top1: float
    top5: float
    mean_style_top1: float
    per_style: tuple[StyleScore, ...]


@dataclass
class Standing:
    """Where a training stands at the end of an epoch."""

    epochs_done: int = 0
    best_epoch: int = 0
    best: ArtEncoderScores | None = None

    def improves(self, scores: ArtEncoderScores) -> bool:
        """By top-1, and by the loss where top-1 is equal, as it often is on few pictures."""
        return self.best is None or (scores.top1, -scores.loss) > (self.best.top1, -self.best.loss)


def save_state(
    path: Path,
    run: Mapping[str, Any],
    standing: Standing,
    model: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes all that the next epoch depends on; `run` says what a resume must have in common with it."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in averaged.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    write_tensors(path, tensors, {"run": json.dumps(run), "progress": json.dumps(asdict(standing))})


def load_state(
    path: Path, run: Mapping[str, Any], model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> Standing:
    """Puts back what `save_state` wrote; raises UserError where it belongs to other settings or data."""
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata()
            saved_run, saved = json.loads(metadata["run"]), json.loads(metadata["progress"])
            for key in file.keys():  # noqa: SIM118
                group, name = key.split(".", maxsplit=1)
                groups[group][name] = file.get_tensor(key)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and start again") from error
    ours, theirs = run["settings"], saved_run["settings"]
    changed = [f"{name} {theirs.get(name)} -> {ours[name]}" for name in ours if ours[name] != theirs.get(name)]
    if run["data"] != saved_run["data"]:
        changed.append("the pictures, their styles or the split")
    if changed:
        raise UserError(
            f"{path.parent} holds a training with other settings ({'; '.join(changed)}); resume with the same "
            "ones, or start in another --output-dir"
        )
    model.load_state_dict(groups["model"])
    averaged.load_state_dict(groups["averaged"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        index, kind = name.split(".")
        moments.setdefault(int(index), {})[kind] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    best = saved["best"]
    if best is not None:
        best = ArtEncoderScores(**{**best, "per_style": tuple(StyleScore(**score) for score in best["per_style"])})
    return Standing(saved["epochs_done"], saved["best_epoch"], best)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file that is there whole or not at all, whenever the process or the machine stops."""
    with told(str(path), "make room, and go on with --resume"):
        write_whole(path, lambda temporary: save_tensors(tensors, temporary, metadata))
