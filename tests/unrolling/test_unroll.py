import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer, module, sequence, stepped, weighted_sum
from tests.refusals import check, refusals
from tests.unrolling.models import MODELS, dyadic, made
from tracetorch import snn
from tracetorch.snn.passes import current_pass


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_by_layer_and_by_step_equal_the_python_loop(name: str) -> None:
    x = dyadic(7, *MODELS[name][1])
    model = made(name)
    seen = tt.unroll(model, x, record="output", from_rest=True)[1]
    assert all(float((y != 0).double().mean()) > 0.01 for y in seen.values())
    expected = stepped(model, x)
    weighted_sum(expected).backward()
    grads, states = gradients(model), tt.get_states(model)
    for by in ("layer", "step"):
        tt.zero_states(model)
        out = tt.unroll(model, x, by=by)
        assert torch.equal(out, expected), by
        assert all(torch.equal(s, states[k]) for k, s in tt.get_states(model).items())
        weighted_sum(out).backward()
        torch.testing.assert_close(gradients(model), grads)
        for time_dim in (1, -1):
            tt.zero_states(model)
            y = tt.unroll(model, x.movedim(0, time_dim), by=by, time_dim=time_dim)
            assert torch.equal(y, expected.movedim(0, time_dim))


@pytest.mark.parametrize("by", ["layer", "step"])
def test_several_inputs_and_nested_outputs(by: Any) -> None:
    model = made("skip")
    x, gate = dyadic(5, 2, 4), dyadic(5, 2, 4, seed=1)
    steps = [model(a, b) for a, b in zip(x.unbind(), gate.unbind(), strict=True)]
    for inputs in ((x, gate), {"gate": gate, "x": x}):
        tt.zero_states(model)
        y = tt.unroll(model, inputs, by=by)
        assert set(y) == {"out", "aux"}
        assert torch.equal(y["out"], torch.stack([s["out"] for s in steps]))
        assert torch.equal(y["aux"][0], torch.stack([s["aux"][0] for s in steps]))
        assert torch.equal(y["aux"][1], x)


@pytest.mark.parametrize("way", ["steps", "expanded"])
@pytest.mark.parametrize(
    "change", ["nothing", "a hook", "a backward hook", "a forward", "a subclass", "a gradient"]
)
def test_what_comes_before_the_first_neuron_runs_once(way: str, change: str) -> None:
    net, x, rows = made("dense"), dyadic(2, 3), list[int]()
    first = net[0]
    if change == "a hook":
        first.register_forward_hook(lambda *_: None)
    elif change == "a backward hook":  # which sees the gradients of all steps, not their sum
        first.register_full_backward_hook(lambda *_: None)
    elif change == "a subclass":
        forward = {"forward": lambda s, x: nn.Linear.forward(s, x)}
        first.__class__ = type("Own", (nn.Linear,), forward)
    elif change == "a forward":
        first.forward = lambda x: nn.Linear.forward(first, x)
    elif change == "a gradient":
        x.requires_grad_()

    class Rows(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), named: Any = None) -> Any:
            if op is torch.ops.aten.addmm.default:
                rows.append(len(args[1]))
            return op(*args, **(named or {}))

    expected = tt.unroll(net, x.expand(6, *x.shape), by="step", from_rest=True)
    tt.unroll(net, x, steps=6, from_rest=True)  # the first time by step too
    with Rows():
        given, steps = (x, 6) if way == "steps" else (x.expand(6, *x.shape), None)
        y = tt.unroll(net, given, steps=steps, from_rest=True)
    assert torch.equal(y, expected)
    once = change == "nothing" or (change == "a gradient" and way == "steps")
    assert rows[0] == (2 if once else 12)


