"""Every neuron of the room: its reference, every backend, its states, and what it may become."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import NEURONS, PLACES, Net, layer, sequence, stepped, weighted_sum
from tests.fuse.cases import agree
from tests.neurons.references import REFERENCES
from tests.refusals import check, refusals
from tracetorch import fuse, neurons, snn
from tracetorch.diagnosis.reach import spike_inputs
from tracetorch.snn.parameters import clamp, is_decay, sigmoid, unbounded

NAMES = tuple(NEURONS)


def drive(name: str, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return an input that makes the neuron fire."""
    return NEURONS[name] * sequence(*shape, dtype=dtype, seed=seed).abs()


def test_lists_name_every_neuron() -> None:
    assert set(NAMES) == set(REFERENCES) == set(neurons.__all__)


@pytest.mark.parametrize(("dim", "shape"), PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_step_equals_the_reference(name: str, dim: int, shape: tuple[int, ...]) -> None:
    made = layer(name, 3, dim=dim).double()
    x = drive(name, 80, *shape, dtype=torch.float64)
    y = stepped(made, x).detach()
    assert 0.005 < (y != 0).double().mean() < 0.99
    for place in np.ndindex(*shape):
        p = {n: getattr(made, n)[place[dim]].item() for n in made.constraints}
        p |= {n: getattr(made, n) for n in made._options}
        p |= {n: float(b) for n, b in made.named_buffers() if n.startswith("initial_")}
        over_time = (slice(None), *place)
        outputs, states = REFERENCES[name](x[over_time].tolist(), p)
        torch.testing.assert_close(y[over_time].tolist(), outputs)
        assert states.keys() == set(made.states)
        for state, value in states.items():
            assert getattr(made, state)[place].item() == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_streamed_steps_equal_stepping(name: str) -> None:
    made, x = layer(name, 5), drive(name, 24, 3, 5)
    assert fuse.unsupported_reason("cpu", made, x) is None
    agree(made, x, "cpu")
    agree(layer(name, 5), x[:12], "eager", live=True)
    made, found = layer(name, 5), []
    with torch.no_grad():
        for backend in ("auto", "eager"):
            tt.zero_states(made)
            with fuse.backend(backend):
                found.append((stepped(made, x), tt.get_states(made)))
    assert next(iter(made._prepared.kept.values())).runs
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_and_strong_inputs_do_not_overflow(name: str) -> None:
    made, x = layer(name, 5).double(), drive(name, 60, 3, 5, dtype=torch.float64)
    x.requires_grad_()
    weighted_sum(stepped(made, x)).backward()
    gradients = {n: p.grad for n, p in made.named_parameters()} | {"x": x.grad}
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients.values())
    made, x = layer(name, 5), (30 * drive(name, 40, 3, 5)).requires_grad_()
    (y := stepped(made, x)).sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.slow
