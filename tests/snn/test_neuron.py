import copy
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

import tracetorch as tt
from tests.cases import LAYERS, layer, module, sequence, stepped, through_save, weighted_sum
from tests.fuse.cases import agree
from tests.refusals import check, refusals
from tracetorch import fuse, neurons, snn
from tracetorch.core.checks import check_count


class Net(snn.TTModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), layer("BSRLIF", 4), nn.Linear(4, 2))
        self.out = layer("SRReadout", 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))


@pytest.mark.parametrize("given", [False, True], ids=["defaults", "given"])
def test_parameters_that_a_custom_neuron_declares(given: bool) -> None:
    made: Any = snn.Neuron(2)
    options: dict[str, Any] = {"rank": 0, "learnable": False} if given else {}
    made.decay("keep", *[0.3] * given, **options)
    made.gate("share", *[0.3] * given, **options)
    made.threshold("low", *[0.5] * given, negative=given, **options)
    made.weight("gain", *[2.0] * given, **options)
    values = (0.3, 0.3, -0.5, 2.0) if given else (0.9, 0.5, 1.0, 0.0)
    names = ("keep", "share", "low", "gain")
    for name, value in zip(names, values, strict=True):
        torch.testing.assert_close(getattr(made, name), torch.full(() if given else (2,), value))
    raw = [f"raw_{name}" for name in names]
    assert [name for name, _ in made.named_buffers()] == (raw if given else [])
    assert [name for name, _ in made.named_parameters()] == ([] if given else raw)


def returned(results: Any) -> None:
    """Call a layer whose step returns these, and run it over a sequence."""
    neurons = odd(states=("mem", "slow"), step=results, gain=None)
    with pytest.raises(ValueError, match="must") as error:
        neurons(torch.ones(1, 2))
    assert neurons.mem is neurons.slow is None
    with pytest.raises(ValueError, match=re.escape(str(error.value))):
        tt.unroll(neurons, torch.ones(3, 1, 2))
    raise error.value


def odd(*, gain: float | None = 2.0, **declared: Any) -> Any:
    """Make a neuron of a class with other declarations, and a weight called gain."""
    step = staticmethod(declared.pop("step", lambda x, mem, current=None: (x, mem)))
    made: Any = type("Odd", (snn.Neuron,), {"states": ("mem",), "step": step, **declared})(2)
    if gain is not None:
        made.weight("gain", gain)
    return made


def taking(step: Any) -> Any:
    """Run a neuron whose step takes these."""
    return odd(states=("mem", "slow"), step=step)(torch.ones(1, 2))


def declaring(*names: str) -> Any:
    made = odd(step=lambda x, mem, *, theta, gain, more=1.0: (x, gain * mem + theta * more))
    for name in names:
        made.weight(name, 1.0)
    return made


class Held(snn.Neuron):
    states = ("mem",)

    def __init__(self, size: int, gain: Any = 0.5, floor: Any = -1.0, top: Any = 1.0) -> None:
        super().__init__(size)
        self.weight("gain", gain, low=0.1, high=2.0)
        self.weight("floor", floor)
        self.weight("top", top, above="floor")
        self.option("times", 2, check=check_count)

    @staticmethod
    def step(x: Tensor, mem: Tensor, *, gain: Any, floor: Any, top: Any, times: int) -> Any:
        mem = torch.maximum(torch.minimum(mem + times * gain * x, top), floor)
        return mem, mem


ONE = torch.ones(1, 2)


