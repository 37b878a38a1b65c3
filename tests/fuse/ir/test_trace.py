"""Test the first use of a step under every global mode of PyTorch: it is compiled all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, graph
from torch.func import functionalize, grad, jvp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tracetorch as tt
from tests.cases import sequence, trace_layer
from tracetorch import fuse, snn
from tracetorch.fuse.dispatch import plans


class Dispatch(TorchDispatchMode):
    """Replace what every operation computes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + 1 if func is torch.ops.aten.exp.default else result


class Function(TorchFunctionMode):
    """The same for every call of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + 1 if func is torch.exp else result


@contextmanager
def setting(change: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return setting(torch.set_default_dtype, dtype, torch.get_default_dtype())


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "anomaly": torch.autograd.detect_anomaly,
    "anomaly without NaN": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "a dispatch mode": Dispatch,
    "a function mode": Function,
    "fake tensors": FakeTensorMode,
    "fake tensors beside others": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "a default device": lambda: torch.device("meta"),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "counted operations": lambda: FlopCounterMode(display=False),
    "hooks on saved tensors": lambda: graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t),
    "no hooks on saved tensors": lambda: graph.disable_saved_tensors_hooks("disabled"),
    "mutation of saved tensors": graph.allow_mutation_on_saved_tensors,
    "forward-mode differentiation": forward_ad.dual_level,
    "profiler": lambda: torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
    ),
}

TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]] = {
    "vmap": lambda f: vmap(f, in_dims=-2, out_dims=-2),
    "grad": lambda f: grad(lambda x: f(x).sum()),
    "jvp": lambda f: lambda x: jvp(f, (x,), (x,)),
    "functionalize": functionalize,
}


class Fresh(snn.Neuron):
    """A step that makes tensors of numbers, and so reads the default dtype and device."""

    states = ("mem",)

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.5)
        self.threshold("theta", 1.0)

    @staticmethod
    def step(x: Tensor, mem: Tensor, *, beta: Tensor, theta: Tensor, spike: Any) -> Any:
        mem = beta * mem + x * torch.tensor(2.0) + torch.where(x > 0.5, 0.25, -0.5)
        s = spike(mem - theta)
        return s + torch.exp(-mem), mem - s * theta


def fresh() -> Fresh:
    return type("Fresh", (Fresh,), {})(3)  # of a class of its own


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what steps do; kernels of the same text are compiled once for all tests."""
    monkeypatch.setattr(plans, "_programs", {})


def single_steps(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([layer(step) for step in x.unbind(0)])


def recurrent(layer: snn.Neuron, x: Tensor) -> Tensor:
    return tt.unroll(snn.Recurrent(layer, nn.Linear(3, 3).to(x)), x)


def backward(layer: nn.Module, x: Tensor) -> Tensor:
    y = tt.unroll(layer, x)
    if y.requires_grad:
        torch.autograd.grad(y.sum(), list(layer.parameters()))
    return y


# kernels of their own, which take seconds to compile
slow = [pytest.param(use, marks=pytest.mark.slow) for use in (recurrent, backward)]
X = sequence(4, 2, 3, dtype=torch.float32)


def check_compiled(layer: Fresh) -> None:
    """Compare a compiled sequence, and compiled steps, with the eager step."""
    tt.zero_states(layer)
    assert fuse.unsupported_reason("cpu", layer, X) is None
    results: list[list[Tensor]] = []
    for name in ("eager", "cpu"):
        with fuse.backend(name):  # runs, or raises
            y = tt.unroll(layer, X, from_rest=True)
            gradients = torch.autograd.grad(y.sum(), list(layer.parameters()))
            steps = single_steps(layer, X)
            tt.zero_states(layer)
        results.append([y.detach(), *gradients, steps])
    torch.testing.assert_close(results[1], results[0])
    assert torch.equal(results[1][0] > 0.9, results[0][0] > 0.9)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of torch 2.12
@pytest.mark.parametrize("use", [tt.unroll, single_steps, *slow])
@pytest.mark.parametrize("mode", MODES)
def test_first_use_under_a_global_mode(mode: str, use: Callable[..., Tensor]) -> None:
    layer = fresh()
    # an eager step may fail there, on numbers of another dtype say; what follows may not
    with MODES[mode](), suppress(AssertionError, RuntimeError, TypeError, ValueError):
        use(layer, X)
    assert not torch.is_anomaly_enabled()
    check_compiled(layer)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # jvp imports it
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_first_use_in_a_transform(transform: str) -> None:
    layer = fresh()

    def run(x: Tensor) -> Tensor:
        trace_layer(layer, 2, torch.float32)  # what nobody asks for there at present
        return tt.unroll(layer, x.reshape(4, -1, 3), from_rest=True).reshape(x.shape)

    with suppress(RuntimeError):  # functionalize does not know autograd.Function
        TRANSFORMS[transform](run)(X)
    check_compiled(layer)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of torch 2.12
def test_a_mode_stays_as_it_was() -> None:
    with torch.autograd.detect_anomaly():
        trace_layer(fresh(), 2, torch.float32)
        assert torch.is_anomaly_enabled()
        assert torch.is_anomaly_check_nan_enabled()
    with torch.device("meta"), torch.autocast("cpu"), Function():
        trace_layer(fresh(), 2, torch.float32)
        assert torch.ones(1).is_meta
        assert torch.is_autocast_enabled("cpu")
        assert torch.exp(torch.zeros((), device="cpu")) == 2


def test_the_default_dtype_is_part_of_what_a_step_does() -> None:
    layer, x = fresh(), X.double()
    for dtype in (torch.float32, torch.float64, torch.float32):
        with default_dtype(dtype):
            with fuse.backend("eager"):
                expected = tt.unroll(layer, x, from_rest=True)
            torch.testing.assert_close(tt.unroll(layer, x, from_rest=True), expected)
            compiled = fuse.unsupported_reason("cpu", layer, x) is None
            assert compiled or dtype is torch.float32
