"""A failed call changes nothing of a model, and one that only reads changes nothing either."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import Net
from tests.networks import Fails
from tests.refusals import check, refusals, unchanged
from tests.test_package import ROOMS
from tracetorch import snn

X = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.zeros(5, 3)


def model() -> Any:
    """Make a network in the middle of a stream, one layer of which is in another mode."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 5), snn.RLIF(5), nn.Linear(5, 2), snn.Readout(2))
    made[2].eval().weight.requires_grad_(False)
    made(X[0])
    return made


def failing(at: int = 2) -> Any:
    made = model()
    made.insert(2, Fails(at))
    return made


def norms() -> Any:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), snn.LIF(5), nn.Linear(5, 2)).eval()
    made(X[0])
    return made


def ann() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def mean(y: Any, target: Any) -> torch.Tensor:
    result: torch.Tensor = y.mean()
    return result


# What a model is given to, with an argument that does not fit, or with a forward that fails.
REFUSALS = r"""
    tt.Stream("net") -> TypeError: expected an nn\.Module, got str
    tt.Stream(model)(X[0, 0, :3]) -> RuntimeError: shapes cannot be multiplied
    tt.detach_states("net") -> TypeError: expected an nn\.Module, got str
    tt.diagnose(model, (X,), None) -> TypeError: loss must be callable
    tt.diagnose(failing, (X, TARGET), mean) -> ArithmeticError: the forward fails
    tt.get_states("net") -> TypeError: expected an nn\.Module, got str
    tt.load(path / "none", model) -> FileNotFoundError: there is no file
    tt.online(model, "none") -> ValueError: there is no rule 'none'
    tt.online(model, "eprop")(X[0, :2]) -> ValueError: holds the state mem of shape
    tt.param_groups(model, -1.0) -> ValueError: weight_decay must be finite and not negative
    tt.recipe(model, X, 0) -> ValueError: total_steps must be at least 1, got 0
    tt.recipe(failing, X, 10) -> ArithmeticError: the forward fails
    tt.save(model, path) -> IsADirectoryError: is a folder\. Name a file in it
    tt.set_states(model, {"9.mem": X}) -> ValueError: no state is called '9\.mem'
    tt.set_states(model, {"1.mem": X[0]}) -> ValueError: needs all of its states or none
    tt.unroll(model, X, by="both") -> ValueError: by must be 'layer' or 'step', got 'both'
    tt.unroll(model, X, record="none") -> ValueError: record: nothing is called 'none'
    tt.unroll(model, X[..., :3]) -> RuntimeError: shapes cannot be multiplied
    tt.unroll(model, X, reset=X) -> TypeError: reset must be a
    tt.unroll(failing, X) -> ValueError: fails on one step .ArithmeticError
    tt.unroll(failing, X, by="step") -> ArithmeticError: the forward fails
    tt.unroll(failing, X, segment=2) -> ValueError: fails on one step .ArithmeticError
    tt.unroll(failing, X, segment=2, by="step") -> ArithmeticError: the forward fails
    tt.unroll(failing, X, check=True) -> ValueError: fails on one step .ArithmeticError
    tt.zero_states(model, where=X) -> TypeError: where must be a boolean tensor
    tt.chips.xylo.configuration(model) -> ValueError: has no place on Xylo
    tt.convert.fold_norms(model, X) -> ValueError: there is nothing to fold
    tt.convert.fold_norms(norms, X[..., :3]) -> RuntimeError: shapes cannot be multiplied
    tt.convert.from_ann(model, X[0], 4) -> ValueError: 1 \(RLIF\) cannot be converted
    tt.convert.from_ann(ann, X[0], 0) -> ValueError: steps must be at least 1, got 0
    tt.export.c(model, path, X, dtype="int") -> ValueError: .
    tt.export.c(model, path, X[0]) -> ValueError: fails on one step of one sample
    tt.export.onnx(model, path / "file", X[..., :3]) -> RuntimeError: must have same reduction dim
    tt.export.page(model, path, X, steps=0) -> ValueError: steps must be at least 1, got 0
    tt.export.page(model, path / "file", X, steps=3) -> ValueError: has no page
    tt.export.sequence(model, X[..., :3]) -> RuntimeError: must have same reduction dim
    tt.export.step(model, X[0, :, :3]) -> RuntimeError: must have same reduction dim
    tt.export.step(failing, X[0]) -> ValueError: one step changes '2\.calls'
    tt.export.verilog(model, path, X) -> ValueError: .
    tt.fuse.unsupported_reason("none", model[1], X) -> ValueError: no backend is called|5 neurons
    tt.init.calibrate_(model, X, target=-1) -> ValueError: target must be positive and finite
    tt.init.calibrate_(failing, X) -> ArithmeticError: the forward fails
    tt.init.fluctuation_(model, rate=-1) -> ValueError: rate must be in \(0, 1\)
    tt.init.identity_(model) -> ValueError: has no snn\.SEWBlock to start as the identity
    tt.init.impulse_response(model) -> TypeError: layer must be a neuron layer with a step
    tt.init.spread_(model, 0) -> ValueError: steps must be at least 1, got 0
    tt.init.tdbn_(model, X) -> ValueError: there is nothing to scale
    tt.init.tdbn_(norms, X, alpha=-1) -> ValueError: alpha must be positive and finite
    tt.init.tdbn_(norms, X[..., :3]) -> RuntimeError: shapes cannot be multiplied
    tt.integers.check_exact(model, X) -> ValueError: gets, holds or returns what is no integer
    tt.integers.prove(model[1], {}) -> KeyError: x
    tt.metrics.activation_sparsity(model, X, by="both") -> ValueError: by must be 'layer' or 'step'
    tt.metrics.activation_sparsity(failing, X) -> ArithmeticError: the forward fails
    tt.metrics.connection_sparsity("net") -> TypeError: expected an nn\.Module, got str
    tt.metrics.footprint("net") -> TypeError: expected an nn\.Module, got str
    tt.metrics.membrane_updates(model, X, mask=X) -> TypeError: mask must be a tensor of booleans
    tt.metrics.membrane_updates(failing, X) -> ArithmeticError: the forward fails
    tt.metrics.parameter_count("net") -> TypeError: expected an nn\.Module, got str
    tt.metrics.profile(model, X, repeats=0) -> ValueError: repeats must be at least 1, got 0
    tt.metrics.profile(failing, X) -> ArithmeticError: the forward fails
    tt.metrics.synaptic_operations(model, X[..., :3]) -> RuntimeError: shapes cannot be multiplied
    tt.metrics.synaptic_operations(failing, X) -> ArithmeticError: the forward fails
    tt.nir.save(model, path, (3,)) -> ValueError: the model fails on one step of the sample
    tt.nir.to_nir(model, (4,), mode="no") -> ValueError: mode must be 'exact' or 'compact'
    tt.nir.to_nir(failing, (4,)) -> ArithmeticError: the forward fails
    tt.plot.decays("net") -> TypeError: expected an nn\.Module, got str
    tt.plot.save_playground(model[0], path) -> TypeError: layers must be an snn\.Neuron
    tt.probe.record(model, X, "none") -> ValueError: record: nothing is called 'none'
    tt.probe.record(failing, X, "output") -> ValueError: fails on one step .ArithmeticError
    tt.probe.record(failing, X, "output", by="step") -> ArithmeticError: the forward fails
    tt.probe.watch(model, "none") -> ValueError: watch: nothing is called 'none'
    tt.quantize.convert(model) -> TypeError: convert takes what tt\.quantize\.prepare returned
    tt.quantize.prepare(model, X, weight_bits=1) -> ValueError: weight_bits must be 2 to 16, got 1
    tt.quantize.prepare(failing, X) -> ArithmeticError: the forward fails
    snn.connect(model[0], mask=X) -> TypeError: mask must be a tensor of booleans
    snn.disconnect(model[0]) -> ValueError: has no weight with the mask and signs
"""
# What only reads a model, or makes another of it.
READS = """
    tt.diagnose(model, (X, TARGET), mean)
    tt.get_states(model)
    tt.param_groups(model, 0.1)
    tt.save(model, path / "file", states=True)
    tt.convert.fold_norms(norms, X)
    tt.convert.from_ann(ann, X[0], 4)
    tt.export.c(model, path, X)
    tt.export.step(model, X[0])
    tt.export.page(image, path / "file", X[0].view(3, 2, 2), steps=2)
    tt.export.verilog(whole, path, X[:, :, :1].round())
    tt.fuse.unsupported_reason("cpu", model[1], torch.ones(3, 5))
    tt.init.impulse_response(model[1])
    tt.integers.check_exact(whole, X[:, :, :1].round())
    tt.metrics.activation_sparsity(model, X)
    tt.metrics.connection_sparsity(model)
    tt.metrics.footprint(model)
    tt.metrics.membrane_updates(model, X)
    tt.metrics.parameter_count(model)
    tt.metrics.profile(model, X, repeats=1)
    tt.metrics.synaptic_operations(model, X)
    tt.nir.to_nir(norms, (4,))
    tt.plot.decays(model)
    tt.plot.save_playground(model[1], path / "file")
    tt.plot.save_playground(model, path / "file")
    tt.quantize.prepare(model, X)
"""


