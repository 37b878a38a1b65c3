from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import Net, configurations, examples, layer, sequence, stepped, vary
from tests.networks import Leaky
from tests.refusals import check, refusals, unchanged
from tests.unrolling.models import dyadic, made
from tracetorch import neurons, snn
from tracetorch.checkpoint import Loaded
from tracetorch.checkpoint.read import CHECKSUM_KEY, HEADER_KEY, checksum

FOLDER = Path(__file__).parent.parent / "golden"
GOLDEN = torch.load(FOLDER / "tracetorch_0_9_2.pt", weights_only=True)


@pytest.mark.parametrize("name", ["LIF", "BSRLIF", "SReadout"])
def test_kernels_run_on_what_was_loaded(name: str, tmp_path: Path) -> None:
    """Also where they ran before, on the values and the states that the file replaces."""
    one, other = layer(name, 4), getattr(snn, name)(4)
    x = sequence(9, 2, 4, dtype=torch.float32)
    with torch.no_grad():
        expected = stepped(one, x)
        tt.save(one, tmp_path / "layer.safetensors", states=True)
        with tt.fuse.backend("cpu"):
            assert not torch.equal(tt.unroll(other, x), expected)
            stepped(other, x)
            tt.load(tmp_path / "layer.safetensors", other, states=True)
            later = tt.unroll(other, x)
            again = stepped(other, x)
    with tt.fuse.backend("eager"), torch.no_grad():
        assert torch.equal(later, stepped(one, x))
        assert torch.equal(again, stepped(one, x))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda case: case["layer"])
@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_checkpoints_of_0_9_2_load(golden: dict[str, Any], container: str, tmp_path: Path) -> None:
    path, state_dict = tmp_path / "old", golden["state_dict"]
    if container == "safetensors":
        save_file(state_dict, path)
    else:
        torch.save(state_dict, path, _use_new_zipfile_serialization=container == "zip")
    model = getattr(snn, golden["layer"])(**golden["kwargs"]).double()
    assert tt.load(path, model) == tt.checkpoint.Loaded(None)
    torch.testing.assert_close(stepped(model, golden["x"]), golden["out"], rtol=1e-10, atol=1e-10)
    if container != "safetensors":
        model.load_state_dict(torch.load(path, weights_only=True))


FILE = FOLDER / "tracetorch_0_10_0.safetensors"


