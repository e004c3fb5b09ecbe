"""When a function is replayed, with what, and what happens where it cannot be; on CPUs with recorders of the tests'."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import artkv.models.kv_modulated_blip2 as model_module
from artkv.models.cuda_graphs import (
    MOST_GRAPHS,
    GraphedFunction,
    GraphedTower,
    GraphGroup,
    graphs_are_wanted,
)
from artkv.models.cuda_recorder import CudaRecorder, Recorder

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Roomy:
    """A recorder on a device that has memory for all."""

    given_back = 0

    def give_back(self) -> None:
        self.given_back += 1

    def is_short(self) -> bool:
        return False


class Rerun(Roomy):
    """A recorder that runs the function again into the first run's results, as a graph would, and counts."""

    def __init__(self) -> None:
        self.records = 0
        self.replays = 0

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.records += 1
        results = run()

        def replay() -> None:
            self.replays += 1
            with torch.enable_grad():  # a replay is no part of the call that it happens in
                again = run()
            for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (results, again)), strict=True):
                if one is not None:
                    one.data.copy_(other.data)

        return replay, results


def rerunning(monkeypatch: pytest.MonkeyPatch) -> list[Rerun]:
    """Has models that are built from now on replay by a `Rerun` for each graph; the list gets these."""
    recorders: list[Rerun] = []

    def recorder() -> Rerun:
        recorders.append(Rerun())
        return recorders[-1]

    monkeypatch.setattr(model_module, "graphs_are_wanted", lambda device: True)
    monkeypatch.setattr(model_module, "CudaRecorder", recorder)
    return recorders


class Fails(Roomy):
    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Stale(Roomy):
    """A graph that forgot to read its inputs anew."""

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        results = run()
        results[0].add_(1)
        return lambda: None, results


def doubled_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a * 2, (a + b).sum()


def inputs(seed: int, length: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, generator=generator), torch.randn(length, generator=generator)


def test_a_function_is_eager_twice_and_then_replayed_for_each_shape() -> None:
    recorder = Rerun()
    function = GraphedFunction("a function", doubled_sum, recorder)
    seen = []
    for seed in range(5):
        for length in (4, 6):
            found = function(*inputs(seed, length))
            assert all(map(torch.equal, found, doubled_sum(*inputs(seed, length))))
            seen.append((found, inputs(seed, length)))
    assert recorder.records == 2
    assert recorder.replays == 2 + 2 * 3  # each is tried once, and used three times
    # What was returned belongs to the caller: later replays leave it alone.
    assert all(torch.equal(found[0], 2 * a) for found, (a, _) in seen)


def test_another_dtype_is_another_signature() -> None:
    function = GraphedFunction("a function", doubled_sum, Rerun())
    for _ in range(3):
        assert function(*inputs(0))[0].dtype == torch.float32
        assert function(*(tensor.double() for tensor in inputs(0)))[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("recorder", "reason"), [(Fails(), "not permitted when stream is capturing;"), (Stale(), "differs from the eager")]
)
def test_what_cannot_be_recorded_stays_eager_and_says_why_once(
    recorder: Recorder, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    function = GraphedFunction("a function", doubled_sum, recorder)
    for seed in range(4):
        assert all(map(torch.equal, function(*inputs(seed)), doubled_sum(*inputs(seed))))
    said = capsys.readouterr().err
    assert said.count("no CUDA graph of a function for ((4,), torch.float32)") == 1
    assert reason in said


def test_graphs_are_bounded() -> None:
    recorder = Rerun()
    function = GraphedFunction("a function", doubled_sum, recorder)
    for length in range(1, MOST_GRAPHS + 4):
        for seed in range(3):
            assert all(map(torch.equal, function(*inputs(seed, length)), doubled_sum(*inputs(seed, length))))
    assert recorder.records == MOST_GRAPHS


def tower() -> tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]:
    torch.manual_seed(0)
    first, second, unused = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(1))
    return lambda x: second(torch.tanh(first(x))), [*first.parameters(), *second.parameters(), unused]


