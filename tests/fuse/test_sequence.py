from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import cases
from tests.fuse.cases import CONFIGURATIONS, agree, ends, fused, make, name_of
from tracetorch import functional, fuse, snn
from tracetorch.functional.surrogates import Surrogate
from tracetorch.fuse.choose import plan_key

GOLDEN = Path(__file__).parent.parent / "golden" / "tracetorch_0_9_2.pt"


def input_for(case: Any, steps: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    return cases.sequence(steps, *case[2], dtype=dtype)


@pytest.mark.parametrize("live", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("case", CONFIGURATIONS, ids=name_of)
def test_parity(case: Any, live: bool) -> None:
    agree(make(case), input_for(case), "numba", live=live)


@pytest.mark.parametrize("case", CONFIGURATIONS[:12], ids=name_of)
def test_parity_of_the_plain_loop(case: Any) -> None:
    agree(make(case), input_for(case), "eager", live=True)


@pytest.mark.parametrize("name", ["LIF", "SRReadout"])
def test_parity_in_float64(name: str) -> None:
    case = (name, {}, (3, 7))
    agree(make(case, torch.float64), input_for(case, dtype=torch.float64), "numba", live=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(dtype: torch.dtype) -> None:
    layer, x = cases.layer("LIF", 5), cases.sequence(6, 2, 5, dtype=dtype)
    stepped = cases.stepped(layer, x)
    layer.zero_states()
    with fuse.backend("numba"):
        y, states = fuse.sequence(layer, x, record=["mem"])
    assert y.dtype == dtype
    assert states["mem"].dtype == torch.float32
    assert torch.equal(y, stepped)


def test_long_sequences_restart_from_kept_states() -> None:
    agree(cases.layer("BSRLIF", 5), cases.sequence(150, 2, 5, dtype=torch.float32), "numba")
    agree(cases.layer("LIF", 5), 0.3 * cases.sequence(600, 2, 5, dtype=torch.float32), "numba")


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
def test_inputs_that_are_not_contiguous(view: Any) -> None:
    agree(cases.layer("SLIF", 7), view(cases.sequence(6, 4, 7, dtype=torch.float32)), "numba")


def test_channels_last_is_kept() -> None:
    x = cases.sequence(4, 2, 3, 4, 5, dtype=torch.float32)
    x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    layer = cases.layer("BLIF", 3, dim=-3)
    agree(layer, x, "numba", live=True)
    layer.zero_states()
    assert fuse.sequence(layer, x)[0].stride() == x.stride()


@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_recorded_trajectories(backend: str) -> None:
    layer, x = cases.layer("SRLIF", 5), cases.sequence(9, 2, 5, dtype=torch.float32)
    x.requires_grad_()

    def loss(mem: Tensor, syn: Tensor) -> Tensor:
        return (mem**2).sum() + (syn**3).sum()

    mems, syns = [], []
    for step in x.unbind():
        layer(step)
        mems.append(layer.mem)
        syns.append(layer.syn)
    (expected,) = torch.autograd.grad(loss(torch.stack(mems), torch.stack(syns)), x)
    layer.zero_states()
    with fuse.backend(backend):
        _, told = fuse.sequence(layer, x, record=["syn", "mem"])
    assert list(told) == ["syn", "mem"]
    assert torch.equal(told["mem"], torch.stack(mems))
    (grad,) = torch.autograd.grad(loss(told["mem"], told["syn"]), x)
    torch.testing.assert_close(grad, expected)


def test_a_cut_changes_nothing() -> None:
    layer, x = cases.layer("SRLIF", 5), cases.sequence(9, 2, 5, dtype=torch.float32)

    def cut(layer: snn.Neuron, x: Tensor) -> Tensor:
        return torch.cat([fused("numba")(layer, part) for part in x.split([4, 1, 4])])

    whole, grads = ends(layer, x, fused("numba"))
    parts, part_grads = ends(layer, x, cut)
    for name, value in whole.items():
        assert torch.equal(parts[name], value)
    for name, grad in grads.items():
        torch.testing.assert_close(part_grads[name], grad)


def test_golden() -> None:
    for case in torch.load(GOLDEN, weights_only=True):
        kwargs = {k.replace("pos_learn", "learn_pos"): v for k, v in case["kwargs"].items()}
        layer = getattr(snn, case["layer"])(**kwargs).double()
        layer.load_state_dict(case["state_dict"])
        x = case["x"].requires_grad_()
        with fuse.backend("numba"):
            y, _ = fuse.sequence(layer, x)
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


class Custom(snn.Neuron):
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
    layer, x = Custom(7), cases.sequence(20, 3, 7, dtype=torch.float64)
    layer.double()
    values, grads = ends(layer, x, cases.stepped)
    fast, fast_grads = ends(layer, x, fused("numba"))
    for name, value in values.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-13, atol=1e-13)
    assert torch.equal(fast["output"], values["output"])
    assert fast_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(fast_grads[name], grad)


class Mixing(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        mem = mem + x - x.sum(-1, keepdim=True)
        return mem, mem


class Branching(snn.Neuron):
    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> Any:
        return (x if bool((mem > 0).all()) else -x), mem + x


def test_refusals(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(4, 2, 3)
    with caplog.at_level(logging.WARNING, "tracetorch"):
        for _ in range(2):
            layer = Mixing(3)
            assert torch.equal(fuse.sequence(layer, x)[0], cases.stepped(Mixing(3), x))
    assert len(caplog.records) == 1
    assert "Mixing(3)" in caplog.text
    assert "aten.sum.dim_IntList, which is not pointwise" in caplog.text
    assert "sum" in str(fuse.refuses("numba", Mixing(3), x))
    with (
        fuse.backend("numba"),
        pytest.raises(RuntimeError, match="cannot run Mixing"),
    ):
        fuse.sequence(Mixing(3), x)
    with fuse.backend("numba"), pytest.raises(RuntimeError, match="branch on them in Python"):
        fuse.sequence(Branching(3), x)
    with pytest.raises(ValueError, match=r"no backend is called 'numbba'\. Did you mean 'numba'"):
        fuse.backend("numbba")
    with pytest.raises(ValueError, match=r"has no state 'men'\. Did you mean 'mem'"):
        fuse.sequence(snn.LIF(3), x, record=["men"])
    assert fuse.chosen() == "auto"


def test_a_failed_call_leaves_the_states() -> None:
    layer = snn.LIF(3)
    fuse.sequence(layer, torch.randn(4, 2, 3))
    before = layer.mem
    with pytest.raises(ValueError, match=r"holds the state mem of shape \[2, 3\]"):
        fuse.sequence(layer, torch.randn(4, 5, 3))
    with pytest.raises(ValueError, match="has 3 neurons, one step of the input"):
        fuse.sequence(layer, torch.randn(4, 5, 4))
    assert layer.mem is before


def test_backward_twice_is_explained() -> None:
    layer = snn.LIF(3)
    for attempt in range(2):
        y, _ = fuse.sequence(layer, torch.randn(4, 2, 3))
        if attempt:
            with pytest.raises(RuntimeError, match="Call detach_states"):
                (y.sum() + layer.mem.sum()).backward()
        else:
            (y.sum() + layer.mem.sum()).backward()


def test_nothing_stale() -> None:
    x = cases.sequence(6, 2, 3, dtype=torch.float32)
    layer = cases.layer("LIF", 3)
    for slope in (1.0, 5.0, 1.0):
        layer.pos_spike = functional.sigmoid_surrogate(slope)
        agree(layer, x, "numba")
    layer.raw_beta.data.fill_(-1.0)
    agree(layer, x, "numba")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, fused=True)
    optimizer.step()
    agree(layer, x, "numba")
    slopes = [2.0]
    layer.pos_spike = lambda u: functional.atan_surrogate(slopes[0])(u)
    agree(layer, x, "numba")
    slopes[0] = 9.0
    agree(layer, x, "numba")


def test_every_value_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    for steps in (1, 2, 5, 70):
        for shape in ((1, 1), (3, 7), (2, 513), (600, 2)):
            layer = snn.SRLIF(shape[1])
            values, grads = ends(layer, torch.randn(steps, *shape), fused("numba"), live=True)
            for name, value in {**values, **grads}.items():
                assert not value.isnan().any(), name


def test_empty_inputs() -> None:
    layer = snn.LIF(3)
    assert fuse.sequence(layer, torch.randn(0, 2, 3))[0].shape == (0, 2, 3)
    assert layer.mem is None
    y, _ = fuse.sequence(layer, torch.randn(4, 0, 3, requires_grad=True))
    y.sum().backward()
    assert y.shape == (4, 0, 3)


def test_two_threads_at_once() -> None:
    x = cases.sequence(40, 16, 600, dtype=torch.float32)
    layers = [cases.layer("LIF", 600), cases.layer("SLIF", 600)]
    alone = [ends(layer, x, fused("auto")) for layer in layers]
    found: dict[int, Any] = {}
    runs = [
        threading.Thread(
            target=lambda i=i, m=m: found.update(
                {i: ends(m, x, lambda a, b: fuse.sequence(a, b)[0])}
            )
        )
        for i, m in enumerate(layers)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    for i, (values, grads) in enumerate(alone):
        for name, value in {**values, **grads}.items():
            assert torch.equal({**found[i][0], **found[i][1]}[name], value), name


def test_operators() -> None:
    layer, x = snn.RLIF(5), torch.randn(7, 3, 5, requires_grad=True)
    arguments = layer.arguments(2, torch.float32)
    tensors = {
        n: v.detach().requires_grad_() for n, v in arguments.items() if isinstance(v, Tensor)
    }
    states = [torch.randn(3, 5, requires_grad=True) for _ in layer.kept_states]
    key = plan_key(layer, x, states, tensors, arguments, ("mem",))
    given = (key, x, states, list(tensors.values()))
    torch.library.opcheck(torch.ops.tracetorch.forward, given)
    *results, marks = (end.detach() for end in torch.ops.tracetorch.forward(*given))
    torch.library.opcheck(
        torch.ops.tracetorch.backward,
        (
            key,
            x.detach(),
            [s.detach() for s in states],
            [p.detach() for p in tensors.values()],
            marks,
            [torch.randn_like(end) for end in results],
        ),
    )


def test_compiled_in_one_graph() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(5, 5), snn.LIF(5))

    def loss(x: Tensor) -> Tensor:
        net[1].zero_states()
        return fuse.sequence(net[1], net[0](x))[0].square().sum()

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


def test_no_second_derivative() -> None:
    x = torch.randn(4, 2, 3, requires_grad=True)
    y, _ = fuse.sequence(snn.LIF(3), x)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
