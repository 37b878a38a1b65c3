from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import few, layer, sequence
from tests.export.models import (
    NAMES,
    Adaptive,
    assert_equal,
    folded,
    hidden,
    reference,
    sample_of,
    several,
    stepped_program,
)
from tests.networks import Net, module
from tests.refusals import check, refusals, unchanged
from tests.unrolling.models import made
from tracetorch import snn

T = 7


def assert_exact(model: nn.Module, sample: Any, x: Any, batch: int) -> tuple[Any, Any]:
    """Assert that a program computes what PyTorch does; return outputs, and the first states."""
    program = tt.export.step(model, sample)
    states = tt.export.initial_states(program, batch)
    got = stepped_program(program, x, states)
    assert_equal(got, reference(model, x))
    assert list(got[1]) == list(states)
    return got[0], states


def test_every_layer_equals_pytorch() -> None:
    x = sequence(T, 5, 3, 3, 3, dtype=torch.float32)
    y, _ = assert_exact(several(), torch.rand(1, 3, 3, 3), x, 5)
    assert all(each.any() for each in y.values())


@pytest.mark.parametrize("name", few(NAMES, "skip"))
def test_models_equal_pytorch(name: str) -> None:
    for batch in (1, 4):
        assert_exact(made(name), sample_of(name, 1), sample_of(name, T, batch), batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", few(NAMES, "skip"))
def test_sequence_equals_unroll_by_step(name: str) -> None:
    model = made(name)
    program = tt.export.sequence(model, sample_of(name, 5, 1))
    for steps, batch in ((1, 1), (9, 4)):
        x = sample_of(name, steps, batch)
        got = program.module()(x, tt.export.initial_states(program, batch))
        assert_equal(got, reference(model, x))
    assert not tt.get_states(model)


@pytest.mark.parametrize("make", [hidden, lambda: Adaptive(3)])
def test_unregistered_layers_and_user_defined_neurons(make: Any) -> None:
    assert_exact(make(), torch.rand(2, 3), sequence(T, 4, 3, dtype=torch.float32), 4)


@pytest.mark.slow
def test_a_state_may_be_a_multiple_of_the_batch() -> None:
    x = sequence(T, 5, 8, dtype=torch.float32)
    _, states = assert_exact(folded(), torch.rand(1, 8), x, 5)
    shapes = {name: list(state.shape) for name, state in states.items()}
    assert shapes == {"cell.mem": [20, 2], "cell.syn": [20, 2]}


@pytest.mark.slow
def test_inputs_as_a_dict() -> None:
    model = made("skip")
    x, gate = sample_of("skip", T, 4)
    program = tt.export.step(model, {"x": x[0], "gate": gate[0]})
    got = stepped_program(program, {"x": x, "gate": gate}, tt.export.initial_states(program, 4))
    assert_equal(got, reference(model, (x, gate)))


DTYPES = (torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", few(DTYPES, torch.bfloat16))
def test_states_have_the_dtype_of_the_arithmetic(dtype: torch.dtype) -> None:
    x = sequence(T, 2, 3, dtype=dtype)
    _, states = assert_exact(layer("SRLIF", 3), torch.rand(1, 3, dtype=dtype), x, 2)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert {state.dtype for state in states.values()} == {wide}


# torch.export.load of torch 2.12 reads tensors from bytes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("kind", few(["step", "sequence"], "sequence"))
def test_a_saved_program_continues_from_the_states_of_the_model(kind: str, tmp_path: Path) -> None:
    model, x = (made("dense"), sample_of("dense", 2 * T, 4)) if kind == "step" else (
        hidden(), sequence(2 * T, 4, 3, dtype=torch.float32))  # fmt: skip
    program = getattr(tt.export, kind)(model, x[0] if kind == "step" else x)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2")
    starts = tt.export.initial_states(loaded, 4)
    assert_equal(starts, tt.export.initial_states(program, 4))

    def run(x: Tensor, states: Any) -> Any:
        return (
            loaded.module()(x, states) if kind == "sequence" else stepped_program(loaded, x, states)
        )

    y, last = reference(model, x)
    first, states = run(x[:T], starts)
    assert_equal(states, reference(model, x[:T])[1])
    rest, after = run(x[T:], states)
    assert_equal(torch.cat([first, rest]), y)
    assert_equal(after, last)


def test_export_is_in_eval_mode_and_restores_the_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.9), layer("LIF", 3))
    model(torch.rand(8, 3))  # running statistics that are not the initial ones
    assert_exact(model, torch.rand(2, 3), sequence(T, 4, 3, dtype=torch.float32), 4)
    assert model.training
    assert all(module.training for module in model.modules())


