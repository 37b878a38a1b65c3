from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import LAYERS, PLACES, configurations, examples, few, layer, sequence, vary
from tests.export.models import (
    NAMES,
    Adaptive,
    assert_equal,
    at,
    folded,
    hidden,
    reference,
    sample_of,
    several,
)
from tests.networks import Parallel, module
from tests.refusals import check, refusals
from tests.unrolling.models import made
from tracetorch import snn
from tracetorch.core.torch_private import pytree
from tracetorch.export.program import TensorSpec, named_leaves

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")


def streamed(stream: tt.export.OnnxStream, x: Any) -> Any:
    """Run a stream over a sequence; return its outputs over time."""
    outputs = []
    for step in range(len(pytree.tree_leaves(x)[0])):
        now = at(x, step)
        outputs.append(stream(*now) if isinstance(now, tuple) else stream(now))
    return pytree.tree_map(lambda *each: torch.stack(each), *outputs)


def flat(y: Any) -> Any:
    """Name outputs of a model as its file does: a dict, unless there is one tensor."""
    leaves = dict(named_leaves("y", y, "."))
    return leaves["y"] if [*leaves] == ["y"] else leaves


@pytest.fixture(scope="module")
def lif(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "lif.onnx"
    tt.export.onnx(layer("SLIF", 3), path, torch.rand(1, 3))
    return path


def assert_exact(model: nn.Module, folder: Path, sample: Any, *inputs: Any) -> Any:
    """Assert that a stream computes what PyTorch does; return it, and the last outputs."""
    tt.export.onnx(model, folder / "net.onnx", sample)
    stream = tt.export.OnnxStream(folder / "net.onnx")
    for x in inputs:
        stream.zero_states()
        y = streamed(stream, x)
        expected, states = reference(model, x)
        assert_equal((y, stream.get_states()), (flat(expected), states))
    assert not tt.get_states(model)
    return stream, y


@pytest.mark.parametrize("names", few([LAYERS, LAYERS[::3]], LAYERS[::3]))
def test_every_layer_equals_pytorch_bit_for_bit(names: tuple[str, ...], tmp_path: Path) -> None:
    x = sequence(40, 5, 3, 3, 3, dtype=torch.float32)
    _, y = assert_exact(several(names), tmp_path, torch.rand(1, 3, 3, 3), x)
    onnx.checker.check_model(tmp_path / "net.onnx", full_check=True)
    assert all(each.any() for each in y.values())


@pytest.mark.parametrize("name", few(NAMES, "skip"))
def test_models_with_dyadic_weights_equal_pytorch_bit_for_bit(name: str, tmp_path: Path) -> None:
    # onnxruntime convolves in single precision alone
    dtype = torch.float32 if name == "conv" else torch.float64

    def sample(*lead: int) -> Any:
        return pytree.tree_map(lambda each: each.to(dtype), sample_of(name, *lead))

    assert_exact(made(name, dtype), tmp_path, sample(1), sample(20, 1), sample(20, 4))


class Clamps(snn.Neuron):
    """Bounds of which one is an int and one a float, in every form."""

    states = ("mem",)

    @staticmethod
    def step(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = torch.clamp(0.5 * mem + x, -1, 1.5)
        parts = x.clamp(min=-0.5, max=1), F.hardtanh(2 * x, 0, 1.5), (x + 1).clip_(-1, 0.75)
        return mem + sum(parts) + x.to(torch.int32).clamp(-1.5, 2), mem


def integer_neurons() -> list[nn.Module]:
    """Integer neurons: every kind of decay, and every part."""
    kind, floor = tt.integers.LeakyIntegrator, tt.integers.Multiplier(8, rounding="floor")
    spiking: dict[str, Any] = {"beta": 230, "pos_threshold": 50, "neg_threshold": 60}
    synapse: dict[str, Any] = {"alpha": 100, "alpha_ema": True, "overflow": "wrap"}
    recurrence: dict[str, Any] = {"gamma": 200, "rec_weight": torch.tensor([-7.0, 5.0, 9.0])}
    leaks: list[Any] = [tt.integers.Multiplier(6, rounding="nearest"), tt.integers.Shift("trunc")]
    return [
        kind(3, **spiking, **synapse, **recurrence, rec_weight_fraction=2, decay=floor, bias=-3),
        *(kind(3, alpha=2, beta=3, pos_threshold=70, reset="zero", decay=each) for each in leaks),
        kind(3, **recurrence, beta=220, gamma_ema=True, state_bits=10),
    ]


@pytest.mark.parametrize("dtype", few([torch.float32, torch.float64], torch.float32))
@pytest.mark.parametrize("kinds", few([1, 4], 1))
def test_integer_neurons_and_clamps_equal_pytorch(
    dtype: torch.dtype, kinds: int, tmp_path: Path
) -> None:
    model = Parallel([*integer_neurons()[:kinds], Clamps(3)]).to(dtype)
    x = torch.randint(-60, 90, (40, 3, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    _, y = assert_exact(model, tmp_path, x[0], x, x[:, :1])
    assert all(each.any() for each in y.values())


def delayed() -> nn.Module:
    first, second = snn.Delay(3, max_delay=4, sigma=0.7), snn.Delay(3, max_delay=2)
    edges = torch.tensor([[0, 2, 0, 1, 2], [1, 0, 1, 0, 2]])  # one of them twice
    sparse = snn.SparseLinear(3, 3, edges, delay=torch.tensor([0, 2, 1, 1, 0]))
    grouped = snn.SparseLinear(3, 3, edges, group=edges[1], signs=torch.tensor([1, -1, 1]))
    return nn.Sequential(first, snn.DelayedLinear(3, 3, max_delay=3), sparse, grouped, second)


@pytest.mark.parametrize("parts", few(["of the user", "with delays"], "of the user"))
def test_unregistered_layers_and_user_defined_neurons(parts: str, tmp_path: Path) -> None:
    model = Parallel([hidden(), Adaptive(3)] if parts == "of the user" else [delayed()])
    tt.export.onnx(model, tmp_path / "net.onnx", torch.rand(1, 3))
    stream = tt.export.OnnxStream(tmp_path / "net.onnx")
    x = sequence(20, 4, 3, dtype=torch.float32)
    y, states = reference(model, x)
    found = streamed(stream, x), stream.get_states()
    # across a matrix product
    torch.testing.assert_close(found, (flat(y), states), rtol=1e-5, atol=1e-6)


def test_a_mask_restarts_samples_from_what_a_neuron_starts_from(tmp_path: Path) -> None:
    net: Any = nn.Sequential(tt.neurons.Izhikevich(3), snn.SLIF(3))
    tt.export.onnx(net, tmp_path / "net.onnx", torch.rand(1, 3))
    stream = tt.export.OnnxStream(tmp_path / "net.onnx")
    mask = torch.tensor([True, False, False, True])
    stream.zero_states(where=mask)  # before the first step there is nothing to restart
    with torch.no_grad():
        for x in 10 * torch.rand(5, 4, 3):
            net(x), stream(x)
    stream.set_states(tt.get_states(net))
    before = stream.get_states()
    for wrong in (mask[:3], mask.int()):
        with pytest.raises((IndexError, TypeError), match=r"boolean (ind|tensor)|mask\[indices\]"):
            stream.zero_states(where=wrong)
    assert_equal(stream.get_states(), before)
    tt.zero_states(net, where=mask)
    stream.zero_states(where=mask)
    found = stream.get_states()
    torch.testing.assert_close(found, tt.get_states(net), rtol=0, atol=0)
    assert found["0.v"][0].tolist() == [-65.0] * 3
    assert not torch.equal(found["0.v"][0], before["0.v"][0])
    assert torch.equal(found["0.v"][1:3], before["0.v"][1:3])


@pytest.mark.slow
def test_a_state_may_be_a_multiple_of_the_batch(tmp_path: Path) -> None:
    x = sequence(5, 3, 8, dtype=torch.float32)
    stream, _ = assert_exact(folded(), tmp_path, torch.rand(1, 8), x)
    with pytest.raises(IndexError, match="boolean index did not match"):
        stream.zero_states(where=torch.tensor([True, False, True]))


@pytest.mark.slow
@pytest.mark.parametrize("synapse", [False, True])
@pytest.mark.parametrize("recurrence", [False, True])
def test_configurations_equal_pytorch_bit_for_bit(
    synapse: bool, recurrence: bool, tmp_path: Path
) -> None:
    chosen = random.Random(0).sample(list(configurations(synapse, recurrence)), 24)
    cells = [snn.LeakyIntegrator(3, dim=PLACES[i % 3][0], **c) for i, c in enumerate(chosen)]
    model = Parallel(cells)
    vary(model)
    x = sequence(30, 2, 3, 3, 3, dtype=torch.float32)
    assert_exact(model, tmp_path, torch.rand(1, 3, 3, 3), x)


@pytest.mark.slow
def test_bsrlif_streams_500_steps_bit_for_bit(tmp_path: Path) -> None:
    inputs = [sequence(500, batch, 16, dtype=torch.float32) for batch in (1, 8)]
    _, y = assert_exact(layer("BSRLIF", 16), tmp_path, torch.rand(1, 16), *inputs)
    assert (y > 0).any()
    assert (y < 0).any()


@pytest.mark.slow
def test_inputs_and_outputs_have_the_names_of_arguments_and_states(tmp_path: Path) -> None:
    x, gate = torch.rand(2, 4), torch.rand(2, 4)
    tt.export.onnx(made("skip", torch.float32), tmp_path / "skip.onnx", (x, gate))
    stream = tt.export.OnnxStream(tmp_path / "skip.onnx")
    states = [f"{cell}.{name}" for cell, names in (
        ("cells.0", "mem syn"), ("cells.1", "mem rec prev_output"), ("out", "mem rec prev_output"),
    ) for name in names.split()]  # fmt: skip
    outputs = ["y.out", "y.aux.0", "y.aux.1"]
    graph = onnx.load(tmp_path / "skip.onnx").graph
    assert [each.name for each in graph.input] == ["x", "gate", *states]
    assert [each.name for each in graph.output] == [*outputs, *(f"{s}.next" for s in states)]
    assert not any("raw_" in each.name for each in graph.initializer)
    positional = stream(x, gate)
    assert [*positional] == outputs
    stream.zero_states()
    assert_equal(stream(gate=gate.numpy(), x=x), positional)
    stream.zero_states()
    arrays = stream(x.numpy(), gate=gate.numpy())
    assert isinstance(arrays["y.out"], np.ndarray)
    np.testing.assert_array_equal(arrays["y.out"], positional["y.out"].numpy())
    assert "gate: [batch, 4], float32" in repr(stream)
    assert "8 states" in repr(stream)


def test_states_are_read_and_set_by_name(lif: Path) -> None:
    stream, model = tt.export.OnnxStream(lif), layer("SLIF", 3)
    assert stream.get_states() == {}
    x = sequence(9, 4, 3, dtype=torch.float32)
    whole, last = reference(model, x)
    first = streamed(stream, x[:5])
    states = stream.get_states()
    other = tt.export.OnnxStream(lif, threads=2)
    other.set_states({name: state.numpy() for name, state in states.items()})
    states["mem"].fill_(7.0)  # a copy
    assert_equal(torch.cat([first, streamed(other, x[5:])]), whole)
    other.set_states(reference(model, x[:5])[1])  # those of the model are the same
    assert_equal(torch.cat([first, streamed(other, x[5:])]), whole)
    assert_equal(other.get_states(), last)
    stream.set_states({**stream.get_states(), "mem": torch.full((4, 3), 100.0)})
    assert stream(x[0]).all()
    stream.set_states({})
    assert_equal(streamed(stream, x), whole)


TWO: dict[str, Any] = {"mem": torch.zeros(2, 3), "syn": torch.zeros(2, 3)}


@refusals(
    r"""
    (torch.rand(2, 4)) -> ValueError: 'x' must have the shape \[batch, 3\].*got \[2, 4\]
    (torch.rand(3)) -> ValueError: got \[3\]
    (torch.rand(0, 3)) -> ValueError: got \[0, 3\]
    (torch.rand(4, 3)) -> ValueError: a batch of 2, the input has 4. Call zero_states\(\)
    (torch.rand(2, 3).double()) -> TypeError: 'x' must be float32, got float64
    ([[1.0] * 3] * 2) -> TypeError: 'x' must be float32, got float64
    () -> TypeError: takes \['x'\], each once; got 0 by position and \[\] by name
    (torch.rand(2, 3), torch.rand(2, 3)) -> TypeError: each once; got 2 by position
    (y=torch.rand(2, 3)) -> TypeError: got 0 by position and \['y'\] by name
    .set_states({"men": TWO["mem"]}) -> ValueError: all states are needed.* Did you mean 'mem'
    .set_states({"mem": TWO["mem"]}) -> ValueError: or none: \['mem', 'syn'\], got \['mem'\]
    .set_states({**TWO, "syn": torch.zeros(2, 4)})
        -> ValueError: the state 'syn' must have the shape \[batch, 3\].*got \[2, 4\]
    .set_states({**TWO, "syn": torch.zeros(4, 3)}) -> ValueError: the states differ in batch
    .set_states({**TWO, "syn": np.zeros((2, 3))})
        -> TypeError: the state 'syn' must be float32, got float64
    """
)
def test_what_does_not_fit_is_refused_and_leaves_the_states(
    lif: Path, call: str, error: str
) -> None:
    stream = tt.export.OnnxStream(lif)
    stream(torch.rand(2, 3))
    before = stream.get_states()
    check(f"stream{call}", error, {**globals(), "stream": stream})
    assert_equal(stream.get_states(), before)


SPEC = {"shape": ["batch", 3], "dtype": "float32"}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", 2, "it has format 2, this version reads 1"),
        ("states", None, "KeyError: 'states'"),
        ("states/syn", None, r"it speaks of \['x', 'mem'\]"),
        ("states/y", SPEC, "no next value"),
        ("inputs/x/shape", ["many"], "'many' is not a size"),
        ("inputs/x/dtype", "load", "'load' is not a dtype"),
        # what the graph takes is another dtype, rank or size
        ("inputs/x/dtype", "float64", r"'x' of \[batch, 3\], float64"),
        ("states/mem/dtype", "float64", "'mem' of .* float64"),
        ("states/mem/shape", ["batch", 4], r"'mem' of \[batch, 4\]"),
        ("states/mem/shape", ["2*batch", 3], "'mem' of"),
        ("inputs/x/shape", [2, 3], "'x' of"),
        ("initial", {"mem": [[1, 0]]}, "RuntimeError"),
        ("initial", {"mem": float("nan")}, "the state 'mem' starts from NaN"),
    ],
)
def test_a_wrong_description_is_refused(
    place: str, value: Any, message: str, lif: Path, tmp_path: Path
) -> None:
    file = onnx.load(lif)
    (entry,) = [each for each in file.metadata_props if each.key == "tracetorch"]
    fields = whole = json.loads(entry.value)
    *parents, last = place.split("/")
    for each in parents:
        fields = fields[each]
    fields[last] = value
    if value is None:
        del fields[last]
    entry.value = json.dumps(whole)
    onnx.save(file, tmp_path / "wrong.onnx")
    with pytest.raises(ValueError, match=f"describes itself wrongly .*{message}.*its graph takes"):
        tt.export.OnnxStream(tmp_path / "wrong.onnx")


def test_a_graph_may_fix_the_batch_or_call_it_anything(lif: Path, tmp_path: Path) -> None:
    for dim in ({"dim_value": 2}, {"dim_param": "N"}, {"dim_param": ""}):
        file = onnx.load(lif)
        for value in (*file.graph.input, *file.graph.output):
            value.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(**dim))
        onnx.save(file, tmp_path / "fixed.onnx")
        x = torch.rand(2, 3)
        y = tt.export.OnnxStream(tmp_path / "fixed.onnx")(x)
        assert torch.equal(y, tt.export.OnnxStream(lif)(x))


@pytest.mark.slow
def test_outputs_of_forward_are_named_or_refused(tmp_path: Path) -> None:
    def export(outputs: Callable[[Tensor], Any]) -> None:
        model = module(lambda self, x: outputs(self.cell(x)), cell=layer("LIF", 3))
        tt.export.onnx(model, path, torch.rand(1, 3))

    path = tmp_path / "returns.onnx"
    export(lambda y: [y])
    before = path.read_bytes()
    assert [*tt.export.OnnxStream(path)(torch.rand(1, 3))] == ["y.0"]
    with pytest.raises(TypeError, match=r"the output y\.1 of forward is no tensor"):
        export(lambda y: (y, 3))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["returns.onnx"]
    path = tmp_path / "absent" / "net.onnx"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export(lambda y: [y])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 40))
@examples(50)
def test_a_spec_is_inferred_from_two_batches(factors: list[int], batch: int) -> None:
    shapes = [[*(f * b for f in factors), 7] for b in (2, 3)]
    spec = TensorSpec.inferred("x", [torch.zeros(shape) for shape in shapes], (2, 3))
    sizes = spec.sizes(batch)
    assert sizes == (*(f * batch for f in factors), 7)
    assert spec.batch_of(sizes) == batch
    assert spec.batch_of((*sizes[:-1], 8)) is spec.batch_of(sizes[1:]) is None
    with pytest.raises(ValueError, match=r"x has the shapes \[\(4,\), \(9,\)\] for batches of"):
        TensorSpec.inferred("x", [torch.zeros(4), torch.zeros(9)], (2, 3))