@refusals(
    r"""
    returned(lambda x, mem, slow: (x, mem))
        -> ValueError: output and the states \('mem', 'slow'\), got 2
    returned(lambda x, mem, slow: x) -> ValueError: must return a tuple of the output.* got Tensor
    returned(lambda x, mem, slow: (x, mem, None)) -> ValueError: return slow .*\[1, 2\], got NoneT
    returned(lambda x, mem, slow: (x, mem, slow[0])) -> ValueError: must return slow in .* got \[2\]
    returned(lambda x, mem, slow: (x.sum(), mem, slow)) -> ValueError: return output in .* got \[\]
    returned(lambda x, mem, slow: (x > 0, mem, slow)) -> ValueError: torch\.bool\. Use a spike func
    returned(lambda x, mem, slow: (x, mem, slow.double())) -> ValueError: in the dtype it works in
    declaring("thr")(ONE) -> TypeError: unexpected keyword argument 'thr'
    declaring("theta", "thr")(ONE) -> TypeError: unexpected keyword argument 'thr'
    tt.unroll(declaring("theta", "thr"), ONE[None]) -> TypeError: unexpected keyword argument 'thr'
    declaring()(ONE) -> TypeError: missing 1 required keyword-only argument: 'theta'
    tt.unroll(declaring(), ONE[None]) -> TypeError: missing 1 required keyword-only .*: 'theta'
    odd(states="mem") -> TypeError: a tuple of names, got 'mem'.*\('mem',\)
    odd(states=("input",)) -> ValueError: Odd.states has 'input'.*prev_input
    odd(states=("output",)) -> ValueError: Odd.states has 'output'.*prev_output
    odd(states=("mem", "decay")) -> ValueError: decay is a method of every neuron layer
    odd(inputs=("x", "gate")) -> ValueError: 'gate': it must be an .* gate is a method of every
    odd(inputs=("x", "training")) -> ValueError: cannot call an input, .* 'training'
    odd(inputs=("x", "mem")) -> ValueError: Odd cannot call an input, .* 'mem'
    odd(inputs=("x", "current")) -> ValueError: Odd.step takes .* inputs \('x', 'current'\)
    odd(inputs="x") -> TypeError: Odd\.inputs must be a tuple that begins with 'x', got 'x'
    odd(inputs=("gain", "x")) -> TypeError: a tuple that begins with 'x', got
    odd(inputs=()) -> TypeError: a tuple that begins with 'x', got
    taking(lambda x, slow, mem, *, gain: (x, slow, mem))
        -> ValueError: takes \('x', 'slow', 'mem'\) by position, and receives the inputs \('x',\)
    taking(lambda x, slow, mem, gain: (x, slow, mem)) -> ValueError: \('x', 'slow', 'mem', 'gain'\)
    taking(lambda x, mem, *, slow, gain: (x, mem, slow)) -> ValueError: takes \('x', 'mem'\) by pos
    taking(lambda mem, slow, *, gain: (mem, mem, slow)) -> ValueError: \('mem', 'slow'\) .*@static
    taking(lambda x, current, mem, slow: (mem, x, slow)) -> ValueError: = \('x', 'modulator'\)
    Held(2, gain=0.0) -> ValueError: gain must be at least 0.1 and at most 2, got 0
    Held(2, gain=torch.tensor([0.5, 3.0])) -> ValueError: gain must be at least .*, got 3
    Held(2, gain={"value": 3.0, "rank": 0, "learnable": False}) -> ValueError: gain must .*, got 3
    Held(2, top=-1.0) -> ValueError: top must be above floor, got -1
    Held(2, floor=torch.tensor([0.0, 1.5])) -> ValueError: top must be above floor, got 1
    Held(2, top=snn.Weight(0.5, rank=0), floor=torch.tensor([0.0, 0.6])) -> ValueError: must be abov
    Held(2, gain=float("nan")) -> ValueError: gain must be at least 0.1 and at most 2, got nan
    """
)
def test_declarations_and_results_of_a_neuron_are_checked(call: str, error: str) -> None:
    check(call, error, globals())


@pytest.mark.parametrize(
    "alias", [lambda x: x, lambda x: x[:], lambda x: x.detach(), lambda x: x.view_as(x)]
)
def test_states_share_no_memory_with_output_or_input(alias: Any) -> None:
    step = lambda x, mem, slow: (alias(mem), mem, alias(x))  # noqa: E731
    neurons, x = odd(states=("mem", "slow"), step=step, gain=None), torch.ones(1, 2)
    neurons(x)
    x += 5
    held = neurons.mem
    out = neurons(x)
    out += 7
    assert neurons.slow.tolist() == [[6.0, 6.0]]
    assert neurons.mem.tolist() == held.tolist() == [[0.0, 0.0]]


