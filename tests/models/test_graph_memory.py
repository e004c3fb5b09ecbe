"""What graphs do where a device has little memory; on CPUs with recorders of the tests'."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from artkv.models.cuda_graphs import GraphedFunction, GraphedTower, GraphGroup, _difference
from artkv.models.cuda_recorder import is_out_of_memory
from tests.models.test_cuda_graphs import Rerun, doubled_sum, inputs, step, tower

FULL = "CUDA out of memory. Tried to allocate 20.00 MiB"


def test_what_a_new_shape_computed_with_is_given_back_at_once() -> None:
    """On a device the graphs cannot have it, and the shape may never come again."""
    recorder = Rerun()
    function = GraphedFunction("a function", doubled_sum, recorder)
    for seed in range(4):
        for length in (4, 6):
            function(*inputs(seed, length))
    assert recorder.given_back == 2


class Tight:
    """A function for which memory runs out with a new shape as long as there are graphs of others."""

    def __init__(self) -> None:
        self.graphed = GraphedFunction("a function", self, Rerun())
        self.lengths: set[int] = set()

    def __call__(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if self.graphed.calls.graphs and len(a) not in self.lengths:
            raise torch.OutOfMemoryError(FULL)
        self.lengths.add(len(a))
        return doubled_sum(a, b)


def test_where_memory_runs_out_beside_graphs_they_go_and_the_call_is_done_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tight, had_graphs = Tight(), []
    for length in (4, 4, 4, 6, 6, 6, 4):
        found = tight.graphed(*inputs(length, length))
        assert all(map(torch.equal, found, doubled_sum(*inputs(length, length))))
        had_graphs.append(bool(tight.graphed.calls.graphs))
    assert had_graphs == [False, True, True, False, False, False, False]
    said = capsys.readouterr().err
    assert said.count("artkv: no CUDA graphs any more: beside their memory there is not enough for a function") == 1


def test_graphs_of_a_group_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever lacks memory, any of them may hold it."""
    tight, group = Tight(), GraphGroup()
    body, parameters = tower()
    graphed = GraphedTower("a tower", body, parameters, Rerun(), tight.graphed.group)
    assert group.members == []
    for seed in range(3):
        step(graphed, parameters, seed, 2)
        tight.graphed(*inputs(seed, 4))
    assert graphed.calls.graphs
    tight.graphed(*inputs(0, 6))
    assert not graphed.calls.graphs
    records = graphed.recorder.records  # type: ignore[attr-defined]
    plain, plain_parameters = tower()
    for seed in range(3):
        step(plain, plain_parameters, seed, 2)
    for seed in range(3, 6):
        found, expected = step(graphed, parameters, seed, 2), step(plain, plain_parameters, seed, 2)
        assert all(map(torch.equal, found, expected))
    assert graphed.recorder.records == records  # type: ignore[attr-defined]
    assert capsys.readouterr().err.count("no CUDA graphs any more") == 1


def test_a_step_whose_loss_is_still_held_keeps_no_graph_alive() -> None:
    body, parameters = tower()
    graphed = GraphedTower("a tower", body, parameters, Rerun())
    for seed in range(2):
        step(graphed, parameters, seed, 2)
    (graph,) = map(weakref.ref, graphed.calls.graphs.values())
    loss = graphed(torch.ones(2, 4)).sum()
    loss.backward()
    graphed.group.give_up("a tower")
    assert graph() is None
    assert loss.grad_fn is not None


def test_where_memory_runs_out_without_graphs_that_is_raised() -> None:
    def never(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError(FULL)

    function = GraphedFunction("a function", never, Rerun())
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            function(*inputs(0))


@pytest.mark.parametrize("is_short", [True, False])
def test_graphs_make_room_where_they_hold_more_than_is_left(is_short: bool) -> None:
    recorder = Rerun()
    recorder.is_short = lambda: is_short  # type: ignore[method-assign]
    function = GraphedFunction("a function", doubled_sum, recorder)
    function.group.make_room()  # there are none
    for seed in range(3):
        function(*inputs(seed))
    assert (recorder.records, recorder.replays) == (1, 2)
    function.group.make_room()
    assert bool(function.calls.graphs) != is_short
    for seed in range(3):
        assert all(map(torch.equal, function(*inputs(seed)), doubled_sum(*inputs(seed))))
    assert recorder.records == (2 if is_short else 1)
    assert len(function.calls.graphs) == 1


class Full(Rerun):
    """A recorder for which memory runs out with the graph of that number."""

    def __init__(self, number: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.number, self.error = number, error

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self.records == self.number:
            raise self.error(FULL)
        return super().record(run)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_where_a_graph_finds_no_memory_all_go(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    """What its recording had taken belongs to the other graphs' pool, and would be free for nobody."""
    function = GraphedFunction("a function", doubled_sum, Full(1, error))
    for length in (4, 4, 4, 6, 6, 6, 4):
        found = function(*inputs(length, length))
        assert all(map(torch.equal, found, doubled_sum(*inputs(length, length))))
    assert not function.group.has_graphs
    assert capsys.readouterr().err.count("not enough for a graph of a function") == 1


def test_what_has_no_graph_of_its_own_is_done_again_without_those_of_others() -> None:
    function = GraphedFunction("a function", doubled_sum, Rerun())
    function(*inputs(0)), function(*inputs(0))
    calls = []

    def encode() -> int:
        calls.append(function.group.has_graphs)
        if calls[-1]:
            raise torch.OutOfMemoryError(FULL)
        return 7

    assert function.group.in_room(encode) == 7
    assert calls == [True, False]
    assert not function.calls.has_given_up  # as for a validation
    function(*inputs(0)), function(*inputs(0))
    assert function.group.rescued("the encoders", encode) == 7
    assert calls == [True, False, True, False]
    assert function.calls.has_given_up

    def fails() -> None:
        calls.append(True)
        raise RuntimeError("a size that does not fit")

    with pytest.raises(RuntimeError, match="does not fit"):
        function.group.rescued("the encoders", fails)
    assert len(calls) == 5


def test_a_graph_that_was_rejected_holds_memory_too() -> None:
    class Off(Rerun):
        def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            replay, results = super().record(run)
            return (lambda: (replay(), results[0].add_(1))), results  # type: ignore[return-value, func-returns-value]

    function = GraphedFunction("a function", doubled_sum, Off())
    for _ in range(3):
        function(*inputs(0))
    assert not function.calls.graphs
    assert function.group.has_graphs
    function.recorder.is_short = lambda: True  # type: ignore[method-assign]
    function.group.make_room()
    assert not function.group.has_graphs


def test_what_says_that_memory_ran_out() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("anything"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_gradient_that_is_zero_but_for_rounding_is_compared_with_all_gradients() -> None:
    """Of a key's bias, where a softmax is over these keys alone; a wrong one of any size is still found."""
    large, noise = torch.randn(1000), 1e-6 * torch.randn(10)
    other_noise = 1e-6 * torch.randn(10)
    assert _difference((large, noise), (large, other_noise)) > 0.5
    assert _difference((large, noise), (large, other_noise), 1e-3) < 1e-2
    small = torch.randn(10)
    assert _difference((large, 1.1 * small), (large, small), 1e-3) == pytest.approx(0.1, rel=1e-3)
    assert _difference((large, torch.zeros(10)), (large, small), 1e-3) == pytest.approx(1.0)
    infinite = torch.full((3,), torch.inf)
    assert _difference((infinite, torch.zeros(10)), (infinite, small), 1e-3) == pytest.approx(1.0)
