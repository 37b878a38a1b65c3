"""An absent cotangent stays absent, as in autograd: as a zero, times infinity, it would be NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tracetorch as tt
from tests import cases
from tests.fuse.cases import fused
from tests.fuse.verify import verify
from tests.snn.test_sparse_recurrent import poison
from tracetorch import fuse, snn
from tracetorch.fuse.codegen.javascript import backward_source
from tracetorch.fuse.codegen.triton_loops import triton_source
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel
from tracetorch.fuse.runtime import sparse_segments, threads


class Monitored(snn.Neuron):
    """States whose slopes are infinite at silence: one nothing reads, one the next step reads."""

    states = ("mem", "rms", "late", "later")

    def __init__(self) -> None:
        super().__init__(3)
        self.decay("beta", 0.8)
        self.threshold("base", 1.0)
        self.weight("share", 0.5)

    @staticmethod
    def step(
        x: Tensor, mem: Any, rms: Any, late: Any, later: Any, *, spike: Any, **number: Any
    ) -> Any:
        mem = number["beta"] * mem + x
        output = spike(mem + later - number["base"])
        rms = torch.sqrt(0.9 * rms**2 + 0.1 * mem**2 * number["share"])
        return output, mem, rms, torch.sqrt(mem * mem), torch.sqrt(late * x * x)


# What a loss reads of the output and the layer after a sequence. The first sample is silent.
LOSSES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "output": lambda y, m: y.sum(),
    "output of the second sample": lambda y, m: y[:, 1].sum(),
    "last output": lambda y, m: y[-1].sum(),
    "membrane": lambda y, m: m.mem.sum(),
    "output and membrane": lambda y, m: y.sum() + m.mem.sum(),
    "read one step later": lambda y, m: m.late[1].sum(),
    "read two steps later": lambda y, m: m.later[1].sum() + m.mem.sum(),
    "the monitor alone": lambda y, m: m.rms[1].sum(),
    "all": lambda y, m: (y[..., :3] + m.mem + m.rms + m.late + m.later)[:, 1].sum(),
}


def plain(layer: snn.Neuron, x: Tensor) -> Tensor:
    """Run the step in a loop of nothing but autograd."""
    kwargs = layer.step_kwargs(x.ndim - 1, x.dtype)
    states = [torch.zeros_like(x[0]) for _ in layer.cell.active]
    outputs: list[Tensor] = []
    for now in x.unbind():
        output, *states = layer.cell.step(now, *states, **kwargs)
        outputs.append(output)
    for name, state in zip(layer.cell.active, states, strict=True):
        setattr(layer, name, state)
    return torch.stack(outputs)


def through_operators(layer: snn.Neuron, x: Tensor) -> Tensor:
    with FlopCounterMode(display=False):
        return fused("cpu")(layer, x)


RUNS = {
    "cpu": fused("cpu"),
    "eager": fused("eager"),
    "step by step": cases.stepped,
    "operators": through_operators,
}


def gradients(
    layer: snn.Neuron, x: Tensor, run: Callable[..., Tensor], loss: Callable[..., Tensor]
) -> dict[str, Tensor | None]:
    layer.zero_grad()
    layer.zero_states()
    x = x.detach().requires_grad_()
    loss(run(layer, x), layer).backward()
    return {"x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def sequence(steps: int = 5) -> Tensor:
    x = cases.sequence(steps, 2, 3)
    x[:, 0] = 0
    x[4:] = 0
    return x


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_autograd(loss: str, run: str) -> None:
    layer = Monitored().double()
    # a short sequence ends before a cotangent comes
    for steps in (5, 1, 2, 3) if loss == "read two steps later" else (5,):
        expected = gradients(layer, sequence(steps), plain, LOSSES[loss])
        found = gradients(layer, sequence(steps), RUNS[run], LOSSES[loss])
        # one that nothing reaches is None, which an optimizer tells from zeros
        torch.testing.assert_close(found, expected, equal_nan=True)
    reads_monitor = loss in ("the monitor alone", "all")
    assert (expected["raw_share"] is not None) == reads_monitor
    if loss == "output and membrane":
        assert bool(found["x"][-1].isfinite().all())


@pytest.mark.parametrize("recorded", [(), ("rms",), ("mem", "late")])
def test_trajectories(recorded: tuple[str, ...]) -> None:
    found: list[dict[str, Tensor | None]] = []
    for backend in ("cpu", "eager"):

        def run(layer: snn.Neuron, x: Tensor) -> Tensor:
            with fuse.backend(backend):  # noqa: B023
                y, records = layer.forward_sequence(x, record=("mem", "rms", "late"))
            return torch.stack([y[:, 1].sum(), *(records[n][:, 1].sum() for n in recorded)])

        layer = Monitored().double()
        found.append(gradients(layer, sequence(), run, lambda sums, _: sums.sum()))
    torch.testing.assert_close(*found, equal_nan=True)


def edges(size: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(size), torch.arange(size)).t()


CONNECTIONS: dict[str, Callable[[int], Any]] = {
    "linear": lambda n: torch.nn.Linear(n, n),
    "delays": lambda n: snn.DelayedLinear(n, n, max_delay=2),
    "edges": lambda n: snn.SparseLinear(n, n, edges(n)),
    "edges of one delay": lambda n: snn.SparseLinear(n, n, edges(n), delay=2),
    "edges of delays": lambda n: snn.SparseLinear(n, n, edges(n), delay=torch.arange(n * n) % 3),
}
# what comes back to one population alone begins with what it reads
IN_A_LOOP = {
    **LOSSES,
    "the other alone": lambda y, m: y.sum() * 0 if m.other is None else m.other.mem.sum(),
    "the other, a step later": lambda y, m: (m.other or m).late[1].sum(),
}


# populations, steps
@pytest.mark.one_in(3)
@pytest.mark.parametrize("loss", IN_A_LOOP)
@pytest.mark.parametrize("size", [(1, 5), (2, 5), (2, 2)])
@pytest.mark.parametrize("kind", CONNECTIONS)
def test_in_a_recurrence(kind, size, loss, monkeypatch) -> None:
    populations, steps = size
    poison(monkeypatch)
    loops = Mock(wraps=threads.run_written)
    monkeypatch.setattr(sparse_segments, "_SEGMENT", 0)
    monkeypatch.setattr(sparse_segments, "run_written", loops)

    def run(by_step: bool) -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        rec, one = CONNECTIONS[kind](3 * populations), Monitored()
        neurons = snn.Populations(a=one, b=Monitored()) if populations == 2 else one
        object.__setattr__(one, "other", getattr(neurons, "b", None))
        net = snn.Recurrent(neurons, rec).double()
        with torch.no_grad():
            for parameter in rec.parameters():
                parameter.mul_(0.1)
        x = torch.cat([sequence(steps)] * populations, -1).requires_grad_()
        y = cases.stepped(net, x) if by_step else tt.unroll(net, x)
        IN_A_LOOP[loss](y, one).backward()
        return {"x": x.grad, **{n: p.grad for n, p in net.named_parameters()}}

    found, expected = run(False), run(True)
    assert loops.called == (kind.startswith("edges") and populations == 1)
    torch.testing.assert_close(found, expected, equal_nan=True)


# Slopes that are infinite at silence, and finite elsewhere.
SLOPES: dict[str, Callable[[Any], Any]] = {
    "root": torch.sqrt,
    "power": lambda v: v**0.5,
    "logarithm": lambda v: torch.log(v + 1e-300),
    "quotient": lambda v: torch.where(v == 0, 0.0, v * v) / v.abs(),
}


class Ring(snn.Neuron):
    """Rings of some sizes, in which states go round, past one such slope in each."""

    states = ("a", "b", "c", "d", "e")

    def __init__(self, size: int, slope: Callable[[Any], Any]) -> None:
        super().__init__(3)
        self.weight("w", 0.5)
        self.option("size", size)
        self.option("slope", slope)

    @staticmethod
    def step(
        x: Any, a: Any, b: Any, c: Any, d: Any, e: Any, *, w: Any, size: int, slope: Any
    ) -> Any:
        v = slope(x * x)
        if size == 5:  # of two, and of three
            return x, b * w, a + v, d * w, e, c + v
        return (x, b * w, a + v, c, d, e) if size == 2 else (x, b * w, c, a + v, d, e)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("run", ["cpu", "operators"])
def test_in_rings_they_come_and_go(run: str, size: int, slope: str) -> None:
    for read in "ac" if size == 5 else "a":
        for steps in range(1, 9):
            x = cases.sequence(steps, 2, 3)
            x[steps % 2 :: 2] = 0
            layer = Ring(size, SLOPES[slope]).double()
            loss = lambda y, m: getattr(m, read).sum()  # noqa: B023, E731
            expected = gradients(layer, x, plain, loss)
            found = gradients(layer, x, RUNS[run], loss)
            torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("layer", "present"), [(Monitored(), "output next_mem"), (Ring(3, torch.sqrt), "next_a")]
)
def test_every_printer_spells_when_a_cotangent_is_present(layer: Any, present: str) -> None:
    program = cases.trace_layer(layer, 2, torch.float64)
    plan = Plan(program, "cpu", -1, program.states, True, program.inputs, program.params)
    part = plan.without(frozenset(plan.results) - {*present.split()})
    assert part.flags
    assert not plan.flags
    assert "steps - 1" in backward_source(part)
    source = triton_source(verify(backward_kernel(part)))
    compile(source, "backward", "exec")
    assert "steps - 1" in source.split("def backward", 1)[1]
