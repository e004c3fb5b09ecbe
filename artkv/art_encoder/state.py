"""Where a training of the art encoder stands, on disk: scores, weights, averages and moments, written whole.

A safetensors file: no pickled code. It is renamed into place after it is on the disk, so that a kill at any moment
leaves the state that was saved before: of the last whole epoch, or of the step at which the training was stopped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from artkv.art_encoder.scores import ArtEncoderScores
from artkv.errors import UserError
from artkv.files import reason_of, save_tensors, told, write_whole
from artkv.reading import check_regular, parse_json, remedy_for


@dataclass
class Standing:
    """Where a training stands at the end of an epoch."""

    epochs_done: int = 0
    best_epoch: int = 0
    best: ArtEncoderScores | None = None

    def improves(self, scores: ArtEncoderScores) -> bool:
        """By top-1, and by the loss where top-1 is equal, as it often is on few pictures."""
        return self.best is None or (scores.top1, -scores.loss) > (self.best.top1, -self.best.loss)


class Learnt(NamedTuple):
    """What training changes."""

    model: nn.Module
    averaged: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class StoppedEpoch:
    """Where a training was stopped within an epoch.

    steps: of the epoch that are done, in so many seconds. losses: their sum on each rank, (ranks,). random_states: of
    each rank, as `random_state` gives them.
    """

    steps: int
    seconds: float
    losses: Tensor
    random_states: list[dict[str, Tensor]]


def save_state(
    path: Path, run: Mapping[str, Any], standing: Standing, learnt: Learnt, stopped: StoppedEpoch | None = None
) -> None:
    """Writes all that the next step depends on; `run` says what a resume must have in common with it."""
    tensors = {f"model.{name}": tensor for name, tensor in learnt.model.state_dict().items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in learnt.averaged.state_dict().items()}
    for index, moments in learnt.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    progress: dict[str, Any] = {
        "epochs_done": standing.epochs_done,
        "best_epoch": standing.best_epoch,
        "best": None if standing.best is None else standing.best.to_tree(),
    }
    if stopped is not None:
        progress["stopped"] = {"steps": stopped.steps, "seconds": stopped.seconds}
        tensors["stopped.losses"] = stopped.losses
        for rank, state in enumerate(stopped.random_states):
            tensors |= {f"stopped.{rank}.{name}": tensor for name, tensor in state.items()}
    write_tensors(path, tensors, {"run": json.dumps(run), "progress": json.dumps(progress)})


def load_state(path: Path, run: Mapping[str, Any], learnt: Learnt) -> tuple[Standing, StoppedEpoch | None]:
    """Puts back what `save_state` wrote; raises UserError where it belongs to other settings or data, or is damaged."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if not {"run", "progress"} & metadata.keys():
                raise UserError(
                    f"{path}: is not what artkv art-encoder keeps of a training; move it away, or give another "
                    "--output-dir"
                )
            saved_run, saved = parse_json(metadata["run"]), parse_json(metadata["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_same_run(path, run, saved_run)
        standing = _standing(saved)
        stopped = _stopped(saved, tensors)
        moments = _moments(tensors, learnt.optimizer)
        for name, module in (("model", learnt.model), ("averaged", learnt.averaged)):
            module.load_state_dict(_group(tensors, name))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = (reason_of(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = remedy_for(error, "delete it and start again")
        raise UserError(f"{path} is damaged ({reason:.300}); {remedy}") from error
    learnt.optimizer.load_state_dict({"state": moments, "param_groups": learnt.optimizer.state_dict()["param_groups"]})
    return standing, stopped


def _check_same_run(path: Path, run: Mapping[str, Any], saved_run: Mapping[str, Any]) -> None:
    ours, theirs = run["settings"], saved_run["settings"]
    names = [*ours, *(name for name in theirs if name not in ours)]
    changed = [
        f"{name} {theirs.get(name)!s:.80} -> {ours.get(name)!s:.80}"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
    if run["data"] != saved_run["data"]:
        changed.append("the pictures, their styles or the split")
    if changed:
        raise UserError(
            f"{path.parent} holds a training with other settings ({'; '.join(changed)}); resume with the same "
            "ones, or start in another --output-dir"
        )


def _standing(saved: Mapping[str, Any]) -> Standing:
    done, best_epoch, best = saved["epochs_done"], saved["best_epoch"], saved["best"]
    if type(done) is not int or type(best_epoch) is not int or not 0 <= best_epoch <= done:
        raise ValueError(f"epochs_done {done!r:.40}, best_epoch {best_epoch!r:.40}")
    return Standing(done, best_epoch, None if best is None else ArtEncoderScores.from_tree(best))


def _stopped(saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StoppedEpoch | None:
    if "stopped" not in saved:
        return None
    within = saved["stopped"]
    losses = tensors["stopped.losses"]
    states = [_group(tensors, f"stopped.{rank}") for rank in range(len(losses))]
    if type(within["steps"]) is not int or within["steps"] < 1 or any("torch" not in state for state in states):
        raise ValueError(f"stopped at step {within['steps']!r:.40}")
    return StoppedEpoch(within["steps"], float(within["seconds"]), losses, states)


def _moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by a parameter's number; ValueError where it is of other parameters.

    In memory as the parameters are, perhaps channels last, which a file does not keep: else a step is slower.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _group(tensors, "optimizer").items():
        index, kind = name.split(".")
        if tensor.dim():
            parameter = parameters[int(index)]
            if tensor.shape != parameter.shape:
                raise ValueError(f"optimizer.{name} is {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        moments.setdefault(int(index), {})[kind] = tensor
    if moments and len({tuple(sorted(one)) for one in moments.values()}) > 1:
        raise ValueError("parts of the optimizer's state are missing")
    return moments


def _group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file that is there whole or not at all, whenever the process or the machine stops."""
    with told(str(path), "make room, and go on with --resume"):
        write_whole(path, lambda temporary: save_tensors(tensors, temporary, metadata))
