"""The evaluator runs kernels as eager PyTorch runs steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import cases
from tests.fuse.cases import CONFIGURATIONS, make, name_of
from tests.fuse.evaluate import _fma, evaluate
from tests.fuse.kernels import buffers_of
from tests.fuse.verify import verify
from tests.fuzz.draw import SEEDS, random_neuron
from tracetorch import snn
from tracetorch.fuse.ir.plan import Plan
from tracetorch.fuse.ir.schedule import backward_kernel, forward_kernel

STEPS = 7
SIZES = {"steps": STEPS, "every": 3, "segments": 3, "chunk": 2, "chunks": 2}


def evaluated(
    layer: snn.Neuron, rows: int, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return results and gradients by name: of the evaluator, and of eager steps with autograd."""
    neurons = layer.num_neurons
    random = np.random.default_rng(rows)
    program = cases.trace_layer(layer, 2, dtype)
    plan = Plan(program, "cpu", -1, program.states, True, program.inputs, program.params)
    lanes = rows * neurons
    kwargs: dict[str, Tensor] = {
        name: value.detach().clone().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in layer.step_kwargs(2, dtype).items()
    }

    def draw(shape: list[int]) -> Any:
        return random.standard_normal(shape)

    ahead, back = verify(forward_kernel(plan)), verify(backward_kernel(plan))
    sizes = [{size.name: SIZES[size.name] for size in k.sizes} for k in (ahead, back)]
    real = ahead.dtype.value
    constants: dict[str, Any] = {"literals": np.array([*plan.literals, 0.0], real)}
    for name in program.params:
        constants[f"parameter_{name}"] = kwargs[name].detach().numpy().ravel()
    places = np.arange(lanes) % neurons
    first = buffers_of(ahead, sizes[0], lanes, neurons, draw) | constants
    evaluate(ahead, sizes[0], first, neurons=places)
    second = buffers_of(back, sizes[1], lanes, neurons, draw)
    second |= {name: first[name] for name in second if name in first} | constants
    evaluate(back, sizes[1], second, neurons=places)

    # the same by autograd
    def tensor(memory: Any) -> Tensor:
        return torch.from_numpy(memory).reshape(*memory.shape[:-1], rows, neurons)

    xs = tensor(first["input_x"]).requires_grad_()
    starts = {n: tensor(first[f"start_{n}"]).requires_grad_() for n in program.states}
    states: dict[str, Tensor | None] = {name: starts.get(name) for name in layer.cell.states}
    outputs: list[Tensor] = []
    records: dict[str, list[Tensor]] = {name: [] for name in program.states}
    for now in xs.unbind(0):
        output, *after = layer.cell.step(now, *states.values(), **kwargs)
        states = dict(zip(states, after, strict=True))
        outputs.append(output)
        for name in program.states:
            records[name].append(states[name])
    wanted = {"output": torch.stack(outputs)}
    wanted |= {f"record_{name}": torch.stack(values) for name, values in records.items()}
    wanted |= {f"end_{name}": values[-1] for name, values in records.items()}
    grads = {"output": second["grad_output"]}
    grads |= {f"record_{n}": second[f"grad_record_{n}"] for n in program.states}
    grads |= {f"end_{n}": second[f"grad_end_{n}"] for n in program.states}
    loss = sum(
        (wanted[name] * tensor(grad)).sum()
        for name, grad in grads.items()
        if wanted[name].requires_grad
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    found = {name: tensor(first[name]) for name in wanted}
    leaves = {"grad_input_x": xs, **{f"grad_start_{n}": s for n, s in starts.items()}}
    for name, leaf in leaves.items():
        wanted[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        found[name] = tensor(second[name])
    for i, name in enumerate(program.params):
        like = kwargs[name]
        total = torch.from_numpy(second["sums"][i]).reshape(rows, neurons).sum(0)
        total = total if like.numel() != 1 or neurons == 1 else total.sum()
        wanted[f"sum_{name}"] = torch.zeros_like(like) if like.grad is None else like.grad
        found[f"sum_{name}"] = total.reshape(like.shape).to(like.dtype)
    return found, wanted


@pytest.mark.parametrize("case", [c for c in CONFIGURATIONS if len(c[2]) == 2], ids=name_of)
def test_configurations(case: Any) -> None:
    if "dim" in case[1]:
        case = (case[0], {k: v for k, v in case[1].items() if k != "dim"}, case[2])
    found, wanted = evaluated(make(case), case[2][0], torch.float32)
    for name, value in wanted.items():
        if not name.startswith(("grad", "sum")):
            assert torch.equal(found[name], value), name
    torch.testing.assert_close(
        found, {n: v.detach() for n, v in wanted.items()}, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_random_neurons(seed: int) -> None:
    found, wanted = evaluated(random_neuron(seed).double(), 4, torch.float64)
    assert torch.equal(found["output"], wanted["output"])
    detached = {name: value.detach() for name, value in wanted.items()}
    torch.testing.assert_close(found, detached, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fused_product_is_infinite_only_where_the_sum_is(dtype: Any) -> None:
    most = np.finfo(dtype).max
    x, z = np.array([most, -most, most], dtype), np.array([0, 0, -most], dtype)
    with np.errstate(over="ignore"):
        found = _fma(x, dtype(2), z)
    assert found.tolist() == [np.inf, -np.inf, most]