def test_output_may_be_changed_in_place() -> None:
    neurons: Any = nn.Sequential(snn.RReadout(2), nn.ReLU(inplace=True))
    x = torch.tensor([[1.0, -1.0]], requires_grad=True)
    neurons(x).sum().backward()
    assert x.grad.tolist() == [[pytest.approx(0.1), 0.0]]
    for state in (neurons[0].mem, neurons[0].prev_output):
        assert state.tolist() == [[pytest.approx(0.1), pytest.approx(-0.1)]]


@pytest.mark.parametrize(
    "step",
    [
        lambda x, mem, slow, *, gain: (gain * x, mem, slow),
        lambda x, mem, slow, gain: (gain * x, mem, slow),
        lambda x, mem, slow, **parameters: (parameters["gain"] * x, mem, slow),
        lambda *tensors, gain: (gain * tensors[0], *tensors[1:]),
    ],
)
def test_step_may_take_the_states_in_any_legal_way(step: Any) -> None:
    assert taking(step).tolist() == [[2.0, 2.0]]


def test_bounds_of_weights_hold_while_they_are_learned() -> None:
    held, x = Held(3), sequence(6, 2, 3, dtype=torch.float32)
    optimizer = torch.optim.SGD(held.parameters(), lr=1.0)
    for sign in (1, 1, -1, -1, -1):
        optimizer.zero_grad()
        with fuse.backend("eager"):
            out = tt.unroll(held, x.abs(), from_rest=True)
        (sign * (out.sum() + 5 * held.gain.sum() + held.top.sum() - held.floor.sum())).backward()
        optimizer.step()
        assert ((held.gain >= 0.1) & (held.gain <= 2)).all()
        assert (held.top > held.floor).all()
    assert (held.raw_gain > 2).any() or (held.raw_gain < 0.1).any()
    held.gain = 1.0
    for name, value in (("times", 0), ("gain", 3.0)):
        with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value:g}"):
            setattr(held, name, value)
    assert held.gain.tolist() == [1.0] * 3


@pytest.mark.slow
def test_kernels_take_the_bounded_values_and_pass_the_gradient() -> None:
    held, x = Held(3), sequence(6, 2, 3, dtype=torch.float32)
    for gain, top in ((0.5, 1.0), (5.0, -3.0), (-5.0, 0.5)):
        held.raw_gain.data.fill_(gain)
        held.raw_top.data.fill_(top)
        agree(held, x, "cpu")
        grads = []
        for run in (stepped, tt.unroll, tt.unroll):  # prepared, the second time
            tt.zero_states(held)
            grads.append(torch.autograd.grad(weighted_sum(run(held, x)), list(held.parameters())))
        torch.testing.assert_close(grads[1:], grads[:1] * 2)


@pytest.mark.parametrize("name", [*LAYERS, *neurons.__all__, "Noise", "Delay"])
def test_signature_of_a_class_is_that_of_its_constructor(name: str) -> None:
    kind: Any = getattr(neurons if name in neurons.__all__ else snn, name)
    inheriting: Any = type("Inheriting", (kind,), {})
    taken = list(inspect.signature(kind.__init__).parameters.values())[1:]
    for each in (kind, inheriting):
        assert list(inspect.signature(each).parameters.values()) == taken
    # Python 3.10 looks here, before __new__
    assert inheriting.__signature__ == inspect.signature(kind)
    made = kind(2, max_delay=3) if name == "Delay" else kind(2)
    assert inspect.signature(made) == inspect.signature(nn.Linear(1, 1))


def test_tensor_option_moves_with_the_module() -> None:
    neurons = odd(states=(), step=lambda x, *, offset, gain: (x + offset,))
    neurons.option("offset", torch.ones(2))
    assert neurons.double()(torch.zeros(1, 2).double()).tolist() == [[1.0, 1.0]]
    assert neurons.offset.dtype == torch.float64


