from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import tracetorch as tt
from tests.cases import LAYERS, PLACES, layer, sequence, stepped
from tracetorch import fuse, snn

needs_cpu = pytest.mark.skipif(
    fuse.unavailable_reason("cpu") is not None, reason="llvmlite is missing"
)
pytestmark = needs_cpu


def reference(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    tt.zero_states(model)
    with fuse.backend("eager"), torch.no_grad():
        return stepped(model, x), tt.get_states(model)


def streamed(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    tt.zero_states(model)
    with torch.no_grad():
        return stepped(model, x), tt.get_states(model)


def is_compiled(made: snn.Neuron) -> bool:
    kept = made._prepared.kept
    return bool(kept) and all(each.runs for key, each in kept.items() if not key[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_streamed_step_equals_the_eager_step(name: str, dtype: torch.dtype) -> None:
    made = layer(name, 7).to(dtype)
    x = sequence(9, 3, 7, dtype=dtype)
    out, states = streamed(made, x)
    assert is_compiled(made)
    expected, ends = reference(made, x)
    assert torch.equal(out, expected)
    assert all(torch.equal(states[k], ends[k]) for k in ends)


@pytest.mark.parametrize(("dim", "shape"), [*PLACES, (0, (3,)), (-1, (3,)), (-1, (1, 1, 3))])
@pytest.mark.parametrize("rank", [0, 1])
def test_neuron_dimensions_and_ranks(dim: int, shape: tuple[int, ...], rank: int) -> None:
    made = layer("BLIF", 3, dim=dim, beta_rank=rank, pos_scale_rank=rank, reset="zero")
    x = sequence(6, *shape, dtype=torch.float32)
    out, _ = streamed(made, x)
    assert is_compiled(made)
    assert torch.equal(out, reference(made, x)[0])


def test_layer_of_one_neuron_streams() -> None:
    """The parameter, an expanded value of one neuron, used to have a stride of zero."""
    layer = snn.LIF(1)
    with torch.no_grad():
        assert layer(torch.tensor([[0.5], [1.5]])).tolist() == [[0.0], [1.0]]


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


def by_data(made: snn.LIF) -> None:
    made.raw_beta.data = made.raw_beta.data - 1


def in_place(made: snn.LIF) -> None:
    made.raw_beta.data.view(-1)[-1] -= 1


def by_optimizer(made: snn.LIF) -> None:
    optimizer = torch.optim.Adam(made.parameters(), lr=0.5, fused=True)
    for p in made.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def by_loading(made: snn.LIF) -> None:
    rank = made.raw_beta.ndim
    made.load_state_dict(layer("LIF", 4, beta=0.3, beta_rank=rank).state_dict())


def by_numpy(made: snn.LIF) -> None:
    made.raw_pos_threshold.detach().numpy()[2] = 3.0


def by_moving(made: snn.LIF) -> None:
    made.bfloat16()


@pytest.mark.parametrize(
    "change", [by_data, in_place, by_optimizer, by_loading, by_numpy, by_moving]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_changed_parameter_takes_effect_at_the_next_step(change: Any, rank: int) -> None:
    made = layer("LIF", 4, beta_rank=rank)
    x = sequence(10, 2, 4, dtype=torch.float32)
    before, _ = streamed(made, x)
    with torch.no_grad():
        change(made)
    out, _ = streamed(made, x)
    assert is_compiled(made)
    assert torch.equal(out, reference(made, x)[0])
    assert not torch.equal(out, before) or change is by_moving


def test_functional_call_takes_effect() -> None:
    made = layer("Readout", 3)
    x = torch.ones(1, 3)
    with torch.no_grad():
        made(x)
        made.zero_states()
        out = functional_call(made, {"raw_beta": torch.zeros(3)}, (x,))
        made.zero_states()
        assert out.tolist() == [[0.5, 0.5, 0.5]]
        assert made(x).tolist() != out.tolist()


def test_input_errors_are_those_of_the_eager_step() -> None:
    made = snn.LIF(2)
    with torch.no_grad():
        made(torch.ones(1, 2))
        held = made.mem
        with pytest.raises(ValueError, match=r"mem of shape \[1, 2\].*shape \[3, 2\]"):
            made(torch.ones(3, 2))
        with pytest.raises(ValueError, match="has 2 neurons, the input has 3"):
            made(torch.ones(1, 3))
        with pytest.raises(TypeError, match=r"got torch\.int64"):
            made(torch.ones(1, 2).long())
        assert made.mem is held
        made.mem = torch.ones(1, 2).double()
        with pytest.raises(ValueError, match=r"torch\.float64, on cpu"):
            made(torch.ones(1, 2))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda made: pickle.loads(pickle.dumps(made))]
)
def test_copy_streams_independently(copied: Any) -> None:
    made = layer("LIF", 3)
    x = sequence(8, 2, 3, dtype=torch.float32)
    with torch.no_grad():
        stepped(made, x[:4])
        twin = copied(made)
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
def test_cases_that_run_eagerly(made: snn.Neuron, x: Tensor) -> None:
    with torch.no_grad():
        assert made._prepared.run(made, made.cell, x, vars(made), False) is None
        assert made(x).shape == x.shape


def test_backend_choice_applies_to_single_steps() -> None:
    made = snn.LIF(2)
    with torch.no_grad(), fuse.backend("eager"):
        made(torch.ones(1, 2))
        assert made._prepared.run(made, made.cell, torch.ones(1, 2), vars(made), False) is None
        assert not made._prepared.kept, "nothing is compiled that will not run"
    with torch.no_grad(), fuse.backend("cpu"):
        assert made._prepared.run(made, made.cell, torch.ones(1, 2), vars(made), False) is not None
    with torch.no_grad():
        assert torch.vmap(made, randomness="error")(torch.ones(2, 1, 2)).shape == (2, 1, 2)


def test_alternating_shapes_reuse_their_compiled_step() -> None:
    made = layer("BSLIF", 5)
    inputs = [sequence(1, batch, 5, dtype=torch.float32)[0] for batch in range(1, 11)]
    steps_by_batch: dict[int, Any] = {}
    for x in (*inputs[:4], *inputs[:4]):
        expected, _ = reference(made, x[None])
        out, _ = streamed(made, x[None])
        assert torch.equal(out, expected)
        (step,) = [each for key, each in made._prepared.kept.items() if key[1][0] == len(x)]
        assert steps_by_batch.setdefault(len(x), step) is step
    for x in inputs[4:]:
        streamed(made, x[None])
    assert len(made._prepared.kept) == 8


def test_overridden_step_kwargs_may_read_unwatched_attributes() -> None:
    class Scaled(snn.LIF):
        gain = 1.0

        def step_kwargs(self, ndim: int, dtype: torch.dtype) -> dict[str, Any]:
            kwargs = super().step_kwargs(ndim, dtype)
            return {**kwargs, "beta": kwargs["beta"] * self.gain}

    layer, x = Scaled(3), torch.full((1, 3), 0.25)
    with torch.no_grad():
        layer(x)
        layer.gain = 0.0
        layer(x)
    assert torch.equal(layer.mem, x)


def column(matrix: Tensor) -> Tensor:
    return matrix[:, 1]


def one_value_expanded(matrix: Tensor) -> Tensor:
    return matrix[0, 0].expand(len(matrix))


def every_other_row(matrix: Tensor) -> Tensor:
    return torch.cat([matrix, matrix])[::2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("view", [column, one_value_expanded, every_other_row])
@pytest.mark.parametrize("how", ["data", "functional_call"])
def test_changed_values_of_a_strided_parameter_take_effect(
    how: str, view: Any, dtype: torch.dtype
) -> None:
    made = layer("LIF", 4)
    matrix = torch.linspace(-2, 2, 16, dtype=dtype).reshape(4, 4)
    raw = view(matrix)
    x = sequence(3, 2, 4, dtype=torch.float32)

    def run() -> Tensor:
        tt.zero_states(made)
        if how == "functional_call":
            return torch.stack([functional_call(made, {"raw_beta": raw}, (step,)) for step in x])
        return stepped(made, x)

    if how == "data":
        made.raw_beta.data = raw
    outputs = []
    with torch.no_grad():
        for _ in range(3):
            tt.zero_states(made)
            out, mem = run(), made.mem
            assert is_compiled(made)
            with fuse.backend("eager"):
                assert torch.equal(out, run())
                assert torch.equal(mem, made.mem)
            outputs.append(mem)
            raw._base.add_(1)
    assert not torch.equal(outputs[0], outputs[1])


def test_parameter_with_another_stride_at_the_same_address_takes_effect() -> None:
    made = layer("LIF", 4)
    matrix = torch.linspace(-2, 2, 16).reshape(4, 4)
    x = sequence(3, 2, 4, dtype=torch.float32)
    for view in (matrix[0], matrix[:, 0], matrix[0, :1], matrix[0, :1].expand(4)):
        made.raw_beta.data = view
        out, states = streamed(made, x)
        expected, ends = reference(made, x)
        assert torch.equal(out, expected)
        assert torch.equal(states["mem"], ends["mem"])


def test_parameter_that_is_a_negative_view_streams() -> None:
    made, values = layer("LIF", 4), torch.full((4,), 1 + 1j)
    x = sequence(3, 2, 4, dtype=torch.float32)
    made.raw_beta.data = values.conj().imag
    for _ in range(2):
        out, states = streamed(made, x)
        expected, ends = reference(made, x)
        assert torch.equal(out, expected)
        assert torch.equal(states["mem"], ends["mem"])
        values.mul_(2)


@pytest.mark.parametrize(
    "other",
    [
        lambda mem: torch.zeros(1, 4),
        lambda mem: mem[:1],
        lambda mem: torch.zeros(0),
        lambda mem: torch.zeros(4, 4, dtype=torch.float64),
        lambda mem: mem.view(16),
        lambda mem: mem.view(torch.int32),
    ],
    ids=["smaller", "slice", "empty", "dtype", "shape", "dtype at the same address"],
)
def test_state_replaced_through_data_is_checked(other: Any) -> None:
    made, x = snn.LIF(4), torch.full((4, 4), 0.3)
    with torch.no_grad():
        made(x)
        held = made.mem
        made.mem.data = other(made.mem)
        assert made.mem is held
        with pytest.raises(ValueError, match="holds the state mem of shape"):
            made(x)


@pytest.mark.parametrize(
    "other",
    [
        Tensor.t,
        lambda mem: mem[0].expand(4, 4),
        lambda mem: 2 * mem,
        lambda mem: torch.complex(mem, mem).conj().imag,
    ],
    ids=["transposed", "expanded", "other memory", "negative view"],
)
def test_state_replaced_through_data_by_a_view_takes_effect(other: Any) -> None:
    made, twin = snn.LIF(4), snn.LIF(4)
    x = torch.linspace(0, 0.8, 16).reshape(4, 4)
    with torch.no_grad():
        for each in (made, twin):
            each(x)
            each.mem.data = other(each.mem)
        out = made(x)
        assert is_compiled(made)
        with fuse.backend("eager"):
            assert torch.equal(out, twin(x))
        assert torch.equal(made.mem, twin.mem)