def test_exported_neurons_equal_stepping(tmp_path: Path) -> None:
    """Every neuron on its own scale of one input, side by side."""
    layers = nn.ModuleDict({name: layer(name, 3) for name in NAMES})
    each = lambda m, x: [made(NEURONS[name] * x) for name, made in m.layers.items()]  # noqa: E731
    side = Net(lambda m, x: torch.cat(each(m, x), -1), layers=layers)
    x = sequence(20, 2, 3, dtype=torch.float32).abs()
    with torch.no_grad():
        expected = stepped(side, x)
    assert all(part.any() for part in expected.split(3, -1))
    tt.export.onnx(side, tmp_path / "side.onnx", x[0])
    stream = tt.export.OnnxStream(tmp_path / "side.onnx")
    torch.testing.assert_close(stepped(stream, x), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_arrives(name: str) -> None:
    kind = getattr(neurons, name)
    built = eval(repr(kind(4, dim=-3)), vars(neurons))  # a repr is a call
    assert (type(built), built.num_neurons, built.dim) == (kind, 4, -3)
    others: dict[str, Any] = {"surrogate_derivative": tt.functional.sigmoid_surrogate(3.0)}
    others |= {"dim": -2, "substeps": 3, "detach_reset": True, "bounded": True}
    others |= {"q": 60.0, "dt": 0.02, "period": 4, "levels": 7, "v_rest": -68.0, "num_neurons": 2}
    for argument, parameter in inspect.signature(kind).parameters.items():
        if argument in kind(3).constraints and argument != "v_rest":  # which is a state's too
            setup = {"value": 0.9 * parameter.default, "rank": 0, "learnable": False}
            made = kind(3, **{argument: setup})
            assert getattr(made, argument).item() == pytest.approx(setup["value"])
            assert f"raw_{argument}" in dict(made.named_buffers())
        else:
            given = others[argument]
            made = kind(**{"num_neurons": 3, argument: given})
            if argument == "bounded":
                assert made.constraints["b"] == clamp(0.0, 2.0)
                continue
            found = getattr(made, {"surrogate_derivative": "spike"}.get(argument, argument))
            assert found.tolist() == [given] * 3 if argument == "v_rest" else found == given


MILLISECONDS = {
    "ALIF": {"beta": 20.0, "rho": 700.0},
    "AdLIF": {"beta": 15.0, "rho": 180.0},
    "SEAdLIF": {"beta": 15.0, "rho": 180.0},
    "RefractoryLIF": {"beta": 20.0, "rho": 4.0},
    "AlphaLIF": {"alpha": 5.0, "alpha_rise": 5.0, "beta": 20.0},
    "EIF": {"beta": 10.0},
    "QIF": {"beta": 10.0},
    "AdEx": {"beta": 281 / 30, "rho": 144.0},
    "RF": {"beta": 100 / math.pi},
}


@pytest.mark.parametrize("name", MILLISECONDS)
def test_defaults_follow_from_milliseconds(name: str) -> None:
    parameters = inspect.signature(getattr(neurons, name)).parameters
    for argument, milliseconds in MILLISECONDS[name].items():
        expected = round(tt.functional.time_constant_to_decay(milliseconds), 4)
        assert parameters[argument].default == expected


@refusals(
    r"""
    QIF(3, v_critical=-65.0) -> ValueError: v_critical must be above v_rest, got -65
    AdLIF(3, bounded=True, b=2.5) -> ValueError: at least 0 and at most 2, got 2.5
    RefractoryLIF(3, period=-1) -> ValueError: period must not be negative, got -1
    RefractoryLIF(3, period=1.5) -> TypeError: period must be an integer
    MultiLevelLIF(3, levels=0) -> ValueError: levels must be at least 1
    BRF(3, omega=100.0) -> ValueError: omega must be at least .* at most .*, got 100
    ALIF(3, rho=1.0) -> ValueError: rho must lie strictly between 0 and 1
    GLIF(3, leak_gate=1.5) -> ValueError: leak_gate must lie strictly between 0 and 1
    EIF(3, surrogate_derivative=2.0) -> TypeError: the peak: surrogate must be callable
    Izhikevich(3, b=[0.2]) -> TypeError: b must be a number or a tensor
    snn.SEAdLIF -> AttributeError: no attribute 'SEAdLIF'
    neurons.LIF -> AttributeError: 'LIF'\. It is in tracetorch\.snn: tt\.snn\.LIF\.
    neurons.lif -> AttributeError: has no attribute 'lif'\.$
    """
)
def test_bad_arguments_and_names_of_another_module(call: str, error: str) -> None:
    check(call, error, {**globals(), **vars(neurons)})


@pytest.mark.parametrize("kind", [neurons.EIF, neurons.QIF, neurons.AdEx])
def test_voltage_starts_at_rest(kind: Any) -> None:
    rest = torch.tensor([-66.0, -70.5])
    made = kind(2, v_rest=rest)
    assert torch.equal(made.initial_v, rest)
    assert torch.equal(made.v_rest, rest)
    b = torch.tensor([0.2, 0.25])  # recovery starts where it follows the voltage
    for given in (b, {"value": b}, snn.Weight(b, learnable=False)):
        torch.testing.assert_close(neurons.Izhikevich(2, b=given).initial_u, -65 * b)


@pytest.mark.parametrize("symplectic", [False, True])
def test_detached_reset_has_the_gradient_of_the_authors_program(symplectic: bool) -> None:
    kind = neurons.SEAdLIF if symplectic else neurons.AdLIF
    x = 10 * sequence(30, 2, 3).abs()
    found = {}
    for detached in (False, True):
        made = kind(3, detach_reset=detached).double()
        weighted_sum(stepped(made, x)).backward()
        found[detached] = {n: p.grad for n, p in made.named_parameters()}
    # Baronig et al. 2025, models/alif.py: the spike in the reset is detached
    p = {n: getattr(made, f"raw_{n}").detach().clone().requires_grad_() for n in made.constraints}
    beta, rho = p["beta"].sigmoid(), p["rho"].sigmoid()
    u = w = z = torch.zeros(2, 3, dtype=torch.float64)
    out = []
    for current in x:
        before = u, z
        u = beta * u + (1 - beta) * (current - w)
        z = made.spike(u - torch.nn.functional.softplus(p["pos_threshold"]))
        u = u * (1 - z.detach())
        seen_u, seen_z = (u, z) if symplectic else before
        w = rho * w + (1 - rho) * (p["a"] * seen_u + p["b"] * seen_z) * 120.0
        out.append(z)
    weighted_sum(torch.stack(out)).backward()
    for name, raw in p.items():
        torch.testing.assert_close(found[True][f"raw_{name}"], raw.grad)
        assert not torch.allclose(found[False][f"raw_{name}"], raw.grad)


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sigma_delta_counts_what_arrives_in_half_precision(dtype, backend) -> None:
    made, x = neurons.SigmaDelta(50), (0.3 * sequence(200, 2, 50)).to(dtype)
    with torch.no_grad():
        with fuse.backend(backend):
            out = tt.unroll(made, x)
        sent, sigma = made.sent, made.sigma
        made.zero_states()
        assert torch.equal(stepped(made, x), out)
        assert torch.equal(made.sent, sent)
    assert out.dtype == dtype
    arrived = torch.zeros(2, 50)
    for each in out:
        arrived = arrived + each.float()
    assert torch.equal(arrived, sent)
    assert ((torch.relu(sigma) - arrived).abs() < 0.11).all()


def test_levels_are_straight_through_and_in_reach_and_gates_have_no_half_life() -> None:
    boxcar = tt.functional.boxcar_surrogate(0.5)
    made = neurons.MultiLevelLIF(400, pos_threshold=0.5, surrogate_derivative=boxcar)
    x = torch.linspace(-1, 3, 400).requires_grad_()
    (gradient,) = torch.autograd.grad(made(x).sum(), x)
    inside = (x > 0) & (x < 2)
    torch.testing.assert_close(gradient, 2.0 * inside)
    made, x = neurons.MultiLevelLIF(3), torch.full((4, 2, 3), 0.5)
    _, seen = tt.unroll(made, x, record=["mem"], by="step")
    inputs = spike_inputs(made, x, {"mem": seen["mem"].detach()})
    assert inputs is not None
    assert inputs.in_reach.all()
    assert (inputs.above["spike"] > -0.5).all()
    assert list(tt.plot.decays(nn.Sequential(neurons.GLIF(2), neurons.TCLIF(2)))) == ["0.beta"]


def test_files_of_other_bounds_and_substeps_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    old, new = neurons.EIF(3), neurons.EIF(3)
    old._declared.constraints["delta"] = unbounded
    tt.save(old, path)
    with pytest.raises(ValueError, match="delta: unbounded in the file, clamp in the model"):
        tt.load(path, new)
    tt.save(neurons.EIF(3, substeps=2), path)
    with pytest.raises(ValueError, match="substeps: 2 in the file"):
        tt.load(path, neurons.EIF(3))
    new.raw_delta.data.fill_(-1.0)  # as learning may leave it
    tt.save(new, path)
    tt.load(path, neurons.EIF(3))


ADAPTIVE = (neurons.AdLIF, neurons.SEAdLIF)
FLOOR = 119 / 121  # (q - 1) / (q + 1)


def free(made: Any) -> Any:
    """Take the bound from rho, which once had none."""
    made._declared.constraints["rho"] = sigmoid
    return made


def learned(made: Any, raw: float) -> Any:
    """Lead rho somewhere, as learning may."""
    made.raw_rho.data.fill_(raw)
    return made


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_bound_of_rho_changes_nothing_above_it_and_holds_below(kind: Any) -> None:
    rho, x = torch.linspace(FLOOR, 0.999, 5), 10 * sequence(12, 2, 5).abs()
    found = []
    for made in (kind(5, rho=rho), free(kind(5, rho=rho))):
        assert torch.equal(made.raw_rho, tt.functional.sigmoid_inverse(rho.double()).float())
        out = tt.unroll(made.double(), x)
        weighted_sum(out).backward()
        found.append([out, made.mem, made.w, made.rho, *(p.grad for p in made.parameters())])
    assert all(map(torch.equal, *found))
    # where learning leads it lower it is held, and comes back
    made = learned(kind(5).double(), -5.0)
    assert made.rho.tolist() == pytest.approx([FLOOR] * 5)
    agree(made, x, "eager")
    (gradient,) = torch.autograd.grad(made.rho.sum(), made.raw_rho)
    assert gradient.tolist() == pytest.approx([FLOOR * (1 - FLOOR)] * 5)
    optimizer = torch.optim.SGD([made.raw_rho], lr=100.0)
    for _ in range(20):
        optimizer.zero_grad()
        (made.rho - 0.99).square().sum().backward()
        optimizer.step()
    assert (made.raw_rho > -5.0).all()


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_rho_below_the_bound_may_be_given_and_is_the_bound_then(kind: Any) -> None:
    assert round(kind(3).rho[0].item(), 6) == 0.9945
    made = kind(2, rho=torch.tensor([0.9, 0.99]))
    assert made.rho.tolist() == pytest.approx([0.9, 0.99])
    made.raw_rho.data.sub_(9.0)
    assert made.rho.tolist() == pytest.approx([0.9, 0.9])
    made.rho = 0.9
    for value in (0.8, 1.5):
        with pytest.raises(ValueError, match=rf"at least 0\.9 and below 1 \(build .*, got {value}"):
            made.rho = value
    assert kind(2, q=0.5).constraints["rho"] == sigmoid  # nothing that it could amplify
    assert kind(2, q=60.0).constraints["rho"].name == f"sigmoid from {59 / 61}"
    for rho in (0.9945, 0.999):  # the bound follows q
        made = kind(3, rho=rho)
        for q in (500.0, 60.0, 0.5, 120.0):
            made.q = q
            assert made.constraints["rho"] == kind(3, rho=rho, q=q).constraints["rho"]
    held = learned(kind(3), -1.0)
    held.q = 500.0
    assert held.rho.tolist() == pytest.approx([FLOOR] * 3)  # what it was


@pytest.mark.parametrize(
    ("kind", "a", "bound", "diverges"),
    [
        (neurons.SEAdLIF, 1.0, True, False),
        (neurons.SEAdLIF, 1.0, False, True),
        (neurons.AdLIF, 0.5, True, False),
        (neurons.AdLIF, 0.75, True, True),  # Euler's method, at every beta here
        (neurons.AdLIF, 0.5, False, True),
    ],
)
def test_where_membranes_diverge_whatever_rho_is_learned(kind, a, bound, diverges) -> None:
    """At the bound of rho, for ``a`` as the docstring has it; without the bound earlier."""
    beta, x = torch.tensor([1e-3, 0.5, 0.9]), torch.full((600, 1, 3), -1.0)
    made = kind(3, beta, a=a, pos_threshold=1e37, bounded=True)
    made = made if bound else free(made)
    made.raw_rho.data.fill_(-5.0)
    with torch.no_grad():
        tt.unroll(made, x)
    states = torch.stack([made.mem, made.w])  # w keeps what a reset at 1e37 takes away
    largest = states.abs().nan_to_num(math.inf, math.inf).amax(0)
    assert ((largest > 10.0) == diverges).all()


def test_adlif_diverges_where_its_docstring_says() -> None:
    for rho, edge in ((0.9945, 1.636), (FLOOR, 0.625)):
        x, a = torch.full((8000, 1, 2), -1.0), torch.tensor([0.98, 1.02]) * edge
        made = neurons.AdLIF(2, rho=rho, a=a, pos_threshold=1e37)
        with torch.no_grad():
            tt.unroll(made, x)
        start, (stays, grows) = made.mem.clone(), made.mem[0].abs().tolist()
        assert start.isfinite().all()
        assert stays < 1.0 < grows


# what is saved, and the arguments of the layer that receives it
SAVED: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "from before the bound": (lambda kind: learned(free(kind(3)), 4.5), {}),
    "from before the bound, below it": (lambda kind: learned(free(kind(3)), 2.0), {}),
    "built lower, one of them": (lambda kind: kind(3, rho=torch.tensor([0.9, 0.99, 0.999])), {}),
    "built lower, learned": (lambda kind: learned(kind(3, rho=0.9), 3.0), {}),
    "built lower, held": (lambda kind: learned(kind(3, rho=0.9), -1.0), {}),
    "built lower, into as low": (lambda kind: kind(3, rho=0.9), {"rho": 0.9}),
    "held, into lower": (lambda kind: learned(kind(3), -1.0), {"rho": 0.8}),
    "held, into an equal one": (lambda kind: learned(kind(3, rho=0.9), -1.0), {"rho": 0.9}),
    "above": (lambda kind: kind(3), {"rho": 0.9}),
}


