from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import weighted_sum
from tests.refusals import check, refusals
from tests.unrolling.models import MODELS, dyadic, made
from tracetorch import fuse, snn
from tracetorch.core.hooks import forward_hooks
from tracetorch.probe import Recording


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("name", MODELS)
def test_recorded_values_equal_those_of_the_plain_loop(name: str, by: Any) -> None:
    x = dyadic(5, *MODELS[name][1])
    model = made(name)
    neurons = {path: m for path, m in model.named_modules() if isinstance(m, snn.SequenceLayer)}
    expected: dict[str, list[Tensor]] = {}
    inputs: dict[str, Tensor] = {}
    hooks = [
        (m, lambda _, args, path=path: inputs.update({path: args[0]}))
        for path, m in neurons.items()
    ]
    with forward_hooks(before=hooks):
        for step in x.unbind():
            model(step)
            for path, layer in neurons.items():
                for state in layer.active_states:
                    expected.setdefault(f"{path}.{state}", []).append(getattr(layer, state))
                expected.setdefault(f"{path}.input", []).append(inputs[path])
    tt.zero_states(model)
    y, seen = tt.probe.record(model, x, ["*"], by=by)
    assert isinstance(seen, Recording)
    assert {n for n in seen if not n.endswith(".output")} == set(expected)
    for path, steps in expected.items():
        assert torch.equal(seen[path], torch.stack(steps)), path
    assert torch.equal(seen[[n for n in seen if n.endswith("output")][-1]], y)


@pytest.mark.parametrize("by", ["layer", "step"])
def test_steps_repeat_a_constant_input(by: Any) -> None:
    model, x = made("dense"), dyadic(2, 3)
    y, seen = tt.probe.record(model, x, "*", steps=4, by=by)
    tt.zero_states(model)
    expected, whole = tt.probe.record(model, x.expand(4, 2, 3), "*", by=by)
    assert torch.equal(y, expected)
    assert all(torch.equal(seen[name], whole[name]) for name in whole)


def test_record_by_layer_runs_fused_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    if fuse.unavailable_reason("cpu") is not None:
        pytest.skip("without llvmlite the plain loop is the only one")
    monkeypatch.setattr(
        "tracetorch.fuse.dispatch.prepared.run_eagerly",
        lambda *_: pytest.fail("the plain loop was run"),
    )
    # what a single step calls, for a neuron whose own step is patched runs by steps
    monkeypatch.setattr(
        "tracetorch.snn.neuron.check_step_results", lambda *_: pytest.fail("a single step was run")
    )
    with fuse.backend("cpu"):  # a layer without a kernel raises
        y, seen = tt.probe.record(made("dense"), dyadic(5, 2, 3), "*", gradients=False)
        _, ends = tt.probe.record(made("dense"), dyadic(5, 2, 3), "output", gradients=True)
    assert len(seen) == 9
    assert torch.equal(ends["3.output"], y)


@pytest.mark.parametrize("name", ["dense", "conv", "recurrent"])
def test_gradients_equal_those_of_an_added_zero(name: str) -> None:
    """Compare with a loop that adds a zero to every input and takes the zero's gradient."""
    x = dyadic(4, *MODELS[name][1])
    model = made(name)
    zeros: list[Tensor] = []

    def shifted(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        zeros.append(torch.zeros_like(args[0], requires_grad=True))
        return (args[0] + zeros[-1],)

    hook = model[1].register_forward_pre_hook(shifted)
    weighted_sum(torch.stack([model(step) for step in x.unbind()])).backward()
    hook.remove()
    wanted = torch.stack([z.grad for z in zeros])
    assert wanted.abs().sum() > 0
    for by in ("layer", "step"):
        tt.zero_states(model)
        y, seen = tt.probe.record(model, x, ["1.input", "1.output"], gradients=True, by=by)
        weighted_sum(y).backward()
        torch.testing.assert_close(seen.gradients()["1.input"], wanted)
        assert seen.gradients()["1.output"].shape == seen["1.output"].shape


def test_gradients_of_states_by_step_have_the_closed_form_of_a_leak() -> None:
    """A factor beta for every later step; the last state reaches no output."""
    model = snn.Readout(3, beta=0.5).double()
    y, seen = tt.probe.record(model, dyadic(4, 2, 3), "mem", gradients=True, by="step")
    y[-1].sum().backward()
    wanted = torch.tensor([0.125, 0.25, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(seen.gradients()["mem"], wanted.view(4, 1, 1).expand(4, 2, 3))


def test_gradients_of_what_has_none_are_zero_or_left_out() -> None:
    model = made("dense")
    _, seen = tt.probe.record(model, dyadic(4, 2, 3), "output", gradients=True)
    seen["1.output"].sum().backward()
    assert not seen.gradients()["3.output"].any()
    assert (seen.gradients()["1.output"] == 1).all()
    model = snn.LIF(3).double()
    y, seen = tt.probe.record(model, dyadic(4, 2, 3), ["input", "output"], gradients=True)
    y.sum().backward()
    assert list(seen.gradients()) == ["output"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("1.neuron.mem", "is a state in a fused loop: ask for .input. and .output., or use rec"),
        ("1.neuron.output", "is inside a snn.Recurrent: leave it out, or use .*by=.step.*not kept"),
    ],
)
def test_gradients_that_a_fused_loop_does_not_keep_are_refused(what: str, message: str) -> None:
    model = made("recurrent")
    with pytest.raises(ValueError, match=f"record: '{what}' {message}"):
        tt.probe.record(model, dyadic(4, 2, 3), what, gradients=True)
    assert tt.get_states(model) == {}


@refusals(
    r"""
    tt.probe.record(model, x, "men") -> ValueError: record: nothing is called 'men'\. Did you mean
    tt.probe.record(model, x, "men", by="step") -> ValueError: watch: nothing is called 'men'\. Did
    tt.probe.record(model, x, [3]) -> TypeError: takes a name or a list of names, got
    tt.probe.record(nn.Linear(3, 3), x, "mem") -> ValueError: nothing in it has states
    tt.probe.record("model", x, "mem") -> TypeError: expected an nn\.Module, got str
    tt.probe.record(model, x, "mem")[1].gradients() -> ValueError: recorded without gradients
    tt.probe.record(model, x, "output", gradients=True)[1].gradients()
        -> ValueError: no gradient has arrived\. Call backward\(\)
    tt.probe.Recording({"mem": [1.0]}) -> TypeError: names to tensors, got list at 'mem'
    tt.probe.watch(model, 3) -> TypeError: watch takes a name or a list of names, got 3
    """
)
def test_wrong_arguments(call: str, error: str) -> None:
    check(call, error, {**globals(), "model": made("dense"), "x": dyadic(4, 2, 3)})
