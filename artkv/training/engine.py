"""The DeepSpeed engine, and the few things that artkv asks of it."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import artkv.distributed  # noqa: F401  (tells DeepSpeed its accelerator before it is imported)

# isort: split
import deepspeed
import torch
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from artkv.batch import Batch, PackedQuestions
from artkv.distributed import World
from artkv.kv_modulation.injection import GATE
from artkv.models.kv_modulated_blip2 import AnswerLoss, KVModulatedBlip2
from artkv.run_folder.state import TrainableState
from artkv.training.gradient_order import OrderedReduction
from artkv.training.part_norms import PartNorms, Stretch, merged, part_metrics, parts_of
from artkv.training.skipped_steps import SkippedSteps

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_NO_COMPILER = "TORCHDYNAMO_DISABLE"

# DeepSpeed calls collectives by names that torch 2.14 has renamed; nothing that a user could change.
warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)


class TrainingEngine:
    """DeepSpeed around the assembled model, with the state that a run starts or goes on from.

    Every method but `grad_norm` and `measure_parts` is called on all ranks at the same time.
    """

    def __init__(
        self, model: KVModulatedBlip2, deepspeed_config: dict[str, Any], weight_decay: float, state: TrainableState
    ) -> None:
        _skip_compiled_extensions()
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it even without a launcher
        self.model = model
        # Entered around what ranks do not meet in.
        self.forward_timer: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self._names = list(model.named_trainables())
        with _quiet_deepspeed(), _without_compiler():
            self._engine, *_ = deepspeed.initialize(
                model=model,
                model_parameters=_parameter_groups(model, weight_decay),
                config=deepspeed_config,
                dist_init_required=False,  # artkv.distributed has made the process group
            )
        OrderedReduction(self._engine.optimizer)
        self.skipped_steps = SkippedSteps(self._engine.optimizer)
        self._make_optimizer_state()
        self._set_state(state)
        self._part_of = parts_of(self._names)
        self._part_norms = PartNorms(self._engine.optimizer.optimizer, self._stretches())

    @property
    def accumulation(self) -> int:
        """Micro-steps of an optimizer step."""
        return self._engine.gradient_accumulation_steps()

    def grad_norm(self) -> float | Tensor:
        """The last step's gradient norm before clipping, on the device; inf where the step was skipped."""
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else norm

    def measure_parts(self, in_next_step: bool) -> None:
        """Whether `part_metrics` is wanted of the next step."""
        self._part_norms.ask(in_next_step)

    def part_metrics(self, world: World) -> dict[str, Tensor]:
        """Gradient norm and update-to-weight ratio of each part in the last step; see `part_metrics`.

        All ranks meet, on the device. Empty where the last step was not to be measured, or DeepSpeed has left it out;
        of one that was skipped on the device they mean nothing.
        """
        parts = sorted(set(self._part_of.values()))
        squares = self._part_norms.read(parts, world.device)
        if squares is None:
            return {}
        return part_metrics(world.all_reduce_sum(squares), parts, self.grad_norm())

    def losses(self, batches: Sequence[Batch]) -> Iterator[AnswerLoss]:
        """The forward passes of a step's micro-batches, one at a time, as they are asked for.

        Where OPT streams all of them are one, so that it is fetched once.
        """
        is_one = self.model.reads_opt_once and all(isinstance(batch.questions, PackedQuestions) for batch in batches)
        for group in [batches] if is_one else [[batch] for batch in batches]:
            yield from self.forward(group)

    def forward(self, batches: Sequence[Batch]) -> list[AnswerLoss]:
        """The model's forward pass over one micro-batch, or over several packed ones at once, through DeepSpeed."""
        with self.forward_timer():
            if len(batches) == 1:
                return [self._engine(batches[0])]
            visual = [self._engine(batch, only_visual=True) for batch in batches]
            return self.model.answer_losses(visual, [batch.questions for batch in batches])  # type: ignore[misc]

    def backward(self, loss: Tensor) -> None:
        """Backward of a loss that is already divided by all of the step's answer tokens.

        DeepSpeed averages gradients over ranks; for the sum, the caller multiplies by the world size.
        """
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> None:
        """Ends a micro-step; the last one of a step clips, updates the masters and gathers the weights."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        is_last = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if is_last:
            self.skipped_steps.step_done()

    def state(self, keep: bool = True) -> TrainableState | None:
        """Gathers masters and moments, one tensor at a time; None where `keep` is false."""
        masters: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {key: {} for key in _ADAM_MOMENTS}
        for name, parameter in self.model.named_trainables().items():
            whole = safe_get_full_fp32_param(parameter)
            whole_moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _ADAM_MOMENTS}
            if keep:
                masters[name] = _to_cpu(whole)
                for key, moment in whole_moments.items():
                    moments[key][name] = _to_cpu(moment)
        if not keep:
            return None
        return TrainableState(masters, moments["exp_avg"], moments["exp_avg_sq"], self._adam_step())

    def close(self) -> None:
        """Frees DeepSpeed's buffers and hooks."""
        self._engine.destroy()

    def _make_optimizer_state(self) -> None:
        """Takes a step with zero gradients and a zero learning rate, so that Adam's state exists.

        torch's optimizers make it at the first step, and only then can it be set. Weights stay as they
        are, moments are zero after it, and `_set_state` sets the count back.
        """
        for _ in range(self.accumulation):
            nothing = sum((0.0 * p.float().sum() for p in self.model.parameters()), torch.zeros(()))
            self.backward(nothing)
            self.step(learning_rate=0.0)
        # DeepSpeed 0.19 links parameters to Adam's state once, after the first group's update, when the
        # second group has no state yet; without this its moments could not be read.
        optimizer = self._engine.optimizer
        for bit16_group, masters in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(bit16_group, masters, optimizer.state)

    def _set_state(self, state: TrainableState) -> None:
        for name, parameter in self.model.named_trainables().items():
            device = parameter.device
            safe_set_full_fp32_param(parameter, state.masters[name].to(device))
            for key, moments in zip(_ADAM_MOMENTS, (state.exp_avg, state.exp_avg_sq), strict=True):
                moment = moments[name] if moments else torch.zeros_like(parameter, dtype=torch.float32)
                safe_set_full_optimizer_state(parameter, moment.to(device), key)
        for group_state in self._engine.optimizer.state.values():
            group_state["step"].fill_(state.adam_step)
        self._engine.optimizer.update_lp_params()

    def _stretches(self) -> dict[Tensor, list[Stretch]]:
        """What this rank has of each part, by flat tensor of masters."""
        optimizer = self._engine.optimizer
        part_of = {parameter: self._part_of[name] for name, parameter in self.model.named_trainables().items()}
        stretches = {}
        for parameters, masters in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            found = []
            for parameter in parameters:
                if parameter._hp_mapping is not None:  # else other ranks have all of it
                    place = parameter._hp_mapping.hp_fragment_address
                    found.append(Stretch(part_of[parameter], place.start, place.start + place.numel))
            stretches[masters] = merged(found)
        return stretches

    def _adam_step(self) -> int:
        return int(next(iter(self._engine.optimizer.state.values()))["step"])


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and LayerNorm weights, which have one dimension, and gates, of a head too, do not."""
    decaying: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decaying[parameter.dim() > 1 and name.rpartition(".")[2] != GATE].append(parameter)
    groups = [
        {"params": decaying[True], "weight_decay": weight_decay},
        {"params": decaying[False], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _to_cpu(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("DeepSpeed has no fp32 master for a trainable; is ZeRO stage 1 or 2 configured?")
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _skip_compiled_extensions() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collective, 80 s at the first start on a CPU."""
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Keeps torch's compiler from being imported, for one to two seconds of each rank's start.

    DeepSpeed looks whether the optimizer is its Muon, whose module has functions compiled as it is imported. No run has
    Muon, as the optimizer is torch's AdamW. That torch is told so reaches no further: its own module for this was
    imported by transformers, and read the variable, before.
    """
    before = os.environ.get(_NO_COMPILER)
    os.environ[_NO_COMPILER] = "1"
    try:
        yield
    finally:
        os.environ.pop(_NO_COMPILER) if before is None else os.environ.update({_NO_COMPILER: before})


@contextlib.contextmanager
def _quiet_deepspeed() -> Iterator[None]:
    """DeepSpeed's start-up report, a hundred lines a rank, only at its own log level of choice."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