@pytest.mark.parametrize("way", ["state_dict", "torch.save", "onto meta", "tt.save"])
@pytest.mark.parametrize("case", SAVED)
def test_a_rho_loads_as_it_was_whatever_the_bounds(case: str, way: str, tmp_path: Path) -> None:
    build, arguments = SAVED[case]
    for kind in ADAPTIVE:
        old = torch.nn.Sequential(build(kind))
        with torch.device("meta" if way == "onto meta" else "cpu"):
            new = torch.nn.Sequential(kind(3, **arguments))
        if way == "tt.save":
            tt.save(old, tmp_path / "old.safetensors")
            tt.load(tmp_path / "old.safetensors", new)
        else:
            values: Any = old.state_dict()
            if case.startswith("from before"):  # without a word on bounds
                values._metadata["0"].pop("constraints")
            if way == "torch.save":
                torch.save(values, tmp_path / "old.pt")
                values = torch.load(tmp_path / "old.pt", weights_only=True)
            expected = pytest.warns(UserWarning, match=r"loads 0\.880797 as rho, below its bound")
            silent = case != "from before the bound, below it"
            with contextlib.nullcontext() if silent else expected:
                new.load_state_dict(values, assign=way == "onto meta")
        one, other = cast(Any, new[0]), cast(Any, old[0])
        assert torch.equal(one.raw_rho, other.raw_rho)
        assert torch.equal(one.rho, other.rho)
        assert is_decay(one.constraints["rho"])


