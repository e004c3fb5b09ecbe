"""CUDA graphs of functions of tensors: what a shape makes the host launch is recorded once and replayed.

A step of BLIP-2 at a card's speed is thousands of launches of a few microseconds each, and the host takes longer to
make them than the card to compute. Graphs are tied to shapes and addresses, so inputs are copied into tensors of the
graph's own. How a graph comes about is the same for every function here: the first call with a shape is eager and
warms libraries up; the second is eager too, and then the graph is recorded, replayed on the same inputs and compared;
from the third on it is replayed. Whatever goes wrong on the way leaves the function eager, and says why.

What a function computes with takes memory once for all of its graphs if the largest shape's is recorded first (a larger
tensor than all before it takes new memory), and once more while a new shape is eager, since nothing else may have the
graphs' memory. Where a device has not so much, all graphs go.
"""

import gc
import math
import os
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from artkv.models.cuda_recorder import Recorder, is_out_of_memory

T = TypeVar("T")
Signature = tuple[Any, ...]

# Of one function. Each holds its inputs and outputs; what it computes with is shared with the others.
MOST_GRAPHS = 16
# Norm-wise; kernels that add in any order (atomics) differ by the compute dtype's rounding, a wrong graph by much more.
_TOLERANCE = 1e-2
# Of the norm of all gradients: what is less than that is compared with it. The gradient of a key's bias is zero but for
# rounding where a softmax is over these keys alone, and rounding differs from rounding by any factor.
_SHARE_OF_ALL = 1e-3
_SWITCH = "ARTKV_CUDA_GRAPHS"


def graphs_are_wanted(device: torch.device) -> bool:
    """On CUDA, unless ARTKV_CUDA_GRAPHS=0 says otherwise, to find out whether they are to blame for something."""
    return device.type == "cuda" and os.environ.get(_SWITCH, "1") != "0"


