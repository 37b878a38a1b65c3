"""Test PyTorch's tracers over two steps of a model: equal to the model, or refused by name."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import tracetorch as tt
from tests.cases import module, sequence
from tests.networks import Leaky
from tracetorch import snn

# PyTorch warns of sizes that become constants, of attributes that are assigned, of torch.jit
pytestmark = pytest.mark.filterwarnings("ignore")
FROZEN = "would freeze the state of a neuron layer"
X = sequence(2, 2, 3, dtype=torch.float32)
FAKES: Any = {"_allow_non_fake_inputs": True}

TRACERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "export, strict": lambda model, x: torch.export.export(model, (x,), strict=True).module(),
    "jit.trace": torch.jit.trace,
    "jit.trace without a check": lambda m, x: torch.jit.trace(m, x, check_trace=False),
    "jit.trace without gradients": torch.no_grad()(torch.jit.trace),
    "make_fx": lambda model, x: make_fx(model)(x),
    "make_fx without gradients": torch.no_grad()(lambda model, x: make_fx(model)(x)),
    "make_fx of sizes": lambda m, x: make_fx(m, tracing_mode="symbolic", **FAKES)(x),
    "make_fx of fakes": lambda m, x: make_fx(m, tracing_mode="fake", **FAKES)(x),
    "symbolic_trace": lambda model, x: fx.symbolic_trace(model),
    "jit.script": lambda model, x: torch.jit.script(model),
}
LEAF = {"symbolic_trace": "control flow|got Proxy", "jit.script": "Unknown type annotation"}
ERRORS = (RuntimeError, TypeError, ValueError)


def slow_unless(cheap: bool, *values: str) -> Any:
    return pytest.param(*values, marks=[] if cheap else pytest.mark.slow)


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), snn.LIF(4), snn.RLIF(4))


def over(run: Callable[[nn.Module, Tensor], Tensor]) -> Any:
    """A model that runs a sequence from rest within."""

    def forward(self: Any, x: Tensor) -> Tensor:
        tt.zero_states(self.net)
        return run(self.net, x)

    return module(forward, net=made())


LOOPS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a loop": lambda net, x: torch.stack([net(x[0]), net(x[1])]),
    "by step": lambda net, x: tt.unroll(net, x, by="step"),
    "by layer": lambda net, x: tt.unroll(net, x),
    "from rest": lambda net, x: tt.unroll(net, x, from_rest=True),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tracer", [slow_unless("export" not in each, each) for each in TRACERS])
def test_a_step_is_refused_by_name(tracer: str, inside: bool) -> None:
    model, x = (made(), X[0]) if inside else (made()[1], torch.ones(2, 4))
    for live in (False, True):
        if live:
            model(x)
        before = tt.get_states(model)
        with pytest.raises(ERRORS, match=LEAF.get(tracer, FROZEN)):
            TRACERS[tracer](model, x)
        torch.testing.assert_close(tt.get_states(model), before, rtol=0, atol=0)


CASES = [
    slow_unless("export" not in tracer and loop in ("a loop", "by layer"), tracer, loop)
    for tracer in TRACERS
    if tracer not in LEAF
    for loop in LOOPS
]


@pytest.mark.parametrize(("tracer", "loop"), CASES)
def test_a_sequence_that_begins_at_rest_is_traced(tracer: str, loop: str) -> None:
    model = over(LOOPS[loop])
    traced = TRACERS[tracer](model, X)
    other = 2 * X  # values that the tracer has not seen
    for x in (X, other, other):
        torch.testing.assert_close(traced(x), model(x))
    tt.zero_states(model)


def test_the_way_out_of_symbolic_trace() -> None:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, snn.SequenceLayer) or super().is_leaf_module(m, name)

    model = made()
    traced = fx.GraphModule(model, Tracer().trace(model))
    expected = tt.unroll(model, X, from_rest=True)
    assert torch.equal(tt.unroll(traced, X, from_rest=True), expected)
    with pytest.raises(TypeError, match="got Proxy"):
        fx.symbolic_trace(over(LOOPS["by layer"]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [made, lambda: nn.Sequential(Leaky(3))])
def test_nothing_is_warned_of_that_a_user_can_do_nothing_about(make: Any) -> None:
    model = make()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tt.export.step(model, X[0])
        run = torch.compile(lambda x: tt.unroll(model, x, from_rest=True), backend="eager")
        run(X)
    torch.compiler.reset()
    assert [str(each.message) for each in seen if "autograd.function" not in str(each)] == []