def test_a_dict_says_that_a_decay_has_no_bound() -> None:
    """And none that names something else is taken for one; a bare one gives its values alone."""
    free_one, layer = neurons.AdLIF(3, rho=0.9, q=0.5), neurons.AdLIF(3)
    values: Any = free_one.state_dict()
    layer.load_state_dict(values)
    assert torch.equal(layer.rho, free_one.rho)
    for name in ("sigmoid from hello", "sigmoid from 2.0", "sigmoid from ", "clamp"):
        values._metadata[""]["constraints"]["rho"] = name
        with pytest.raises(ValueError, match=rf"'{name}' is no constraint of a decay. Load what"):
            neurons.AdLIF(3).load_state_dict(values)
    layer, x = neurons.AdLIF(3), 10 * sequence(12, 2, 3, dtype=torch.float32).abs()
    tt.unroll(layer, x, from_rest=True)  # what is compiled follows the bound too
    bare = dict(neurons.AdLIF(3, rho=0.9).state_dict())
    warning = r"0\.9 as rho, below its bound 0\.983471: .* is the bound"
    with pytest.warns(UserWarning, match=warning):
        layer.load_state_dict(bare)
    expected = tt.unroll(neurons.AdLIF(3, rho=0.9), x)
    assert torch.equal(tt.unroll(layer, x, from_rest=True), expected)
    layer.raw_rho.data.sub_(5.0)
    assert layer.rho.tolist() == pytest.approx([0.9] * 3)
    layer.load_state_dict(dict(neurons.AdLIF(3).state_dict()))  # silent: above the bound
    bare["raw_rho"] = torch.full((3,), -math.inf)
    with pytest.warns(UserWarning, match="loads 0 as rho"):
        layer.load_state_dict(bare)