class GraphGroup:
    """Functions whose graphs go together, or not at all: whichever lacks memory, any of them may hold it."""

    def __init__(self) -> None:
        self.members: list[_Graphed] = []

    @property
    def has_graphs(self) -> bool:
        """Whether there are any, those included that are not replayed."""
        return any(member.calls.graphs or member.calls.rejected for member in self.members)

    def rescued(self, name: str, call: Callable[[], T]) -> T:
        """What `call` returns; if memory runs out beside graphs, all go for good, and it is called once more.

        name: of what is called, for the message.
        """
        return self._without(lambda: self.give_up(name), call)

    def in_room(self, call: Callable[[], T]) -> T:
        """What `call` returns; if memory runs out beside graphs, they make room, and it is called once more."""
        return self._without(self._let_go, call)

    def _without(self, let_go: Callable[[], object], call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:
            if not (is_out_of_memory(error) and self.has_graphs):
                raise
        # Behind the `except`, so that what the failed call had made is gone.
        let_go()
        return call()

    def make_room(self) -> None:
        """Lets go of all graphs if they hold more memory than the device has left; they are recorded anew later."""
        if self.has_graphs and self.members[0].recorder.is_short():
            self._let_go()

    def give_up(self, name: str) -> None:
        """Lets go of all graphs, for good, and says why. name: of what memory ran out for."""
        print(
            f"artkv: no CUDA graphs any more: beside their memory there is not enough for {name} with a new shape; "
            "all stays eager; a lower training.batch_size leaves room for them",
            file=sys.stderr,
        )
        self._let_go(for_good=True)

    def _let_go(self, for_good: bool = False) -> None:
        for member in self.members:
            member.calls = _Calls(member.calls.name, for_good or member.calls.has_given_up)
        gc.collect()  # a pass that failed may have left reference cycles
        for member in self.members:
            member.recorder.give_back()


class _Calls:
    """What each signature has come to: a first call, a graph, or that it stays eager. has_given_up: all do.

    rejected: graphs that are not replayed; see `CudaRecorder`: they may not go alone.
    """

    def __init__(self, name: str, has_given_up: bool = False) -> None:
        self.name = name
        self.graphs: dict[Signature, Any] = {}
        self.has_given_up = has_given_up
        self._eager: set[Signature] = set()
        self.rejected: list[Any] = []
        self._seen: set[Signature] = set()

    def is_new(self, signature: Signature) -> bool:
        """Whether this is the first call with the signature."""
        if signature in self._seen:
            return False
        self._seen.add(signature)
        return True

    def is_eager(self, signature: Signature) -> bool:
        """Whether this signature has no graph and will get none."""
        return self.has_given_up or signature in self._eager

    def settle(self, signature: Signature, make: Callable[[], tuple[Any, float]]) -> None:
        """Records a graph for the signature, or leaves it eager.

        make: gives the graph, and how far off its results are. Raises where memory runs out.
        """
        reason = None
        if len(self.graphs) == MOST_GRAPHS:
            reason = f"there are {MOST_GRAPHS} graphs already"
        else:
            try:
                graph, difference = make()
                if difference <= _TOLERANCE:
                    self.graphs[signature] = graph
                    return
                self.rejected.append(graph)
                reason = f"a replay differs from the eager result by {difference:.2g}"
            except RuntimeError as error:  # an operation that no graph can hold
                if is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
        self._eager.add(signature)
        print(f"artkv: no CUDA graph of {self.name} for {signature[0]}: {reason}; it stays eager", file=sys.stderr)


class _Graphed(ABC):
    """What decides for each call whether it is eager, replayed, or eager with a graph recorded beside it.

    group: of other functions' graphs on the device; None: there are none.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], recorder: Recorder, group: GraphGroup | None = None
    ) -> None:
        self._function = function
        self.recorder = recorder
        self.calls = _Calls(name)
        self.group = group or GraphGroup()
        self.group.members.append(self)

    def _call(self, inputs: Sequence[Tensor]) -> Any:
        signature = _signature(inputs)
        if self.calls.is_eager(signature):
            return self._eager(inputs)
        if self.calls.is_new(signature):
            result = self._eager(inputs)
            self.recorder.give_back()  # it may be the last such call
            return result
        graph = self.calls.graphs.get(signature)
        if graph is not None:
            return self._replay(graph, inputs)
        result = self._eager(inputs)
        if not self.calls.is_eager(signature):  # graphs may have gone meanwhile
            self._settle(signature, inputs, result)
        return result

    def _settle(self, signature: Signature, inputs: Sequence[Tensor], result: Any) -> None:
        try:
            self.calls.settle(signature, lambda: self._record(inputs, result))
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # What the recording had taken stays in the graphs' pool as long as there is one of them: the device is full.
        self.group.give_up(f"a graph of {self.calls.name}")

    def _eager(self, inputs: Sequence[Tensor]) -> Any:
        """Without a graph; and if memory runs out, without any."""
        return self.group.rescued(self.calls.name, lambda: self._function(*inputs))

    @abstractmethod
    def _record(self, inputs: Sequence[Tensor], result: Any) -> tuple[Any, float]:
        """A graph for inputs like these, and how far a replay is off. result: the eager one."""

    @abstractmethod
    def _replay(self, graph: Any, inputs: Sequence[Tensor]) -> Any:
        """The result of a graph on other inputs."""


class GraphedFunction(_Graphed):
    """A function of tensors without a graph of autograd: the same results, replayed.

    function: pure; its inputs' and outputs' shapes depend on the inputs' shapes alone. What it returns is new tensors.
    """

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = self._call(inputs)
        return results

    def _record(self, inputs: Sequence[Tensor], result: Any) -> tuple[Any, float]:
        own = [tensor.detach().clone() for tensor in inputs]
        replay, outputs = self.recorder.record(lambda: self._function(*own))
        graph = (own, replay, outputs)
        return graph, _difference(self._replay(graph, inputs), result)

    def _replay(self, graph: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        own, replay, outputs = graph
        _fill(own, inputs)
        replay()
        return tuple(output.detach().clone() for output in outputs)


class GraphedTower(_Graphed):
    """A function of tensors with parameters that train: forward and backward are replayed.

    function: from inputs without gradients to one tensor; pure. parameters: all that it differentiates by; their
    addresses stay.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Tensor],
        parameters: Sequence[nn.Parameter],
        recorder: Recorder,
        group: GraphGroup | None = None,
    ) -> None:
        super().__init__(name, function, recorder, group)
        self._parameters = list(parameters)
        # What all graphs write theirs to: kept by each, they would take the parameters' memory once for each shape.
        self._gradients: list[Tensor | None] | None = None
        self._pending: weakref.ref[_Pass] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or self._is_pending():
            output: Tensor = self._function(*inputs)
        else:
            output = self._call(inputs)
        return output

    def _is_pending(self) -> bool:
        """Whether a replayed forward pass waits for its backward pass: another would overwrite what it keeps."""
        waiting = None if self._pending is None else self._pending()
        return waiting is not None and not waiting.is_over

    def _replay(self, graph: Any, inputs: Sequence[Tensor]) -> Tensor:
        one_pass = _Pass(graph)
        self._pending = weakref.ref(one_pass)
        output: Tensor = _Replayed.apply(one_pass, inputs, *self._parameters)
        return output

    def _record(self, inputs: Sequence[Tensor], result: Any) -> tuple[Any, float]:
        # An eager pass of its own: that of the step keeps its graph for the step's backward.
        output = self._function(*inputs)
        gradient = torch.ones_like(output)
        expected = torch.autograd.grad(output, self._parameters, gradient, allow_unused=True)
        if self._gradients is None:
            self._gradients = [None if one is None else torch.empty_like(one) for one in expected]
        graph = _TowerGraph(self._function, self._parameters, inputs, self._gradients, self.recorder)
        found = self._replay(graph, inputs)
        gradients = torch.autograd.grad(found, self._parameters, gradient, allow_unused=True)
        missing = [
            n
            for n, (one, other) in enumerate(zip(gradients, expected, strict=True))
            if (one is None) != (other is None)
        ]
        if missing:
            raise RuntimeError(
                f"of {len(gradients)} parameters, number {missing[0]} has a gradient in one of both alone"
            )
        pairs = [(one, other) for one, other in zip(gradients, expected, strict=True) if other is not None]
        found_all, expected_all = zip(*pairs, strict=True)
        return graph, max(_difference((found,), (output,)), _difference(found_all, expected_all, _SHARE_OF_ALL))


