"""By which road layers run on a GPU: one kernel for all time steps, or launches for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

import tracetorch as tt
from tests import cases
from tests.fuse.fake_gpu import Launch
from tests.snn import test_inputs
from tracetorch import events, fuse, snn


class Noisy(snn.Neuron):
    """A neuron with noise."""

    inputs = ("x", "noise")
    states = ("mem",)

    def __init__(self) -> None:
        super().__init__(3)
        self.noise = snn.Noise(3, seed=0)
        self.decay("beta", 0.9)
        self.threshold("base", 1.0)

    @staticmethod
    def step(
        x: Tensor, noise: Tensor, mem: Tensor, *, beta: Tensor, base: Tensor, spike: Any
    ) -> Any:
        mem = beta * mem + x + noise
        fired = spike(mem - base)
        return fired, mem - fired * base


Options = Callable[[int], dict[str, Any]]
EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


def plain(steps: int) -> dict[str, Any]:
    return {}


def restarts(steps: int) -> dict[str, Any]:
    return {"reset": torch.arange(2 * steps).reshape(steps, 2) % 2 == 0}


def layers(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*modules, nn.Linear(3, 3))


# What a model is, how it is called, and the kernels for all steps
ONE: dict[str, tuple[Callable[[], nn.Module], Options, list[str]]] = {
    **{name: (lambda name=name: nn.Sequential(cases.layer(name, 3)), plain, ["forward", "backward"])
       for name in (*cases.LAYERS, *cases.NEURONS)},
    "record": (layers(snn.LIF(3)), lambda steps: {"record": ["0.mem", "0.output"]},
     ["forward", "backward"]),
    "restarts": (layers(snn.SLIF(3)), restarts, ["forward", "backward"]),
    "noise": (layers(Noisy()), plain, ["uniforms", "forward", "backward"]),
    "segments": (layers(snn.LIF(3)), lambda steps: {"segment": steps // 2},
     ["forward", "forward", "backward", "forward", "backward"]),
    "delays": (layers(snn.Delay(3, max_delay=4)), plain, []),
    "delays of a linear": (layers(snn.DelayedLinear(3, 3, max_delay=4)), plain, []),
    "edges": (layers(snn.SparseLinear(3, 3, EDGES, delay=2)), plain, []),
    "dropout": (layers(snn.LockedDropout(3, p=0.5)), plain, []),
    "a norm in evaluation": (lambda: layers(snn.BatchNormThroughTime(3, steps=4))().eval(), plain,
     []),
}  # fmt: skip
# What is launched again for every step
MANY: dict[str, tuple[Callable[[], nn.Module], Options]] = {
    'by="step"': (layers(snn.LIF(3)), lambda steps: {"by": "step"}),
    "Recurrent": (layers(snn.Recurrent(snn.LIF(3), nn.Linear(3, 3))), plain),
    "Recurrent around other modules": (
        layers(snn.Recurrent(nn.Sequential(nn.Linear(3, 3), snn.LIF(3)), nn.Tanh(), 3)),
        plain,
    ),
    "a norm through time in training": (layers(snn.BatchNormThroughTime(3, steps=4)), plain),
    "restarts of a delay": (layers(snn.Delay(3, max_delay=4)), restarts),
    "restarts of dropout": (layers(snn.LockedDropout(3, p=0.5)), restarts),
    "restarts of noise": (layers(Noisy()), restarts),
}


def operations(
    model: nn.Module, steps: int, options: Options, launched: list[Launch]
) -> Counter[str]:
    """Return what operations a call launches, with its backward pass, when it is known."""
    x = torch.randn(steps, 2, 3, requires_grad=True)

    def run() -> None:
        tt.zero_states(model)
        with fuse.backend("triton"), events.mode("never"):
            y = tt.unroll(model, x, **options(steps))
            outputs = y[0] if isinstance(y, tuple) else y
            outputs.sum().backward()

    run()
    launched.clear()
    # events are kept, of which PyTorch 2.12 warns else
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        run()
    counts = {each.key: each.count for each in seen.key_averages()}
    return Counter({name: n for name, n in counts.items() if name.startswith("aten::")})


def names(launched: list[Launch]) -> list[str]:
    return [each.kernel for each in launched]


@pytest.mark.parametrize("name", ["record", "restarts", "noise"])
def test_a_warm_call_waits_for_nothing(
    name: str, launched: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a CUDA graph can record it: no value is read, and none is copied from the host."""
    make, options, _ = ONE[name]
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::lift_fresh"}
    assert waits & operations(make(), 6, options, launched).keys()  # NaN, on the CPU alone
    monkeypatch.setattr(Tensor, "is_cpu", False, raising=False)
    assert not waits & operations(make(), 6, options, launched).keys()


def test_several_inputs_are_one_kernel(launched: list[Launch]) -> None:
    x, modulator, current = test_inputs.inputs_of((2, 3), torch.float32)
    with fuse.backend("triton"):
        test_inputs.made().forward_sequence(x, further=(modulator.expand(x.shape), current))
    assert names(launched) == ["forward"]


@pytest.mark.parametrize("name", ONE)
def test_one_kernel(name: str, launched: list[Launch]) -> None:
    make, options, kernels = ONE[name]
    model = make()
    few, more = (operations(model, steps, options, launched).total() for steps in (6, 12))
    assert names(launched) == kernels
    assert few == more


@pytest.mark.parametrize("name", MANY)
def test_launches_for_every_step(name: str, launched: list[Launch]) -> None:
    make, options = MANY[name]
    model = make()
    few, more, most = (operations(model, n, options, launched).total() for n in (6, 12, 18))
    assert most - more == more - few > 0