class Aliased(snn.TTModule):
    """Registers a layer under two names, and calls it by the second."""

    last: Tensor

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.memory("last", shape=3)
        self.linear, self.cell = nn.Linear(3, 3), cell
        self.cells = nn.ModuleList([self.linear, self.cell])

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.cells[1](4 * self.cells[0](x) + self.last)
        return self.last


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "make",
    [
        lambda: snn.Recurrent(layer("LIF", 3), nn.Linear(3, 3)),
        *(lambda: layer("SRLIF", 3), lambda: snn.Delay(3, max_delay=2), lambda: Adaptive(3)),
    ],
)
def test_a_layer_with_two_names_equals_pytorch(make: Any) -> None:
    x = sequence(T, 2, 3, dtype=torch.float32)
    y, _ = assert_exact(Aliased(make()), torch.rand(1, 3), x, 2)
    assert bool(y.any())


# what one step does with the model, the input and an output, and what is said of it
FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    "narrow": (lambda m, x, y: m.cell(y[:, :2]), "layer 'cell', .* has 3 neurons, the input has 2"),
    "values": (lambda m, x, y: -y if float(y.sum()) > 0 else y, "Broken cannot be exported: "),
    "fixed": (lambda m, x, y: y.view(2, -1),
     r"Broken cannot be exported: .*[^.]\. Keep .*batch first"),
    "attribute": (lambda m, x, y: setattr(m, "last", y),
     "one step changes 'last' in Broken.*as a state of an snn.Neuron"),
    "number": (lambda m, x, y: setattr(m, "calls", m.calls + 1),
     "one step changes 'calls' in Broken"),
    "buffer": (lambda m, x, y: setattr(m, "count", m.count + 1),
     "one step changes 'count' in Broken"),
    "list": (lambda m, x, y: m.seen.append(y), r"one step changes 'seen\[0\]' in Broken"),
    "in place": (lambda m, x, y: m.count.add_(1), "one step changes 'count' in Broken"),
    "input": (lambda m, x, y: x.add_(1), "one step changes 'the input' in Broken.* in a copy"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_models_that_cannot_be_exact_are_refused_and_unchanged(fault: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.cell(self.norm(x))
        done = FAULTS[fault][0](self, x, y)
        return done if fault in ("narrow", "values", "fixed") else y

    parts = {"cell": layer("LIF", 3), "norm": nn.BatchNorm1d(3), "seen": [], "calls": 0}
    model = module(forward, "Broken", **parts, last=None)
    model.register_buffer("count", torch.zeros(()))
    model.cell(torch.rand(4, 3))
    states, count = tt.get_states(model, detach=False), model.count
    with unchanged(model), pytest.raises(ValueError, match=f"(?s){FAULTS[fault][1]}"):
        tt.export.step(model, torch.rand(2, 3))
    assert all(tt.get_states(model, detach=False)[name] is state for name, state in states.items())
    assert (model.last, model.calls, model.seen) == (None, 0, [])
    assert model.count is count


def adds_last(self: Any, x: Tensor) -> Tensor:
    """Keep the last output in an attribute, and add it to the next."""
    self.last = [sum([self.cell(x), *self.last])]
    return self.last[0]


@pytest.mark.parametrize("export", [tt.export.step, tt.export.sequence])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_output_that_is_kept_of_another_batch_is_named(export: Any, batch: int) -> None:
    model, other = (module(adds_last, "Adds", cell=layer("LIF", 3), last=[]) for _ in range(2))
    sample = torch.rand(2, 3) if export is tt.export.step else torch.rand(4, 2, 3)
    fails = r"Adds fails on another batch: .* It holds 'last\[0\]' of shape \[\d, 3\], beside"
    model(torch.rand(batch, 3))
    for _ in range(2):  # and leaves it as it was
        with pytest.raises(ValueError, match=rf"{fails}|one step changes 'last\[0\]'") as error:
            export(model, sample)
        assert ("one step" in str(error.value)) == (batch == 1)
        assert len(model.last[0]) == batch
    with pytest.raises(ValueError, match=r"one step changes 'last\[0\]'"):
        export(other, sample)


class InPlace(snn.Neuron):
    """Writes into its state, which belongs to the caller in an exported program."""

    states = ("mem",)

    @staticmethod
    def step(x, mem):
        mem.mul_(0.5).add_(x)
        return mem + 0.0, mem


@cache
def program() -> Any:
    return tt.export.step(layer("LIF", 3), torch.rand(1, 3))


def plain() -> Any:
    return torch.export.export(nn.Linear(3, 3), (torch.rand(2, 3),))


ONE, LIF = torch.rand(2, 3), layer("LIF", 3)


@refusals(
    r"""
    initial_states(LIF, 2) -> TypeError: an ExportedProgram, got LIF. Make one with tt\.export
    initial_states(plain(), 2) -> ValueError: does not take \(x, states\)
    initial_states(program(), 0) -> ValueError: batch must be at least 1, got 0
    initial_states(program(), 2.0) -> TypeError: batch must be an integer, got 2\.0
    step(LIF, [1.0]) -> TypeError: x must be a tensor, a tuple or a dict of tensors, got list
    step(LIF, (ONE, 1.0)) -> TypeError: x\[1\] must be a tensor, got float
    step(LIF, ()) -> ValueError: x holds no tensor
    step(LIF, torch.tensor(1.0)) -> ValueError: x needs a batch, got shape \[\]
    step(LIF, (ONE, torch.rand(4, 3))) -> ValueError: has batch
    step(LIF, torch.rand(2, 4)) -> ValueError: has 3 neurons, the input has 4
    step(InPlace(3), ONE) -> ValueError: one step changes 'the state mem' in InPlace
    sequence(nn.Linear(3, 3), ONE[None])
        -> ValueError: Linear has no states.*use torch\.export\.export
    sequence(LIF, torch.rand(3)) -> ValueError: x needs time and a batch, got shape \[3\]
    """
)
def test_arguments(call: str, error: str) -> None:
    check(f"tt.export.{call}", error, globals())


def test_initial_states_on_another_device() -> None:
    states = tt.export.initial_states(program(), 4, device="meta")
    assert {name: (s.device.type, *s.shape) for name, s in states.items()} == {
        "mem": ("meta", 4, 3)
    }


def test_set_states_inside_a_traced_call_makes_the_states_explicit() -> None:
    def forward(self: Any, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        tt.set_states(self, {"cell.mem": mem})
        y = self.cell(x)
        mem = tt.get_states(self, detach=False)["cell.mem"]
        self.zero_states()
        return y, mem

    model = module(forward, cell=layer("LIF", 3))
    x, mem = sequence(2, 4, 3, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(model, (x, mem), strict=False)
        assert_equal(program.module()(x, mem), model(x, mem))


def remembers(self: Any, x: Tensor) -> Tensor:
    """Compute something else while the state is ``None``, or after another call."""
    if self.fault == "rest":
        x = x if self.layer.mem is not None else 3 * x
    else:
        self.kept.steps += 1
    return self.layer(x) * self.kept.steps


@pytest.mark.parametrize("draw", [torch.randn_like, nn.functional.dropout])
def test_a_forward_that_draws_is_refused(draw: Callable[..., Tensor]) -> None:
    model = Net(lambda net, x: draw(net.cell(x)), cell=snn.Readout(20))
    with pytest.raises(ValueError, match=r"another step than its program, .* draws random numbers"):
        tt.export.step(model, torch.rand(2, 20))


@pytest.mark.parametrize("fault", ["rest", "object"])
def test_what_a_program_would_forget_is_found_by_running_it(fault: str) -> None:
    kept = SimpleNamespace(steps=1)
    model = module(remembers, "Remembers", layer=snn.LIF(3), fault=fault, kept=kept)
    for live in (False, True):
        if live:
            model(torch.rand(2, 3))
        before = model.layer.mem
        with pytest.raises(ValueError, match="Remembers gives another step than its program"):
            tt.export.step(model, torch.zeros(2, 3))
        assert model.layer.mem is before
        assert model.kept.steps == (2 if live and fault == "object" else 1)


def test_an_export_runs_the_model_a_few_times(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), snn.LIF(6), nn.Linear(6, 3), snn.Readout(3))
    calls: list[Tensor] = []
    model.register_forward_hook(lambda module, args, output: calls.append(args[0]))
    tt.export.c(model, tmp_path, torch.rand(30, 2, 4))
    assert len(calls) <= 4
    calls.clear()
    tt.export.step(model, torch.rand(2, 4))
    assert len(calls) <= 5