class _TowerGraph:
    """The two graphs of one signature."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        parameters: Sequence[nn.Parameter],
        inputs: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        recorder: Recorder,
    ) -> None:
        self.gradients = gradients
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        leaves = [parameter.detach().requires_grad_(parameter.requires_grad) for parameter in parameters]
        made: list[Tensor] = []

        def forward() -> Tensor:
            with _InPlaceOf(parameters, leaves):
                made[:] = [function(*self.inputs)]
            return made[0]

        self.replay_forward, self.output = recorder.record(forward)
        self.gradient = torch.empty_like(self.output)

        def backward() -> None:
            found = torch.autograd.grad(made[0], leaves, self.gradient, allow_unused=True)
            for own, one in zip(gradients, found, strict=True):
                if (own is None) != (one is None):
                    raise RuntimeError("a parameter has a gradient for one shape of inputs and not for another")
                if own is not None and one is not None:
                    own.copy_(one)

        self.replay_backward, _ = recorder.record(backward)


class _InPlaceOf(TorchFunctionMode):
    """Has functions of torch compute with leaves of the same memory in place of parameters.

    Where a parameter has hooks, as DeepSpeed's have, its node in autograd's graph is there for good and belongs to the
    stream that it was made on. A backward pass through it would wait for that stream, which no capture permits.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], leaves: Sequence[Tensor]) -> None:
        super().__init__()
        self._leaves: Mapping[int, Tensor] = {id(p): leaf for p, leaf in zip(parameters, leaves, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda value: self._leaves.get(id(value), value), (args, kwargs or {}))
        return func(*args, **kwargs)


class _Pass:
    """One forward pass that was replayed, until its backward pass is over or nobody can ask for it any more."""

    def __init__(self, graph: _TowerGraph) -> None:
        self.graph: _TowerGraph | None = graph
        self.is_over = False


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one_pass: _Pass, inputs: Sequence[Tensor], *_: nn.Parameter) -> Tensor:
        ctx.one_pass = one_pass
        graph = one_pass.graph
        assert graph is not None
        _fill(graph.inputs, inputs)
        graph.replay_forward()
        return graph.output.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.one_pass.is_over:
            raise RuntimeError("a replayed forward pass has one backward pass")
        graph = ctx.one_pass.graph
        graph.gradient.copy_(gradient)
        graph.replay_backward()
        ctx.one_pass.is_over = True
        ctx.one_pass.graph = None  # a loss that somebody still holds is to keep no graph alive
        return (None, None, *(None if one is None else one.detach().clone() for one in graph.gradients))


def _signature(inputs: Sequence[Tensor]) -> Signature:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)


def _fill(own: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(own, inputs, strict=True):
            tensor.copy_(value)


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor], share_of_all: float = 0.0) -> float:
    """The largest norm-wise relative difference; 0 where both are equal, what is not finite included.

    share_of_all: a tensor whose norm is less than this share of that of all together counts as if it had so much.
    """
    norms = [float(other.double().norm()) for other in expected] if share_of_all else []
    norm_of_all = math.hypot(*(norm for norm in norms if math.isfinite(norm)))
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if torch.equal(one, other) or (not other.isfinite().all() and not one.isfinite().all()):
            continue
        norm = max(float(other.double().norm()), share_of_all * norm_of_all, 1e-30)
        error = float((one.double() - other.double()).norm()) / norm
        worst = max(worst, error) if math.isfinite(error) else float("inf")
    return worst