@pytest.mark.parametrize("by", ["layer", "step"])
def test_keyword_inputs_can_be_recorded(by: Any) -> None:
    named, x = module(lambda s, x: s.cell(x=2 * x), cell=snn.LIF(3)), dyadic(5, 2, 3)
    assert torch.equal(tt.unroll(named, x, by=by, record="input")[1]["cell.input"], 2 * x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), layer("LIF", 4), layer("BSRLIF", 4)).to(dtype)
    x = sequence(6, 2, 3).to(dtype)
    y, seen = tt.unroll(model, x, record="mem", from_rest=True)
    assert (y.dtype, seen["1.mem"].dtype) == (dtype, torch.float32)
    assert torch.equal(y, stepped(model, x))


OUTPUTS: dict[str, Any] = {"sum": lambda y: y.sum(), "cut": lambda y: y[:1], "word": lambda y: "y"}


def unusual(kind: str) -> Any:
    """Make a model with an output whose first dimension is not the batch."""
    return module(lambda s, x: OUTPUTS[kind](s.cell(x)), cell=snn.LIF(3))


@refusals(
    r"""
    nn.LSTM(3, 3) -> ValueError: on sequences outside of unroll, or use an nn\.GRUCell, say
    nn.Sequential(nn.Flatten(0)) -> ValueError: begins with time and batch, 4 \* 2 = 8; .* \[24\]
    nn.Sequential(nn.Flatten(0), snn.LIF(3, dim=0)) -> ValueError: 3 neurons, one step .* has 6 at
    unusual("sum") -> ValueError: with time and batch, 4 \* 2 = 8; the model gave shape \[\]
    unusual("cut") -> ValueError: the model gave shape \[1, 3\]
    unusual("word") -> ValueError: the model gave str
    nn.Sequential(snn.LIF(3), snn.LIF(2)) -> ValueError: has 2 neurons, one step of the input
    """
)
def test_error_names_what_cannot_run_by_layer_and_changes_nothing(call: str, error: str) -> None:
    model = eval(call)
    check("tt.unroll(model, torch.ones(4, 2, 3))", error, {**globals(), "model": model})
    assert tt.get_states(model) == {}
    assert current_pass() is None


def test_outputs_and_records_of_models_that_run_by_step_alone() -> None:
    model, x = module(lambda s, x: s.cell(s.cell(x)), cell=snn.LIF(3)), torch.ones(4, 2, 3)
    with pytest.raises(TypeError, match="every output must be a tensor, the model gave str"):
        tt.unroll(unusual("word"), x, by="step")
    assert tt.unroll(unusual("sum"), x, by="step").shape == (4,)
    with pytest.raises(ValueError, match=r"record: .cell\.output. was seen 8 times in 4 steps"):
        tt.unroll(model, x, by="step", record="cell.output")
    assert model.cell.mem is None


RAGGED = [torch.ones(3, 2), torch.ones(2, 2)]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a prototype, says PyTorch
    NESTED = torch.nested.nested_tensor(RAGGED)
JAGGED = torch.nested.nested_tensor(RAGGED, layout=torch.jagged)
PACKED = nn.utils.rnn.pack_sequence(RAGGED)
X = torch.ones(5, 2, 3)


