"""What a model computes within, recorded by a call or watched in a loop, and its gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import weighted_sum
from tests.networks import Twice
from tests.refusals import check, refusals
from tests.unrolling.models import MODELS, dyadic, made
from tracetorch import fuse, snn
from tracetorch.core.hooks import forward_hooks
from tracetorch.probe import Recording

by_both = pytest.mark.parametrize("by", ["layer", "step"])


def recorded(what: Any, **options: Any) -> tuple[Tensor, Any]:
    return tt.probe.record(made("dense"), dyadic(4, 2, 3), what, **options)


@by_both
@pytest.mark.parametrize("name", MODELS)
def test_recorded_values_equal_those_of_the_plain_loop(name: str, by: Any) -> None:
    x = dyadic(5, *MODELS[name][1])
    model = made(name)
    neurons = {path: m for path, m in model.named_modules() if isinstance(m, snn.SequenceLayer)}
    expected: dict[str, list[Tensor]] = {}
    inputs: dict[str, Tensor] = {}
    keep = lambda path: lambda _, args: inputs.update({path: args[0]})  # noqa: E731
    hooks = [(m, keep(path)) for path, m in neurons.items()]
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


@by_both
def test_steps_repeat_a_constant_input(by: Any) -> None:
    model, x = made("dense"), dyadic(2, 3)
    y, seen = tt.probe.record(model, x, "*", steps=4, by=by)
    tt.zero_states(model)
    expected, whole = tt.probe.record(model, x.expand(4, 2, 3), "*", by=by)
    assert torch.equal(y, expected)
    assert all(torch.equal(seen[name], whole[name]) for name in whole)


def test_record_by_layer_runs_fused_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    # the plain loop, and what a single step calls: a neuron whose step is patched runs by steps
    for name in ("fuse.dispatch.prepared.run_eagerly", "snn.neuron.check_step_results"):
        monkeypatch.setattr(f"tracetorch.{name}", lambda *_: pytest.fail("a plain step was run"))
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
    _, seen = recorded("output", gradients=True)
    seen["1.output"].sum().backward()
    assert not seen.gradients()["3.output"].any()
    assert (seen.gradients()["1.output"] == 1).all()
    y, seen = tt.probe.record(snn.LIF(3), torch.ones(4, 2, 3), ["input", "output"], gradients=True)
    y.sum().backward()
    assert list(seen.gradients()) == ["output"]


def test_recording_is_a_mapping() -> None:
    _, seen = recorded(["mem", "output"])
    assert list(seen) == ["1.mem", "1.output", "3.mem", "3.output"]
    assert (len(seen), "1.mem" in seen, "9.mem" in seen) == (4, True, False)
    assert dict(seen)["1.mem"] is seen["1.mem"]
    with pytest.raises(KeyError, match=r"nothing is called '9\.mem'\. There are 1\.mem"):
        seen["9.mem"]
    assert repr(seen.select("3.*")) == "Recording(3.mem [4, 2, 2], 3.output [4, 2, 2])"
    with pytest.raises(ValueError, match=r"select: nothing is called '9\.mem'\. Did you mean"):
        seen.select("9.mem")


def test_selected_trajectories_keep_their_gradients_and_go_into_losses() -> None:
    y, seen = recorded(["input", "output"], gradients=True)
    y.sum().backward()
    part = seen.select("1.*")
    assert list(part.gradients()) == ["1.input", "1.output"]
    assert torch.equal(part.gradients()["1.input"], seen.gradients()["1.input"])
    spikes = seen.select("1.output")
    assert torch.equal(tt.loss.spike_l1(spikes), tt.loss.spike_l1(seen["1.output"]))


def test_numpy_arrays_and_detached_tensors() -> None:
    _, seen = recorded("mem")
    assert seen["1.mem"].requires_grad
    assert not seen.detach()["1.mem"].requires_grad
    arrays = seen.numpy()
    assert arrays["1.mem"].dtype == np.float64
    np.testing.assert_array_equal(arrays["1.mem"], seen["1.mem"].detach())
    halves = Recording({"output": torch.ones(2, 1, 3, dtype=torch.bfloat16)}).numpy()
    assert halves["output"].dtype == np.float32


@by_both
def test_layers_tell_spikes_from_states(by: Any) -> None:
    recurrent = snn.Recurrent(snn.LIF(2), nn.Linear(2, 2, bias=False))
    net = nn.Sequential(recurrent, snn.RLIF(2), snn.Readout(2))
    what = ["input", "mem", "rec", "output", "prev_output"]
    _, seen = tt.probe.record(net, torch.zeros(5, 1, 2), what, by=by)  # all of it is 0
    spikes = {n for n in seen if n.endswith("output") and not n.startswith("2")}
    assert len(spikes) >= 4
    for recording in (seen, seen.detach(), seen.select("*")):
        assert {n for n, kind in recording.kinds.items() if kind == "spikes"} == spikes
        states = {name for name, kind in recording.kinds.items() if kind == "state"}
        assert states == {n for n in seen if n not in spikes and not n.endswith("input")}
    x = torch.ones(5, 1, 2, requires_grad=True)
    y, seen = tt.probe.record(snn.LIF(2), x, "output", by=by, gradients=True)
    y.sum().backward()
    assert set(seen.gradients().kinds.values()) == {"state"}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_watch_in_a_plain_loop_equals_record(name: str, grad: bool) -> None:
    x = dyadic(5, *MODELS[name][1])
    model = made(name)
    with torch.set_grad_enabled(grad):
        _, wanted = tt.probe.record(model, x, "*")
        tt.zero_states(model)
        with tt.probe.watch(model, "*") as seen:
            for step in x.unbind():
                model(step)
    found = seen.recording()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[path], trajectory) for path, trajectory in wanted.items())


def test_watch_removes_its_hooks_after_the_block_and_after_an_error() -> None:
    model = made("dense")
    seen = tt.probe.watch(model, "mem")
    with seen:
        model(dyadic(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"), seen:
        model(dyadic(2, 7))
    tt.zero_states(model)
    model(dyadic(2, 3))
    assert seen.recording()["1.mem"].shape == (1, 2, 5)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_called_twice_is_recorded_twice() -> None:
    model = Twice(snn.RLIF(4)).double()
    with tt.probe.watch(model, "output") as seen:
        for x in dyadic(5, 2, 4).unbind():
            model(x)
    assert seen.recording()["0.output"].shape == (10, 2, 4)


def test_watched_states_have_gradients() -> None:
    model = made("dense")
    with tt.probe.watch(model, ["mem", "syn"], gradients=True) as seen:
        outputs = [model(x) for x in dyadic(5, 2, 3).unbind()]
    outputs[2].sum().backward()
    grads = seen.recording().gradients()
    assert list(grads) == ["1.mem", "1.syn", "3.mem"]
    assert grads["1.mem"][:2].abs().sum() > 0
    assert not grads["1.mem"][2:].any()


def test_watch_errors() -> None:
    model = made("dense")
    x = dyadic(5, 2, 3)
    with tt.probe.watch(model, "mem") as seen:
        with pytest.raises(ValueError, match=r"'1\.mem' has not been seen; its layer was not call"):
            seen.recording()
        with pytest.raises(ValueError, match=r"layer '1'.* runs all of its steps at once\. Use"):
            tt.unroll(model, x)
        assert tt.get_states(model) == {}
        model(x[0])
        tt.zero_states(model)
        model(x[0, :1])
    with pytest.raises(ValueError, match=r"'1\.mem' was seen in the shapes \[\[2, 5\], \[1, 5\]\]"):
        seen.recording()


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
    tt.probe.record(recurrent, x, "1.neuron.mem", gradients=True)
        -> ValueError: '1.neuron.mem' is a state in a fused loop: ask for .input. and .output.
    tt.probe.record(recurrent, x, "1.neuron.output", gradients=True)
        -> ValueError: is inside a snn.Recurrent: leave it out, or use .*by=.step.*not kept
    tt.probe.Recording({"mem": [1.0]}) -> TypeError: names to tensors, got list at 'mem'
    tt.probe.watch(model, 3) -> TypeError: watch takes a name or a list of names, got 3
    """
)
def test_wrong_arguments(call: str, error: str) -> None:
    models = {"model": made("dense"), "recurrent": made("recurrent")}
    check(call, error, {**globals(), **models, "x": dyadic(4, 2, 3)})
    assert tt.get_states(models["recurrent"]) == {}
