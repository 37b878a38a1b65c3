"""Test ``torch.compile`` around and inside ``unroll``: training steps, functions, single steps."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

import tracetorch as tt
from tests.cases import few, weighted_sum
from tests.unrolling.models import MODELS, By, dyadic, made
from tracetorch import snn

# by step, every step is compiled: the same code path, slower
BY = ("layer", pytest.param("step", marks=pytest.mark.slow))

# warnings of PyTorch's compiler about itself
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile without Inductor, which is slow and independent of this library."""
    return torch.compile(function, **{"fullgraph": True, "backend": "aot_eager", **options})


def training(model: nn.Module, by: By) -> Callable[[Tensor, Tensor], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> Tensor:
        tt.zero_states(model)
        optimizer.zero_grad()
        loss = cross_entropy(tt.unroll(model, x, by=by).mean(0), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


TRAININGS = [pytest.param("recurrent", "layer", "aot_eager", marks=pytest.mark.slow)]
for _by, _backend in itertools.product(("layer", "step"), ("aot_eager", "inductor")):
    TRAININGS.append(pytest.param("dense", _by, _backend, marks=pytest.mark.slow))


@pytest.mark.parametrize(("name", "by", "backend"), [("conv", "layer", "aot_eager"), *TRAININGS])
def test_whole_training_step(name: str, by: By, backend: str) -> None:
    plain, other = made(name), made(name)
    shape = (1, 6, 6) if name == "conv" else (3,)
    counted = CompileCounterWithBackend(backend)
    run, expected = torch.compile(training(other, by), backend=counted), training(plain, by)
    graphs = []
    for seed in range(4):
        x, y = dyadic(4, 2, *shape, seed=seed), torch.tensor([0, 1])
        torch.testing.assert_close(run(x, y), expected(x, y))
        graphs.append(counted.frame_count)
    torch.testing.assert_close(other.state_dict(), plain.state_dict())
    assert graphs[0] > 0
    assert graphs[1] == graphs[3], "no recompilation from the third batch on"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_memories_with_inductor(mode: str) -> None:
    torch.manual_seed(0)
    recurrent = snn.Recurrent(snn.LIF(4), snn.DelayedLinear(4, 4, max_delay=2))
    parts = nn.Linear(3, 4), recurrent, snn.Delay(4, max_delay=2), snn.LIF(4)
    model, x = nn.Sequential(*parts).double(), dyadic(4, 2, 3)
    twin = copy.deepcopy(model)
    run = torch.compile(lambda x: tt.unroll(model, x), fullgraph=True, mode=mode)
    for _ in range(2):
        y, expected = run(x), tt.unroll(twin, x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(tt.get_states(model), tt.get_states(twin))
    grads = (torch.autograd.grad(weighted_sum(each), [*net.parameters()])
             for each, net in ((y, model), (expected, twin)))  # fmt: skip
    torch.testing.assert_close(*grads)
    with torch.no_grad():  # no call writes over what an earlier one gave
        outputs = [run(x) for _ in range(3)]
        for y in outputs:
            torch.testing.assert_close(y, tt.unroll(twin, x))


GRAPHS: list[Any] = [
    ("dense", {"record": "mem", "time_dim": 1}),
    pytest.param("dense", {"steps": 4}, marks=pytest.mark.slow),
    pytest.param("conv", {"record": ["output", "1.mem", "1.input"]}, marks=pytest.mark.slow),
    ("recurrent", {"record": ["1.prev_output", "1.neuron.output", "mem"]}),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize(("name", "options"), GRAPHS, ids=str)
def test_unroll_in_one_graph(name: str, options: dict[str, Any], by: By) -> None:
    x = dyadic(4, 2, *MODELS[name][1][1:])[0 if "steps" in options else ...]
    model = made(name)

    def run(x: Tensor) -> Any:
        tt.zero_states(model)
        return tt.unroll(model, x, by=by, **options)

    results = []
    # compiled first: it may not depend on plans or kernels made by an eager call
    for function in (compiled(run), run):
        model.zero_grad()
        out = function(x)
        y, seen = (out, {}) if isinstance(out, Tensor) else out
        torch.stack([*map(weighted_sum, (y, *seen.values()))]).sum().backward()
        grads = [p.grad for p in model.parameters()]
        results.append((y, seen, grads, tt.get_states(model)))
    torch.testing.assert_close(*results)


MODES = (torch.enable_grad, torch.no_grad, torch.inference_mode)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("mode", few(MODES, torch.enable_grad))
def test_stream_continues_in_one_graph_without_recompiling(mode: Any, by: By) -> None:
    model, twin, x = made("dense"), made("dense"), dyadic(12, 2, 3)
    run = compiled(lambda x: tt.unroll(model, x, by=by))
    for number, piece in enumerate(x.split(3)):  # from rest, and from states
        with mode(), torch._dynamo.config.patch(error_on_recompile=number > 1):
            torch.testing.assert_close(run(piece), tt.unroll(twin, piece, by=by))
        torch.testing.assert_close(tt.get_states(model), tt.get_states(twin))


class Driven(snn.Neuron):
    """A neuron that a module of its own drives."""

    inputs = ("x", "drive")
    states = ("mem",)

    def __init__(self, drive: nn.Module) -> None:
        super().__init__(3)
        self.drive = drive

    @staticmethod
    def step(x: Tensor, drive: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = mem / 2 + x + drive
        return mem, mem


class RestartsItself(Driven):
    """One with a ``zero_states`` of its own, which sees samples start anew."""

    def zero_states(self, *, where: Tensor | None = None) -> None:
        super().zero_states(where=where)


DRIVES: dict[str, Callable[[], nn.Module]] = {
    "noise": lambda: snn.Noise(3, seed=1),
    "noisy neurons": lambda: nn.Sequential(snn.Noise(3, seed=1), snn.LIF(3)),
    "recurrent": lambda: snn.Recurrent(snn.LIF(3), nn.Linear(3, 3)),
    "noise in a recurrent layer": lambda: snn.Recurrent(snn.Noise(3, seed=1), nn.Linear(3, 3)),
    "delay": lambda: snn.Delay(3, max_delay=2),
}


@pytest.mark.parametrize("in_graph", few([False, True], False))
@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("kind", [Driven, RestartsItself])
def test_what_drives_a_neuron_restarts_once(kind: type[Driven], drive: str, in_graph: bool) -> None:
    x, reset = dyadic(3, 2, 3), torch.zeros(3, 2, dtype=torch.bool)
    reset[1, 1] = True
    torch.manual_seed(0)
    twin = kind(DRIVES[drive]()).double()
    model = copy.deepcopy(twin)
    run = lambda x: tt.unroll(model, x, reset=reset)  # noqa: E731
    call = compiled(run) if in_graph else run
    for _ in range(2):
        torch.testing.assert_close(call(x), tt.unroll(twin, x, reset=reset, by="step"))
        torch.testing.assert_close(tt.get_states(model), tt.get_states(twin))


@pytest.mark.slow
@pytest.mark.parametrize("by", BY)
def test_unroll_of_a_compiled_model(by: By) -> None:
    model, x = made("dense"), dyadic(5, 2, 3)
    expected = tt.unroll(model, x)
    tt.zero_states(model)
    wrapped = compiled(model, fullgraph=False)
    for _ in range(2):
        torch.testing.assert_close(tt.unroll(wrapped, x, by=by), expected)
        tt.zero_states(wrapped)
    torch.testing.assert_close(tt.unroll(wrapped, x, segment=2), expected)


@pytest.mark.slow
def test_changing_lengths_and_batches() -> None:
    model = made("dense")
    run = lambda x: tt.unroll(model, x, from_rest=True)  # noqa: E731
    any_size = compiled(run, dynamic=True)
    for T, B in ((5, 4), (7, 3), (9, 2)):
        torch.testing.assert_close(any_size(dyadic(T, B, 3)), run(dyadic(T, B, 3)))


@pytest.mark.slow
def test_segments_break_the_graph() -> None:
    model, x = made("dense"), dyadic(5, 2, 3)
    run = lambda x: tt.unroll(model, x, segment=2, from_rest=True)  # noqa: E731
    with pytest.raises(torch._dynamo.exc.Unsupported, match="in_segments"):
        compiled(run)(x)
    torch.compiler.reset()
    torch.testing.assert_close(compiled(run, fullgraph=False)(x), run(x))