@refusals(
    r"""
    X, by="time" -> ValueError: by must be 'layer' or 'step', got
    X, steps=0 -> ValueError: steps must be at least 1, got 0
    X, steps=2.0 -> TypeError: steps must be an integer, got 2.0
    X, time_dim="t" -> TypeError: time_dim must be an integer, got 't'
    X, time_dim=3 -> ValueError: time_dim is 3, but x has shape \[5, 2, 3\]
    torch.ones(0, 2, 3) -> ValueError: x has no time step: shape \[0, 2, 3\]
    torch.ones(3) -> ValueError: x needs time and a batch, got shape \[3\]\. Of one sample, x\.unsq
    torch.ones(()), steps=2 -> ValueError: x needs a batch, got shape \[\]
    X.numpy() -> TypeError: got ndarray\. Sequences of unequal length: x, mask =
    [1.0] -> TypeError: x must be a tensor, a tuple or a dict of tensors, got list
    NESTED -> TypeError: got a nested tensor\. .*tt\.data\.pad\(sequences\)
    JAGGED -> TypeError: got a nested tensor\. .*tt\.data\.pad\(sequences\)
    PACKED -> TypeError: got PackedSequence\. .*mask goes to losses, decod
    RAGGED -> TypeError: got list\. Sequences of unequal length: x, mask =
    () -> ValueError: x holds no tensor
    {} -> ValueError: x holds no tensor
    (X, 1) -> TypeError: x\[1\] must be a tensor, got int
    (X, X[:4]) -> ValueError: x: x\[1\] has time and batch \[4, 2\], x\[0\] has \[5, 2\]
    {"a": X[0], "b": X}, steps=4 -> ValueError: x\['b'\] has batch \[5\], x\['a'\] has
    X, record="mme" -> ValueError: nothing is called 'mme'. Did you
    X, record=[1] -> TypeError: record takes a name or a list of names, got \[1\]
    X, segment=0 -> ValueError: segment must be at least 1, got 0
    X, segment=2.0 -> TypeError: segment must be an integer, got 2.0
    X, check=0 -> ValueError: check must be
    X, check=2.0 -> TypeError: check must be
    X, check="yes" -> TypeError: check must be
    """
)
def test_error_names_a_bad_argument(call: str, error: str) -> None:
    check(f"tt.unroll(snn.LIF(3), {call})", error, globals())


def test_by_step_does_not_take_a_batch_for_a_sequence() -> None:
    x = torch.ones(4, 2, 3)
    for forward in (lambda s, x: s.gru(x)[0], lambda s, x: s.gru(input=x)[0]):
        for run in (tt.unroll, tt.metrics.profile):
            with pytest.raises(ValueError, match=r"gru \(GRU\) keeps a memory.*nn\.GRUCell"):
                run(module(forward, gru=nn.GRU(3, 3)), x, by="step")
    # with a time of its own inside the step it is right
    model = module(lambda s, x: s.gru(x[None])[0][0], gru=nn.GRU(3, 3))
    assert torch.equal(tt.unroll(model, x, by="step"), torch.stack([model(step) for step in x]))
    assert not model.gru._forward_pre_hooks


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("segment", [None, 2])
def test_from_rest_starts_from_zero_and_leaves_no_states(by: Any, segment: Any) -> None:
    net, x = layer("SRLIF", 4), 2 * torch.rand(5, 3, 4)
    expected = tt.unroll(net, x)
    held = tt.get_states(net, detach=False)
    assert torch.equal(tt.unroll(net, x, by=by, segment=segment, from_rest=True), expected)
    assert all(state is held[name] for name, state in tt.get_states(net, detach=False).items())
    tt.zero_states(net)
    other = tt.unroll(net, torch.rand(5, 7, 4), by=by, from_rest=True)
    assert other.shape == (5, 7, 4)
    assert tt.get_states(net) == {}
    with pytest.raises(ValueError, match="has 4 neurons"):
        tt.unroll(net, torch.rand(5, 7, 3), by=by, from_rest=True)
    assert tt.get_states(net) == {}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("by", ["layer", "step"])
def test_nan_is_logged_once(by: Any, grad: bool, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(4, 4), snn.LIF(4), nn.Linear(4, 2), snn.Readout(2))
    x = torch.rand(5, 3, 4)
    with torch.set_grad_enabled(grad):
        tt.unroll(net, torch.rand(5, 3, 4), by=by, from_rest=True)
        assert caplog.text == ""
        x[0, 2, 1] = torch.nan
        for _ in range(2):
            y = tt.unroll(net, x, by=by, from_rest=True)
    assert torch.isfinite(y).all()
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("1.mem is NaN, and stays so until zero_states(). A neuron's spike is")
    assert "tt.diagnose names where it begins" in message
    caplog.clear()  # nor is it looked for inside a transform
    x = torch.full((6, 5, 3, 4), torch.nan)
    torch.func.vmap(lambda each: tt.unroll(snn.LIF(4), each, from_rest=True))(x)
    assert "NaN" not in caplog.text
