from __future__ import annotations

import copy
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
    Folded,
    Hidden,
    Twelve,
    assert_equal,
    made,
    reference,
    sample_of,
    stepped_program,
)
from tests.refusals import check, refusals
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
    y, _ = assert_exact(Twelve(), torch.rand(1, 3, 3, 3), x, 5)
    assert all(each.any() for each in y.values())


@pytest.mark.parametrize("name", few(NAMES, "skip", "recurrent"))
def test_models_equal_pytorch(name: str) -> None:
    for batch in (1, 4):
        assert_exact(made(name), sample_of(name, 1), sample_of(name, T, batch), batch)


@pytest.mark.parametrize("make", [Hidden, lambda: Adaptive(3)])
def test_unregistered_layers_and_user_defined_neurons(make: Any) -> None:
    assert_exact(make(), torch.rand(2, 3), sequence(T, 4, 3, dtype=torch.float32), 4)


def test_a_state_may_be_a_multiple_of_the_batch() -> None:
    x = sequence(T, 5, 8, dtype=torch.float32)
    _, states = assert_exact(Folded(), torch.rand(1, 8), x, 5)
    assert {name: list(state.shape) for name, state in states.items()} == {
        "cell.mem": [20, 2],
        "cell.syn": [20, 2],
    }


def test_inputs_as_a_dict() -> None:
    model = made("skip")
    x, gate = sample_of("skip", T, 4)
    program = tt.export.step(model, {"x": x[0], "gate": gate[0]})
    got = stepped_program(program, {"x": x, "gate": gate}, tt.export.initial_states(program, 4))
    assert_equal(got, reference(model, (x, gate)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_have_the_dtype_of_the_arithmetic(dtype: torch.dtype) -> None:
    x = sequence(T, 2, 3, dtype=dtype)
    _, states = assert_exact(layer("SRLIF", 3), torch.rand(1, 3, dtype=dtype), x, 2)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert {state.dtype for state in states.values()} == {wide}


# torch.export.load of torch 2.12 reads tensors from bytes
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_a_program_is_saved_and_loaded(tmp_path: Path) -> None:
    model = made("dense")
    program = tt.export.step(model, sample_of("dense", 1))
    torch.export.save(program, tmp_path / "step.pt2")
    loaded = torch.export.load(tmp_path / "step.pt2")
    states = tt.export.initial_states(loaded, 4)
    assert_equal(states, tt.export.initial_states(program, 4))
    x = sample_of("dense", T, 4)
    assert_equal(stepped_program(loaded, x, states), reference(model, x))


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: layer("SRLIF", 3),
        lambda: snn.Recurrent(layer("LIF", 3), nn.Linear(3, 3)),
        lambda: snn.Delay(3, max_delay=2),
        lambda: Adaptive(3),
    ],
)
def test_a_layer_with_two_names_equals_pytorch(make: Any) -> None:
    x = sequence(T, 2, 3, dtype=torch.float32)
    y, _ = assert_exact(Aliased(make()), torch.rand(1, 3), x, 2)
    assert bool(y.any())


def attributes_of(model: nn.Module) -> dict[str, Any]:
    """Copy every attribute of every module, to compare later."""
    return {
        f"{path}/{name}": copy.copy(value) if isinstance(value, dict) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }


class Broken(snn.TTModule):
    """Cannot be exported, for the reason named by ``fault``."""

    count: Tensor

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.cell = layer("LIF", 3)
        self.fault = fault
        self.register_buffer("count", torch.zeros(()))
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(self.norm(x))
        if self.fault == "narrow":
            return self.cell(y[:, :2])
        if self.fault == "values" and float(y.sum()) > 0:
            return -y
        if self.fault == "fixed":
            return y.view(2, -1)
        if self.fault == "attribute":
            self.last = y
        if self.fault == "number":
            self.calls += 1
        if self.fault == "buffer":
            self.count = self.count + 1
        if self.fault == "list":
            self.seen.append(y)
        if self.fault == "in place":
            self.count += 1
        if self.fault == "input":
            x.add_(1)
        return y


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("narrow", "layer 'cell', .* has 3 neurons, the input has 2"),
        ("values", "Broken cannot be exported: "),
        ("fixed", r"Broken cannot be exported: .*[^.]\. Keep .*batch first"),
        ("attribute", "one step changes 'last' in Broken.*as a state of an snn.Neuron"),
        ("number", "one step changes 'calls' in Broken"),
        ("buffer", "one step changes 'count' in Broken"),
        ("list", r"one step changes 'seen\[0\]' in Broken"),
        ("in place", "one step changes 'count' in Broken"),
        ("input", "one step changes 'the input' in Broken.* in a copy"),
    ],
)
def test_models_that_cannot_be_exact_are_refused_and_unchanged(fault: str, message: str) -> None:
    model = Broken(fault)
    model.cell(torch.rand(4, 3))
    before, states = attributes_of(model), tt.get_states(model, detach=False)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tt.export.step(model, torch.rand(2, 3))
    assert attributes_of(model) == before
    assert all(tt.get_states(model, detach=False)[name] is state for name, state in states.items())
    assert model.count == 0
    assert model.seen == []