def names(path: Path) -> dict[str, Any]:
    """What the calls of the tables name."""
    whole = tt.integers.LeakyIntegrator(1, pos_threshold=2)
    whole(torch.ones(3, 1))
    image = Net(lambda net, x: net.rest(x.flatten(1)), rest=model())
    made = {"model": model(), "failing": failing(), "norms": norms(), "ann": ann()}
    return {**globals(), **made, "whole": whole, "image": image, "path": path}


@refusals(REFUSALS)
def test_a_failed_call_changes_nothing(call: str, error: str, tmp_path: Path) -> None:
    given = names(tmp_path)
    models = [given[name] for name in ("model", "failing", "norms", "ann")]
    before = given["failing"][2].calls
    with unchanged(*models):
        check(call, error, given)
    given["failing"][2].calls = before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [line.strip() for line in READS.strip().splitlines()])
def test_what_reads_a_model_changes_nothing(call: str, tmp_path: Path) -> None:
    given = names(tmp_path)
    models = [given[name] for name in ("model", "norms", "ann", "whole", "image")]
    for parameter in given["model"].parameters():
        parameter.grad = torch.ones_like(parameter)
    numbers = torch.get_rng_state()
    with unchanged(*models):
        eval(call, given)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(bool((p.grad == 1).all()) for p in given["model"].parameters())


