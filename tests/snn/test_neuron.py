from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.optim.swa_utils import AveragedModel

import tracetorch as tt
from tests.cases import LAYERS, layer, sequence, stepped
from tracetorch import snn
from tracetorch.functional import Surrogate, atan_surrogate


class Net(snn.TTModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), layer("BSRLIF", 4), nn.Linear(4, 2))
        self.out = layer("SRReadout", 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x))


# A neuron of one's own


class AdaptiveLIF(snn.Neuron):
    states = ("mem", "fatigue")

    def __init__(self, num_neurons: int, dim: int = -1) -> None:
        super().__init__(num_neurons, dim)
        self.decay("beta", 0.9)
        self.threshold("base", 1.0)

    @staticmethod
    def step(
        x: Tensor, mem: Tensor, fatigue: Tensor, *, beta: Tensor, base: Tensor, spike: Surrogate
    ) -> tuple[Tensor, Tensor, Tensor]:
        mem = beta * mem + x
        fired = spike(mem - base - fatigue)
        return fired, mem - fired * base, 0.95 * fatigue + 0.1 * fired


def test_a_neuron_in_ten_lines() -> None:
    made = AdaptiveLIF(2)
    assert set(made.state_dict()) == {"raw_beta", "raw_base"}
    out = stepped(made, torch.full((6, 1, 2), 1.1))
    assert out[0].tolist() == [[1.0, 1.0]]
    assert 0.1 < made.fatigue[0, 0].item() < 0.6
    out.sum().backward()
    assert bool((made.raw_base.grad != 0).all())
    made.zero_states()
    assert made.mem is made.fatigue is None


def test_a_neuron_may_take_weights_options_and_modules() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(2.0))

        def forward(self, u: Tensor) -> Tensor:
            return torch.sigmoid(self.k * u)

    class Gained(snn.Neuron):
        states = ("mem",)

        def __init__(self) -> None:
            super().__init__(2)
            self.weight("gain", 2.0, rank=0, learnable=False)
            self.threshold("theta", {"value": 0.5}, surrogate=Slope())
            self.option("power", 2)

        @staticmethod
        def step(
            x: Tensor, mem: Tensor, *, gain: Tensor, theta: Tensor, power: int, spike: Slope
        ) -> tuple[Tensor, Tensor]:
            mem = mem + gain * x**power
            return spike(mem - theta), mem

    made = Gained()
    assert {name for name, _ in made.named_parameters()} == {"raw_theta", "spike.k"}
    assert made(torch.ones(1, 2)).tolist() == [[pytest.approx(torch.tensor(3.0).sigmoid())] * 2]
    made.power = 3
    made(torch.full((1, 2), 2.0)).sum().backward()
    assert made.spike.k.grad is not None
    assert made.mem.tolist() == [[18.0, 18.0]]


class Returning(snn.Neuron):
    """Gives back whatever it was told to."""

    states = ("mem", "slow")

    def __init__(self, results: Any) -> None:
        super().__init__(2)
        self.option("results", results)

    @staticmethod
    def step(x: Tensor, mem: Tensor, slow: Tensor, *, results: Any) -> Any:
        return results(x, mem, slow)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (lambda x, mem, slow: (x, mem), r"output and the states \('mem', 'slow'\), got 2"),
        (lambda x, mem, slow: x, "must return a tuple of the output and the states .* got Tensor"),
        (lambda x, mem, slow: (x, mem, None), r"must return slow in the .*\[1, 2\], got NoneType"),
        (lambda x, mem, slow: (x, mem, slow[0]), r"must return slow in the .* got \[2\]"),
        (lambda x, mem, slow: (x.sum(), mem, slow), r"must return output in the .* got \[\]"),
        (lambda x, mem, slow: (x, mem, slow.double()), "must return slow in the dtype it works in"),
    ],
)
def test_a_step_that_returns_something_else(results: Any, message: str) -> None:
    made = Returning(results)
    with pytest.raises(ValueError, match=message):
        made(torch.ones(1, 2))
    assert made.mem is made.slow is None