def step(function: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], seed: int, rows: int) -> list[Tensor]:
    """Output and gradients of one step of SGD, which moves the weights where they are."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    output = function(x)
    output.square().sum().backward()
    gradients = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
    return [output.detach(), *gradients]


def test_a_towers_steps_are_the_eager_ones() -> None:
    recorder = Rerun()
    function, parameters = tower()
    graphed = GraphedTower("a tower", function, parameters, recorder)
    plain, plain_parameters = tower()
    for seed in range(5):
        for rows in (2, 5):
            found, expected = (
                step(graphed, parameters, seed, rows),
                step(plain, plain_parameters, seed, rows),
            )
            assert all(map(torch.equal, found, expected))
    assert recorder.records == 2 * 2
    assert len(graphed.calls.graphs) == 2
    assert all(parameter.grad is None for parameter in parameters)  # trying a graph out leaves none
    with torch.no_grad():
        graphed(torch.ones(2, 4))


def test_a_second_forward_pass_before_the_first_ones_backward_is_eager() -> None:
    recorder = Rerun()
    function, parameters = tower()
    graphed = GraphedTower("a tower", function, parameters, recorder)
    for seed in range(3):
        step(graphed, parameters, seed, 2)
    replays = recorder.replays
    xs = [torch.full((2, 4), value) for value in (1.0, 2.0)]
    one, other = graphed(xs[0]), graphed(xs[1])
    assert recorder.replays == replays + 1
    found = torch.autograd.grad((one.square() + 3 * other.square()).sum(), parameters[:4])
    expected = torch.autograd.grad((function(xs[0]).square() + 3 * function(xs[1]).square()).sum(), parameters[:4])
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(found, expected, strict=True))
    graphed(xs[0])  # and dropped
    assert recorder.replays == replays + 3
    graphed(xs[0])
    assert recorder.replays == replays + 4


def test_graphs_are_for_cuda_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not graphs_are_wanted(torch.device("cpu"))
    assert graphs_are_wanted(torch.device("cuda"))
    monkeypatch.setenv("ARTKV_CUDA_GRAPHS", "0")
    assert not graphs_are_wanted(torch.device("cuda"))


def test_the_recorded_backward_pass_goes_past_the_parameters_own_nodes() -> None:
    """DeepSpeed's hooks keep these nodes on the stream that they were made on, which a capture cannot wait for."""
    seen: list[Tensor] = []

    class Looks(Rerun):
        def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            replay, results = super().record(run)
            seen.extend([results] if isinstance(results, Tensor) else [])
            return replay, results

    function, parameters = tower()
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda parameter: None)
    graphed = GraphedTower("a tower", function, parameters, Looks())
    for seed in range(3):
        step(graphed, parameters, seed, rows=2)
    (output,) = seen
    assert leaves_of(output).isdisjoint(map(id, parameters))
    assert leaves_of(function(torch.ones(2, 4))) == set(map(id, parameters[:4]))
    assert leaves_of(output, by=Tensor.data_ptr) == {p.data_ptr() for p in parameters[:4]}


def leaves_of(output: Tensor, by: Callable[[Tensor], int] = id) -> set[int]:
    """The tensors that a backward pass of `output` would accumulate gradients in."""
    found, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            found |= {by(node.variable)} if hasattr(node, "variable") else set()
            nodes += [following for following, _ in node.next_functions]
    return found


def test_graphs_of_a_tower_share_the_memory_of_the_gradients() -> None:
    function, parameters = tower()
    graphed = GraphedTower("a tower", function, parameters, Rerun())
    for seed in range(3):
        for rows in (2, 5):
            step(graphed, parameters, seed, rows)
    one, other = graphed.calls.graphs.values()
    assert [g is None for g in one.gradients] == [False] * 4 + [True]
    assert all(a is b for a, b in zip(one.gradients, other.gradients, strict=True))


@pytest.mark.gpu
@needs_cuda
def test_cuda_graphs_of_a_function_and_a_tower() -> None:
    function = GraphedFunction("a function", doubled_sum, CudaRecorder())
    for seed in range(5):
        on_device = [tensor.cuda() for tensor in inputs(seed)]
        assert all(map(torch.equal, function(*on_device), doubled_sum(*on_device)))
    assert len(function.calls.graphs) == 1
    body, parameters = tower()
    for parameter in parameters:
        parameter.data = parameter.data.cuda()
        parameter.register_post_accumulate_grad_hook(lambda parameter: None)
    graphed = GraphedTower("a tower", body, parameters, CudaRecorder())
    for seed in range(5):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)).cuda()
        found = torch.autograd.grad(graphed(x).square().sum(), parameters[:4])
        expected = torch.autograd.grad(body(x).square().sum(), parameters[:4])
        assert all(map(torch.equal, found, expected))
    assert len(graphed.calls.graphs) == 1


