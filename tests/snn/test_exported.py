"""Every layer with states of a kind of its own, as an exported step, sequence, ONNX file, graph."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import PLACES, few, layer, sequence, weighted_sum
from tests.export.models import stepped_program
from tests.snn import (
    test_batch_norm,
    test_connect,
    test_delay,
    test_initial_states,
    test_inputs,
    test_memory,
    test_noise,
    test_populations,
    test_recurrent,
)

Made = tuple[Any, Any]  # a model, and its inputs over time


def norms() -> Made:
    net, x = test_batch_norm.network(), sequence(test_batch_norm.K + 2, 3, 3)
    with torch.no_grad():
        tt.unroll(net.train(), x, from_rest=True)
    return net, x


def delays(kind: str) -> Made:
    size = test_delay.IN if kind == "Delay" else test_delay.OUT
    net = nn.Sequential(test_delay.KINDS[kind](), layer("LIF", size, dim=1).double())
    return net, sequence(6, *test_delay.SHAPE)


def initial_values(dim: int, shape: tuple[int, ...]) -> Made:
    return test_initial_states.made(dim=dim), sequence(5, *shape, dtype=torch.float32)


def inputs() -> Made:
    given = test_inputs.inputs_of((2, 3), torch.float32)
    return test_inputs.made(), tuple(x.expand(7, 2, 3).contiguous() for x in given)


def memory(**options: Any) -> Made:
    return test_memory.fed(**options).float(), sequence(test_memory.T, test_memory.B, 3).float()


def populations(name: str) -> Made:
    model, x = test_populations.made(name)
    return model.float(), x.float()


CASES: dict[str, Callable[[], Made]] = {
    "norms": norms,
    **{kind: partial(delays, kind) for kind in test_delay.KINDS},
    "initial values": partial(initial_values, *PLACES[0]),
    "initial values of channels": partial(initial_values, *PLACES[1]),
    "inputs": inputs,
    "noise": lambda: (test_noise.net(seed=3), 2 * sequence(6, 2, 4, dtype=torch.float32)),
    "memory": memory,
    "memory with a value": partial(memory, init=0.5),
    "memory that learns": partial(memory, learnable=True, init=-0.5),
    "populations": partial(populations, "two types"),
    "images": partial(populations, "images"),
    "blocks": lambda: (test_populations.network("iand"), test_populations.spikes(2, 3, 2, 4, 4)),
    "recurrent delays": lambda: (
        test_recurrent.made("LIF", dtype=torch.float32, max_delay=test_recurrent.D),
        test_recurrent.dyadic(7, 3, 5, dtype=torch.float32),
    ),
    "connected": lambda: test_connect.exported_pair()[::2],
}
# Sums are taken in another order in the others.
EXACT = ("initial values", "inputs", "noise", "memory", "recurrent")
SLOW = (
    "initial values of channels",
    "memory with a value",
    "inputs",
    "noise",
    "images",
    "connected",
)


def close(found: Any, expected: Any, exact: bool) -> None:
    options: Any = {"rtol": 0, "atol": 0} if exact else {}
    torch.testing.assert_close(found, expected, **options)


def first(x: Any) -> Any:
    return tuple(each[0] for each in x) if isinstance(x, tuple) else x[0]


# torch.export.load of torch 2.12 reads tensors from bytes
@pytest.mark.one_in(3)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("kind", few(["step", "sequence"], "step"))
@pytest.mark.parametrize("name", few(CASES, *(CASES.keys() - SLOW)))
def test_program_computes_what_the_model_does(name: str, kind: str, tmp_path: Path) -> None:
    model, x = CASES[name]()
    with torch.no_grad():
        expected = tt.unroll(model.eval(), x, by="step")
    ends = tt.get_states(model)
    tt.zero_states(model)
    program = tt.export.step(model, first(x)) if kind == "step" else tt.export.sequence(model, x)
    if name == "initial values":
        torch.export.save(program, tmp_path / "program.pt2")
        program = torch.export.load(tmp_path / "program.pt2")
    states = tt.export.initial_states(program, len(expected[0]))
    if kind == "sequence":
        y, states = program.module()(x, states)
    else:
        y, states = stepped_program(program, x, states)
    exact = name.startswith(EXACT)
    close(y, expected, exact)
    assert states.keys() == ends.keys()
    close(states, ends, exact)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["norms", "initial values", "inputs", "noise", "memory with a value", "connected"]
)
def test_onnx_file_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, x = CASES[name]()
    x = x if isinstance(x, tuple) else (x.float(),)
    with torch.no_grad():
        expected = tt.unroll(model.eval().float(), x, by="step", from_rest=True)
    tt.export.onnx(model, tmp_path / "net.onnx", first(x))
    stream = tt.export.OnnxStream(tmp_path / "net.onnx")
    y = [torch.as_tensor(stream(*(each.numpy() for each in step))) for step in zip(*x, strict=True)]
    close(torch.stack(y), expected, name in ("initial values", "noise"))


COMPILED = [*test_delay.KINDS, "initial values", "inputs"]
COMPILED += ["memory that learns", "populations", "connected"]


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of functions that Dynamo traces
@pytest.mark.parametrize("backend", few(["aot_eager", "inductor"], "aot_eager"))
@pytest.mark.parametrize("name", few(COMPILED, COMPILED[0]))
def test_compiled_it_computes_what_the_model_does(name: str, backend: str) -> None:
    torch._dynamo.reset()
    model, x = CASES[name]()
    by: Any = "step" if "memory" in name else "layer"

    def run(x: Tensor) -> Tensor:
        return tt.unroll(model, x, by=by, from_rest=True)

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend=backend)):
        y = function(x)
        grads = torch.autograd.grad(weighted_sum(y), list(model.parameters()), allow_unused=True)
        results.append([y, *grads])
    torch.testing.assert_close(*results)