def test_states_share_no_memory_with_output_or_input() -> None:
    made = Returning(lambda x, mem, slow: (mem + x, x, x))
    x = torch.ones(1, 2)
    made(x)
    x += 1
    made.mem += 5
    assert made.slow.tolist() == [[1.0, 1.0]]
    readout = snn.RReadout(2)
    with torch.no_grad():
        out = readout(torch.ones(1, 2))
    before = readout.mem.clone()
    out.zero_()
    assert torch.equal(readout.mem, before)
    assert torch.equal(readout.prev_output, before)


@pytest.mark.parametrize("alias", [lambda x: x[:], lambda x: x.detach(), lambda x: x.view_as(x)])
def test_views_are_no_way_around_it(alias: Any) -> None:
    made = Returning(lambda x, mem, slow: (alias(mem), mem, alias(x)))
    x = torch.ones(1, 2)
    out = made(x)
    x += 5
    held = made.mem
    out = made(x)
    out += 7
    assert made.slow.tolist() == [[6.0, 6.0]]
    assert made.mem.tolist() == held.tolist() == [[0.0, 0.0]]


def test_an_output_may_be_changed_in_place() -> None:
    made = nn.Sequential(snn.Readout(2), nn.ReLU(inplace=True))
    x = torch.tensor([[1.0, -1.0]], requires_grad=True)
    made(x).sum().backward()
    assert x.grad.tolist() == [[pytest.approx(0.1), 0.0]]
    assert made[0].mem.tolist() == [[pytest.approx(0.1), pytest.approx(-0.1)]]


def test_states_are_a_tuple() -> None:
    class Comma(snn.Neuron):
        states = "mem"

    with pytest.raises(TypeError, match=r"states must be a tuple of names, got 'mem'.*\('mem',\)"):
        Comma(2)


def test_a_tensor_option_moves_along() -> None:
    class Offset(snn.Neuron):
        def __init__(self) -> None:
            super().__init__(2)
            self.option("offset", torch.ones(2))

        @staticmethod
        def step(x: Tensor, *, offset: Tensor) -> tuple[Tensor]:
            return (x + offset,)

    made = Offset().double()
    assert made(torch.zeros(1, 2).double()).tolist() == [[1.0, 1.0]]
    assert made.offset.dtype == torch.float64


def test_a_state_set_to_something_else() -> None:
    made = snn.LIF(2)
    made.mem = 0.0
    with pytest.raises(TypeError, match=r"LIF\(2\) needs a tensor as mem, got float"):
        made(torch.ones(1, 2))


def test_a_state_that_a_transform_left_behind_is_refused() -> None:
    made = snn.LIF(2)
    vmap(made)(torch.ones(3, 1, 2))
    with pytest.raises(ValueError, match="left behind by a traced or transformed call"):
        made(torch.ones(1, 2))
    made.zero_states()
    made(torch.ones(1, 2))


@pytest.mark.parametrize("name", ["forward", "mem", "beta", "two words", "raw_beta"])
def test_a_name_that_is_taken(name: str) -> None:
    made = AdaptiveLIF(2)
    with pytest.raises(ValueError, match=f"AdaptiveLIF cannot call a state, .* '{name}'"):
        made.decay(name)


# What a call may be given


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0] * 4], TypeError, r"takes a tensor, got list. Wrap arrays"),
        (torch.ones(2, 4, dtype=torch.int64), TypeError, r"got torch.int64. Convert .* \.float"),
        (torch.ones(2, 4, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.ones(2, 4, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.ones(2, 7), ValueError, r"has 4 neurons, the input has 7 at dim -1, shape \[2, 7\]"),
        (torch.ones(2, 1), ValueError, "has 4 neurons, the input has 1 at dim -1"),
        (torch.tensor(1.0), ValueError, "at dim -1, the input has only 0 dimensions"),
    ],
)
def test_a_bad_input_changes_nothing(
    name: str, x: Any, error: type[Exception], message: str
) -> None:
    for rank in (0, 1):
        made = layer(name, 4, beta_rank=rank)
        made(torch.ones(2, 4))
        before = tt.get_states(made)
        with pytest.raises(error, match=message):
            made(x)
        assert all(torch.equal(before[k], v) for k, v in tt.get_states(made).items())