@pytest.mark.parametrize(
    "call",
    [
        "tt.metrics.profile(net, X, by='step', repeats=1)",
        "tt.metrics.synaptic_operations(net, X, by='step')",
        "tt.diagnose(net, (X, TARGET), mean, by='step')",
    ],
)
def test_tensors_that_a_forward_writes_into_are_as_before(call: str) -> None:
    def forward(net: Any, x: torch.Tensor) -> Any:
        for each in (net.alone, net.some[0], net.by_name["a"][0]):
            each.add_(1)
        return net.rest(x)

    kept = {"alone": torch.zeros(2), "some": [torch.zeros(2)], "by_name": {"a": [torch.zeros(2)]}}
    net: Any = Net(forward, rest=model(), **kept)
    with unchanged(net):
        eval(call, {**globals(), "net": net})
    assert not any(each.any() for each in (net.alone, net.some[0], net.by_name["a"][0]))


def test_every_function_that_takes_a_model_is_in_the_table() -> None:
    taking = set()
    for room in (tt, *ROOMS):
        for name in room.__all__:
            thing = getattr(room, name)
            if inspect.isfunction(thing) and not name.startswith("_"):
                first = next(iter(inspect.signature(thing).parameters.values()), None)
                text = f"{first and first.name}: {first and first.annotation}"
                if re.search("^(model|module|layer):|: .*(Module|Neuron|Layer')", text):
                    taking.add(name)
    called = set(re.findall(r"(\w+)\(", REFUSALS))
    assert taking - called == set()
