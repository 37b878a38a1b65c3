"""Single steps that are compiled: what eager steps compute, of any layer, parameter and state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import tracetorch as tt
from tests.cases import LAYERS, PLACES, layer, sequence, stepped
from tracetorch import fuse, snn

Results = tuple[Tensor, dict[str, Tensor]]


@torch.no_grad()
def run(model: nn.Module, x: Tensor, backend: Any = "auto") -> Results:
    tt.zero_states(model)
    with fuse.backend(backend):
        return stepped(model, x), tt.get_states(model)


def is_compiled(made: snn.Neuron) -> bool:
    kept = made._prepared.kept
    return bool(kept) and all(each.runs for key, each in kept.items() if not key[-1])


def streamed(made: snn.Neuron, x: Tensor) -> Results:
    """Run steps, which are compiled and equal the eager ones."""
    found = run(made, x)
    assert is_compiled(made)
    torch.testing.assert_close(found, run(made, x, "eager"), rtol=0, atol=0, equal_nan=True)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_streamed_step_equals_the_eager_step(name: str, dtype: torch.dtype) -> None:
    streamed(layer(name, 7).to(dtype), sequence(9, 3, 7, dtype=dtype))


# of one neuron, a parameter once had a stride of zero
@pytest.mark.parametrize(
    ("dim", "shape"), [*PLACES, (0, (3,)), (-1, (3,)), (-1, (1, 1, 3)), (-1, (2, 1))]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_neuron_dimensions_and_ranks(dim: int, shape: tuple[int, ...], rank: int) -> None:
    made = layer("BLIF", shape[dim], dim=dim, beta_rank=rank, pos_scale_rank=rank, reset="zero")
    streamed(made, sequence(6, *shape, dtype=torch.float32))


def test_eager_and_compiled_steps_continue_from_each_other() -> None:
    made, twin = layer("SRLIF", 4), layer("SRLIF", 4)
    x = sequence(12, 2, 4, dtype=torch.float32)
    expected = stepped(twin, x)
    first = stepped(made, x[:4])  # with a graph
    with torch.no_grad():
        second = stepped(made, x[4:8])
    with torch.inference_mode():
        third = stepped(made, x[8:10])
    last = stepped(made, x[10:])
    assert torch.equal(torch.cat([first, second, third, last]), expected)
    last.sum().backward()


def by_optimizer(made: snn.LIF) -> None:
    for p in made.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.Adam(made.parameters(), lr=0.5, fused=True).step()


CHANGES: dict[str, Callable[[snn.LIF], object]] = {
    "data": lambda made: setattr(made.raw_beta, "data", made.raw_beta.data - 1),
    "in place": lambda made: made.raw_beta.data.view(-1)[-1:].sub_(1),
    "an optimizer": by_optimizer,
    "loading": lambda made: made.load_state_dict(
        layer("LIF", 4, beta=0.3, beta_rank=made.raw_beta.ndim).state_dict()
    ),
    "numpy": lambda made: made.raw_pos_threshold.detach().numpy().put(2, 3.0),
    "moving": lambda made: made.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rank", [0, 1])
def test_changed_parameter_takes_effect_at_the_next_step(change: str, rank: int) -> None:
    made, x = layer("LIF", 4, beta_rank=rank), sequence(10, 2, 4, dtype=torch.float32)
    before, _ = run(made, x)
    CHANGES[change](made)
    out, _ = streamed(made, x)
    assert not torch.equal(out, before) or change == "moving"


def test_functional_call_takes_effect() -> None:
    made, x = layer("Readout", 3), torch.ones(1, 3)
    with torch.no_grad():
        made(x)
        made.zero_states()
        out = functional_call(made, {"raw_beta": torch.zeros(3)}, (x,))
        made.zero_states()
        assert out.tolist() == [[0.5, 0.5, 0.5]]
        assert made(x).tolist() != out.tolist()


@torch.no_grad()
def test_input_errors_are_those_of_the_eager_step() -> None:
    made = snn.LIF(2)
    made(torch.ones(1, 2))
    held = made.mem
    for x, error, says in (
        (torch.ones(3, 2), ValueError, r"mem of shape \[1, 2\].*shape \[3, 2\]"),
        (torch.ones(1, 3), ValueError, "has 2 neurons, the input has 3"),
        (torch.ones(1, 2).long(), TypeError, r"got torch\.int64"),
    ):
        with pytest.raises(error, match=says):
            made(x)
        assert made.mem is held
    made.mem = torch.ones(1, 2).double()
    with pytest.raises(ValueError, match=r"torch\.float64, on cpu"):
        made(torch.ones(1, 2))


def test_a_shallow_copy_streams_independently() -> None:
    made, x = layer("LIF", 3), sequence(8, 2, 3, dtype=torch.float32)
    with torch.no_grad():
        stepped(made, x[:4])
        twin = copy.copy(made)
        assert twin._prepared.kept == {}
        assert torch.equal(stepped(twin, x[4:]), stepped(made, x[4:]))
        made.zero_states()
        assert twin.mem is not None


class Scaled(snn.Neuron):
    """A neuron whose step calls a function from outside and is not pointwise."""

    states = ("mem",)

    def __init__(self, scale: Any) -> None:
        super().__init__(2)
        self.option("scale", scale)

    @staticmethod
    def step(x: Tensor, mem: Tensor, *, scale: Any) -> tuple[Tensor, Tensor]:
        mem = mem + scale(x)
        return mem.cumsum(-1), mem


@pytest.mark.parametrize(
    ("made", "x"),
    [
        (snn.LIF(2, surrogate_derivative=nn.Sigmoid()), torch.ones(1, 2)),
        (Scaled(torch.sin), torch.ones(1, 2)),
        (snn.LIF(2), torch.ones(1, 2).bfloat16()),
        (snn.LIF(2), torch.ones(0, 2)),
        (snn.LIF(2), torch.ones(2, 3).T[:2, :2].T[:, :2].T),
        (snn.LIF(2), torch.ones(20_000, 2)),
    ],
    ids=["a module", "not pointwise", "half", "empty", "not contiguous", "large"],
)
@torch.no_grad()
def test_cases_that_run_eagerly(made: snn.Neuron, x: Tensor) -> None:
    assert made._prepared.run(made, made.cell, x, vars(made), False) is None
    assert made(x).shape == x.shape


@torch.no_grad()
def test_backend_choice_applies_to_single_steps() -> None:
    made, x = snn.LIF(2), torch.ones(1, 2)
    with fuse.backend("eager"):
        made(x)
        assert made._prepared.run(made, made.cell, x, vars(made), False) is None
        assert not made._prepared.kept, "nothing is compiled that will not run"
    with fuse.backend("cpu"):
        assert made._prepared.run(made, made.cell, x, vars(made), False) is not None
    assert torch.vmap(made, randomness="error")(torch.ones(2, 1, 2)).shape == (2, 1, 2)


def test_alternating_shapes_reuse_their_compiled_step() -> None:
    made = layer("BSLIF", 5)
    inputs = [sequence(1, batch, 5, dtype=torch.float32) for batch in range(1, 11)]
    steps_by_batch: dict[int, Any] = {}
    for x in (*inputs[:4], *inputs[:4]):
        streamed(made, x)
        (step,) = [each for key, each in made._prepared.kept.items() if key[1][0] == x.shape[1]]
        assert steps_by_batch.setdefault(x.shape[1], step) is step
    for x in inputs[4:]:
        streamed(made, x)
    assert len(made._prepared.kept) == 8


def test_overridden_step_kwargs_may_read_unwatched_attributes() -> None:
    class Gained(snn.LIF):
        gain = 1.0

        def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
            kwargs = super().step_kwargs(ndim, dtype)
            return {**kwargs, "beta": kwargs["beta"] * self.gain}

    layer, x = Gained(3), torch.full((1, 3), 0.25)
    with torch.no_grad():
        layer(x)
        layer.gain = 0.0
        layer(x)
    assert torch.equal(layer.mem, x)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "a column": lambda matrix: matrix[:, 1],
    "one value expanded": lambda matrix: matrix[0, 0].expand(len(matrix)),
    "every other row": lambda matrix: torch.cat([matrix, matrix])[::2, 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("how", ["data", "functional_call"])
@torch.no_grad()
def test_changed_values_of_a_strided_parameter_take_effect(
    how: str, view: str, dtype: torch.dtype
) -> None:
    made, x = layer("LIF", 4), sequence(3, 2, 4, dtype=torch.float32)
    raw = VIEWS[view](torch.linspace(-2, 2, 16, dtype=dtype).reshape(4, 4))

    def steps() -> Results:
        tt.zero_states(made)
        if how == "data":
            return stepped(made, x), made.mem
        return torch.stack([functional_call(made, {"raw_beta": raw}, (s,)) for s in x]), made.mem

    if how == "data":
        made.raw_beta.data = raw
    outputs = []
    for _ in range(3):
        found = steps()
        assert is_compiled(made)
        with fuse.backend("eager"):
            assert all(map(torch.equal, found, steps()))
        outputs.append(found[1])
        raw._base.add_(1)
    assert not torch.equal(outputs[0], outputs[1])


def test_parameter_with_another_stride_at_the_same_address_takes_effect() -> None:
    made, x = layer("LIF", 4), sequence(3, 2, 4, dtype=torch.float32)
    matrix, values = torch.linspace(-2, 2, 16).reshape(4, 4), torch.full((4,), 1 + 1j)
    negative = values.conj().imag
    for view in (matrix[0], matrix[:, 0], matrix[0, :1], matrix[0, :1].expand(4), negative):
        made.raw_beta.data = view
        torch.testing.assert_close(run(made, x), run(made, x, "eager"), rtol=0, atol=0)
    values.mul_(2)
    torch.testing.assert_close(run(made, x), run(made, x, "eager"), rtol=0, atol=0)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "smaller": lambda mem: torch.zeros(1, 4),
    "slice": lambda mem: mem[:1],
    "empty": lambda mem: torch.zeros(0),
    "dtype": lambda mem: torch.zeros(4, 4, dtype=torch.float64),
    "shape": lambda mem: mem.view(16),
    "dtype at the same address": lambda mem: mem.view(torch.int32),
}
TAKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": Tensor.t,
    "expanded": lambda mem: mem[0].expand(4, 4),
    "other memory": lambda mem: 2 * mem,
    "negative view": lambda mem: torch.complex(mem, mem).conj().imag,
}


@pytest.mark.parametrize("other", [*REFUSED, *TAKEN])
@torch.no_grad()
def test_state_replaced_through_data_is_checked_or_takes_effect(other: str) -> None:
    made, twin = snn.LIF(4), snn.LIF(4)
    x = torch.linspace(0, 0.8, 16).reshape(4, 4)
    for each in (made, twin):
        each(x)
        held = each.mem
        each.mem.data = {**REFUSED, **TAKEN}[other](each.mem)
        assert each.mem is held
    if other in REFUSED:
        with pytest.raises(ValueError, match="holds the state mem of shape"):
            made(x)
        return
    out = made(x)
    assert is_compiled(made)
    with fuse.backend("eager"):
        assert torch.equal(out, twin(x))
    assert torch.equal(made.mem, twin.mem)