def summed(a: Tensor) -> tuple[Tensor]:
    """Computes with 256 times the memory of its input."""
    return ((a.expand(256, -1) * torch.arange(256, device=a.device)[:, None]).sum(0),)


@pytest.mark.gpu
@needs_cuda
def test_graphs_that_make_room_give_their_memory_back_and_are_recorded_anew() -> None:
    recorder = CudaRecorder()
    recorder.is_short = lambda: True  # type: ignore[method-assign]
    function, a = GraphedFunction("a sum", summed, recorder), torch.ones(2**18, device="cuda")
    held = []
    for _ in range(2):
        for _ in range(3):
            assert torch.equal(function(a)[0], summed(a)[0])
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
        function.group.make_room()
        held.append(torch.cuda.memory_reserved())
    assert not CudaRecorder().is_short()
    assert held[0] - held[1] >= 256 * a.nbytes
    assert held[2] - held[3] >= 256 * a.nbytes
    assert len(function.calls.graphs) == 0


@pytest.mark.gpu
@needs_cuda
def test_a_device_without_memory_beside_graphs_computes_without_them() -> None:
    function, a = GraphedFunction("a sum", summed, CudaRecorder()), torch.ones(2**18, device="cuda")
    for _ in range(3):
        function(a)
    torch.cuda.empty_cache()
    _, total_bytes = torch.cuda.mem_get_info()
    # Room for half of what a call of another shape computes with; with the graph's memory for all of it.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 128 * a.nbytes) / total_bytes)
    try:
        for other in (a[:-1024], a):
            assert torch.equal(function(other)[0], other * 32640)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not function.calls.graphs


@pytest.mark.gpu
@needs_cuda
def test_products_are_right_after_graphs_have_made_room() -> None:
    """cuBLAS works in memory of the graph that was recorded first, whichever function's that is."""
    group = GraphGroup()
    weights = [torch.randn(512, 512, device="cuda") for _ in range(2)]
    recorders = [CudaRecorder() for _ in weights]
    recorders[0].is_short = lambda: True  # type: ignore[method-assign]
    functions = [
        GraphedFunction(f"product {n}", lambda x, w=weights[n]: (x @ w,), recorders[n], group) for n in range(2)
    ]
    for turn in range(3):
        for seed in range(5):
            x = torch.randn(64, 512, generator=torch.Generator().manual_seed(seed)).cuda()
            for function, weight in zip(functions, weights, strict=True):
                torch.testing.assert_close(function(x)[0], x @ weight)
        assert group.has_graphs
        group.make_room()
        held = torch.empty(64 * 2**20, device="cuda").fill_(turn)  # what the graphs' memory becomes
        assert not group.has_graphs
        del held


@pytest.mark.gpu
@needs_cuda
def test_other_shapes_find_memory_enough_in_the_largest_ones_graph() -> None:
    """Whatever comes first where graphs are recorded anew; the largest one computes with 256 MiB and more."""
    function, held = GraphedFunction("a sum", summed, CudaRecorder()), []
    lengths = list(range(2**18, 2**17, -(2**14)))
    for order in (lengths, lengths[::-1]):
        for length in order:
            a = torch.ones(length, device="cuda")
            for _ in range(3):
                assert torch.equal(function(a)[0], a * 32640)
        torch.cuda.empty_cache()
        assert len(function.calls.graphs) == len(lengths)
        held.append(torch.cuda.memory_reserved())
        function.recorder.is_short = lambda: True  # type: ignore[method-assign]
        function.group.make_room()
        held.append(torch.cuda.memory_reserved())
    assert held[0] - held[1] >= 256 * 2**20
    assert held[2] - held[3] < 1.1 * (held[0] - held[1])


@pytest.mark.gpu
@needs_cuda
def test_after_a_capture_that_fails_all_goes_on_where_it_was() -> None:
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        CudaRecorder().record(lambda: (torch.ones(3, device="cuda").sum().item(),))  # waits, which no graph can
    assert torch.cuda.current_stream() == before
    assert torch.ones(3, device="cuda").sum().item() == 3
    function = GraphedFunction("a function", doubled_sum, CudaRecorder())
    for seed in range(4):
        on_device = [tensor.cuda() for tensor in inputs(seed)]
        assert all(map(torch.equal, function(*on_device), doubled_sum(*on_device)))
    assert len(function.calls.graphs) == 1