class Everything(snn.TTModule):
    """What a file describes: neurons, delays, a norm, a block, a shared weight, layers in a list.

    ``expected`` in the file is what the model gave for the last six steps, from the states there.
    """

    expected: Tensor

    def __init__(self, reset: str = "subtract") -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 3),
            nn.BatchNorm1d(3),
            layer("BSRLIF", 3, reset=reset),
            nn.ReLU(),
            snn.DelayedLinear(3, 3, max_delay=2),
            neurons.AdLIF(3, rho=0.99, bounded=True),
            snn.Delay(3, max_delay=3, delay=torch.tensor([1.0, 2.0, 0.5])),
            snn.SEWBlock(nn.Sequential(nn.Linear(3, 3), snn.LIF(3, pos_threshold=0.3))),
            snn.Recurrent(neurons.ALIF(3, pos_threshold=0.3), nn.Linear(3, 3)),
            nn.Linear(3, 3),
        )
        self.hidden: list[Any] = [nn.Linear(3, 3), snn.Readout(3)]
        self.hidden[0].weight = self.net[9].weight
        self.register_buffer("expected", torch.zeros(6, 2, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.hidden[1](self.hidden[0](self.net(x)))
        return y


def test_a_file_with_settings_of_all_modules_and_a_training_loads() -> None:
    model = Everything().eval()
    loaded = tt.load(FILE, model, states=True)
    assert loaded.missing == loaded.unexpected == ()
    assert loaded.version is not None
    assert model.hidden[0].weight is model.net[9].weight
    for part in (model, *model.hidden):  # in a list, they are not moved with the model
        part.double()
    with torch.no_grad():
        found = stepped(model, sequence(12, 2, 4)[6:])
    assert model.expected.abs().sum() > 0
    torch.testing.assert_close(found, model.expected, rtol=0, atol=1e-9)
    model, said = (
        Everything(reset="none"),
        r"'net\.2': .*'subtract' in the file, 'none' in",
    )
    with unchanged(model), pytest.raises(ValueError, match=said):
        tt.load(FILE, model)


def test_older_files_lack_modules_and_hold_traces_of_learners(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(3, 2), snn.LIF(2)), tmp_path / "old.safetensors"
    model(torch.rand(1, 3))
    tt.save(model, path, states=True)
    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()[HEADER_KEY])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    header.pop("modules")
    header["states"].append("trace:eprop:1:beta:mem")
    text = json.dumps(header)
    save_file(tensors, path, {HEADER_KEY: text, CHECKSUM_KEY: checksum(text, tensors)})
    other = nn.Sequential(nn.Linear(3, 2), snn.LIF(2))
    tt.load(path, other, states=True)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(tt.get_states(other), tt.get_states(model), rtol=0, atol=0)


def test_states_are_loaded_where_they_are_asked_for(tmp_path: Path) -> None:
    one, other, fresh = made("recurrent"), made("recurrent"), made("recurrent")
    stepped(one, dyadic(4, 2, 3))
    tt.save(one, tmp_path / "net.safetensors", states=True)
    tt.load(tmp_path / "net.safetensors", other)
    assert tt.get_states(other) == {}
    tt.load(tmp_path / "net.safetensors", other, states=True)
    tt.save(fresh, tmp_path / "fresh.safetensors", states=True)
    tt.load(tmp_path / "fresh.safetensors", other, states=True)
    assert tt.get_states(other) == {}
    tt.save(one, tmp_path / "net.safetensors")
    said = r"holds no states. Save with tt\.save\(model, path, stat"
    with unchanged(one), pytest.raises(ValueError, match=said):
        tt.load(tmp_path / "net.safetensors", one, states=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_stream_goes_on_in_another_dtype_as_the_message_says(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, other = made("recurrent", torch.float32), made("recurrent", dtype)
    x, file = dyadic(6, 2, 3).float(), tmp_path / "stream"
    with torch.no_grad():
        tt.unroll(model, x)
        tt.save(model, file, states=True)
        said = r"\d more: torch.float32 .* model.to\(torch.float32\), load"
        with pytest.raises(ValueError, match=said):
            tt.load(file, other, states=True)
        tt.load(file, other.float(), states=True)
        expected = tt.unroll(copy.deepcopy(model).to(dtype), x.to(dtype))
        assert torch.equal(tt.unroll(other.to(dtype), x.to(dtype)), expected)


def test_tied_and_overlapping_tensors_are_saved_and_loaded(tmp_path: Path) -> None:
    def tied() -> Any:
        model: Any = nn.Sequential(nn.Linear(3, 3), layer("LIF", 3), nn.Linear(3, 3))
        model[2].weight = model[0].weight
        model.register_buffer("rows", model[0].weight.detach()[:2])
        return model

    one, other = tied(), tied()
    nn.init.normal_(one[0].weight)
    tt.save(one, tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", framework="pt") as file:
        assert "2.weight" not in file.keys()  # noqa: SIM118
    tt.load(tmp_path / "net.safetensors", other)
    assert torch.equal(other[2].weight, one[0].weight)
    assert other[2].weight is other[0].weight
    assert torch.equal(other.rows, one[0].weight[:2])
    loose: Any = nn.Sequential(nn.Linear(3, 3), layer("LIF", 3), nn.Linear(3, 3))
    loose.register_buffer("rows", torch.zeros(2, 3))
    tt.load(tmp_path / "net.safetensors", loose)
    assert torch.equal(loose[2].weight, loose[0].weight)
    nn.init.normal_(loose[2].weight)
    tt.save(loose, tmp_path / "loose.safetensors")
    with pytest.raises(ValueError, match=r"'0\.weight' and '2\.weight' are one tensor in the"):
        tt.load(tmp_path / "loose.safetensors", other)
    with pytest.raises(TypeError, match="states must be True or False, got 1"):
        tt.save(loose, tmp_path / "states.safetensors", states=1)  # type: ignore[arg-type]


@refusals(
    r"""
    snn.LIF(3) -> LIF.3, reset='zero'., the model LIF.3.; reset: 'zero' in the file, 'subtract' in
    snn.RLIF(3, reset="zero") -> gamma: absent in the file, 1 in the model
    snn.LIF(3, beta_rank=0, reset="zero") -> rank of beta: 1 in the file, 0 in the
    snn.LIF(4, reset="zero") -> num_neurons: 3 in the file, 4 in the model
    snn.LIF(3, dim=-2, reset="zero") -> dim: -1 in the file, -2 in the model
    nn.Identity() -> layer '1': only the file has it, LIF.3, reset='zero'
    nn.Sequential(snn.LIF(3)) -> layer '1\.0': only the model has it, LIF\(3\)
    Leaky(3) -> Leaky.3.; equations: 'LeakyIntegrator' in the file, 'Leaky' in the model\. Bui
    """
)
def test_layers_with_other_settings_are_refused_by_name(call, error, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    tt.save(nn.Sequential(nn.Linear(3, 3), layer("LIF", 3, reset="zero")), path)
    model = nn.Sequential(nn.Linear(3, 3), eval(call, {**globals(), "Leaky": Leaky}))
    refused = pytest.raises(ValueError, match=rf"does not fit Sequential\. .*{error}")
    with unchanged(model), refused:
        tt.load(path, model)


def test_strict_false_loads_common_tensors_and_returns_the_other_names(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    one: Any = nn.Sequential(nn.Linear(3, 3), layer("LIF", 3), nn.Linear(3, 2), layer("Readout", 2))
    tt.save(one, path)
    other: Any = nn.Sequential(nn.Linear(3, 3), layer("LIF", 3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    with unchanged(other), pytest.raises(ValueError, match="layer '3': only the file has it"):
        tt.load(path, other)
    loaded = tt.load(path, other, strict=False)
    names = [f"3.{name}" for name in other[3].state_dict()]
    assert "3.running_mean" in names
    assert loaded == Loaded(tt.__version__, missing=tuple(names), unexpected=("3.raw_beta",))
    assert torch.equal(other[2].weight, one[2].weight)
    other[1] = layer("LIF", 3, reset="none")
    with pytest.raises(ValueError, match=r"layer '1': .*reset: 'subtract' in the file, 'none' in"):
        tt.load(path, other, strict=False)


ZEROS = torch.zeros(3, 3)


@refusals(
    r"""
    {"0.weight": ZEROS, "0.bais": torch.zeros(3)}
        -> the file lacks '0\.bias'; only the file has '0\.bais'\. Build .* strict=False skips
    {"0.weight": ZEROS.double(), "0.bias": ZEROS[0].int()}
        -> '0\.bias': torch\.int32 in the file, torch\.float32 in the model; '0\.weight': tor
    {"0.weight": ZEROS.double(), "0.bias": ZEROS[0].double()}
        -> '0\.bias', '0\.weight': .*; convert the model with model\.to\(torch\.float64\), load
    {"0.weight": ZEROS[:2].clone(), "0.bias": torch.zeros(3)}
        -> '0\.weight' has shape \[2, 3\] in the file, \[3, 3\]
    {f"{i}": torch.zeros(1) for i in range(20)} -> and 14 more
    """
)
def test_errors_list_names_and_dtypes_that_differ(call, error, tmp_path) -> None:
    path, model = tmp_path / "net.safetensors", nn.Sequential(nn.Linear(3, 3))
    save_file(eval(call), path)
    with unchanged(model), pytest.raises(ValueError, match=error):
        tt.load(path, model)


def test_nan_and_other_strides_are_loaded_and_the_meta_device_is_refused(tmp_path: Path) -> None:
    path, model, other = tmp_path / "net.safetensors", layer("LIF", 3), layer("LIF", 3)
    with torch.no_grad():
        model.raw_beta[1] = torch.nan
    tt.save(model, path)
    tt.load(path, other)
    torch.testing.assert_close(other.raw_beta, model.raw_beta, rtol=0, atol=0, equal_nan=True)
    values = torch.tensor(2.0).expand(1), ZEROS[0, :1]  # contiguous, of other strides
    one, two = (cast("Any", Net(None, scale=nn.Parameter(value))) for value in values)
    tt.save(one, path)
    tt.load(path, two)
    assert two.scale.item() == 2.0
    tt.save(nn.Sequential(nn.Linear(4, 3), snn.LIF(3)), path)
    model = nn.Sequential(nn.Linear(4, 3, device="meta"), snn.LIF(3))
    with pytest.raises(ValueError, match=r"'0\.weight': on the device meta .* model\.to_empty"):
        tt.load(path, model)
    tt.load(path, model.to_empty(device="cpu"))


def failing() -> Any:
    """Make a model whose second layer may refuse to load, when the first one has been loaded."""

    def refuse(*_: object) -> None:
        if model.refuses:
            raise RuntimeError("no")

    model = Net(None, one=nn.Linear(3, 3), two=layer("LIF", 3), refuses=False)
    model.get_submodule("two").register_load_state_dict_pre_hook(refuse)
    return model


def test_a_load_that_fails_in_the_middle_or_by_its_states_leaves_the_model_unchanged(
    tmp_path,
) -> None:
    one, other = failing(), failing()
    tt.save(one, tmp_path / "net.safetensors")
    other.two(torch.rand(2, 3))
    other.refuses = True
    with unchanged(other), pytest.raises(RuntimeError, match="no"):
        tt.load(tmp_path / "net.safetensors", other)
    one.two(torch.rand(2, 3))
    one.two.mem = torch.zeros(2, 4)  # a state that no layer of three neurons can have
    vary(one)
    tt.save(one, tmp_path / "net.safetensors", states=True)
    other, refused = failing(), r"layer 'two', .* needs mem with 3 neurons"
    with unchanged(other), pytest.raises(ValueError, match=refused):
        tt.load(tmp_path / "net.safetensors", other, states=True)


class Extra(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"step": 3}


@refusals(
    r"""
    tt.save(Extra(), file) -> TypeError: '_extra_state' in the state_dict is a dict, not a tensor
    tt.save(Net(None, cells={snn.LIF(3), snn.LIF(3)}), file)
        -> ValueError: 'cells\.\{0\}' is a module in a set
    tt.save(nn.Linear(3, 3), file / "net.safetensors") -> NotADirectoryError: file.safetensors
    tt.save(nn.Linear(3, 3), file.with_name("no") / "net") -> FileNotFoundError: there is no folder
    tt.load(file, nn.Linear(3, 2), strict=False)
        -> ValueError: none of its names is one of the model's
    tt.load(file, snn.LIF(3), strict="no") -> TypeError: strict must be True or False, got 'no'
    tt.load(file, snn.LIF(3), states="no") -> TypeError: states must be True or False, got 'no'
    tt.load(file, {}) -> TypeError: expected an nn\.Module, got dict
    """
)
def test_what_cannot_be_saved_or_loaded_leaves_the_file(call, error, tmp_path) -> None:
    file = tmp_path / "file.safetensors"
    tt.save(nn.Sequential(nn.Linear(3, 2)), file)
    before = file.read_bytes()
    check(call, error, {**globals(), "file": file})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


CONFIGURATIONS = [*configurations(False, False), *configurations(True, True)]


@given(st.sampled_from(CONFIGURATIONS), st.sampled_from(CONFIGURATIONS))
@examples(60)
def test_a_configuration_loads_only_into_an_equal_one(tmp_path_factory, one, other) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    saved, model = snn.LeakyIntegrator(3, **one), snn.LeakyIntegrator(3, **other)
    tt.save(saved, path)
    tt.load(path, copy.deepcopy(saved))
    if one == other:
        tt.load(path, model)
    else:
        with pytest.raises(ValueError, match="the layer: the file has LeakyIntegrator"):
            tt.load(path, model)


def test_a_file_of_a_learner_is_not_one_of_its_model(tmp_path: Path) -> None:
    net, path = nn.Sequential(nn.Linear(3, 2), snn.LIF(2)), tmp_path / "learner"
    learner = tt.online(net, "eprop")
    learner(torch.rand(1, 3))
    tt.save(learner, path, states=True)
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"does not fit Sequential\."):
            tt.load(path, net, strict=strict, states=strict)
        tt.load(path, tt.online(net, "eprop"), strict=strict, states=strict)