def test_dim_out_of_range_of_the_input() -> None:
    for dim in (-3, 2):
        with pytest.raises(ValueError, match=f"at dim {dim}, the input has only 2 dimensions"):
            snn.LIF(4, dim=dim)(torch.ones(2, 4))


@pytest.mark.parametrize("after", [(1, 4), (3, 4), (2, 1, 4), (4,)])
def test_another_batch_is_an_error_and_nothing_broadcasts(after: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Sequential(nn.Identity(), snn.BSRLIF(4)))
    net(torch.ones(2, 4))
    before = tt.get_states(net)
    with pytest.raises(
        ValueError,
        match=rf"layer '0.1', BSRLIF\(4\), holds the state mem of shape \[2, 4\].*"
        rf"the input has shape \[{', '.join(map(str, after))}\].*zero_states\(\)",
    ):
        net(torch.ones(after))
    assert all(torch.equal(before[name], state) for name, state in tt.get_states(net).items())
    tt.zero_states(net)
    assert net(torch.ones(after)).shape == after


def test_a_batch_of_1_is_not_stretched() -> None:
    made = snn.LIF(4)
    made(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"shape \[1, 4\].*shape \[3, 4\]"):
        made(torch.ones(3, 4))


def test_another_dtype_or_device_is_an_error() -> None:
    made = snn.LIF(4)
    made(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\[2, 4\], torch.float32.*needs torch.float64"):
        made(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"on cpu; .* on meta"):
        made(torch.ones(2, 4, device="meta"))


def test_the_message_names_the_layer_where_it_can() -> None:
    class Hidden(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.cells = [snn.LIF(2)]

        def forward(self, x: Tensor) -> Tensor:
            return self.cells[0](x)

    outer = nn.ModuleDict({"body": nn.Sequential(Hidden())})
    with pytest.raises(ValueError, match=r"^layer '0\.cells\.0', LIF\(2\), has 2 neurons"):
        outer["body"](torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"^LIF\(2\) has 2 neurons"):
        snn.LIF(2)(torch.ones(1, 3))


# Dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_has_the_dtype_of_the_input(name: str, dtype: torch.dtype) -> None:
    x = sequence(5, 2, 4, dtype=dtype)
    made = layer(name, 4)
    out = stepped(made, x)
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.dtype == dtype
    assert {state.dtype for state in tt.get_states(made).values()} == {arithmetic}
    made.zero_states()
    assert torch.equal(out, stepped(made, x.to(arithmetic)).to(dtype))


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


def test_half_precision_in_the_middle_of_a_sequence() -> None:
    made = snn.SLIF(4)
    x = sequence(6, 2, 4, dtype=torch.float32)
    stepped(made, x[:3])
    before = tt.get_states(made)
    made.bfloat16()
    assert all(torch.equal(before[k], v) for k, v in tt.get_states(made).items())
    made(x[3].bfloat16())  # the arithmetic is float32 as before
    made.double()
    assert made.mem.dtype == torch.float64
    made(x[4].double())


def test_autocast() -> None:
    net = Net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = stepped(net, sequence(4, 2, 3, dtype=torch.float32))
    assert out.dtype == torch.bfloat16
    assert net.out.mem.dtype == torch.float32
    out.float().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


# Modes


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_switch_of_mode_in_the_middle_is_safe(off: Any) -> None:
    x = sequence(6, 2, 3, dtype=torch.float32)
    plain, switched = Net(), Net()
    switched.load_state_dict(plain.state_dict())
    expected = stepped(plain, x)
    first = stepped(switched, x[:2])
    switched.eval()
    with off():
        second = stepped(switched, x[2:4])
    switched.train()
    third = stepped(switched, x[4:])
    assert torch.equal(torch.cat([first, second, third]), expected)
    third.sum().backward()
    assert all(p.grad is not None for p in switched.parameters())


def test_func_transforms() -> None:
    made = layer("SLIF", 3).double()
    x = sequence(4, 5, 3)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        made.zero_states()
        steps = [functional_call(made, parameters, (step,)) for step in sample.unbind()]
        made.zero_states()
        return torch.stack(steps).sum() + steps[0].sum()

    parameters = {name: p.detach() for name, p in made.named_parameters()}
    per_sample = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for i in range(x.shape[1]):
        alone = grad(loss)(parameters, x[:, i])
        for name, value in alone.items():
            torch.testing.assert_close(per_sample[name][i], value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler about itself
def test_compile_of_steps_and_of_a_whole_sequence() -> None:
    torch.compiler.reset()
    net = Net().double()
    x = sequence(4, 2, 3)

    def run(inputs: Tensor) -> Tensor:
        net.zero_states()
        return torch.stack([net(step) for step in inputs.unbind()])

    expected = run(x)
    expected.sum().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_states()
    compiled = torch.compile(net, fullgraph=True)
    for road in (lambda: torch.stack([compiled(step) for step in x.unbind()]),
                 lambda: torch.compile(run, fullgraph=True)(x)):  # fmt: skip
        net.zero_grad()
        out = road()
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.grad, grads[name])
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_compile_says_what_it_cannot_reach() -> None:
    class Hidden(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.cells = [snn.LIF(2)]

        def forward(self, x: Tensor) -> Tensor:
            self.zero_states()
            return self.cells[0](x)

    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="held in a plain list, dict or"):
        torch.compile(Hidden(), fullgraph=True, backend="eager")(torch.ones(1, 2))
    broken = torch.compile(Hidden(), backend="eager")  # a graph break finds it as ever
    for _ in range(2):
        assert broken(torch.full((1, 2), 0.75)).tolist() == [[0.0, 0.0]]
    torch.compiler.reset()


# Export


class Looped(snn.TTModule):
    def __init__(self, zero_before: bool, zero_after: bool) -> None:
        super().__init__()
        self.net = Net()
        self.before, self.after = zero_before, zero_after

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            self.zero_states()
        out = torch.stack([self.net(step) for step in x.unbind()])
        if self.after:
            self.zero_states()
        return out


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of attributes that the trace assigns
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("zero_after", [False, True])
def test_export_raises_where_it_would_freeze_a_state(
    strict: bool, live: bool, zero_after: bool
) -> None:
    model = Looped(False, zero_after)
    x = torch.ones(2, 2, 3)
    if live:
        model.net(x[0])
    before = tt.get_states(model)
    with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported), match="would freeze the sta"):
        torch.export.export(model, (x,), strict=strict)
    after = tt.get_states(model)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], state) for name, state in after.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("zero_after", [False, True])