class AddsLast(snn.TTModule):
    """Keeps its last output in an attribute, and adds it to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = layer("LIF", 3)
        self.last: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = [sum([self.cell(x), *self.last])]
        return self.last[0]


@pytest.mark.parametrize("export", [tt.export.step, tt.export.sequence])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_output_that_is_kept_of_another_batch_is_named(export: Any, batch: int) -> None:
    model = AddsLast()
    sample = torch.rand(2, 3) if export is tt.export.step else torch.rand(4, 2, 3)
    fails = r"AddsLast fails on another batch: .* It holds 'last\[0\]' of shape \[\d, 3\], beside"
    model(torch.rand(batch, 3))
    for _ in range(2):  # and leaves it as it was
        with pytest.raises(ValueError, match=rf"{fails}|one step changes 'last\[0\]'") as error:
            export(model, sample)
        assert ("one step" in str(error.value)) == (batch == 1)
        assert len(model.last[0]) == batch
    with pytest.raises(ValueError, match=r"one step changes 'last\[0\]'"):
        export(AddsLast(), sample)


class InPlace(snn.Neuron):
    """Writes into its state, which belongs to the caller in an exported program."""

    states = ("mem",)

    @staticmethod
    def step(x, mem):
        mem.mul_(0.5).add_(x)
        return mem + 0.0, mem


def test_a_step_that_changes_its_state_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="one step changes 'the state mem' in InPlace"):
        tt.export.step(InPlace(3), torch.rand(2, 3))


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        ([1.0], TypeError, "x must be a tensor, a tuple or a dict of tensors, got list"),
        ((torch.rand(2, 3), 1.0), TypeError, r"x\[1\] must be a tensor, got float"),
        ((), ValueError, "x holds no tensor"),
        (torch.tensor(1.0), ValueError, r"x needs a batch, got shape \[\]"),
        ((torch.rand(2, 3), torch.rand(4, 3)), ValueError, "has batch"),
        (torch.rand(2, 4), ValueError, "has 3 neurons, the input has 4"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    sample: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tt.export.step(layer("LIF", 3), sample)


def test_a_program_continues_from_the_states_of_the_model() -> None:
    model = made("recurrent")
    x = sample_of("recurrent", 2 * T, 4)
    program = tt.export.step(model, x[0])
    y, last = reference(model, x)
    first, states = reference(model, x[:T])
    rest, after = stepped_program(program, x[T:], states)
    assert_equal(torch.cat([first, rest]), y)
    assert_equal(after, last)


@cache
def program() -> Any:
    return tt.export.step(layer("LIF", 3), torch.rand(1, 3))


def plain() -> Any:
    return torch.export.export(nn.Linear(3, 3), (torch.rand(2, 3),))


@refusals(
    r"""
    snn.LIF(3), 2 -> TypeError: an ExportedProgram, got LIF. Make one with tt\.export
    plain(), 2 -> ValueError: does not take \(x, states\)
    program(), 0 -> ValueError: batch must be at least 1, got 0
    program(), 2.0 -> TypeError: batch must be an integer, got 2\.0
    """
)
def test_initial_states_refuse_other_programs_and_batches(call: str, error: str) -> None:
    check(f"tt.export.initial_states({call})", error, globals())


def test_set_states_inside_a_traced_call_makes_the_states_explicit() -> None:
    class Explicit(snn.TTModule):
        def __init__(self) -> None:
            super().__init__()
            self.cell = layer("LIF", 3)

        def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
            tt.set_states(self, {"cell.mem": mem})
            y = self.cell(x)
            mem = tt.get_states(self, detach=False)["cell.mem"]
            self.zero_states()
            return y, mem

    model = Explicit()
    x, mem = sequence(2, 4, 3, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(model, (x, mem), strict=False)
        assert_equal(program.module()(x, mem), model(x, mem))


class Remembers(snn.TTModule):
    """Computes something else while its state is ``None``, or after another call."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.layer, self.fault, self.kept = snn.LIF(3), fault, SimpleNamespace(steps=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "rest":
            x = x if self.layer.mem is not None else 3 * x
        else:
            self.kept.steps += 1
        return self.layer(x) * self.kept.steps


@pytest.mark.parametrize("draw", [torch.randn_like, nn.functional.dropout])
def test_a_forward_that_draws_is_refused(draw: Callable[..., Tensor]) -> None:
    class Draws(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return draw(super().forward(x))

    with pytest.raises(ValueError, match=r"another step than its program, .* draws random numbers"):
        tt.export.step(Draws(nn.Linear(20, 20), snn.Readout(20)), torch.rand(2, 20))


@pytest.mark.parametrize("fault", ["rest", "object"])
def test_what_a_program_would_forget_is_found_by_running_it(fault: str) -> None:
    model = Remembers(fault)
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


def test_initial_states_on_another_device() -> None:
    program = tt.export.step(snn.SLIF(3), torch.rand(1, 3))
    states = tt.export.initial_states(program, 4, device="meta")
    assert {name: (s.device.type, tuple(s.shape)) for name, s in states.items()} == {
        "mem": ("meta", (4, 3)),
        "syn": ("meta", (4, 3)),
    }
