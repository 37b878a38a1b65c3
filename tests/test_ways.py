"""Every layer computes the same in threads, processes, transforms, modes, and compiled."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tracetorch as tt
from tests.cases import LAYER_MAKERS, NETWORK_MAKERS, RANDOM_LAYERS, module_and_step, weighted_sum
from tests.networks import Counts, Twice
from tests.processes import run_python

NAMES = [name for name in (*LAYER_MAKERS, *NETWORK_MAKERS) if name not in RANDOM_LAYERS]
FAST = ("LIF", "BSRLIF", "AdEx", "Recurrent, delayed", "SparseLinear, delayed", "a network")
# Kernels are compiled for each layer, which takes longer than the test: here for some.
ON = [
    pytest.param(name, backend, marks=[pytest.mark.slow] * (backend == "auto" and name not in FAST))
    for backend in ("eager", "auto")
    for name in NAMES
]
FEW = [pytest.param(n, marks=[pytest.mark.slow] * (n != "LIF")) for n in NAMES]


def layer_and_sequence(name: str, steps: int = 5) -> tuple[nn.Module, Tensor]:
    """Make a layer in evaluation mode and a sequence that makes it fire, in float64."""
    made, step = module_and_step(name)
    for part in getattr(made, "cells", [made]):  # those in a list are not moved with the model
        part.double().eval()
    x = torch.stack([step.roll(t, -1) for t in range(steps)]).double()
    return made.eval(), x


def run(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """Unroll from rest, and by step what is called twice in one."""
    by = "step" if isinstance(model, Twice | Counts) else "layer"
    y: Tensor = tt.unroll(model, x, from_rest=True, **{"by": by, **options})
    return y


def gradients(model: nn.Module, y: Tensor) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not (named and y.requires_grad):
        return {}
    found = torch.autograd.grad(weighted_sum(y), list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, found, strict=True) if g is not None}


@pytest.mark.parametrize(("name", "backend"), ON)
def test_in_threads(name: str, backend: Any) -> None:
    """Four threads run one layer from rest at once."""
    model, x = layer_and_sequence(name)

    def work(number: int) -> Any:
        with tt.fuse.backend(backend):
            y = run(model, x * 0.9**number)
            return y.detach(), gradients(model, y)

    expected = [work(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


CHILD = """
import pickle, sys
import tracetorch as tt
from tests.test_ways import layer_and_sequence, run
with open(sys.argv[1], "wb") as file:
    names, found = pickle.loads(bytes.fromhex(sys.argv[2])), {}
    for name in names:
        model, x = layer_and_sequence(name)
        with tt.fuse.backend("auto" if name in ("LIF", "BSRLIF") else "eager"):
            found[name] = run(model, x).detach()
    pickle.dump(found, file)
"""


@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    run_python("-c", CHILD, str(tmp_path / "found"), pickle.dumps(NAMES).hex())
    found = pickle.loads((tmp_path / "found").read_bytes())
    assert list(found) == NAMES
    for name, y in found.items():
        model, x = layer_and_sequence(name)
        with tt.fuse.backend("eager"):
            torch.testing.assert_close(y, run(model, x).detach(), msg=name)


def continued(model: nn.Module, x: Tensor) -> Tensor:
    """What a child gives that is sent a model with states."""
    with torch.no_grad(), tt.fuse.backend("eager"):
        y: Tensor = tt.unroll(model, x, by="step")
    return y


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("kind", [multiprocessing, torch.multiprocessing], ids=["std", "torch"])
def test_a_process_goes_on_from_the_states_that_it_is_sent(kind: Any, method: str) -> None:
    model, x = layer_and_sequence("a network")
    continued(model, x)
    expected = continued(copy.deepcopy(model), x)
    with kind.get_context(method).Pool(1) as pool:
        assert torch.equal(pool.apply(continued, (model, x)), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_compiled_by_torch(name: str) -> None:
    """In one graph, by step and over a sequence; the second call continues from the first."""
    model, x = layer_and_sequence(name)
    other = copy.deepcopy(model)
    torch.compiler.reset()
    whole = torch.compile(lambda x: run(model, x), backend="aot_eager")
    single = torch.compile(model, backend="aot_eager", fullgraph=name != "a layer called twice")
    with tt.fuse.backend("eager"):
        torch.testing.assert_close(whole(x), run(other, x))
        for step in x[:3]:
            torch.testing.assert_close(single(step), other(step))
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_in_a_vmap(name: str) -> None:
    """Gradients of each sample are those of a batch of one."""
    model, x = layer_and_sequence(name)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        pytest.skip("nothing learns")

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, sample: Tensor) -> Tensor:
            return weighted_sum(run(self.model, sample[:, None]))

    loss = Loss()
    prefixed = {f"model.{n}": p for n, p in parameters.items()}
    with tt.fuse.backend("eager"):
        found = vmap(
            grad(lambda given, sample: functional_call(loss, given, (sample,))), in_dims=(None, 1)
        )(prefixed, x)
        for index in range(x.shape[1]):
            expected = gradients(model, run(model, x[:, index : index + 1]))
            for key, value in expected.items():
                torch.testing.assert_close(found[f"model.{key}"][index], value, msg=key)


@pytest.mark.parametrize(("name", "backend"), ON)
def test_under_autocast(name: str, backend: Any) -> None:
    """By layer as by step; parameters and states keep their dtype."""
    model, x = module_and_step(name)
    model.eval()
    x = torch.stack([x, x.roll(1, -1), x])
    found = []
    with torch.autocast("cpu", torch.bfloat16), tt.fuse.backend(backend):
        for by in ("layer", "step"):
            tt.zero_states(model)
            y = run(model, x, by="step") if by == "step" else run(model, x)
            found.append((y.detach(), gradients(model, y.float())))
    torch.testing.assert_close(found[0], found[1], rtol=2e-2, atol=2e-2)
    assert {state.dtype for state in tt.get_states(model).values()} <= {x.dtype, torch.int64}


@pytest.mark.parametrize(("name", "backend"), ON)
def test_in_inference_mode(name: str, backend: Any) -> None:
    """Also of a model that was made there; its states begin a sequence that learns."""
    model, x = layer_and_sequence(name)
    with torch.inference_mode():
        made, _ = layer_and_sequence(name)
    ways: dict[str, Callable[[], Any]] = {"no": torch.no_grad, "inference": torch.inference_mode}
    with tt.fuse.backend(backend):
        expected = run(model, x).detach()
        for each in (model, made):
            with torch.inference_mode():
                torch.testing.assert_close(run(each, x), expected, rtol=0, atol=0)
        found = []
        for mode in ways.values():
            tt.zero_states(model)
            with mode():
                for step in x[:2]:
                    model(step)
            y = torch.stack([model(step) for step in x[2:]])
            found.append((y.detach(), gradients(model, y)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