def test_a_failed_load_leaves_the_bound_of_rho(tmp_path: Path) -> None:
    path, held = tmp_path / "old.safetensors", learned(neurons.AdLIF(3), -1.0)
    tt.save(neurons.AdLIF(3, rho=0.9, a=1.5), path)
    held.register_load_state_dict_post_hook(lambda *_: 1 / 0)
    for new in (held, neurons.AdLIF(3, bounded=True)):
        before, constraint = new.rho.tolist(), new.constraints["rho"]
        with pytest.raises((ValueError, ZeroDivisionError), match=r"constraint of a: unb|zero"):
            tt.load(path, new)
        assert new.rho.tolist() == before
        assert new.constraints["rho"] == constraint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setup", [{"learnable": False}, {"rank": 0}])
def test_a_setup_without_a_value_has_the_default_of_the_constructor(name, setup) -> None:
    kind = getattr(neurons, name)
    default, setups = kind(2), ("DecaySetup", "ThresholdSetup", "WeightSetup")
    arguments = inspect.signature(kind).parameters.values()
    for argument in [each.name for each in arguments if each.annotation in setups]:
        layer = kind(2, **{argument: setup})
        value = getattr(layer, argument)
        assert torch.equal(value.expand(2), getattr(default, argument).expand(2))
        assert value.ndim == setup.get("rank", 1)
        assert value.requires_grad == setup.get("learnable", True)
        for initial in {f"initial_{state}" for state in default.active_states} & {*dir(default)}:
            assert torch.equal(getattr(layer, initial), getattr(default, initial))


def test_a_setup_without_a_value_has_the_default_of_the_nearest_class() -> None:
    class Slow(neurons.ALIF):
        def __init__(self, num_neurons: int, rho: Any = 0.5, beta: Any = None) -> None:
            super().__init__(num_neurons, rho=rho, **({} if beta is None else {"beta": beta}))

    class Fixed(Slow):
        def __init__(self, num_neurons: int, rho: Any = snn.Decay(learnable=False)) -> None:  # noqa: B008
            super().__init__(num_neurons, rho)

    assert Slow(1, rho={"rank": 0}).rho.item() == 0.5
    assert Slow(1, beta={"rank": 0}).beta.item() == pytest.approx(0.9512)
    fixed = Fixed(1)
    assert fixed.rho.item() == 0.5
    assert not fixed.rho.requires_grad
    assert not Fixed(1, rho={"rank": 0}).rho.requires_grad  # an unset field of the default's
    assert Fixed(1, rho=0.7).rho.requires_grad  # a number is a whole setup
