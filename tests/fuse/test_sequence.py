from __future__ import annotations

import functools
import logging
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tracetorch as tt
from tests import cases
from tests.fuse.cases import CONFIGURATIONS, agree, ends, fused, make, name_of
from tests.networks import module
from tracetorch import functional, fuse, snn
from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.dispatch.plans import gradient_needs, plan_key

GOLDEN = Path(__file__).parent.parent / "golden" / "tracetorch_0_9_2.pt"


def input_for(case: Any, steps: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    return cases.sequence(steps, *case[2], dtype=dtype)


@pytest.mark.parametrize("live", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("case", CONFIGURATIONS, ids=name_of)
def test_parity(case: Any, live: bool) -> None:
    agree(make(case), input_for(case), "cpu", live=live)


@pytest.mark.parametrize("name", ["LIF", "SRReadout"])
def test_parity_in_float64_and_of_the_eager_backend(name: str) -> None:
    case: Any = (name, {}, (3, 7))
    agree(make(case, torch.float64), input_for(case, dtype=torch.float64), "cpu", live=True)
    agree(make(case), input_for(case), "eager", live=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(dtype: torch.dtype) -> None:
    layer, x = cases.layer("LIF", 5), cases.sequence(6, 2, 5, dtype=dtype)
    stepped = cases.stepped(layer, x)
    layer.zero_states()
    with fuse.backend("cpu"):
        y, states = layer.forward_sequence(x, record=["mem"])
    assert y.dtype == dtype
    assert states["mem"].dtype == torch.float32
    assert torch.equal(y, stepped)


def test_long_sequences_restart_from_checkpoints() -> None:
    agree(cases.layer("BSRLIF", 5), cases.sequence(150, 2, 5, dtype=torch.float32), "cpu")
    agree(cases.layer("LIF", 5), 0.3 * cases.sequence(600, 2, 5, dtype=torch.float32), "cpu")


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[:1].expand(x.shape),
        lambda x: x.flip(0),
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    ],
)
def test_noncontiguous_inputs(view: Any) -> None:
    agree(cases.layer("SLIF", 7), view(cases.sequence(6, 4, 7, dtype=torch.float32)), "cpu")


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def test_channels_last_is_preserved() -> None:
    x = channels_last(cases.sequence(4, 2, 3, 4, 5, dtype=torch.float32))
    layer = cases.layer("BLIF", 3, dim=-3)
    agree(layer, x, "cpu", live=True)
    layer.zero_states()
    assert layer.forward_sequence(x)[0].stride() == x.stride()


def test_recorded_trajectories() -> None:
    layer, x = cases.layer("SRLIF", 5), cases.sequence(9, 2, 5, dtype=torch.float32)

    def by_step(layer: snn.Neuron, x: Tensor) -> Any:
        y, syn, mem = zip(*((layer(step), layer.syn, layer.mem) for step in x), strict=True)
        return torch.stack(y), {"syn": torch.stack(syn), "mem": torch.stack(mem)}

    def recorded(layer: snn.Neuron, x: Tensor) -> Any:
        return layer.forward_sequence(x, record=["syn", "mem"])

    for backend in ("cpu", "eager"):
        with fuse.backend(backend):
            torch.testing.assert_close(ends(layer, x, recorded), ends(layer, x, by_step))


def test_splitting_a_sequence_changes_nothing() -> None:
    layer, x = cases.layer("SRLIF", 5), cases.sequence(9, 2, 5, dtype=torch.float32)

    def cut(layer: snn.Neuron, x: Tensor) -> Tensor:
        return torch.cat([fused("cpu")(layer, part) for part in x.split([4, 1, 4])])

    whole, grads = ends(layer, x, fused("cpu"))
    parts, part_grads = ends(layer, x, cut)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    torch.testing.assert_close(part_grads, grads)


def test_agrees_with_version_0_9_2() -> None:
    for case in torch.load(GOLDEN, weights_only=True):
        kwargs = {k.replace("pos_learn", "learn_pos"): v for k, v in case["kwargs"].items()}
        layer = getattr(snn, case["layer"])(**kwargs).double()
        layer.load_state_dict(case["state_dict"])
        x = case["x"].requires_grad_()
        with fuse.backend("cpu"):
            y, _ = layer.forward_sequence(x)
        (y * case["cotangent"]).sum().backward()
        torch.testing.assert_close(y, case["out"], rtol=0, atol=1e-10)
        torch.testing.assert_close(x.grad, case["grad_x"], rtol=0, atol=1e-10)
        for name, grad in case["grads"].items():
            torch.testing.assert_close(layer.get_parameter(name).grad, grad, rtol=0, atol=1e-10)


@dataclass(frozen=True)
class cauchy(Surrogate):  # noqa: N801
    width: float = 0.7

    def derivative(self, u: Tensor) -> Tensor:
        return 1 / (1 + (u / self.width) ** 2)


class CustomNeuron(snn.Neuron):
    states = ("mem", "trace")

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.decay("beta", 0.9)
        self.weight("gain", 0.5, rank=0)
        self.threshold("base", 1.0, surrogate=cauchy())

    @staticmethod
    def step(
        x: Tensor, mem: Any, trace: Any, *, beta: Any, gain: Any, base: Any, spike: Any
    ) -> Any:
        drive = torch.where(x > 0.1, torch.tanh(x), x.clamp(-0.8, 0.8))
        mem = beta * mem + drive + gain * torch.exp(-mem.abs())
        fired = spike(mem - base - 0.3 * trace)
        return fired, mem - fired * base, 0.95 * trace + 0.1 * fired * (mem >= base)


def test_custom_neuron() -> None:
    layer, x = CustomNeuron(7).double(), cases.sequence(20, 3, 7)
    values, grads = ends(layer, x, cases.stepped)
    fast, fast_grads = ends(layer, x, fused("cpu"))
    assert torch.equal(fast["output"], values["output"])
    torch.testing.assert_close(fast, values, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(fast_grads, grads)


class MixingNeuron(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = mem + x - x.sum(-1, keepdim=True)
        return mem, mem


def test_a_step_that_no_kernel_can_run_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(4, 2, 3)
    with caplog.at_level(logging.WARNING, "tracetorch"):
        for _ in range(2):
            layer = MixingNeuron(3)
            assert torch.equal(layer.forward_sequence(x)[0], cases.stepped(MixingNeuron(3), x))
    (record,) = caplog.records
    assert "MixingNeuron(3)" in record.getMessage()
    assert "aten.sum.dim_IntList, which is a reduction" in record.getMessage()
    with fuse.backend("cpu"), pytest.raises(RuntimeError, match="cannot run MixingNeuron"):
        MixingNeuron(3).forward_sequence(x)


def test_failed_call_keeps_the_states() -> None:
    layer = snn.LIF(3)
    layer.forward_sequence(torch.randn(4, 2, 3))
    before = layer.mem
    for shape, record, says in (
        ((4, 5, 3), (), r"holds the state mem of shape \[2, 3\]"),
        ((4, 5, 4), (), "has 3 neurons, one step of the input"),
        ((4, 2, 3), ("men",), r"has no state 'men'\. Did you mean 'mem'"),
    ):
        with pytest.raises(ValueError, match=says):
            layer.forward_sequence(torch.randn(shape), record=record)
    assert layer.mem is before


def test_every_output_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(empty: Any, *args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, functools.partial(poisoned, getattr(torch, name)))
    for steps in (1, 2, 5, 70):
        for shape in ((1, 1), (3, 7), (2, 513), (600, 2)):
            layer = snn.SRLIF(shape[1])
            values, grads = ends(layer, torch.randn(steps, *shape), fused("cpu"), live=True)
            for name, value in {**values, **grads}.items():
                assert not value.isnan().any(), name


def test_empty_inputs() -> None:
    layer = snn.LIF(3)
    assert layer.forward_sequence(torch.randn(0, 2, 3))[0].shape == (0, 2, 3)
    assert layer.mem is None
    y, _ = layer.forward_sequence(torch.randn(4, 0, 3, requires_grad=True))
    y.sum().backward()
    assert y.shape == (4, 0, 3)


# opcheck clones its inputs and PyTorch reads .grad of the clones. It hides the warning by replacing
# warnings.showwarning, which a filter that makes errors of warnings comes before (torch 2.15)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_custom_operators_pass_opcheck() -> None:
    layer, x = snn.RLIF(5), torch.randn(7, 3, 5, requires_grad=True)
    arguments = layer.step_kwargs(2, torch.float32)
    tensors = {
        n: v.detach().requires_grad_() for n, v in arguments.items() if isinstance(v, Tensor)
    }
    states = [torch.randn(3, 5, requires_grad=True) for _ in layer.active_states]
    kwargs = {**arguments, **tensors}
    key = plan_key(layer, x, ("mem",), gradient_needs(layer.cell, [x], states, kwargs), kwargs)
    operands = (key, [x], states, list(tensors.values()))
    torch.library.opcheck(torch.ops.tracetorch.forward, operands)
    *results, checkpoints = (end.detach() for end in torch.ops.tracetorch.forward(*operands))
    torch.library.opcheck(
        torch.ops.tracetorch.backward,
        (
            key,
            [x.detach()],
            [s.detach() for s in states],
            [p.detach() for p in tensors.values()],
            checkpoints,
            [torch.randn_like(end) for end in results],
        ),
    )


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    net: Any = nn.Sequential(nn.Linear(5, 5), snn.LIF(5))

    def loss(x: Tensor) -> Tensor:
        net[1].zero_states()
        return net[1].forward_sequence(net[0](x))[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")

    def gradient(run: Any, x: Tensor) -> Tensor:
        net.zero_grad()
        run(x).backward()
        return net[0].weight.grad.clone()

    x = torch.randn(6, 2, 5)
    torch.testing.assert_close(gradient(compiled, x), gradient(loss, x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        gradient(compiled, torch.randn(6, 2, 5))
    net[1].pos_spike = functional.atan_surrogate(7.0)
    torch.testing.assert_close(gradient(compiled, x), gradient(loss, x))


def test_graph_in_a_state_does_not_keep_its_layer() -> None:
    layer = snn.LIF(3)
    layer.forward_sequence(torch.randn(4, 2, 3))
    assert layer.mem.grad_fn is not None
    reference = weakref.ref(layer)
    del layer
    assert reference() is None


def test_second_derivatives_of_eager_steps_pass_gradgradcheck() -> None:
    net = nn.Sequential(nn.Linear(2, 2), snn.SRReadout(2)).double()

    def run(x: Tensor) -> Any:
        return tt.unroll(net, x, from_rest=True).square()

    with fuse.backend("eager"):
        assert torch.autograd.gradgradcheck(run, (cases.sequence(3, 1, 2).requires_grad_(),))


@pytest.mark.parametrize("record", [(), ("mem",)])
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_kernel_has_no_second_derivative_and_takes_one_gradient_at_a_time(
    name: str, record: tuple[str, ...]
) -> None:
    layer, x = snn.LIF(3), torch.randn(4, 2, 3, requires_grad=True)
    with fuse.backend(name):
        y, _ = layer.forward_sequence(x, record)
        says = r"has no second derivative. Run what needs one under tt.fuse.backend\('eager'\)"
        with pytest.raises(RuntimeError, match=says):
            torch.autograd.grad(y.sum(), x, create_graph=True)
        layer.zero_states()
        y, _ = layer.forward_sequence(x, record)
    with pytest.raises(RuntimeError, match=r"one incoming gradient at a time.*backend\('eager'\)"):
        torch.autograd.grad(y, x, torch.randn(5, *y.shape), is_grads_batched=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own use
@pytest.mark.parametrize("name", cases.LAYERS)
def test_forward_mode_agrees_with_reverse_mode(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), cases.layer(name, 3)).double()
    x, tangent = cases.sequence(4, 2, 3), cases.sequence(4, 2, 3, seed=1)

    def run(x: Tensor) -> Any:
        return tt.unroll(net, x, from_rest=True)

    y, moved, *_ = torch.func.jvp(run, (x,), (tangent,))
    with fwAD.dual_level():
        dual = fwAD.unpack_dual(run(fwAD.make_dual(x, tangent)))
    torch.testing.assert_close((dual.primal, dual.tangent), (y, moved))
    weights = cases.sequence(4, 2, 3, seed=2)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((run(leaf) * weights).sum(), leaf)
    torch.testing.assert_close((moved * weights).sum(), (grad * tangent).sum())


class HardThreshold(snn.Neuron):
    """Neuron with a spike without gradient, and an unused parameter."""

    states = ("mem",)

    def __init__(self) -> None:
        super().__init__(3)
        self.decay("beta", 0.9)
        self.weight("idle", 1.0)

    @staticmethod
    def step(x: Tensor, mem: Tensor, *, beta: Tensor, idle: Tensor) -> tuple[Tensor, Tensor]:
        mem = beta * mem + x
        return (mem > 1).to(x.dtype) * 1.0, mem


def test_step_without_a_gradient_path_has_no_gradient() -> None:
    layer, x = HardThreshold(), cases.sequence(4, 2, 3, dtype=torch.float32)
    y, _ = layer.forward_sequence(x)
    assert not y.requires_grad
    layer.mem.sum().backward()
    assert layer.raw_beta.grad is not None
    assert layer.raw_idle.grad is None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own use
def test_forward_mode_keeps_the_tangent() -> None:
    layer = snn.Readout(2, beta=0.5, learn_beta=False)
    with fwAD.dual_level(), torch.no_grad():
        x = fwAD.make_dual(torch.ones(2, 1, 2), torch.ones(2, 1, 2))
        y, _ = layer.forward_sequence(x)
        assert fwAD.unpack_dual(y).tangent[:, 0, 0].tolist() == [0.5, 0.75]
        layer.zero_states()
        assert fwAD.unpack_dual(layer(x[0])).tangent.tolist() == [[0.5, 0.5]]


def test_dispatch_mode_sees_the_operators() -> None:
    seen: list[str] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    layer, x = snn.LIF(3), torch.randn(4, 2, 3, requires_grad=True)
    expected, grads = ends(layer, x, fused("cpu"))
    with Watching(), FlopCounterMode(display=False):
        found, watched = ends(layer, x, fused("cpu"))
    assert {"tracetorch.forward.default", "tracetorch.backward.default"} <= set(seen)
    torch.testing.assert_close((found, watched), (expected, grads), rtol=0, atol=0)


def test_saved_tensors_may_change_memory_format() -> None:
    case = ("SLIF", {"dim": -3}, (2, 3, 4, 5))
    layer, x, run = make(case), channels_last(input_for(case, steps=600)), fused("auto")
    _, expected = ends(layer, x, run)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    ):
        _, found = ends(layer, x, run)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("place", ["x", "state", "grad"])
def test_tensor_with_the_negative_bit(place: str) -> None:
    negative = torch._neg_view(torch.linspace(-2, 2, 24).reshape(4, 2, 3))
    results = []
    for tensor in (negative, negative.resolve_neg().clone()):
        layer = snn.LIF(3)
        layer.mem = tensor[0] if place == "state" else None
        x = tensor if place == "x" else torch.linspace(-1, 3, 24).reshape(4, 2, 3)
        y, _ = layer.forward_sequence(x)
        y.backward(tensor if place == "grad" else torch.ones_like(y))
        results.append((y, layer.raw_beta.grad))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("rank", [0, 1])
def test_infinite_gradients_raise_no_warning(rank: Any) -> None:
    layer, x = snn.LIF(4, beta_rank=rank), torch.randn(5, 3, 4, requires_grad=True)
    y, _ = layer.forward_sequence(x)
    grad = torch.full_like(y, 1e38)
    grad[0], grad[1] = torch.inf, -torch.inf
    y.backward(grad)
    assert not torch.isfinite(layer.raw_beta.grad).any()


@pytest.mark.parametrize("backend", ["cpu", "triton", "eager"])
def test_what_is_no_layer_of_neurons_gets_a_reason(backend: str) -> None:
    recurrent = snn.Recurrent(snn.LIF(3), nn.Linear(3, 3))
    half = module(lambda self, x: x, step=lambda x: x)
    for thing in (snn.Delay(3, max_delay=2), recurrent, nn.Linear(3, 3), half, snn.LIF, None):
        found = str(fuse.unsupported_reason(backend, thing, torch.ones(4, 2, 3)))
        assert re.match(r"\w+ is no layer of neurons: ask it of an snn\.Neuron, not of a", found)