def test_export_of_a_whole_sequence_is_exact(strict: bool, zero_after: bool) -> None:
    model = Looped(True, zero_after)
    x = sequence(4, 2, 3, dtype=torch.float32)
    program = torch.export.export(model, (x,), strict=strict)
    model.zero_states()
    torch.testing.assert_close(program.module()(x), model(x))
    model.before = False
    model.zero_states()
    with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported), match="would freeze the sta"):
        torch.export.export(model, (x,), strict=strict)


def test_a_state_that_a_trace_left_behind_is_refused() -> None:
    made = snn.LIF(2)
    with FakeTensorMode():
        made.mem = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"a state mem without values, left behind by a tra"):
        made(torch.ones(1, 2))
    made.zero_states()
    made(torch.ones(1, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is deprecated")  # torch 2.15
def test_jit_trace_raises_too() -> None:
    with pytest.raises(RuntimeError, match="would freeze the state"):
        torch.jit.trace(Net(), (torch.ones(2, 3),))


# Moving and keeping


def test_states_follow_to() -> None:
    net = Net()
    net(torch.ones(2, 3))
    net.double()
    assert {state.dtype for state in tt.get_states(net).values()} == {torch.float64}
    assert net.out.mem.requires_grad
    net.to("meta")
    assert {state.device.type for state in tt.get_states(net).values()} == {"meta"}


def test_to_empty_keeps_no_values() -> None:
    net = Net()
    net(torch.ones(2, 3))
    net.to_empty(device="cpu")
    assert tt.get_states(net) == {}


def through_pickle(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


def through_save(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, through_pickle, through_save])
@pytest.mark.parametrize("steps", [0, 3])
def test_copies_go_on_where_the_original_stood(copied: Any, steps: int) -> None:
    x = sequence(6, 2, 3, dtype=torch.float32)
    net = Net()
    for step in x[:steps].unbind():
        net(step)
    twin = copied(net)
    if steps and copied is not copy.copy:
        assert not twin.out.mem.requires_grad
        assert twin.out.mem.untyped_storage().data_ptr() != net.out.mem.untyped_storage().data_ptr()
    if copied is copy.copy:  # shares its layers with the original
        net = copy.deepcopy(net)
    assert torch.equal(stepped(twin, x[steps:]), stepped(net, x[steps:]))
    assert repr(twin) == repr(net)


def test_a_copy_in_another_process() -> None:
    code = (
        "import pickle, sys, torch\n"
        "layer = pickle.load(sys.stdin.buffer)\n"
        "print(layer, layer.mem.tolist(), [round(v, 4) for v in layer.beta.tolist()])"
    )
    made = snn.LIF(1)
    made(torch.ones(1, 1) / 2)
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(made), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "LIF(1) [[0.5]] [0.9]"


def test_weight_averaging_in_the_middle_of_a_sequence() -> None:
    net = Net()
    net(torch.ones(2, 3))
    averaged = AveragedModel(net)
    averaged.update_parameters(net)
    net(torch.ones(2, 3))
    averaged.update_parameters(net)
    assert averaged(torch.ones(2, 3)).shape == (2, 2)


def test_state_dict_holds_no_states() -> None:
    net = Net()
    fresh = set(net.state_dict())
    net(torch.ones(2, 3))
    assert set(net.state_dict()) == fresh
    assert not any(name.endswith(("mem", "syn", "rec", "prev_output")) for name in fresh)
    other = Net()
    other.load_state_dict(net.state_dict())
    net.zero_states()
    assert torch.equal(other(torch.ones(2, 3)), net(torch.ones(2, 3)))


def test_data_parallel_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"throws their states away .*DistributedDataParallel"):
        snn.LIF(2)._replicate_for_data_parallel()


def test_states_may_be_set_by_hand() -> None:
    made = snn.SLIF(2, beta=0.5)
    made.mem = torch.ones(1, 2)  # syn stays None: it starts at zero
    assert made(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    assert made.mem.tolist() == [[0.5, 0.5]]


def test_a_surrogate_may_be_annealed() -> None:
    made = snn.LIF(1, surrogate_derivative=atan_surrogate(2.0))
    x = torch.zeros(1, 1, requires_grad=True)
    grads = []
    for alpha in (2.0, 8.0):
        made.pos_spike = atan_surrogate(alpha)
        made.zero_states()
        x.grad = None
        made(x).sum().backward()
        grads.append(x.grad.item())
    assert grads[0] == pytest.approx(1 / (1 + torch.pi**2))
    assert grads[1] == pytest.approx(4 / (1 + (4 * torch.pi) ** 2))


def test_any_callable_is_a_spike_function() -> None:
    made = snn.LIF(2, surrogate_derivative=lambda u: (u > 0.5).to(u.dtype))
    assert made(torch.tensor([[1.2, 1.6]])).tolist() == [[0.0, 1.0]]