def test_error_names_the_layer_by_its_path() -> None:
    hidden = module(lambda s, x: s.cells[0](x), cells=[snn.LIF(2)])
    for made, label in (
        (nn.Sequential(hidden), r"layer '0\.cells\.0', LIF\(2\),"),
        (snn.LIF(2), r"LIF\(2\)"),
    ):
        with pytest.raises(ValueError, match=f"^{label} has 2 neurons"):
            made(torch.ones(1, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_has_the_dtype_of_the_input(name: str, dtype: torch.dtype) -> None:
    x = sequence(5, 2, 4, dtype=dtype)
    neurons = layer(name, 4)
    out = stepped(neurons, x)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.dtype == dtype
    assert {state.dtype for state in tt.get_states(neurons).values()} == {arithmetic}
    neurons.zero_states()
    assert torch.equal(out, stepped(neurons, x.to(arithmetic)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_parameters_are_widened_before_the_constraint(dtype: torch.dtype) -> None:
    half = snn.LIF(4, beta=0.99).to(dtype)
    wide = copy.deepcopy(half).float()
    x = sequence(20, 2, 4, dtype=dtype)
    assert torch.equal(stepped(half, x), stepped(wide, x.float()).to(dtype))
    assert half.mem.dtype == torch.float32
    half.zero_states()
    stepped(half, x).sum().backward()
    assert half.raw_beta.grad.dtype == dtype


def test_states_move_with_the_module_but_to_half_precision() -> None:
    net, x = Net(), sequence(6, 2, 3, dtype=torch.float32)
    stepped(net, x[:3])
    before = tt.get_states(net)
    net.bfloat16()
    torch.testing.assert_close(tt.get_states(net), before, rtol=0, atol=0)
    net.out(torch.ones(2, 2).bfloat16())  # the arithmetic is float32 as before
    net.double()(x[4].double())
    assert {state.dtype for state in tt.get_states(net).values()} == {torch.float64}
    assert net.out.mem.requires_grad
    net.to("meta")
    assert {state.device.type for state in tt.get_states(net).values()} == {"meta"}


@pytest.mark.filterwarnings("ignore")
def test_compile_error_names_modules_in_plain_containers() -> None:
    def hidden() -> Any:
        return module(lambda s, x: (s.zero_states(), s.cells[0](x))[1], cells=[snn.LIF(2)])

    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="held in a plain list, dict or"):
        torch.compile(hidden(), fullgraph=True, backend="eager")(torch.ones(1, 2))
    broken = torch.compile(hidden(), backend="eager")  # works after a graph break
    for _ in range(2):
        assert broken(torch.full((1, 2), 0.75)).tolist() == [[0.0, 0.0]]
    torch.compiler.reset()


def test_state_leaked_by_a_trace_is_refused() -> None:
    neurons = snn.LIF(2)
    with FakeTensorMode():
        neurons.mem = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"a state mem without values, left behind by a tra"):
        neurons(torch.ones(1, 2))
    neurons.zero_states()
    neurons(torch.ones(1, 2))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, through_save])
def test_copies_of_states_with_a_graph_are_detached(copied: Any) -> None:
    x, net = sequence(6, 2, 3, dtype=torch.float32), Net()
    stepped(net, x[:3])
    twin = copied(net)
    if copied is copy.copy:  # shares its layers with the original
        net = copy.deepcopy(net)
    else:
        assert not twin.out.mem.requires_grad
    assert torch.equal(stepped(twin, x[3:]), stepped(net, x[3:]))


def test_a_parametrized_neuron_is_copied_with_states_that_have_a_graph() -> None:
    net: Any = nn.Sequential(layer("SRLIF", 3))
    parametrize.register_parametrization(net[0], "raw_beta", nn.Tanh())
    x = sequence(6, 2, 3, dtype=torch.float32).requires_grad_()
    first = stepped(net, x[:3])
    twin = copy.deepcopy(net)
    first.sum().backward()  # the graph of the original is its own
    assert not twin[0].mem.requires_grad
    original = twin[0].parametrizations.raw_beta.original
    assert original.grad is None
    assert original is not net[0].parametrizations.raw_beta.original
    net[0].detach_states()
    assert torch.equal(stepped(twin, x[3:]), stepped(net, x[3:]))


def test_spikes_are_those_of_any_callable_and_states_may_be_assigned() -> None:
    neurons: Any = snn.LIF(2, surrogate_derivative=lambda u: (u > 0.5).to(u.dtype))
    assert neurons(torch.tensor([[1.2, 1.6]])).tolist() == [[0.0, 1.0]]
    neurons = snn.SLIF(2, beta=0.5)
    neurons.mem = torch.ones(1, 2)  # syn stays None: it starts at zero
    assert neurons(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    assert neurons.mem.tolist() == [[0.5, 0.5]]
